//! How podid is installed and started in these tests: its processes are the service accounts of `podid manifests`, and the test
//! writes the files that a kubelet would mount into them.

use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::PostParams;
use kube::{Api, Client};
use podid_broker::protocol::PodRef;
use podid_policy::federation::BROKER_AUDIENCE;
use podid_sim::azure::Control;
use podid_testkit::apiserver::ApiServer;
use podid_testkit::ports::free_ports;
use podid_testkit::process::Process;
use serde_json::json;
use tokio::time::{Instant, sleep};

use crate::roles::{kubeconfig, send};
use crate::world::{CONDITION_TIMEOUT, Node, PODID};

/// Applies what `podid manifests` prints: accounts and roles count here, and no controller starts the rest.
pub async fn install(api: &ApiServer) {
    let mut command = Command::new(PODID);
    command.args([
        "manifests",
        "--broker",
        "--registry=example.azurecr.io/podid",
    ]);
    let output = command.output().unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    let applied = api.run_kubectl(&["apply", "-f", "-"], &printed).await;
    let applied = applied.unwrap();
    assert!(applied.status.success(), "{applied:?}");
}

/// What the nodes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Platform {
    /// None of Azure's: nothing can be attached to them.
    Kind,
    /// The first machine of the scale set, by two names.
    Azure,
}

/// What podid's processes are started with.
pub struct Setup<'a> {
    pub api: &'a ApiServer,
    pub client: &'a Client,
    pub scratch: &'a Path,
    pub broker_url: String,
    pub tenant: String,
    pub imds: String,
    pub platform: Platform,
    pub scale_set: String,
}

impl Setup<'_> {
    async fn podid(&self, role: &str, account: &str, ports: [u16; 2]) -> Command {
        let file = self.scratch.join(format!("kubeconfig-{account}"));
        std::fs::write(&file, kubeconfig(self.api, account).await).unwrap();
        let mut command = Command::new(PODID);
        command
            .args([role, "--log-format=json"])
            .arg(format!("--kubeconfig={}", file.display()))
            .arg(format!("--http-probe-port={}", ports[0]))
            .arg(format!("--prometheus-port={}", ports[1]))
            .env(
                "AZURE_ENVIRONMENT_FILEPATH",
                self.scratch.join("cloud.json"),
            );
        command
    }

    fn as_client_of_broker(&self, command: &mut Command, token: &str) {
        let at = |name: &str| self.scratch.join(name).display().to_string();
        command
            .arg(format!("--broker-url={}", self.broker_url))
            .arg(format!("--broker-ca-file={}", at("broker-ca.crt")))
            .arg(format!("--broker-token-file={}", at(token)));
    }

    fn spawn(&self, command: Command, log: &str) -> Process {
        Process::spawn(command, &self.scratch.join(format!("{log}.log"))).unwrap()
    }

    pub async fn start_broker(&self, [https, probe, metrics]: [u16; 3]) -> Process {
        let mut command = self.podid("broker", "podid-broker", [probe, metrics]).await;
        command
            .args(["--namespace=podid", "--server-names=127.0.0.1"])
            .arg(format!("--listen=127.0.0.1:{https}"))
            .arg(format!("--tenant-id={}", self.tenant));
        let broker = self.spawn(command, "broker");
        until_ready(&broker, probe).await;
        broker
    }

    /// The CA bundle that is mounted into the broker's clients.
    pub async fn write_broker_ca(&self) {
        let path = "/api/v1/namespaces/podid/configmaps/podid-broker-ca";
        let map = send(self.client, "GET", path, None).await.unwrap();
        let bundle = map["data"]["ca.crt"].as_str().unwrap();
        std::fs::write(self.scratch.join("broker-ca.crt"), bundle).unwrap();
    }

    /// A token of a podid pod of this name, which is mounted into it.
    async fn write_broker_token(&self, account: &str, pod: &str, node: &str, file: &str) {
        let pod = run_pod(self.client, "podid", pod, account, "", node).await;
        let audience = Some(BROKER_AUDIENCE);
        let token = token(self.client, "podid", account, audience, Some(&pod)).await;
        std::fs::write(self.scratch.join(file), token).unwrap();
    }

    pub async fn start_mic(&self) -> Process {
        let [probe, metrics] = free_ports().unwrap();
        let mut command = self.podid("mic", "podid-mic", [probe, metrics]).await;
        self.write_broker_token("podid-mic", "mic", "a", "token-mic")
            .await;
        self.as_client_of_broker(&mut command, "token-mic");
        command
            .args(["--namespace=podid", "--leader-election-instance=mic-0"])
            .arg("--linger=0s")
            .arg(format!(
                "--cloudconfig={}",
                self.scratch.join("azure.json").display()
            ));
        self.spawn(command, "mic")
    }

    pub async fn start_node(&self, name: &'static str) -> Node {
        let provider_id = match self.platform {
            Platform::Kind => format!("kind://docker/kind/{name}"),
            Platform::Azure => Control::provider_id(&self.scale_set, 0),
        };
        let object = json!({
            "apiVersion": "v1", "kind": "Node", "metadata": { "name": name },
            "spec": { "providerID": provider_id },
        });
        send(self.client, "POST", "/api/v1/nodes", Some(&object))
            .await
            .unwrap();
        let [port, probe, metrics] = free_ports().unwrap();
        let mut command = self.podid("nmi", "podid-nmi", [probe, metrics]).await;
        let token = nmi_token(name);
        self.write_broker_token("podid-nmi", &format!("nmi-{name}"), name, &token)
            .await;
        self.as_client_of_broker(&mut command, &token);
        command
            .arg(format!("--node={name}"))
            .arg(format!("--nmi-port={port}"))
            .args([
                "--metadata-ip=127.0.0.1".to_owned(),
                format!("--metadata-port={}", self.imds),
            ])
            .args(["--interception=none", "--attest=address"])
            .arg("--handover-socket=");
        if self.platform == Platform::Kind {
            // Nothing is assigned there, and refusals are not held.
            command.arg("--assignment-wait=2s");
        }
        let nmi = self.spawn(command, &format!("nmi-{name}"));
        until_ready(&nmi, probe).await;
        Node { name, port, nmi }
    }
}

