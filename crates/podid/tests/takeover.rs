//! podid takes over from AAD Pod Identity's controller on a real kube-apiserver, and gives back: its objects, its lock, its spelling.
//! The other controller is played by what it leaves in the API server, and by a holder of its lock who writes as client-go does.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use k8s_openapi::api::core::v1::Endpoints;
use kube::api::{DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use kube::{Api, Client};
use podid_sim::azure::{Azure, Handle, HostKind, Identity, Role};
use podid_testkit::apiserver::ApiServer;
use podid_testkit::process::Process;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

const LOCK: &str = "aad-pod-identity-mic";
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";
/// What the original puts on its objects.
const FINALIZER: &str = "azureassignedidentity.finalizers.aadpodidentity.k8s.io";

struct World {
    api: ApiServer,
    client: Client,
    azure: Handle,
    set: String,
    identities: [Identity; 2],
    scratch: tempfile::TempDir,
    stop: CancellationToken,
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl World {
    /// A cluster as the original leaves it: capitalised fields, two pods with their identities attached and assigned.
    async fn of_the_original() -> Self {
        let stop = CancellationToken::new();
        let azure = Azure::bind(podid_sim::azure::Config {
            patch_latency: Duration::from_millis(20),
            ..podid_sim::azure::Config::default()
        });
        let azure = azure.await.unwrap();
        let handle = azure.handle();
        let (arm, entra) = (azure.arm(), azure.entra());
        let until = stop.clone();
        tokio::spawn(async move { azure.run(until).await });
        let api = ApiServer::start().await.unwrap();
        api.install_crds().await.unwrap();
        let client = api.client().await.unwrap();
        let set = handle.create_host(HostKind::ScaleSet, "nodes", "pool");
        let identities = ["one", "two"].map(|name| handle.create_identity("nodes", name));
        for identity in &identities {
            handle.attach(&set, identity);
        }
        let scratch = tempfile::tempdir().unwrap();
        let world = Self {
            api,
            client,
            azure: handle,
            set,
            identities,
            scratch,
            stop,
        };
        world.configure(arm, entra);
        world.furnish().await;
        world
    }

    fn configure(&self, arm: SocketAddr, entra: SocketAddr) {
        let (application, principal) = self.azure.create_application("secret");
        let scope = format!(
            "/subscriptions/{}/resourceGroups/nodes",
            self.azure.subscription()
        );
        for role in [
            Role::VirtualMachineContributor,
            Role::ManagedIdentityOperator,
        ] {
            self.azure.assign_role(&principal, role, &scope);
        }
        let write = |name: &str, value: Value| {
            std::fs::write(self.scratch.path().join(name), value.to_string()).unwrap();
        };
        write(
            "cloud.json",
            json!({
                "resourceManagerEndpoint": format!("http://{arm}/"),
                "activeDirectoryEndpoint": format!("http://{entra}/"),
                "tokenAudience": "https://management.azure.com/",
            }),
        );
        write(
            "azure.json",
            json!({
                "cloud": "AzureStackCloud", "tenantId": self.azure.tenant(),
                "aadClientId": application, "aadClientSecret": "secret",
            }),
        );
    }

    async fn furnish(&self) {
        let nodes: Api<DynamicObject> = self.all("", "Node");
        let provider = Handle::provider_id(&self.set, 0);
        create(&nodes, json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": "n1" }, "spec": { "providerID": provider } })).await;
        for (name, identity) in ["one", "two"].into_iter().zip(&self.identities) {
            self.create("AzureIdentity", json!({
                "metadata": { "name": name },
                "spec": { "type": 0, "ResourceID": identity.id, "ClientID": identity.client_id },
            }))
            .await;
            self.create(
                "AzureIdentityBinding",
                json!({
                    "metadata": { "name": format!("{name}-binding") },
                    "spec": { "AzureIdentity": name, "Selector": name },
                }),
            )
            .await;
            self.pod(name, name).await;
            self.create("AzureAssignedIdentity", json!({
                "metadata": {
                    "name": format!("{name}-default-{name}"), "labels": { "nodename": "n1" }, "finalizers": [FINALIZER],
                },
                "spec": {
                    "pod": name, "podNamespace": "default", "nodename": "n1", "replicas": 1,
                    "azureIdentityRef": {
                        "apiVersion": "aadpodidentity.k8s.io/v1", "kind": "AzureIdentity",
                        "metadata": { "name": name, "namespace": "default" },
                        "spec": { "type": 0, "resourceID": identity.id, "clientID": identity.client_id, "clientPassword": {} },
                        "status": {},
                    },
                    "azureBindingRef": {
                        "apiVersion": "aadpodidentity.k8s.io/v1", "kind": "AzureIdentityBinding",
                        "metadata": { "name": format!("{name}-binding"), "namespace": "default" },
                        "spec": { "azureIdentity": name, "selector": name },
                        "status": {},
                    },
                },
                "status": { "status": "Assigned", "availableReplicas": 1 },
            }))
            .await;
        }
    }

    fn all(&self, group: &str, kind: &str) -> Api<DynamicObject> {
        let version = GroupVersionKind::gvk(group, "v1", kind);
        Api::all_with(self.client.clone(), &resource(&version))
    }

    fn ours(&self, kind: &str) -> Api<DynamicObject> {
        let group = if kind == "Pod" {
            ""
        } else {
            "aadpodidentity.k8s.io"
        };
        let version = GroupVersionKind::gvk(group, "v1", kind);
        Api::namespaced_with(self.client.clone(), "default", &resource(&version))
    }

    async fn create(&self, kind: &str, mut object: Value) {
        object["apiVersion"] = json!("aadpodidentity.k8s.io/v1");
        object["kind"] = json!(kind);
        create(&self.ours(kind), object).await;
    }

    async fn pod(&self, name: &str, selector: &str) {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": name, "labels": { "aadpodidbinding": selector } },
            "spec": { "nodeName": "n1", "containers": [{ "name": "app", "image": "app" }] },
        });
        create(&self.ours("Pod"), pod).await;
    }

    /// Name, uid and state of each AzureAssignedIdentity in the cluster, with its namespace.
    async fn assignments(&self) -> Vec<(String, String, String)> {
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

    fn changes(&self) -> usize {
        let entries = self.azure.journal();
        entries
            .iter()
            .filter(|entry| entry.method == "PATCH")
            .count()
    }

    fn start(&self) -> Process {
        let at = |name: &str| self.scratch.path().join(name);
        let mut command = Command::new(env!("CARGO_BIN_EXE_podid"));
        command
            .args([
                "mic",
                "--http-probe-port=0",
                "--prometheus-port=0",
                "--namespace=default",
            ])
            .args([
                "--forceNamespaced=false",
                "--leader-election-instance=podid-0",
                "--leader-election-duration=4s",
            ])
            .arg(format!("--cloudconfig={}", at("azure.json").display()))
            .arg(format!("--kubeconfig={}", self.api.kubeconfig().display()))
            .env("AZURE_ENVIRONMENT_FILEPATH", at("cloud.json"));
        Process::spawn(command, &at("mic.log")).unwrap()
    }

    fn lock(&self) -> Api<Endpoints> {
        Api::namespaced(self.client.clone(), "default")
    }

    async fn holder(&self) -> String {
        let lock = self.lock().get(LOCK).await.unwrap();
        let text = lock.metadata.annotations.unwrap()[LEADER].clone();
        let record: Value = serde_json::from_str(&text).unwrap();
        record["holderIdentity"].as_str().unwrap().to_owned()
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

/// The other controller's leader: renews its lock every half second while it lives.
struct Original {
    lives: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Original {
    async fn start(world: &World, name: &'static str) -> Self {
        let record = move |round: usize| {
            let at = jiff::Timestamp::now()
                .strftime("%Y-%m-%dT%H:%M:%SZ")
                .to_string();
            json!({
                "holderIdentity": name, "leaseDurationSeconds": 4, "acquireTime": at, "renewTime": at,
                "leaderTransitions": round,
            })
            .to_string()
        };
        let lock = world.lock();
        if lock.get_opt(LOCK).await.unwrap().is_none() {
            let mut made = Endpoints::default();
            made.metadata.name = Some(LOCK.to_owned());
            made.metadata.annotations = Some([(LEADER.to_owned(), record(0))].into());
            lock.create(&PostParams::default(), &made).await.unwrap();
        }
        let lives = Arc::new(AtomicBool::new(true));
        let alive = lives.clone();
        let task = tokio::spawn(async move {
            for round in 0.. {
                if !alive.load(Ordering::Relaxed) {
                    return;
                }
                let patch = json!({ "metadata": { "annotations": { LEADER: record(round) } } });
                let patch = Patch::Merge(patch);
                lock.patch(LOCK, &PatchParams::default(), &patch)
                    .await
                    .unwrap();
                sleep(Duration::from_millis(500)).await;
            }
        });
        Self { lives, task }
    }

    async fn stop(self) {
        self.lives.store(false, Ordering::Relaxed);
        self.task.await.unwrap();
    }
}

macro_rules! until {
    ($mic:expr, $so:expr) => {
        let deadline = Instant::now() + Duration::from_secs(120);
        while !$so {
            assert!(Instant::now() < deadline, "{}", $mic.log());
            assert!(!$mic.has_ended(), "{}", $mic.log());
            sleep(Duration::from_millis(100)).await;
        }
    };
}

#[tokio::test(flavor = "multi_thread")]
async fn podid_waits_takes_over_carries_on_and_gives_back() {
    let world = World::of_the_original().await;
    let before = world.assignments().await;
    assert_eq!(before.len(), 2);
    let original = Original::start(&world, "mic-5d8c").await;

    // It waits, and says so.
    let mut mic = world.start();
    until!(mic, mic.log().contains("podid waits until it is gone"));
    world.pod("three", "one").await;
    sleep(Duration::from_secs(6)).await;
    assert_eq!(world.assignments().await, before, "{}", mic.log());
    assert_eq!(world.changes(), 0);

    // It takes over: nothing is made anew, attached or detached, and the spelling is brought to today's.
    original.stop().await;
    until!(mic, world.assignments().await.len() == 3);
    assert_eq!(world.holder().await, "podid/podid-0");
    let after = world.assignments().await;
    assert!(
        before.iter().all(|object| after.contains(object)),
        "{after:?}"
    );
    let third = |(name, _, state): &(String, String, String)| {
        name == "default/three-default-one" && state == "Assigned"
    };
    until!(mic, world.assignments().await.iter().any(third));
    assert_eq!(world.changes(), 0, "what a pod needs was attached already");
    let identities = world.ours("AzureIdentity");
    until!(
        mic,
        identities.get("two").await.unwrap().data["spec"]["resourceID"]
            == world.identities[1].id.as_str()
    );
    let spelt = identities.get("two").await.unwrap();
    assert!(spelt.data["spec"].get("ResourceID").is_none());
    until!(
        mic,
        identities.get("two").await.unwrap().data["status"]["conditions"][0]["status"] == "True"
    );

    // A pod goes: its object goes, the identity that AAD Pod Identity attached stays.
    world
        .ours("Pod")
        .delete("two", &DeleteParams::default().grace_period(0))
        .await
        .unwrap();
    until!(mic, world.assignments().await.len() == 2);
    assert_eq!(world.azure.attached(&world.set).len(), 2);
    assert_eq!(world.changes(), 0);

    // It gives back: the lock is free at once, and the objects are as the other controller makes them.
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(i32::try_from(mic.pid()).unwrap()),
        nix::sys::signal::Signal::SIGTERM,
    )
    .unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while !mic.has_ended() {
        assert!(Instant::now() < deadline, "{}", mic.log());
        sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(world.holder().await, "");
    let three = world
        .ours("AzureAssignedIdentity")
        .get("three-default-one")
        .await
        .unwrap();
    assert_eq!(three.metadata.finalizers.unwrap(), [FINALIZER]);
    assert_eq!(three.metadata.labels.unwrap()["nodename"], "n1");
    for part in [
        "azureIdentityRef",
        "azureBindingRef",
        "pod",
        "podNamespace",
        "nodename",
    ] {
        assert!(!three.data["spec"][part].is_null(), "{part}");
    }

    // Once more from the beginning: it changes nothing that is so.
    let settled = world.assignments().await;
    let mut again = world.start();
    until!(again, again.log().contains("leading"));
    sleep(Duration::from_secs(3)).await;
    assert_eq!(world.assignments().await, settled);
    assert_eq!(world.changes(), 0);
    again.kill();
    mic.kill();
}
