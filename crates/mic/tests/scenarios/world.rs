//! The world of a scenario: a simulated cluster and a simulated Azure around controllers, all in this process and in accelerated time. HTTP
//! is real, and a minute of waiting takes a second.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use kube::Client;
use kube::api::{DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::{ApiResource, GroupVersionKind};
use podid_azure::arm::Arm;
use podid_azure::config::Credential;
use podid_azure::endpoints::Endpoints;
use podid_mic::{BrokerCheck, Config, Mic, MicError};
use podid_policy::ids::ClientId;
use podid_sim::azure::{Azure, Control, HostKind, Identity, Role};
use podid_sim::cluster::{self, Cluster};
use serde_json::{Value, json};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

/// The resource groups of hosts and of identities.
pub const NODES: &str = "nodes";
pub const APPS: &str = "apps";
/// A millisecond of the clock is 40 ms here.
const SPEED: u64 = 40;
/// While a test only waits, a millisecond of the clock is 400 ms here.
const HURRY: u64 = 400;

/// Accelerated time: it runs at a multiple of the clock's speed.
pub struct Clock {
    speed: Arc<AtomicU64>,
    driver: JoinHandle<()>,
}

impl Clock {
    pub fn start() -> Self {
        let speed = Arc::new(AtomicU64::new(SPEED));
        let pace = speed.clone();
        let driver = tokio::spawn(async move {
            loop {
                // Paused time jumps to the next timer when no task can run; a blocking task that always runs prevents that.
                let tick = || std::thread::sleep(Duration::from_millis(1));
                if tokio::task::spawn_blocking(tick).await.is_err() {
                    return;
                }
                let step = pace.load(Ordering::Relaxed);
                tokio::time::advance(Duration::from_millis(step)).await;
            }
        });
        Self { speed, driver }
    }

    /// From now on, a millisecond of the clock is this many milliseconds here.
    pub fn set(&self, speed: u64) {
        self.speed.store(speed, Ordering::Relaxed);
    }
}

impl Drop for Clock {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

pub struct World {
    pub azure: Control,
    pub cluster: cluster::FaultInjector,
    pub client: Client,
    pub arm: Arm,
    /// The object id of the controller's service principal.
    pub principal: String,
    clock: Arc<Clock>,
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

pub struct Running {
    task: JoinHandle<Result<(), MicError>>,
    shutdown: CancellationToken,
}

impl Running {
    pub async fn stop(self) {
        self.shutdown.cancel();
        self.task.await.unwrap().unwrap();
    }

    /// Ends like kill -9: the Lease is not released and nothing is finished.
    pub async fn kill(self) {
        self.task.abort();
        let _ = self.task.await;
    }

    pub fn has_ended(&self) -> bool {
        self.task.is_finished()
    }
}

/// Waits in the world's time until the condition holds.
macro_rules! until {
    ($what:expr, $so:expr) => {
        let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(3600);
        while !$so {
            assert!(tokio::time::Instant::now() < deadline, "never: {}", $what);
            tokio::time::sleep(std::time::Duration::from_millis(500)).await;
        }
    };
}
pub(crate) use until;

pub fn config(instance: &str) -> Config {
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    Config {
        probe: any,
        metrics: any,
        // The default debounce of 250 ms is 6 ms of the clock here, and a busy machine takes longer from one pod to the next.
        settle: Duration::from_secs(1),
        ..Config::new(instance, "default")
    }
}

impl World {
    pub async fn new() -> Self {
        Self::at(Arc::new(Clock::start())).await
    }

    /// One more world with the same clock.
    pub async fn at(clock: Arc<Clock>) -> Self {
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        let azure = Azure::bind(podid_sim::azure::Config {
            patch_latency: Duration::from_secs(5),
            ..podid_sim::azure::Config::default()
        });
        let azure = azure.await.unwrap();
        let cluster = Cluster::bind(cluster::Config {
            stop_pods: true,
            ..cluster::Config::default()
        });
        let cluster = cluster.await.unwrap();
        let (control, disturb) = (azure.control(), cluster.faults());
        let (client_id, principal) = control.create_application("secret");
        for (group, role) in [
            (NODES, Role::VirtualMachineContributor),
            (NODES, Role::ManagedIdentityOperator),
            (APPS, Role::ManagedIdentityOperator),
        ] {
            let subscription = control.subscription();
            let scope = format!("/subscriptions/{subscription}/resourceGroups/{group}");
            control.assign_role(&principal, role, &scope);
        }
        let at = |address: SocketAddr| format!("http://{address}").parse().unwrap();
        let endpoints = Endpoints {
            imds: at(azure.arm()),
            authority: at(azure.entra()),
            arm: at(azure.arm()),
            arm_audience: "https://management.azure.com/".to_owned(),
        };
        let credential = Credential::Secret {
            tenant: control.tenant().into(),
            client_id: ClientId::parse(&client_id).unwrap(),
            secret: Arc::new("secret".to_owned().into()),
        };
        let arm = Arm::new(&endpoints, credential, None).unwrap();
        let kubeconfig = Kubeconfig::from_yaml(&cluster.kubeconfig()).unwrap();
        let options = KubeConfigOptions::default();
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &options);
        let client = Client::try_from(config.await.unwrap()).unwrap();
        let (a, b) = (stop.clone(), stop.clone());
        tasks.spawn(async move { azure.run(a).await.unwrap() });
        tasks.spawn(async move { cluster.run(b).await.unwrap() });
        let world = Self {
            azure: control,
            cluster: disturb,
            client,
            arm,
            principal,
            clock,
            stop,
            tasks,
        };
        for crd in podid_api::crds::all().unwrap() {
            let crd = serde_json::to_value(crd).unwrap();
            world.create(crd).await;
        }
        world
    }

    pub async fn start(&self, config: Config) -> Running {
        let mic = Mic::new(config, self.client.clone(), Arc::new(self.arm.clone()));
        self.run(mic).await
    }

    pub async fn start_with(&self, config: Config, broker: BrokerCheck) -> Running {
        let mic = Mic::new(config, self.client.clone(), Arc::new(self.arm.clone()));
        self.run(mic.with_broker(broker)).await
    }

    async fn run(&self, mic: Mic) -> Running {
        let listeners = mic.bind().await.unwrap();
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(mic.run(listeners, shutdown.clone()));
        Running { task, shutdown }
    }

    pub async fn end(mut self) {
        self.stop.cancel();
        self.tasks.shutdown().await;
    }

    fn api(&self, kind: &str, namespace: Option<&str>) -> kube::Api<DynamicObject> {
        let (group, version, plural) = match kind {
            "Pod" | "Node" | "ConfigMap" | "Namespace" | "Event" | "ServiceAccount" => {
                ("", "v1", None)
            }
            "Lease" => ("coordination.k8s.io", "v1", None),
            "CustomResourceDefinition" => ("apiextensions.k8s.io", "v1", None),
            "AzureIdentity" => ("aadpodidentity.k8s.io", "v1", Some("azureidentities")),
            "AzureAssignedIdentity" => {
                let plural = Some("azureassignedidentities");
                ("aadpodidentity.k8s.io", "v1", plural)
            }
            _ => ("aadpodidentity.k8s.io", "v1", None),
        };
        let version = GroupVersionKind::gvk(group, version, kind);
        let resource = match plural {
            Some(plural) => ApiResource::from_gvk_with_plural(&version, plural),
            None => ApiResource::from_gvk(&version),
        };
        match namespace {
            Some(namespace) => {
                kube::Api::namespaced_with(self.client.clone(), namespace, &resource)
            }
            None => kube::Api::all_with(self.client.clone(), &resource),
        }
    }

    pub async fn create(&self, object: Value) {
        let kind = object["kind"].as_str().unwrap().to_owned();
        let namespace = object["metadata"]["namespace"].as_str().map(str::to_owned);
        let object = serde_json::from_value(object).unwrap();
        let api = self.api(&kind, namespace.as_deref());
        api.create(&PostParams::default(), &object).await.unwrap();
    }

    pub async fn delete(&self, kind: &str, namespace: &str, name: &str) {
        let api = self.api(kind, Some(namespace).filter(|n| !n.is_empty()));
        api.delete(name, &DeleteParams::default()).await.unwrap();
    }

    pub async fn patch(&self, kind: &str, namespace: &str, name: &str, patch: Value) {
        let api = self.api(kind, Some(namespace));
        let patch = Patch::Merge(patch);
        api.patch(name, &PatchParams::default(), &patch)
            .await
            .unwrap();
    }

    pub async fn report(&self, namespace: &str, pod: &str, status: Value) {
        let api = self.api("Pod", Some(namespace));
        let patch = Patch::Merge(json!({ "status": status }));
        api.patch_status(pod, &PatchParams::default(), &patch)
            .await
            .unwrap();
    }

    pub async fn all(&self, kind: &str) -> Vec<Value> {
        let listed = self.api(kind, None).list(&ListParams::default()).await;
        let items = listed.unwrap().items;
        items
            .into_iter()
            .map(|o| serde_json::to_value(o).unwrap())
            .collect()
    }

    pub async fn namespace(&self, name: &str) {
        self.create(
            json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name } }),
        )
        .await;
    }

    pub async fn node(&self, name: &str, provider_id: &str) {
        self.create(json!({
            "apiVersion": "v1", "kind": "Node", "metadata": { "name": name },
            "spec": { "providerID": provider_id },
        }))
        .await;
    }

    /// Creates a uniform scale set with one node `<name>-0`. Returns its ARM id.
    pub async fn set(&self, name: &str) -> String {
        let set = self.azure.create_host(HostKind::ScaleSet, NODES, name);
        self.node(&format!("{name}-0"), &Control::provider_id(&set, 0))
            .await;
        set
    }

    /// Creates a virtual machine and a node of the same name. An instance of a flexible scale set looks the same.
    pub async fn machine(&self, name: &str) -> String {
        let machine = self
            .azure
            .create_host(HostKind::VirtualMachine, NODES, name);
        self.node(name, &format!("azure://{machine}")).await;
        machine
    }

    pub async fn pod(&self, namespace: &str, name: &str, node: &str, selector: &str) {
        self.create(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "namespace": namespace, "name": name, "labels": { "aadpodidbinding": selector } },
            "spec": { "nodeName": node, "containers": [{ "name": "app", "image": "app" }] },
        }))
        .await;
    }

    /// Creates an AzureIdentity of this name.
    pub async fn identity(&self, namespace: &str, name: &str, identity: &Identity) {
        self.create(json!({
            "apiVersion": "aadpodidentity.k8s.io/v1", "kind": "AzureIdentity",
            "metadata": { "namespace": namespace, "name": name },
            "spec": { "type": 0, "resourceID": identity.id, "clientID": identity.client_id },
        }))
        .await;
    }

    pub async fn binding(&self, namespace: &str, name: &str, identity: &str, selector: &str) {
        self.create(json!({
            "apiVersion": "aadpodidentity.k8s.io/v1", "kind": "AzureIdentityBinding",
            "metadata": { "namespace": namespace, "name": name },
            "spec": { "azureIdentity": identity, "selector": selector },
        }))
        .await;
    }

    /// Creates an identity in Azure, an AzureIdentity and a binding, all of this name, in the namespace `default`.
    pub async fn bound(&self, name: &str) -> Identity {
        let identity = self.azure.create_identity(APPS, name);
        self.identity("default", name, &identity).await;
        self.binding("default", name, name, name).await;
        identity
    }

    /// Names and states of all AzureAssignedIdentities.
    pub async fn assignments(&self) -> Vec<(String, String)> {
        let objects = self.all("AzureAssignedIdentity").await;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let of = |o: &Value| (text(&o["metadata"]["name"]), text(&o["status"]["status"]));
        let mut all: Vec<_> = objects.iter().map(of).collect();
        all.sort();
        all
    }

    /// How many AzureAssignedIdentities are Assigned.
    pub async fn assigned(&self) -> usize {
        let all = self.assignments().await;
        all.iter().filter(|(_, state)| state == "Assigned").count()
    }

    /// The names of the identities on a host.
    pub fn on(&self, host: &str) -> BTreeSet<String> {
        let ids = self.azure.attached(host);
        let name = |id: String| id.rsplit('/').next().unwrap_or_default().to_owned();
        ids.into_iter().map(name).collect()
    }

    /// How many PATCHes of this host Azure has received.
    pub fn patches(&self, host: &str) -> usize {
        let entries = self.azure.journal();
        let host = host.to_ascii_lowercase();
        let of = |entry: &&podid_sim::azure::Entry| {
            entry.method == "PATCH" && entry.path.to_ascii_lowercase().starts_with(&host)
        };
        entries.iter().filter(of).count()
    }

    /// Lets this many seconds pass.
    pub async fn wait(&self, seconds: u64) {
        self.clock.set(HURRY);
        sleep(Duration::from_secs(seconds)).await;
        self.clock.set(SPEED);
    }

    pub fn now(&self) -> Instant {
        Instant::now()
    }
}

pub fn names<const N: usize>(of: [&str; N]) -> BTreeSet<String> {
    of.map(str::to_owned).into()
}
