//! The cluster of these tests: two nodes that are not Azure's, their node agents, the broker and the controller. The test plays the
//! kubelet, and writes the statuses of pods.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use kube::Client;
use podid_broker::client::{BrokerClient, ClientError};
use podid_broker::protocol::{ErrorKind, IdentityRef, PodRef, PodToken, PodTokenRequest};
use podid_testkit::apiserver::{ApiServer, Options, TokenIssuer};
use podid_testkit::ports::free_ports;
use podid_testkit::process::Process;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::azure::Azure;
use crate::roles::send;
use crate::setup::{Platform, Setup, address, install, nmi_token, run_pod, token};

pub const PODID: &str = env!("CARGO_BIN_EXE_podid");
/// Time limit for what a test waits for, on a busy machine.
pub const CONDITION_TIMEOUT: Duration = Duration::from_secs(90);
const GROUP: &str = "/apis/aadpodidentity.k8s.io/v1";
pub const VAULT: &str = "https://vault.azure.net";
/// A resource that nobody has asked for before, so that no cache has its token.
pub const FRESH: &str = "https://database.windows.net/";
/// The identity with a federated credential, one that has none, and one that has none and is attached to the nodes.
pub const READER: &str = "reader";
pub const STRANGER: &str = "stranger";
pub const MOVING: &str = "moving";

/// A node, and the port of its node agent.
pub struct Node {
    pub name: &'static str,
    pub port: u16,
    pub nmi: Process,
}

/// What a request to the broker is proved with, as a file.
pub struct Proof(PathBuf);

pub struct World {
    // Processes end before the API server and the folder go.
    pub nodes: Vec<Node>,
    pub broker: Option<Process>,
    mic: Process,
    pub azure: Azure,
    platform: Platform,
    broker_ports: [u16; 3],
    pub api: ApiServer,
    client: Client,
    scratch: tempfile::TempDir,
}

impl World {
    /// On nodes that are not Azure's.
    pub async fn build() -> Self {
        Self::build_on(Platform::Kind).await
    }

    /// Everything runs, and pod shop/web on node a has had a token.
    pub async fn build_on(platform: Platform) -> Self {
        let api = ApiServer::start_with(Options {
            issuer: TokenIssuer::Published,
            ..Options::default()
        })
        .await
        .unwrap();
        api.install_crds().await.unwrap();
        let scratch = tempfile::tempdir().unwrap();
        let azure = Azure::start(&api, scratch.path());
        install(&api).await;
        let client = api.client().await.unwrap();
        let broker_ports = free_ports().unwrap();
        let setup = Setup {
            api: &api,
            client: &client,
            scratch: scratch.path(),
            broker_url: format!("https://127.0.0.1:{}", broker_ports[0]),
            tenant: azure.entra().1,
            imds: azure.imds(),
            platform,
            scale_set: azure.scale_set(),
        };
        let broker = setup.start_broker(broker_ports).await;
        setup.write_broker_ca().await;
        let mic = setup.start_mic().await;
        let mut nodes = Vec::new();
        for name in ["a", "b"] {
            nodes.push(setup.start_node(name).await);
        }
        let world = Self {
            nodes,
            broker: Some(broker),
            mic,
            azure,
            platform,
            broker_ports,
            api,
            client,
            scratch,
        };
        for namespace in ["shop", "evil"] {
            let object = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": namespace } });
            world.create("/api/v1/namespaces", &object).await;
            world.create_account(namespace, "default").await;
            world.grant(namespace, READER).await;
        }
        world.grant("shop", STRANGER).await;
        world.start_pod("web", READER, 0).await;
        world
            .until("a token", async || world.ask("web", VAULT).await.0 == 200)
            .await;
        world
    }

    /// AzureIdentity, federated, and a binding for the pods with its name as the label.
    async fn grant(&self, namespace: &str, name: &str) {
        let spec = json!({ "type": 0, "clientID": self.azure.client_id(name), "federation": {} });
        self.grant_by(namespace, name, spec).await;
    }

    /// As [`World::grant`], of an identity that names what is attached.
    pub async fn grant_attached(&self, name: &str) {
        let spec = json!({
            "type": 0, "clientID": self.azure.client_id(name), "resourceID": self.azure.resource_id(name),
            "federation": {},
        });
        self.grant_by("shop", name, spec).await;
    }

