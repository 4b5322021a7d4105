//! `podid mic` as a process, as each principal that its configuration can name, and what `podid status` tells of it; against a
//! simulated cluster and a simulated Azure.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test"
)]

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use podid_sim::azure::{Azure, Control, FederatedCredential, HostKind};
use podid_sim::cluster::{self, Cluster};
use podid_testkit::apiserver::{ApiServer, Options, TokenIssuer};
use podid_testkit::process::Process;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

#[path = "world/azure.rs"]
mod shared;

use shared::GROUP;

struct World {
    scratch: tempfile::TempDir,
    azure: Control,
    cluster: SocketAddr,
    client: reqwest::Client,
    set: String,
    /// An application that may attach identities.
    application: String,
    stop: CancellationToken,
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl World {
    async fn build() -> Self {
        let stop = CancellationToken::new();
        let azure = Azure::bind(podid_sim::azure::Config {
            patch_latency: Duration::from_millis(20),
            ..podid_sim::azure::Config::default()
        })
        .await
        .unwrap();
        let cluster = Cluster::bind(cluster::Config::default()).await.unwrap();
        let control = azure.control();
        let set = control.create_host(HostKind::ScaleSet, GROUP, "pool");
        let application = shared::controller(&control);
        control.rotate_secret(&application, "first");
        let scratch = tempfile::tempdir().unwrap();
        std::fs::write(scratch.path().join("kubeconfig"), cluster.kubeconfig()).unwrap();
        let (arm, entra) = (azure.arm(), azure.entra());
        let (arm, entra) = (format!("http://{arm}"), format!("http://{entra}"));
        shared::write_environment(&scratch.path().join("cloud.json"), arm, entra);
        let address = cluster.addr();
        let (a, b) = (stop.clone(), stop.clone());
        tokio::spawn(async move { azure.run(a).await });
        tokio::spawn(async move { cluster.run(b).await });
        let world = Self {
            scratch,
            azure: control,
            cluster: address,
            client: reqwest::Client::new(),
            set,
            application,
            stop,
        };
        world.furnish().await;
        world
    }

    async fn furnish(&self) {
        for crd in podid_api::crds::all().unwrap() {
            let path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
            self.create(path, &serde_json::to_value(crd).unwrap()).await;
        }
        let node = json!({
            "apiVersion": "v1", "kind": "Node", "metadata": { "name": "n1" },
            "spec": { "providerID": format!("azure://{}/virtualMachines/0", self.set) },
        });
        self.create("/api/v1/nodes", &node).await;
    }

    async fn create(&self, path: &str, object: &Value) {
        let url = format!("http://{}{path}", self.cluster);
        let answer = self.client.post(url).json(object).send().await.unwrap();
        assert!(answer.status().is_success(), "{path}: {answer:?}");
    }

    /// A pod with an identity of its own, both by this name.
    async fn need(&self, name: &str) {
        let identity = self.azure.create_identity(GROUP, name);
        self.bind(name, &identity.id, &identity.client_id).await;
    }

    async fn bind(&self, name: &str, resource: &str, client: &str) {
        let custom = "/apis/aadpodidentity.k8s.io/v1/namespaces/default";
        let meta = json!({ "name": name, "namespace": "default" });
        self.create(
            &format!("{custom}/azureidentities"),
            &json!({
                "apiVersion": "aadpodidentity.k8s.io/v1", "kind": "AzureIdentity", "metadata": meta,
                "spec": { "type": 0, "resourceID": resource, "clientID": client },
            }),
        )
        .await;
        self.create(&format!("{custom}/azureidentitybindings"), &json!({
            "apiVersion": "aadpodidentity.k8s.io/v1", "kind": "AzureIdentityBinding", "metadata": meta,
            "spec": { "azureIdentity": name, "selector": name },
        }))
        .await;
        self.create("/api/v1/namespaces/default/pods", &json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": name, "namespace": "default", "labels": { "aadpodidbinding": name } },
            "spec": { "nodeName": "n1", "containers": [{ "name": "app", "image": "app" }] },
        }))
        .await;
    }

    fn write(&self, file: &str, content: &str) -> String {
        let path = self.scratch.path().join(file);
        std::fs::write(&path, content).unwrap();
        path.display().to_string()
    }

    /// Starts `podid mic` with these variables.
    fn start(&self, flags: &[&str], variables: &[(&str, &str)]) -> Process {
        self.start_by(Command::new(env!("CARGO_BIN_EXE_podid")), flags, variables)
    }

    /// Starts it with this file of the node mounted by itself, as a hostPath of a pod is.
    fn start_with_mount(&self, of_node: &str, mounted: &str) -> Process {
        let mut command = Command::new("unshare");
        let script = r#"mount --bind "$0" "$1" && shift && exec "$@""#;
        command
            .args(["--mount", "sh", "-ec", script, of_node, mounted])
            .arg(env!("CARGO_BIN_EXE_podid"));
        self.start_by(command, &[&format!("--cloudconfig={mounted}")], &[])
    }

    fn start_by(
        &self,
        mut command: Command,
        flags: &[&str],
        variables: &[(&str, &str)],
    ) -> Process {
        let at = |file: &str| self.scratch.path().join(file);
        command
            .args([
                "mic",
                "--http-probe-port=0",
                "--prometheus-port=0",
                "--namespace=default",
            ])
            .arg(format!("--kubeconfig={}", at("kubeconfig").display()))
            .args(flags)
            .env("AZURE_ENVIRONMENT_FILEPATH", at("cloud.json"))
            .envs(variables.iter().copied());
        Process::spawn(command, &at("mic.log")).unwrap()
    }

    async fn until_attached(&self, mic: &Process, name: &str) {
        let deadline = Instant::now() + Duration::from_secs(60);
        let suffix = format!("/{name}");
        while !self
            .azure
            .attached(&self.set)
            .iter()
            .any(|id| id.ends_with(&suffix))
        {
            assert!(Instant::now() < deadline, "{name}: {}", mic.log());
            assert!(!mic.has_ended(), "{}", mic.log());
            sleep(Duration::from_millis(50)).await;
        }
    }

    async fn until_said(mic: &Process, text: &str) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !mic.log().contains(text) {
            assert!(Instant::now() < deadline, "{text}: {}", mic.log());
            sleep(Duration::from_millis(50)).await;
        }
    }

    fn principal(&self, secret: &str) -> String {
        json!({
            "cloud": "AzureStackCloud", "tenantId": self.azure.tenant(),
            "aadClientId": self.application, "aadClientSecret": secret,
        })
        .to_string()
    }
}

