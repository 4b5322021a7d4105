//! The broker may do what it needs, each verb of it, and nothing else: with its token somebody has tokens of the service accounts that
//! stand for identities, and of no other.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use kube::Client;
use podid_broker::client::{BrokerClient, ClientError};
use podid_broker::protocol::{ErrorKind, IdentityRef, PodRef, PodTokenRequest};
use podid_testkit::apiserver::ApiServer;
use podid_testkit::ports::free_ports;
use podid_testkit::process::Process;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::time::{Instant, sleep};

use crate::roles::{Roles, kubeconfig, send};
use crate::world::PODID;

const OURS: &str = "/apis/aadpodidentity.k8s.io/v1/namespaces/default";
const CA: [(&str, &str); 2] = [("secrets", "Secret"), ("configmaps", "ConfigMap")];

/// What does not come about with one verb less.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Broken {
    /// The broker is ready.
    Ready,
    /// Nothing but what the broker says: it lists again and again.
    Watch,
    /// A pod has its token.
    Token,
    /// A pod that no watch reports is looked up.
    Pod,
    /// An identity that the watches do not bind to a pod is looked up.
    Identity,
}

/// Each verb of each resource that the broker has, and what it is for.
const RULES: [(&str, &str, Broken); 16] = {
    use Broken::{Identity, Pod, Ready, Token, Watch};
    [
        ("pods", "get", Pod),
        ("pods", "list", Ready),
        ("pods", "watch", Watch),
        ("azureidentities", "get", Identity),
        ("azureidentities", "list", Ready),
        ("azureidentities", "watch", Watch),
        ("azureidentitybindings", "list", Ready),
        ("azureidentitybindings", "watch", Watch),
        ("azurepodidentityexceptions", "list", Ready),
        ("azurepodidentityexceptions", "watch", Watch),
        ("tokenreviews", "create", Token),
        ("secrets", "get", Ready),
        ("secrets", "update", Ready),
        ("configmaps", "get", Ready),
        ("configmaps", "patch", Ready),
        ("serviceaccounts/token", "create", Token),
    ]
};

struct World {
    api: ApiServer,
    client: Client,
    roles: Roles,
    ports: [u16; 3],
    scratch: tempfile::TempDir,
    uids: [String; 2],
    manifests: String,
}

impl World {
    async fn build() -> Self {
        let api = ApiServer::start().await.unwrap();
        api.install_crds().await.unwrap();
        let arguments = [
            "manifests",
            "--broker",
            "--registry=example.azurecr.io/podid",
        ];
        let output = Command::new(PODID).args(arguments).output().unwrap();
        let printed = String::from_utf8(output.stdout).unwrap();
        let applied = api
            .run_kubectl(&["apply", "-f", "-"], &printed)
            .await
            .unwrap();
        assert!(applied.status.success(), "{applied:?}");
        let objects: Vec<Value> = serde_saphyr::from_multiple(&printed).unwrap();
        let client = api.client().await.unwrap();
        let mut world = Self {
            roles: Roles::of("podid-broker", &client, objects),
            ports: free_ports().unwrap(),
            scratch: tempfile::tempdir().unwrap(),
            uids: Default::default(),
            manifests: printed,
            api,
            client,
        };
        world.furnish().await;
        world
    }

