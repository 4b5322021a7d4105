//! Service principals by every credential, between a simulated Entra that verifies what it is shown and a simulated API server:
//! secrets and certificates that are rotated, deleted, foreign, or wrong, and several tenants.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test"
)]

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::Command;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use kube::Client;
use podid_azure::clouds;
use podid_azure::entra::Entra;
use podid_azure::imds::Imds;
use podid_nmi::{Config, Nmi, POD_REQUESTS, Upstream};
use podid_policy::matching::Scope;
use podid_sim::azure::{self, Azure, Control};
use podid_sim::cluster::{self, Cluster};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Time limit for what a test waits for, and of podid's calls to Azure in it.
const CONDITION_TIMEOUT: Duration = Duration::from_secs(20);
const RESOURCE: &str = "https://vault.azure.net";

/// A pod `default/web` at loopback with the selector `app`, and an application in Entra.
struct World {
    azure: Control,
    client: Client,
    door: SocketAddr,
    application: String,
    entra: String,
    _tasks: JoinSet<()>,
    stop: CancellationToken,
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn loopback() -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0)
}

impl World {
    async fn build(any_namespace: bool) -> Self {
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        let azure = Azure::bind(azure::Config::default()).await.unwrap();
        let (control, entra) = (azure.control(), format!("http://{}", azure.entra()));
        let stopped = stop.clone();
        tasks.spawn(async move { azure.run(stopped).await.unwrap() });
        let cluster = Cluster::bind(cluster::Config::default()).await.unwrap();
        let config = kube::config::Kubeconfig::from_yaml(&cluster.kubeconfig()).unwrap();
        let options = Default::default();
        let config = kube::Config::from_custom_kubeconfig(config, &options);
        let client = Client::try_from(config.await.unwrap()).unwrap();
        let stopped = stop.clone();
        tasks.spawn(async move { cluster.run(stopped).await.unwrap() });

        let authority = clouds::parse_url("entra", &entra).unwrap();
        let upstream = Upstream::new(
            Imds::new(&authority, None, CONDITION_TIMEOUT),
            Entra::new(&authority, CONDITION_TIMEOUT).unwrap(),
            client.clone(),
            any_namespace,
        );
        let (_, active) = tokio::sync::watch::channel(true);
        let nmi = Nmi::new(config_of_nmi(), client.clone(), upstream, active);
        let door = std::net::TcpListener::bind(loopback()).unwrap();
        let address = door.local_addr().unwrap();
        let listeners = nmi.bind(vec![door]).unwrap();
        let stopped = stop.clone();
        tasks.spawn(async move { nmi.run(listeners, stopped).await.unwrap() });

        let (application, _) = control.create_application("hush");
        let world = Self {
            azure: control,
            client,
            door: address,
            application,
            entra,
            _tasks: tasks,
            stop,
        };
        for definition in podid_api::crds::all().unwrap() {
            let definition = serde_json::to_value(&definition).unwrap();
            let path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
            world.send("POST", path, &definition).await;
        }
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "web", "labels": { "aadpodidbinding": "app" } },
            "spec": { "nodeName": "node", "containers": [{ "name": "app", "image": "app" }] },
        });
        world
            .send("POST", "/api/v1/namespaces/default/pods", &pod)
            .await;
        let status = json!({ "status": { "phase": "Running", "podIP": "127.0.0.1" } });
        world
            .send(
                "PATCH",
                "/api/v1/namespaces/default/pods/web/status",
                &status,
            )
            .await;
        let binding = json!({
            "apiVersion": "aadpodidentity.k8s.io/v1", "kind": "AzureIdentityBinding", "metadata": { "name": "app" },
            "spec": { "azureIdentity": "app", "selector": "app" },
        });
        world
            .send("POST", &custom("azureidentitybindings"), &binding)
            .await;
        world
    }

    async fn send(&self, method: &str, path: &str, body: &Value) {
        let request = http::Request::builder()
            .method(method)
            .uri(path)
            .header(
                "content-type",
                if method == "PATCH" {
                    "application/merge-patch+json"
                } else {
                    "application/json"
                },
            )
            .body(body.to_string().into_bytes())
            .unwrap();
        self.client.request::<Value>(request).await.unwrap();
    }

    /// The AzureIdentity `default/app` of this type, with these fields more.
    async fn identity(&self, kind: u8, more: Value) {
        let mut spec = json!({
            "type": kind, "clientID": self.application, "tenantID": self.azure.tenant(),
            "clientPassword": { "name": "proof", "namespace": "default" },
        });
        for (name, value) in more.as_object().unwrap() {
            spec[name] = value.clone();
        }
        let identity = json!({
            "apiVersion": "aadpodidentity.k8s.io/v1", "kind": "AzureIdentity", "metadata": { "name": "app" }, "spec": spec,
        });
        self.send("POST", &custom("azureidentities"), &identity)
            .await;
    }

    async fn secret(&self, method: &str, namespace: &str, data: &[(&str, &[u8])]) {
        let data: Value = data
            .iter()
            .map(|(name, value)| ((*name).to_owned(), json!(STANDARD.encode(value))))
            .collect();
        let secret = json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "proof" }, "data": data });
        let path = format!("/api/v1/namespaces/{namespace}/secrets");
        let path = if method == "POST" {
            path
        } else {
            format!("{path}/proof")
        };
        self.send(method, &path, &secret).await;
    }

    async fn ask(&self) -> (u16, Value) {
        let url = format!(
            "http://{}/metadata/identity/oauth2/token?api-version=2018-02-01&resource={RESOURCE}",
            self.door
        );
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let answer = client
            .get(url)
            .header("Metadata", "true")
            .send()
            .await
            .unwrap();
        (answer.status().as_u16(), answer.json().await.unwrap())
    }

    /// Asks until the answer is as wanted.
    async fn until(&self, what: &str, holds: impl Fn(u16, &Value) -> bool) -> Value {
        let started = Instant::now();
        loop {
            let (status, body) = self.ask().await;
            if holds(status, &body) {
                return body;
            }
            assert!(
                started.elapsed() < CONDITION_TIMEOUT,
                "never {what}: {status} {body}"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn until_token(&self) -> Value {
        self.until("a token", |status, _| status == 200).await
    }

    async fn until_told(&self, text: &str) {
        self.until(text, |status, body| {
            status != 200
                && body["error_description"]
                    .as_str()
                    .is_some_and(|said| said.contains(text))
        })
        .await;
    }
}

fn custom(plural: &str) -> String {
    format!("/apis/aadpodidentity.k8s.io/v1/namespaces/default/{plural}")
}

fn config_of_nmi() -> Config {
    Config {
        node: "node".to_owned(),
        scope: Scope::Namespaced,
        assigned_first: false,
        pick_first: false,
        prefetch: Vec::new(),
        assignment_wait: Duration::from_secs(1),
        token_floor: Duration::from_secs(300),
        metadata_header_required: true,
        allowed_categories: Vec::new(),
        attestor: None,
        host_token_socket: None,
        host_token_loopback: false,
        pod_requests: POD_REQUESTS,
        probe: loopback(),
        metrics: loopback(),
    }
}

fn claims(body: &Value) -> Value {
    let token = body["access_token"].as_str().unwrap();
    let claims = token.split('.').nth(1).unwrap();
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).unwrap()).unwrap()
}