fn openssl(directory: &Path, line: &str) {
    let output = Command::new("openssl")
        .args(line.split(' '))
        .current_dir(directory)
        .output()
        .expect("openssl is missing; run tools/setup");
    assert!(output.status.success(), "openssl {line}: {output:?}");
}

#[tokio::test]
async fn a_changed_file_takes_effect_and_a_broken_one_does_not() {
    let world = World::build().await;
    let file = world.write("azure.json", &world.principal("first"));
    let mut mic = world.start(&[&format!("--cloudconfig={file}")], &[]);
    world.need("one").await;
    world.until_attached(&mic, "one").await;

    world.write("azure.json", "{ not json");
    World::until_said(&mic, "the former one stays in use").await;
    world.need("two").await;
    world.until_attached(&mic, "two").await;

    world.azure.rotate_secret(&world.application, "second");
    world.write("azure.json", &world.principal("second"));
    World::until_said(&mic, "the cloud configuration has changed and is in use").await;
    world.need("three").await;
    world.until_attached(&mic, "three").await;
    let log = mic.log();
    assert!(!log.contains("first") && !log.contains("second"), "{log}");
    mic.kill();
}

/// A pod mounts the node's file, and whoever changes it there may put another in its place: the pod goes on seeing the former one.
#[tokio::test]
async fn a_file_that_is_replaced_behind_the_mount_is_used_by_the_container_after_this_one() {
    let world = World::build().await;
    let of_node = world.write("azure.json", &world.principal("first"));
    let mounted = world.write("mounted.json", "");
    let mic = world.start_with_mount(&of_node, &mounted);
    world.need("one").await;
    world.until_attached(&mic, "one").await;

    world.azure.rotate_secret(&world.application, "second");
    let new = world.write("new.json", &world.principal("second"));
    std::fs::rename(new, &of_node).unwrap();
    World::until_said(&mic, "was replaced on the node").await;
    let deadline = Instant::now() + Duration::from_secs(60);
    while !mic.has_ended() {
        assert!(Instant::now() < deadline, "{}", mic.log());
        sleep(Duration::from_millis(50)).await;
    }
    let lease = format!(
        "http://{}/apis/coordination.k8s.io/v1/namespaces/default/leases/aad-pod-identity-mic",
        world.cluster
    );
    let lease = world.client.get(lease).send().await.unwrap();
    let lease: Value = lease.json().await.unwrap();
    let holder = lease["spec"]["holderIdentity"].as_str();
    assert_eq!(holder.unwrap_or_default(), "", "the next leader waits");

    let mut mic = world.start_with_mount(&of_node, &mounted);
    world.need("two").await;
    world.until_attached(&mic, "two").await;
    mic.kill();
}