    async fn grant_by(&self, namespace: &str, name: &str, spec: Value) {
        for (plural, kind, spec) in [
            ("azureidentities", "AzureIdentity", spec),
            (
                "azureidentitybindings",
                "AzureIdentityBinding",
                json!({ "azureIdentity": name, "selector": name }),
            ),
        ] {
            let object = json!({
                "apiVersion": "aadpodidentity.k8s.io/v1", "kind": kind, "metadata": { "name": name }, "spec": spec,
            });
            let path = format!("{GROUP}/namespaces/{namespace}/{plural}");
            self.create(&path, &object).await;
        }
    }

    /// Adds `spec.federation` to an AzureIdentity, or takes it away so that the identity is to be attached.
    pub async fn set_federation(&self, name: &str, is_federated: bool) {
        let path = format!("{GROUP}/namespaces/shop/azureidentities/{name}");
        let mut identity = self.get(&path).await;
        let spec = identity["spec"].as_object_mut().unwrap();
        spec.insert("resourceID".to_owned(), json!(self.azure.resource_id(name)));
        match is_federated {
            true => spec.insert("federation".to_owned(), json!({})),
            false => spec.remove("federation"),
        };
        send(&self.client, "PUT", &path, Some(&identity))
            .await
            .unwrap();
    }

    pub async fn delete_binding(&self, name: &str) {
        let path = format!("{GROUP}/namespaces/shop/azureidentitybindings/{name}");
        send(&self.client, "DELETE", &path, None).await.unwrap();
    }

    /// A pod of namespace shop that runs on a node.
    pub async fn start_pod(&self, name: &str, label: &str, node: usize) -> PodRef {
        self.start_pod_in("shop", name, label, node).await
    }

    pub async fn start_pod_in(
        &self,
        namespace: &str,
        name: &str,
        label: &str,
        node: usize,
    ) -> PodRef {
        let node = self.nodes[node].name;
        run_pod(&self.client, namespace, name, "default", label, node).await
    }

    /// Another pod of the node agent's on a node, whose token a thief may have.
    pub async fn start_agent(&self, name: &str, node: usize) -> PodRef {
        let node = self.nodes[node].name;
        run_pod(&self.client, "podid", name, "podid-nmi", "", node).await
    }

    /// The kubelet reports that all containers of a pod have ended.
    pub async fn finish_pod(&self, pod: &PodRef) {
        let path = format!("/api/v1/namespaces/shop/pods/{}/status", pod.name);
        let mut object = send(&self.client, "GET", &path, None).await.unwrap();
        object["status"]["phase"] = json!("Succeeded");
        send(&self.client, "PUT", &path, Some(&object))
            .await
            .unwrap();
    }

    pub async fn delete_pod(&self, namespace: &str, name: &str) {
        let path = format!("/api/v1/namespaces/{namespace}/pods/{name}?gracePeriodSeconds=0");
        send(&self.client, "DELETE", &path, None).await.unwrap();
    }

    async fn create_account(&self, namespace: &str, name: &str) {
        let account =
            json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": name } });
        let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts");
        self.create(&path, &account).await;
    }

    async fn create(&self, path: &str, object: &Value) {
        send(&self.client, "POST", path, Some(object))
            .await
            .unwrap();
    }

    /// An object of the custom resources in namespace shop.
    pub async fn custom(&self, plural: &str, name: &str) -> Value {
        let path = format!("{GROUP}/namespaces/shop/{plural}/{name}");
        self.get(&path).await
    }

    pub async fn get(&self, path: &str) -> Value {
        let found = send(&self.client, "GET", path, None).await;
        found.unwrap_or_default()
    }

    /// What a pod of node a is answered when it asks the metadata address.
    pub async fn ask(&self, pod: &str, resource: &str) -> (u16, Value) {
        self.ask_at(0, pod, resource).await
    }

    /// What a pod of a node is answered when it asks the metadata address.
    pub async fn ask_at(&self, node: usize, pod: &str, resource: &str) -> (u16, Value) {
        let url = format!(
            "http://127.0.0.1:{}/metadata/identity/oauth2/token?api-version=2018-02-01&resource={resource}",
            self.nodes[node].port
        );
        let client = reqwest::Client::builder()
            .no_proxy()
            .local_address(IpAddr::V4(address(pod)))
            .build()
            .unwrap();
        match client.get(url).header("Metadata", "true").send().await {
            Ok(answer) => (
                answer.status().as_u16(),
                answer.json().await.unwrap_or_default(),
            ),
            Err(_) => (0, Value::Null),
        }
    }

    /// Asks the broker for a token of an identity of namespace shop for a pod, with this proof.
    pub async fn ask_broker(
        &self,
        proof: &Proof,
        pod: &PodRef,
        identity: &str,
    ) -> Result<PodToken, ClientError> {
        let request = PodTokenRequest {
            pod: pod.clone(),
            identity: identity_ref(identity),
            resource: VAULT.to_owned(),
        };
        self.broker_client(proof).token(&request).await
    }

