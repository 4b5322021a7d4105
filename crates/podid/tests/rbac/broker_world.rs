//! A real kube-apiserver with the objects of `podid manifests --broker`, an Entra that gives everybody a token, and `podid broker` as its
//! service account.

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

const PODID: &str = env!("CARGO_BIN_EXE_podid");
const OURS: &str = "/apis/aadpodidentity.k8s.io/v1/namespaces/default";
const CA: [(&str, &str); 2] = [("secrets", "Secret"), ("configmaps", "ConfigMap")];

pub struct World {
    api: ApiServer,
    client: Client,
    pub roles: Roles,
    ports: [u16; 3],
    scratch: tempfile::TempDir,
    uids: [String; 2],
    manifests: String,
}

impl World {
    pub async fn build() -> Self {
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
    pub async fn empty_ca(&self) {
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
    pub async fn applied_again_keeps_the_ca(&self) {
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

    pub fn start(&self, log: &str) -> Process {
        self.start_at(log, self.ports)
    }

    /// A broker at these ports: HTTPS, probes and metrics.
    pub fn start_at(&self, log: &str, ports: [u16; 3]) -> Process {
        let at = |name: &str| self.scratch.path().join(name);
        let [listen, probe, metrics] = ports;
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

    pub async fn is_ready(&self) -> bool {
        self.is_ready_at(self.ports[1]).await
    }

    pub async fn is_ready_at(&self, probe: u16) -> bool {
        let url = format!("http://127.0.0.1:{probe}/readyz");
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let answer = client.get(url).send().await;
        answer.is_ok_and(|answer| answer.status() == 200)
    }

    /// nmi's client of a broker at this port, with the CA as it is published now.
    pub async fn client(&self, port: u16) -> BrokerClient {
        let path = "/api/v1/namespaces/podid/configmaps/podid-broker-ca";
        let map = send(&self.client, "GET", path, None).await.unwrap();
        self.write("ca.crt", map["data"]["ca.crt"].as_str().unwrap_or_default());
        let url = format!("https://127.0.0.1:{port}").parse().unwrap();
        let deadline = Duration::from_secs(10);
        BrokerClient::new(url, self.at("ca.crt"), self.at("token"), deadline)
    }

    pub fn request(&self, pod: usize, identity: &str, resource: &str) -> PodTokenRequest {
        PodTokenRequest {
            pod: PodRef {
                namespace: "default".to_owned(),
                name: ["bound", "plain"][pod].to_owned(),
                uid: self.uids[pod].clone(),
            },
            identity: IdentityRef {
                namespace: "default".to_owned(),
                name: identity.to_owned(),
            },
            resource: resource.to_owned(),
        }
    }

    /// What nmi is answered that asks for a token of this identity for the pod.
    async fn ask(&self, pod: usize, identity: &str) -> Result<(), ClientError> {
        let request = self.request(pod, identity, "https://vault.azure.net");
        let client = self.client(self.ports[0]).await;
        client.token(&request).await.map(drop)
    }

    pub async fn has_token(&self) -> bool {
        self.ask(0, "reader").await.is_ok()
    }

    /// Whether the broker knows that this is not granted.
    pub async fn is_known_as_not_granted(&self, pod: usize, identity: &str) -> bool {
        let answer = self.ask(pod, identity).await;
        matches!(
            answer,
            Err(ClientError::Refused {
                kind: ErrorKind::NotGranted,
                ..
            })
        )
    }

    pub async fn until(&self, broker: &Process, what: &str, holds: impl AsyncFn() -> bool) {
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

    pub fn at(&self, name: &str) -> PathBuf {
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