#[tokio::test]
async fn variables_of_a_dedicated_principal() {
    let world = World::build().await;
    let mut mic = world.start(
        &[],
        &[
            ("CLOUD", "AzureStackCloud"),
            ("TENANT_ID", world.azure.tenant()),
            ("CLIENT_ID", &world.application),
            ("CLIENT_SECRET", "first"),
        ],
    );
    world.need("one").await;
    world.until_attached(&mic, "one").await;
    mic.kill();
}

#[tokio::test]
async fn a_certificate_in_a_file() {
    let world = World::build().await;
    let at = world.scratch.path();
    openssl(
        at,
        "req -x509 -newkey rsa:2048 -noenc -keyout key.pem -out cert.pem -days 2 -subj /CN=podid",
    );
    openssl(at, "x509 -in cert.pem -outform DER -out cert.der");
    openssl(
        at,
        "pkcs12 -export -inkey key.pem -in cert.pem -out c.pfx -passout pass:open",
    );
    let der = std::fs::read(at.join("cert.der")).unwrap();
    world.azure.register_certificate(&world.application, der);
    let file = world.write("azure.json", &json!({
        "cloud": "AzureStackCloud", "tenantId": world.azure.tenant(), "aadClientId": world.application,
        "aadClientCertPath": at.join("c.pfx"), "aadClientCertPassword": "open",
    }).to_string());
    let mut mic = world.start(&[&format!("--cloudconfig={file}")], &[]);
    world.need("one").await;
    world.until_attached(&mic, "one").await;
    mic.kill();
}