    /// The kind of the broker's refusal; `None` for a token.
    pub async fn refusal(
        &self,
        proof: &Proof,
        pod: &PodRef,
        identity: &str,
    ) -> Option<(u16, ErrorKind)> {
        refusal(self.ask_broker(proof, pod, identity).await)
    }

    /// The kind of the broker's refusal of a check.
    pub async fn refusal_of_check(
        &self,
        proof: &Proof,
        identity: &str,
    ) -> Option<(u16, ErrorKind)> {
        refusal(
            self.broker_client(proof)
                .check(&identity_ref(identity))
                .await,
        )
    }

    fn broker_client(&self, proof: &Proof) -> BrokerClient {
        let url = format!("https://127.0.0.1:{}", self.broker_ports[0]);
        let ca = self.scratch.path().join("broker-ca.crt");
        BrokerClient::new(url.parse().unwrap(), ca, proof.0.clone(), CONDITION_TIMEOUT)
    }

    /// The proof that the node agent of a node has.
    pub fn nmi_proof(&self, node: usize) -> Proof {
        Proof(self.scratch.path().join(nmi_token(self.nodes[node].name)))
    }

    /// A token of a service account, bound to a pod where one is named.
    pub async fn proof(
        &self,
        namespace: &str,
        account: &str,
        audience: Option<&str>,
        pod: Option<&PodRef>,
    ) -> Proof {
        let token = token(&self.client, namespace, account, audience, pod).await;
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = self.scratch.path().join(format!("proof-{count}"));
        std::fs::write(&path, token).unwrap();
        Proof(path)
    }

    /// Paths of the requests that part of the simulated Azure has had.
    pub async fn asked(&self, service: &str) -> Vec<String> {
        let url = format!("{}/_sim/journal", self.azure.word("Resource Manager  "));
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let answer = client.get(url).send().await.unwrap();
        let journal: Vec<Value> = answer.json().await.unwrap();
        let of_service = journal
            .into_iter()
            .filter(|entry| entry["service"] == service);
        of_service
            .map(|entry| entry["path"].as_str().unwrap().to_owned())
            .filter(|path| !path.starts_with("/_sim"))
            .collect()
    }

    /// How many assertions have been exchanged.
    pub async fn exchanges(&self) -> usize {
        let paths = self.asked("entra").await;
        let is_exchange = |path: &&String| path.ends_with("/oauth2/v2.0/token");
        paths.iter().filter(is_exchange).count()
    }

    /// The client id of an identity, as Azure knows it.
    pub fn client_id(&self, identity: &str) -> String {
        self.azure.client_id(identity)
    }

    pub async fn until(&self, what: &str, holds: impl AsyncFn() -> bool) {
        let deadline = Instant::now() + CONDITION_TIMEOUT;
        while !holds().await {
            assert!(
                Instant::now() < deadline,
                "never: {what}\n--- broker\n{}\n--- nmi\n{}\n--- mic\n{}",
                self.broker.as_ref().map(Process::log).unwrap_or_default(),
                self.nodes[0].nmi.log(),
                self.mic.log(),
            );
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Everything that podid's processes have logged.
    pub fn logs(&self) -> String {
        let folder = std::fs::read_dir(self.scratch.path()).unwrap();
        let paths = folder.map(|entry| entry.unwrap().path());
        let logs = paths.filter(|path| path.extension().is_some_and(|kind| kind == "log"));
        logs.map(|path| std::fs::read_to_string(path).unwrap())
            .collect()
    }

    pub async fn restart_broker(&mut self) {
        let broker = self.setup().start_broker(self.broker_ports).await;
        self.broker = Some(broker);
    }

    fn setup(&self) -> Setup<'_> {
        Setup {
            api: &self.api,
            client: &self.client,
            scratch: self.scratch.path(),
            broker_url: format!("https://127.0.0.1:{}", self.broker_ports[0]),
            tenant: self.azure.entra().1,
            imds: self.azure.imds(),
            platform: self.platform,
            scale_set: self.azure.scale_set(),
        }
    }
}

fn identity_ref(name: &str) -> IdentityRef {
    IdentityRef {
        namespace: "shop".to_owned(),
        name: name.to_owned(),
    }
}

fn refusal<T>(outcome: Result<T, ClientError>) -> Option<(u16, ErrorKind)> {
    match outcome {
        Ok(_) => None,
        Err(ClientError::Refused { status, kind, .. }) => Some((status, kind)),
        Err(other) => panic!("{other}"),
    }
}