    async fn furnish(&mut self) {
        let ours = |kind: &str, name: &str, spec: Value| json!({ "apiVersion": "aadpodidentity.k8s.io/v1", "kind": kind, "metadata": { "name": name }, "spec": spec });
        let node = json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": "n1" } });
        self.create("/api/v1/nodes", &node).await;
        for name in ["reader", "unbound"] {
            let spec = json!({ "type": 0, "clientID": "6f1c0000-0000-0000-0000-0000000022ab", "federation": {} });
            let identity = ours("AzureIdentity", name, spec);
            self.create(&format!("{OURS}/azureidentities"), &identity)
                .await;
        }
        let bound = json!({ "azureIdentity": "reader", "selector": "app" });
        let binding = ours("AzureIdentityBinding", "reader", bound);
        self.create(&format!("{OURS}/azureidentitybindings"), &binding)
            .await;
        let account = json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": "default.reader" } });
        let accounts = "/api/v1/namespaces/podid-identities/serviceaccounts";
        self.create(accounts, &account).await;
        let labelled = json!({ "aadpodidbinding": "app" });
        let bound = self.pod("default", "bound", "default", labelled).await;
        let plain = self.pod("default", "plain", "default", json!({})).await;
        self.uids = [bound, plain];
        let uid = self.pod("podid", "nmi", "podid-nmi", json!({})).await;
        let request = json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
            "spec": {
                "audiences": ["podid-broker"], "expirationSeconds": 3600,
                "boundObjectRef": { "apiVersion": "v1", "kind": "Pod", "name": "nmi", "uid": uid },
            },
        });
        let path = "/api/v1/namespaces/podid/serviceaccounts/podid-nmi/token";
        let token = self.create(path, &request).await;
        self.write("token", token["status"]["token"].as_str().unwrap());
        self.write("kubeconfig", &kubeconfig(&self.api, "podid-broker").await);
        let entra = entra().await;
        self.write(
            "cloud.json",
            &json!({ "activeDirectoryEndpoint": entra, "resourceManagerEndpoint": entra })
                .to_string(),
        );
    }

    /// A pod on the node; its uid.
    async fn pod(&self, namespace: &str, name: &str, account: &str, labels: Value) -> String {
        let path = format!("/api/v1/namespaces/{namespace}/pods");
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name, "labels": labels },
            "spec": { "nodeName": "n1", "serviceAccountName": account, "containers": [{ "name": "c", "image": "i" }] },
        });
        let made = self.create(&path, &pod).await;
        made["metadata"]["uid"].as_str().unwrap().to_owned()
    }

    /// The CA's objects as the installation makes them.
    async fn empty_ca(&self) {
        for (plural, kind) in CA {
            let path = format!("/api/v1/namespaces/podid/{plural}/podid-broker-ca");
            let meta = json!({ "name": "podid-broker-ca", "namespace": "podid" });
            let empty = json!({ "apiVersion": "v1", "kind": kind, "metadata": meta });
            send(&self.client, "PUT", &path, Some(&empty))
                .await
                .unwrap();
        }
    }

    /// An upgrade leaves what the broker has put into the objects.
    async fn applied_again_keeps_the_ca(&self) {
        let read = async |(plural, _)| {
            let path = format!("/api/v1/namespaces/podid/{plural}/podid-broker-ca");
            send(&self.client, "GET", &path, None).await.unwrap()["data"].clone()
        };
        let before = [read(CA[0]).await, read(CA[1]).await];
        assert!(
            before.iter().all(|data| data["ca.crt"].is_string()),
            "{before:?}"
        );
        let applied = self.api.run_kubectl(&["apply", "-f", "-"], &self.manifests);
        assert!(applied.await.unwrap().status.success());
        assert_eq!([read(CA[0]).await, read(CA[1]).await], before);
    }

    fn start(&self, log: &str) -> Process {
        let at = |name: &str| self.scratch.path().join(name);
        let [listen, probe, metrics] = self.ports;
        let mut command = Command::new(PODID);
        command
            .args(["broker", "--namespace=podid", "--server-names=127.0.0.1"])
            .args(["--log-format=json", "--tenant-id=home"])
            .arg(format!("--listen=127.0.0.1:{listen}"))
            .arg(format!("--http-probe-port={probe}"))
            .arg(format!("--prometheus-port={metrics}"))
            .arg(format!("--kubeconfig={}", at("kubeconfig").display()))
            .env("AZURE_ENVIRONMENT_FILEPATH", at("cloud.json"));
        Process::spawn(command, &at(log)).unwrap()
    }

    async fn is_ready(&self) -> bool {
        let url = format!("http://127.0.0.1:{}/readyz", self.ports[1]);
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let answer = client.get(url).send().await;
        answer.is_ok_and(|answer| answer.status() == 200)
    }

    /// What nmi is answered that asks for a token of this identity for the pod.
    async fn ask(&self, pod: usize, identity: &str) -> Result<(), ClientError> {
        let path = "/api/v1/namespaces/podid/configmaps/podid-broker-ca";
        let map = send(&self.client, "GET", path, None).await.unwrap();
        self.write("ca.crt", map["data"]["ca.crt"].as_str().unwrap_or_default());
        let url = format!("https://127.0.0.1:{}", self.ports[0]);
        let (ca, token) = (self.at("ca.crt"), self.at("token"));
        let deadline = Duration::from_secs(10);
        let client = BrokerClient::new(url.parse().unwrap(), ca, token, deadline);
        let request = PodTokenRequest {
            pod: PodRef {
                namespace: "default".to_owned(),
                name: ["bound", "plain"][pod].to_owned(),
                uid: self.uids[pod].clone(),
            },
            identity: IdentityRef {
                namespace: "default".to_owned(),
                name: identity.to_owned(),
            },
            resource: "https://vault.azure.net".to_owned(),
        };
        client.token(&request).await.map(drop)
    }

    async fn has_token(&self) -> bool {
        self.ask(0, "reader").await.is_ok()
    }

    /// Whether the broker knows that this is not granted.
    async fn is_known_as_not_granted(&self, pod: usize, identity: &str) -> bool {
        let answer = self.ask(pod, identity).await;
        matches!(
            answer,
            Err(ClientError::Refused {
                kind: ErrorKind::NotGranted,
                ..
            })
        )
    }

    async fn until(&self, broker: &Process, what: &str, holds: impl AsyncFn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !holds().await {
            assert!(
                Instant::now() < deadline && !broker.has_ended(),
                "never: {what}\n{}",
                broker.log()
            );
            sleep(Duration::from_millis(50)).await;
        }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.at(name), text).unwrap();
    }

    async fn create(&self, path: &str, object: &Value) -> Value {
        send(&self.client, "POST", path, Some(object))
            .await
            .unwrap()
    }
}