#[tokio::test]
async fn a_service_account_token_that_azure_trusts() {
    let world = World::build().await;
    let server = ApiServer::start_with(Options {
        issuer: TokenIssuer::Published,
        ..Options::default()
    })
    .await
    .unwrap();
    let credential = FederatedCredential::new(
        "mic",
        &server.issuer(),
        "system:serviceaccount:kube-system:mic",
    );
    world.azure.federate(&world.application, credential);
    let authority = std::fs::read(server.authority()).unwrap();
    world.azure.trust_issuers_by(&authority).unwrap();
    let kubectl = async |command: &str| {
        let arguments: Vec<&str> = command.split_whitespace().collect();
        let output = server.run_kubectl(&arguments, "").await.unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    kubectl("create serviceaccount mic -n kube-system").await;
    let token = kubectl("create token mic -n kube-system --audience=api://AzureADTokenExchange");
    let token = token.await;
    let seal = token.trim().rsplit('.').next().unwrap().to_owned();
    let token = world.write("token", &token);
    let mut mic = world.start(
        &[],
        &[
            ("CLOUD", "AzureStackCloud"),
            ("AZURE_TENANT_ID", world.azure.tenant()),
            ("AZURE_CLIENT_ID", &world.application),
            ("AZURE_FEDERATED_TOKEN_FILE", &token),
        ],
    );
    world.need("one").await;
    world.until_attached(&mic, "one").await;
    assert!(!mic.log().contains(&seal));
    mic.kill();
}

#[tokio::test(flavor = "multi_thread")]
async fn status_tells_what_is_wrong_and_its_exit_code_too() {
    let world = World::build().await;
    let file = world.write("azure.json", &world.principal("first"));
    let status = |more: &[&str]| {
        let kubeconfig = world.scratch.path().join("kubeconfig");
        let mut command = Command::new(env!("CARGO_BIN_EXE_podid"));
        command.arg("status").arg("--kubeconfig").arg(kubeconfig);
        let output = command.args(more).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        (output.status.code(), text)
    };
    let (code, text) = status(&[]);
    assert_eq!(code, Some(3), "{text}");
    assert!(
        text.contains("nobody leads: is podid mic running?"),
        "{text}"
    );

    let instance = "--leader-election-instance=mic-0";
    let mut mic = world.start(&[&format!("--cloudconfig={file}"), instance], &[]);
    world.need("good").await;
    world.until_attached(&mic, "good").await;
    let deadline = Instant::now() + Duration::from_secs(60);
    while status(&[]).0 != Some(0) {
        assert!(Instant::now() < deadline, "{:?} {}", status(&[]), mic.log());
        sleep(Duration::from_millis(100)).await;
    }
    let (_, text) = status(&["--all"]);
    assert!(
        text.contains("mic-0 leads") && text.contains("1 ready"),
        "{text}"
    );
    assert!(text.contains("Attached"), "{text}");

    world.need("gone").await;
    world.until_attached(&mic, "gone").await;
    let gone = world.azure.create_identity(GROUP, "later");
    world.azure.delete_identity(&gone.id);
    world.bind("later", &gone.id, &gone.client_id).await;
    let deadline = Instant::now() + Duration::from_secs(60);
    while !status(&[]).1.contains("IdentityNotFound") {
        assert!(Instant::now() < deadline, "{:?} {}", status(&[]), mic.log());
        sleep(Duration::from_millis(100)).await;
    }
    let (code, text) = status(&["--output=json"]);
    let report: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(code, Some(3));
    assert_eq!(report["waiting"][0]["pod"], "later");
    assert_eq!(report["assigned"], 2);
    let away = Command::new(env!("CARGO_BIN_EXE_podid"))
        .args(["status", "--kubeconfig=/nowhere"])
        .output()
        .unwrap();
    assert_eq!(away.status.code(), Some(1));
    assert!(
        String::from_utf8(away.stderr)
            .unwrap()
            .contains("--kubeconfig")
    );
    mic.kill();
}

/// Runs the story in a network of its own, where the metadata address is this machine's; it goes with the thread.
fn at_the_metadata_address<F: Future<Output = ()>>(story: impl FnOnce() -> F + Send + 'static) {
    let alone = std::thread::spawn(move || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        for line in ["link set lo up", "addr add 169.254.169.254/32 dev lo"] {
            let done = Command::new("ip").args(line.split(' ')).status().unwrap();
            assert!(done.success(), "ip {line}");
        }
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(story());
    });
    if let Err(panic) = alone.join() {
        std::panic::resume_unwind(panic);
    }
}

/// How `azure.json` names the node's own identity.
enum Own {
    System,
    ByClientId,
    ByResourceId,
}

/// The node's own identity by the metadata service.
async fn as_the_node(named: Own) {
    let world = World::build().await;
    let node = world
        .azure
        .create_host(HostKind::VirtualMachine, "system", "controller");
    let (own, principal) = match named {
        Own::System => (String::new(), world.azure.enable_system(&node).unwrap()),
        Own::ByClientId | Own::ByResourceId => {
            let identity = world.azure.create_identity("system", "own");
            world.azure.attach(&node, &identity);
            // Another one, so that the one without a name is not the right one.
            world.azure.enable_system(&node).unwrap();
            let by_client_id = matches!(named, Own::ByClientId);
            let own = if by_client_id {
                identity.client_id
            } else {
                identity.id
            };
            (own, identity.principal_id)
        }
    };
    shared::allow(&world.azure, &principal);
    let imds = SocketAddr::from(([169, 254, 169, 254], 80));
    world.azure.serve_imds(&node, None, imds).await.unwrap();
    let file = world.write("azure.json", &json!({
        "cloud": "AzureStackCloud", "useManagedIdentityExtension": true, "userAssignedIdentityId": own,
        "aadClientId": "msi", "aadClientSecret": "msi",
    }).to_string());
    // Nothing listens at this proxy.
    let proxy = "http://127.0.0.1:1";
    let proxies = ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"].map(|name| (name, proxy));
    let mut mic = world.start(&[&format!("--cloudconfig={file}")], &proxies);
    world.need("one").await;
    world.until_attached(&mic, "one").await;
    mic.kill();
}

#[test]
fn the_nodes_system_assigned_identity() {
    at_the_metadata_address(|| as_the_node(Own::System));
}

#[test]
fn a_user_assigned_identity_of_the_node() {
    at_the_metadata_address(|| as_the_node(Own::ByClientId));
}

#[test]
fn a_user_assigned_identity_of_the_node_by_its_resource_id() {
    at_the_metadata_address(|| as_the_node(Own::ByResourceId));
}
