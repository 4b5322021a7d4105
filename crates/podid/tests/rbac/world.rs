//! A real kube-apiserver with the roles of `podid manifests`, a simulated Azure, and `podid mic` as its service account.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use kube::Client;
use podid_sim::azure::{Config, Control, HostKind};
use podid_testkit::apiserver::ApiServer;
use podid_testkit::process::Process;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::roles::{Roles, kubeconfig, send};
use crate::shared::{self, GROUP, Local};

pub const PODID: &str = env!("CARGO_BIN_EXE_podid");
const OURS: &str = "/apis/aadpodidentity.k8s.io/v1/namespaces/default";
const RECORDS: &str =
    "/api/v1/namespaces/podid/configmaps?labelSelector=aadpodidentity.k8s.io/record=host";
const LEASE: &str = "/apis/coordination.k8s.io/v1/namespaces/default/leases/aad-pod-identity-mic";

pub struct World {
    api: ApiServer,
    client: Client,
    azure: Local,
    pub roles: Roles,
    kubeconfig: PathBuf,
    scratch: tempfile::TempDir,
}

impl World {
    pub async fn build() -> Self {
        let azure = shared::start(Config {
            patch_latency: Duration::from_millis(5),
            ..Config::default()
        })
        .await;
        let api = ApiServer::start().await.unwrap();
        api.install_crds().await.unwrap();
        let scratch = tempfile::tempdir().unwrap();
        let set = azure.control.create_host(HostKind::ScaleSet, GROUP, "pool");
        shared::write_azure(scratch.path(), &azure);
        let output = Command::new(PODID)
            .args(["manifests", "--registry=example.azurecr.io/podid"])
            .output()
            .unwrap();
        let printed = String::from_utf8(output.stdout).unwrap();
        let applied = api.run_kubectl(&["apply", "-f", "-"], &printed).await;
        assert!(applied.unwrap().status.success());
        let objects: Vec<Value> = serde_saphyr::from_multiple(&printed).unwrap();
        let client = api.client().await.unwrap();
        let mut world = Self {
            kubeconfig: scratch.path().join("kubeconfig"),
            roles: Roles::of("podid-mic", &client, objects),
            api,
            client,
            azure,
            scratch,
        };
        world.furnish(&set).await;
        world
    }

    async fn furnish(&mut self, set: &str) {
        let config = kubeconfig(&self.api, "podid-mic").await;
        std::fs::write(&self.kubeconfig, config).unwrap();
        self.create(
            "/api/v1/nodes",
            json!({
                "apiVersion": "v1", "kind": "Node", "metadata": { "name": "n1" },
                "spec": { "providerID": Control::provider_id(set, 0) },
            }),
        )
        .await;
        // The lock of the original's controller, free.
        self.create("/api/v1/namespaces/default/endpoints", json!({
            "apiVersion": "v1", "kind": "Endpoints", "metadata": { "name": "aad-pod-identity-mic" },
        }))
        .await;
    }

