//! A real kube-apiserver and a simulated Azure, with `podid mic` as a process.

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use kube::api::{DynamicObject, ListParams, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use kube::{Api, Client};
use podid_sim::azure::{Config, Control, HostKind, Identity};
use podid_testkit::apiserver::ApiServer;
use podid_testkit::process::Process;
use serde_json::{Value, json};

use crate::shared::{self, GROUP, Local};

/// Waits until it is so while the process runs.
macro_rules! until {
    ($mic:expr, $so:expr) => {
        let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(120);
        while !$so {
            assert!(tokio::time::Instant::now() < deadline, "{}", $mic.log());
            assert!(!$mic.has_ended(), "{}", $mic.log());
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
    };
}
pub(crate) use until;

pub struct World {
    pub api: ApiServer,
    pub client: Client,
    pub azure: Control,
    pub set: String,
    pub identities: [Identity; 2],
    scratch: tempfile::TempDir,
    azure_runs: Local,
}

impl World {
    /// A node of a scale set, and two identities.
    pub async fn new() -> Self {
        let azure = shared::start(Config {
            patch_latency: Duration::from_millis(20),
            ..Config::default()
        })
        .await;
        let control = azure.control.clone();
        let api = ApiServer::start().await.unwrap();
        api.install_crds().await.unwrap();
        let client = api.client().await.unwrap();
        let set = control.create_host(HostKind::ScaleSet, GROUP, "pool");
        let identities = ["one", "two"].map(|name| control.create_identity(GROUP, name));
        let scratch = tempfile::tempdir().unwrap();
        let world = Self {
            api,
            client,
            azure: control,
            set,
            identities,
            scratch,
            azure_runs: azure,
        };
        shared::write_azure(world.scratch.path(), &world.azure_runs);
        let provider = Control::provider_id(&world.set, 0);
        let node = json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": "n1" }, "spec": { "providerID": provider } });
        create(&world.all("", "Node"), node).await;
        world
    }

    pub fn all(&self, group: &str, kind: &str) -> Api<DynamicObject> {
        let version = GroupVersionKind::gvk(group, "v1", kind);
        Api::all_with(self.client.clone(), &resource(&version))
    }

    pub fn ours(&self, kind: &str) -> Api<DynamicObject> {
        let group = if kind == "Pod" {
            ""
        } else {
            "aadpodidentity.k8s.io"
        };
        let version = GroupVersionKind::gvk(group, "v1", kind);
        Api::namespaced_with(self.client.clone(), "default", &resource(&version))
    }

    pub async fn create(&self, kind: &str, mut object: Value) {
        object["apiVersion"] = json!("aadpodidentity.k8s.io/v1");
        object["kind"] = json!(kind);
        create(&self.ours(kind), object).await;
    }

    pub async fn pod(&self, name: &str, selector: &str) {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": name, "labels": { "aadpodidbinding": selector } },
            "spec": { "nodeName": "n1", "containers": [{ "name": "app", "image": "app" }] },
        });
        create(&self.ours("Pod"), pod).await;
    }

    /// Name, uid and state of each AzureAssignedIdentity in the cluster, with its namespace.
    pub async fn assignments(&self) -> Vec<(String, String, String)> {
        let listed = self.all("aadpodidentity.k8s.io", "AzureAssignedIdentity");
        let items = listed.list(&ListParams::default()).await.unwrap().items;
        let of = |o: DynamicObject| {
            let (namespace, name) = (o.metadata.namespace.unwrap(), o.metadata.name.unwrap());
            let state = o.data["status"]["status"]
                .as_str()
                .unwrap_or_default()
                .to_owned();
            (
                format!("{namespace}/{name}"),
                o.metadata.uid.unwrap(),
                state,
            )
        };
        let mut all: Vec<_> = items.into_iter().map(of).collect();
        all.sort();
        all
    }

    pub fn changes(&self) -> usize {
        let entries = self.azure.journal();
        entries
            .iter()
            .filter(|entry| entry.method == "PATCH")
            .count()
    }

    /// Starts `podid mic` with further flags.
    pub fn start(&self, flags: &[&str]) -> Process {
        let quick = ["--leader-election-duration=4s"];
        let flags = [&quick, flags].concat();
        self.start_as(&self.api.kubeconfig(), "podid-0", "default", &flags)
    }

    /// Starts it as somebody, under this name, in this namespace.
    pub fn start_as(&self, who: &Path, name: &str, namespace: &str, flags: &[&str]) -> Process {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let at = |name: &str| self.scratch.path().join(name);
        let mut command = Command::new(env!("CARGO_BIN_EXE_podid"));
        command
            .args(["mic", "--http-probe-port=0", "--prometheus-port=0"])
            .arg(format!("--namespace={namespace}"))
            .arg(format!("--leader-election-instance={name}"))
            .args(flags)
            .arg(format!("--cloudconfig={}", at("azure.json").display()))
            .arg(format!("--kubeconfig={}", who.display()))
            .env("AZURE_ENVIRONMENT_FILEPATH", at("cloud.json"));
        let log = format!("mic-{}.log", COUNT.fetch_add(1, Ordering::Relaxed));
        Process::spawn(command, &at(&log)).unwrap()
    }
}

async fn create(api: &Api<DynamicObject>, object: Value) {
    let object = serde_json::from_value(object).unwrap();
    api.create(&PostParams::default(), &object).await.unwrap();
}

fn resource(version: &GroupVersionKind) -> ApiResource {
    match version.kind.as_str() {
        "AzureIdentity" => ApiResource::from_gvk_with_plural(version, "azureidentities"),
        "AzureAssignedIdentity" => {
            ApiResource::from_gvk_with_plural(version, "azureassignedidentities")
        }
        _ => ApiResource::from_gvk(version),
    }
}