/// An Entra that gives everybody a token; its URL.
async fn entra() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut request = vec![0; 64 * 1024];
                let _ = stream.read(&mut request).await;
                let body = json!({ "access_token": "t", "expires_in": 3600 }).to_string();
                let head = format!(
                    "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
                    body.len()
                );
                let _ = stream.write_all((head + &body).as_bytes()).await;
            });
        }
    });
    url
}

/// With everything that is granted, and then with one verb less after the other.
#[tokio::test(flavor = "multi_thread")]
async fn the_broker_has_what_it_needs_and_nothing_else() {
    let world = World::build().await;
    let mut broker = world.start("all");
    world
        .until(&broker, "ready", async || world.is_ready().await)
        .await;
    world
        .until(&broker, "a token", async || world.has_token().await)
        .await;
    assert!(world.is_known_as_not_granted(1, "reader").await);
    assert!(world.is_known_as_not_granted(0, "unbound").await);
    world.applied_again_keeps_the_ca().await;
    broker.kill();

    let granted = world.roles.granted();
    assert_eq!(granted.len(), RULES.len(), "{granted:?}");
    for (kind, role, resource, verb) in granted {
        let named = |(r, v, _): &&(&str, &str, Broken)| *r == resource && *v == verb;
        let Some((.., broken)) = RULES.iter().find(named) else {
            panic!("{role} grants {verb} on {resource}, and nothing here says what for");
        };
        world.empty_ca().await;
        world.roles.without(&kind, &role, &resource, &verb).await;
        let mut broker = world.start(&format!("without-{verb}-{}", resource.replace('/', "-")));
        if *broken != Broken::Ready {
            world
                .until(&broker, "ready", async || world.is_ready().await)
                .await;
        }
        let holds = match broken {
            Broken::Ready | Broken::Watch => {
                let told = format!("cannot {verb} resource \\\"{resource}\\\"");
                let says = async || broker.log().contains(&told);
                world.until(&broker, &told, says).await;
                *broken == Broken::Ready && world.is_ready().await
            }
            Broken::Token => world.has_token().await,
            Broken::Pod => world.is_known_as_not_granted(1, "reader").await,
            Broken::Identity => world.is_known_as_not_granted(0, "unbound").await,
        };
        assert!(
            !holds,
            "{broken:?} without {verb} on {resource}: {}",
            broker.log()
        );
        broker.kill();
        world.roles.restore(&kind, &role).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_has_the_brokers_token_has_no_other_accounts_token() {
    let world = World::build().await;
    let config = std::fs::read_to_string(world.at("kubeconfig")).unwrap();
    let config = serde_json::from_str(&config).unwrap();
    let options = kube::config::KubeConfigOptions::default();
    let config = kube::Config::from_custom_kubeconfig(config, &options)
        .await
        .unwrap();
    let thief = Client::try_from(config).unwrap();
    let request = json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": { "audiences": [] } });
    let token = async |namespace: &str, account: &str| {
        let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token");
        let answer = send(&thief, "POST", &path, Some(&request)).await;
        answer.map(drop).map_err(|error| error.to_string())
    };
    token("podid-identities", "default.reader").await.unwrap();
    for (namespace, account) in [
        ("podid", "podid-mic"),
        ("podid", "podid-nmi"),
        ("podid", "podid-broker"),
        ("default", "default"),
        ("kube-system", "default"),
    ] {
        let error = token(namespace, account).await.unwrap_err();
        assert!(
            error.contains("cannot create resource"),
            "{namespace}/{account}: {error}"
        );
    }
    // Nor by a Secret that the API server fills with a token, by a pod, or by a role of one's own.
    let meta = json!({ "name": "x", "annotations": { "kubernetes.io/service-account.name": "podid-mic" } });
    for (path, kind) in [
        (
            "/api/v1/namespaces/podid/secrets",
            json!({ "kind": "Secret", "type": "kubernetes.io/service-account-token" }),
        ),
        (
            "/api/v1/namespaces/podid/pods",
            json!({ "kind": "Pod", "spec": { "containers": [{ "name": "c", "image": "i" }] } }),
        ),
        (
            "/api/v1/namespaces/podid-identities/pods",
            json!({ "kind": "Pod", "spec": { "containers": [{ "name": "c", "image": "i" }] } }),
        ),
        (
            "/apis/rbac.authorization.k8s.io/v1/namespaces/podid/roles",
            json!({ "kind": "Role", "rules": [] }),
        ),
    ] {
        let mut object = kind;
        object["metadata"] = meta.clone();
        object["apiVersion"] = json!(if path.contains("rbac") {
            "rbac.authorization.k8s.io/v1"
        } else {
            "v1"
        });
        let error = send(&thief, "POST", path, Some(&object))
            .await
            .unwrap_err()
            .to_string();
        assert!(error.contains("cannot create resource"), "{path}: {error}");
    }
    let other = send(&thief, "GET", "/api/v1/namespaces/podid/secrets", None).await;
    assert!(
        other
            .unwrap_err()
            .to_string()
            .contains("cannot list resource")
    );
}