    /// An identity, a binding and an exception in the older spelling, and a pod, all by this name; and a federated identity.
    pub async fn need(&self, name: &str) {
        let identity = self.azure.control.create_identity(GROUP, name);
        let ours = |kind: &str, spec: Value| {
            json!({
                "apiVersion": "aadpodidentity.k8s.io/v1", "kind": kind, "metadata": { "name": name }, "spec": spec,
            })
        };
        for (plural, kind, spec) in [
            (
                "azureidentities",
                "AzureIdentity",
                json!({ "type": 0, "ResourceID": identity.id, "ClientID": identity.client_id }),
            ),
            (
                "azureidentitybindings",
                "AzureIdentityBinding",
                json!({ "AzureIdentity": name, "Selector": name }),
            ),
            (
                "azurepodidentityexceptions",
                "AzurePodIdentityException",
                json!({ "PodLabels": { "none": name } }),
            ),
        ] {
            self.create(&format!("{OURS}/{plural}"), ours(kind, spec))
                .await;
        }
        let federated = json!({ "type": 0, "clientID": identity.client_id, "federation": {} });
        let mut federated = ours("AzureIdentity", federated);
        federated["metadata"]["name"] = json!(format!("{name}-federated"));
        self.create(&format!("{OURS}/azureidentities"), federated)
            .await;
        self.create(
            "/api/v1/namespaces/default/pods",
            json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": { "name": name, "labels": { "aadpodidbinding": name } },
                "spec": { "nodeName": "n1", "containers": [{ "name": "app", "image": "app" }] },
            }),
        )
        .await;
    }

    pub async fn remove_pods(&self) {
        let path = "/api/v1/namespaces/default/pods?gracePeriodSeconds=0";
        self.send("DELETE", path, None).await.unwrap();
    }

    pub async fn unfederate(&self, name: &str) {
        let path = format!("{OURS}/azureidentities/{name}-federated");
        self.send("DELETE", &path, None).await.unwrap();
    }

    /// Whether a service account stands for the federated identity.
    pub async fn has_account(&self, name: &str) -> bool {
        let path =
            format!("/api/v1/namespaces/podid-identities/serviceaccounts/default.{name}-federated");
        !self.get(&path).await.is_null()
    }

    pub async fn delete_lease(&self) {
        self.send("DELETE", LEASE, None).await.unwrap();
    }

    pub fn start(&self, log: &str) -> Process {
        let at = |name: &str| self.scratch.path().join(name);
        let mut command = Command::new(PODID);
        command
            .args([
                "mic",
                "--http-probe-port=0",
                "--prometheus-port=0",
                "--namespace=podid",
                "--linger=0s",
            ])
            .args(["--leader-election-instance=mic-0", "--log-format=json"])
            .arg(format!("--cloudconfig={}", at("azure.json").display()))
            .arg(format!("--kubeconfig={}", self.kubeconfig.display()))
            .env("AZURE_ENVIRONMENT_FILEPATH", at("cloud.json"));
        Process::spawn(command, &at(log)).unwrap()
    }

    pub async fn until<F: Future<Output = bool>>(
        &self,
        mic: &Process,
        what: &str,
        holds: impl Fn() -> F,
    ) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !holds().await {
            assert!(
                Instant::now() < deadline && !mic.has_ended(),
                "never: {what}\n{}",
                mic.log()
            );
            sleep(Duration::from_millis(50)).await;
        }
    }

    pub async fn until_said(&self, mic: &Process, text: &str) {
        let log = self.scratch.path().join("mic-less");
        let said = || async {
            std::fs::read_to_string(&log)
                .unwrap_or_default()
                .contains(text)
        };
        self.until(mic, text, said).await;
    }

    async fn get(&self, path: &str) -> Value {
        self.send("GET", path, None).await.unwrap_or_default()
    }

    pub async fn has_assignment(&self, name: &str) -> bool {
        let path = format!("{OURS}/azureassignedidentities/{name}-default-{name}");
        !self.get(&path).await.is_null()
    }

    pub async fn is_assigned(&self, name: &str) -> bool {
        let path = format!("{OURS}/azureassignedidentities/{name}-default-{name}");
        self.get(&path).await["status"]["status"] == "Assigned"
    }

    pub async fn has_no_record(&self) -> bool {
        let all = self.get(RECORDS).await;
        all["items"].as_array().is_some_and(Vec::is_empty)
    }

    pub async fn has_condition(&self, name: &str) -> bool {
        let identity = self.get(&format!("{OURS}/azureidentities/{name}")).await;
        identity["status"]["conditions"].is_array()
    }

    pub async fn has_event(&self, name: &str) -> bool {
        let all = self
            .get("/apis/events.k8s.io/v1/namespaces/default/events")
            .await;
        let all = all["items"].as_array().cloned().unwrap_or_default();
        all.iter().any(|event| event["regarding"]["name"] == name)
    }

    /// Whether all three are.
    pub async fn is_respelt(&self, name: &str) -> bool {
        let mut all = true;
        for (plural, field) in [
            ("azureidentities", "clientID"),
            ("azureidentitybindings", "selector"),
            ("azurepodidentityexceptions", "podLabels"),
        ] {
            let object = self.get(&format!("{OURS}/{plural}/{name}")).await;
            all &= !object["spec"][field].is_null();
        }
        all
    }

    async fn create(&self, path: &str, object: Value) {
        self.send("POST", path, Some(&object)).await.unwrap();
    }

    /// As the administrator.
    async fn send(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Value, kube::Error> {
        send(&self.client, method, path, body).await
    }
}