/// A key pair and certificate as people make them.
struct Pair {
    folder: TempDir,
}

impl Pair {
    fn make() -> Self {
        let pair = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        pair.openssl("req -x509 -newkey rsa:2048 -noenc -keyout key.pem -out cert.pem -days 2 -subj /CN=podid");
        pair.openssl("x509 -in cert.pem -outform DER -out cert.der");
        pair.openssl("pkcs12 -export -inkey key.pem -in cert.pem -out c.pfx -passout pass:open");
        pair
    }

    fn openssl(&self, line: &str) {
        let output = Command::new("openssl")
            .args(line.split(' '))
            .current_dir(self.folder.path())
            .output();
        let output = output.expect("openssl is missing; run tools/setup");
        assert!(output.status.success(), "openssl {line}: {output:?}");
    }

    fn file(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.folder.path().join(name)).unwrap()
    }
}

#[tokio::test]
async fn a_secret_is_rotated_without_a_restart_and_its_tokens_go_with_it() {
    let world = World::build(false).await;
    world.identity(1, json!({})).await;
    world
        .until_told("Secret default/proof does not exist")
        .await;
    world
        .secret("POST", "default", &[("clientSecret", b"wrong")])
        .await;
    world.until_told("AADSTS7000215").await;
    world
        .secret("PUT", "default", &[("clientSecret", b"hush\n")])
        .await;
    let first = world.until_token().await;
    assert_eq!(claims(&first)["appid"], *world.application);
    assert_eq!(
        world.ask().await.1["access_token"],
        first["access_token"],
        "from memory"
    );

    world.azure.rotate_secret(&world.application, "new");
    world
        .secret("PUT", "default", &[("clientSecret", b"new")])
        .await;
    world
        .until("a token by the new secret", |status, body| {
            status == 200 && body["access_token"] != first["access_token"]
        })
        .await;
    world
        .send(
            "DELETE",
            "/api/v1/namespaces/default/secrets/proof",
            &json!({}),
        )
        .await;
    world
        .until_told("Secret default/proof does not exist")
        .await;
}