pub fn nmi_token(node: &str) -> String {
    format!("token-nmi-{node}")
}

/// The address of a pod, which depends on its name alone.
pub fn address(pod: &str) -> Ipv4Addr {
    let sum = pod.bytes().fold(7_u16, |sum, byte| {
        sum.wrapping_mul(31).wrapping_add(byte.into())
    });
    let [high, low] = sum.to_be_bytes();
    Ipv4Addr::new(127, 9, high, low.max(1))
}

/// A pod on a node, as its kubelet reports it.
pub async fn run_pod(
    client: &Client,
    namespace: &str,
    name: &str,
    account: &str,
    label: &str,
    node: &str,
) -> PodRef {
    let pods = format!("/api/v1/namespaces/{namespace}/pods");
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": name, "labels": { "aadpodidbinding": label } },
        "spec": {
            "nodeName": node, "serviceAccountName": account,
            "containers": [{ "name": "app", "image": "app" }],
        },
    });
    let mut pod = send(client, "POST", &pods, Some(&pod)).await.unwrap();
    let address = address(name);
    pod["status"] = json!({ "phase": "Running", "podIP": address, "podIPs": [{ "ip": address }] });
    let path = format!("{pods}/{name}/status");
    send(client, "PUT", &path, Some(&pod)).await.unwrap();
    PodRef {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        uid: pod["metadata"]["uid"].as_str().unwrap().to_owned(),
    }
}

/// A token of a service account, for the API server itself where no audience is given.
pub async fn token(
    client: &Client,
    namespace: &str,
    account: &str,
    audience: Option<&str>,
    pod: Option<&PodRef>,
) -> String {
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), namespace);
    let request = TokenRequest {
        spec: TokenRequestSpec {
            audiences: audience.map(str::to_owned).into_iter().collect(),
            bound_object_ref: pod.map(|pod| BoundObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Pod".to_owned()),
                name: Some(pod.name.clone()),
                uid: Some(pod.uid.clone()),
            }),
            expiration_seconds: Some(3600),
        },
        ..TokenRequest::default()
    };
    let params = PostParams::default();
    let made = accounts.create_token_request(account, &params, &request);
    made.await.unwrap().status.unwrap().token
}

async fn until_ready(process: &Process, probe: u16) {
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let url = format!("http://127.0.0.1:{probe}/readyz");
    let deadline = Instant::now() + CONDITION_TIMEOUT;
    loop {
        let answer = client.get(&url).send().await;
        if answer.is_ok_and(|answer| answer.status() == 200) {
            return;
        }
        let in_time = Instant::now() < deadline && !process.has_ended();
        assert!(in_time, "not ready: {}", process.log());
        sleep(Duration::from_millis(50)).await;
    }
}