#[tokio::test]
async fn a_certificate_is_presented_as_pfx_and_as_pem_and_rotated() {
    let world = World::build(false).await;
    let (old, new) = (Pair::make(), Pair::make());
    world.identity(2, json!({})).await;
    world
        .secret(
            "POST",
            "default",
            &[("certificate", &old.file("c.pfx")), ("password", b"open")],
        )
        .await;
    world.until_told("AADSTS700027").await;
    world
        .azure
        .register_certificate(&world.application, old.file("cert.der"));
    let token = world.until_token().await;
    assert_eq!(claims(&token)["appidacr"], "2");

    let pem = [new.file("key.pem"), new.file("cert.pem")].concat();
    world
        .secret("PUT", "default", &[("certificate", &pem)])
        .await;
    world.until_told("AADSTS700027").await;
    world
        .azure
        .register_certificate(&world.application, new.file("cert.der"));
    world.until_token().await;
    // As cert-manager writes it.
    let tls = [
        ("tls.crt", &*new.file("cert.pem")),
        ("tls.key", &*new.file("key.pem")),
    ];
    world.secret("PUT", "default", &tls).await;
    world.until_token().await;
}

#[tokio::test]
async fn what_a_secret_lacks_is_told_and_nothing_of_what_it_holds() {
    let world = World::build(false).await;
    let pair = Pair::make();
    world.identity(2, json!({})).await;
    world
        .secret("POST", "default", &[("other", b"very-hush")])
        .await;
    world
        .until_told("Secret default/proof has no certificate")
        .await;
    world
        .secret(
            "PUT",
            "default",
            &[
                ("certificate", &pair.file("c.pfx")),
                ("password", b"very-hush"),
            ],
        )
        .await;
    world
        .until_told("cannot be opened with this password")
        .await;
    world
        .secret("PUT", "default", &[("certificate", b"very-hush")])
        .await;
    world.until_told("neither PEM").await;
    world
        .secret("PUT", "default", &[("certificate", &pair.file("cert.pem"))])
        .await;
    world.until_told("no private key").await;
    assert!(!world.ask().await.1.to_string().contains("hush"));
}

#[tokio::test]
async fn each_tenant_gives_a_token_and_the_primary_one_is_first() {
    let world = World::build(false).await;
    let (second, third) = (world.azure.create_tenant(), world.azure.create_tenant());
    world
        .secret("POST", "default", &[("clientSecret", b"hush")])
        .await;
    world
        .identity(1, json!({ "auxiliaryTenantIDs": [second, third] }))
        .await;
    let body = world.until_token().await;
    let tenants: Vec<Value> = body
        .as_array()
        .unwrap()
        .iter()
        .map(|token| claims(token)["tid"].clone())
        .collect();
    assert_eq!(tenants, [world.azure.tenant(), &*second, &*third]);
    for token in body.as_array().unwrap() {
        assert_eq!(token["resource"], RESOURCE);
        let life: u64 = token["expires_in"].as_str().unwrap().parse().unwrap();
        assert!((3000..=3600).contains(&life), "{life}");
    }
}

#[tokio::test]
async fn a_tenant_that_does_not_exist_is_told_rather_than_left_out() {
    let world = World::build(false).await;
    world
        .secret("POST", "default", &[("clientSecret", b"hush")])
        .await;
    world
        .identity(
            1,
            json!({ "auxiliaryTenantIDs": ["11111111-0000-0000-0000-000000000000"] }),
        )
        .await;
    world.until_told("AADSTS90002").await;
}

#[tokio::test]
async fn a_secret_of_another_namespace_is_read_only_when_an_operator_says_so() {
    for allowed in [false, true] {
        let world = World::build(allowed).await;
        world
            .secret("POST", "kube-system", &[("clientSecret", b"hush")])
            .await;
        let elsewhere =
            json!({ "clientPassword": { "name": "proof", "namespace": "kube-system" } });
        world.identity(1, elsewhere).await;
        if allowed {
            world.until_token().await;
        } else {
            world.until_told("--allow-cross-namespace-secrets").await;
        }
    }
}

#[tokio::test]
async fn a_secret_goes_to_no_place_that_could_be_overheard_or_is_not_its_owners() {
    let world = World::build(false).await;
    world
        .secret("POST", "default", &[("clientSecret", b"hush")])
        .await;
    world
        .identity(1, json!({ "adEndpoint": "http://login.example.org/" }))
        .await;
    world.until_told("in clear text").await;

    let world = World::build(true).await;
    world
        .secret("POST", "kube-system", &[("clientSecret", b"hush")])
        .await;
    let stolen = json!({ "clientPassword": { "name": "proof", "namespace": "kube-system" }, "adEndpoint": "https://login.example.org/" });
    world.identity(1, stolen).await;
    world.until_told("no authority of Azure's").await;
    // The cloud's own is fine, however it is written.
    let world = World::build(true).await;
    world
        .secret("POST", "kube-system", &[("clientSecret", b"hush")])
        .await;
    let own = json!({ "clientPassword": { "name": "proof", "namespace": "kube-system" }, "adEndpoint": format!("{}/", world.entra) });
    world.identity(1, own).await;
    world.until_token().await;
}
