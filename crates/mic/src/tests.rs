//! The controller as a whole, against an API server in memory and a fake Azure, with paused time.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use podid_policy::ids::{ClientId, ResourceId};
use podid_policy::matching::Scope;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::host::cloud::Fault;
use crate::testing::apiserver::FakeApi;
use crate::testing::azure::{FakeAzure, fault};
use crate::testing::{host, id, provider_id};
use crate::{Config, Mic, MicError};

mod blame;
mod chaos;
mod cluster;
mod drift;
mod faults;
mod federation;
mod scale;
mod simulated;

struct World {
    api: FakeApi,
    azure: FakeAzure,
}

struct Running {
    task: JoinHandle<Result<(), MicError>>,
    shutdown: CancellationToken,
}

impl Running {
    async fn stop(self) {
        self.shutdown.cancel();
        self.task.await.unwrap().unwrap();
    }

    /// Ends like kill -9: the Lease is not released and nothing is finished.
    async fn kill(self) {
        self.task.abort();
        assert!(self.task.await.unwrap_err().is_cancelled());
    }
}

fn config(instance: &str) -> Config {
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    Config {
        probe: any,
        metrics: any,
        ..Config::new(instance, "system")
    }
}

impl World {
    fn new() -> Self {
        Self {
            api: FakeApi::default(),
            azure: FakeAzure::default(),
        }
    }

    async fn start(&self, config: Config) -> Running {
        let mic = Mic::new(config, self.api.client(), Arc::new(self.azure.clone()));
        let listeners = mic.bind().await.unwrap();
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(mic.run(listeners, shutdown.clone()));
        Running { task, shutdown }
    }

    fn node(&self, name: &str, set: usize, instance: usize) {
        self.api.put(
            "nodes",
            json!({
                "apiVersion": "v1", "kind": "Node", "metadata": { "name": name },
                "spec": { "providerID": provider_id(set, instance) },
            }),
        );
    }

    fn pod(&self, name: &str, node: &str, selector: &str) {
        self.api.put("pods", json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "namespace": "ns", "name": name, "labels": { "aadpodidbinding": selector } },
            "spec": { "nodeName": node }, "status": { "phase": "Running" },
        }));
    }

    /// An AzureIdentity `id<n>` for identity n of Azure, and a binding with the selector `s<n>`.
    fn bound(&self, n: usize) {
        self.identity(n, 1, id(n).as_str());
        self.api.put(
            "azureidentitybindings",
            json!({
                "apiVersion": "aadpodidentity.k8s.io/v1", "kind": "AzureIdentityBinding",
                "metadata": { "namespace": "ns", "name": format!("b{n}") },
                "spec": { "azureIdentity": format!("id{n}"), "selector": format!("s{n}") },
            }),
        );
    }

    fn identity(&self, n: usize, generation: usize, resource: &str) {
        self.api.put("azureidentities", json!({
            "apiVersion": "aadpodidentity.k8s.io/v1", "kind": "AzureIdentity",
            "metadata": { "namespace": "ns", "name": format!("id{n}"), "generation": generation },
            "spec": { "type": 0, "resourceID": resource, "clientID": client_id(n) },
        }));
    }

    fn objects(&self) -> Vec<Value> {
        self.api.all("azureassignedidentities")
    }

    fn assigned(&self) -> usize {
        let assigned = |object: &Value| object["status"]["status"] == "Assigned";
        self.api.count("azureassignedidentities", assigned)
    }

    /// Waits in paused time until the condition holds.
    async fn until(&self, what: &str, so: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(900);
        while !so(self) {
            assert!(
                Instant::now() < deadline,
                "never: {what}; {:#?}",
                self.objects()
            );
            sleep(Duration::from_millis(20)).await;
        }
    }
}

fn client_id(n: usize) -> String {
    format!("00000000-0000-0000-0000-{n:012}")
}

fn only(ids: &[usize]) -> BTreeSet<ResourceId> {
    ids.iter().map(|n| id(*n)).collect()
}

#[tokio::test(start_paused = true)]
async fn a_pod_gets_its_identity_and_gives_it_back() {
    let world = World::new();
    world.azure.0.lock().attached.insert(host(1), only(&[99]));
    world.node("n1", 1, 0);
    world.bound(1);
    let mic = world.start(config("mic-0")).await;
    world.pod("web", "n1", "s1");
    world.until("assigned", |w| w.assigned() == 1).await;
    assert_eq!(world.azure.attached(&host(1)), only(&[1, 99]));
    let object = world
        .api
        .get("azureassignedidentities", "ns", "web-ns-id1")
        .unwrap();
    assert_eq!(object["metadata"]["labels"]["nodename"], "n1");
    assert_eq!(
        object["metadata"]["finalizers"][0],
        podid_api::assigned::FINALIZER
    );
    assert_eq!(object["spec"]["nodename"], "n1");
    assert_eq!(
        object["spec"]["azureIdentityRef"]["spec"]["resourceID"],
        id(1).as_str()
    );
    assert_eq!(object["spec"]["azureIdentityRef"]["kind"], "AzureIdentity");
    assert_eq!(object["spec"]["azureBindingRef"]["metadata"]["name"], "b1");
    assert_eq!(world.api.all("configmaps").len(), 1);

    world.api.delete("pods", "ns", "web");
    world.until("gone", |w| w.objects().is_empty()).await;
    assert_eq!(world.azure.attached(&host(1)), only(&[99]));
    world
        .until("no record", |w| w.api.all("configmaps").is_empty())
        .await;
    assert_eq!(world.azure.patches().len(), 2);
    mic.stop().await;
}

#[tokio::test]
async fn the_probe_and_the_metrics_tell_who_leads() {
    let world = World::new();
    let mic = Mic::new(
        config("mic-0"),
        world.api.client(),
        Arc::new(world.azure.clone()),
    );
    let listeners = mic.bind().await.unwrap();
    let (probe, metrics) = (listeners.probe().unwrap(), listeners.metrics().unwrap());
    let shutdown = CancellationToken::new();
    let task = tokio::spawn(mic.run(listeners, shutdown.clone()));
    let deadline = Instant::now() + Duration::from_secs(20);
    while !get(probe, "/healthz").await.ends_with("\r\n\r\nActive") {
        assert!(Instant::now() < deadline);
        sleep(Duration::from_millis(20)).await;
    }
    let text = get(metrics, "/metrics").await;
    assert!(text.contains("\naadpodidentity_mic_new_leader_election_count 1\n"));
    assert!(text.contains("\npodid_mic_watch_interrupted{kind=\"Pod\"} 0\n"));
    assert!(get(probe, "/debug/pprof").await.starts_with("HTTP/1.1 404"));
    shutdown.cancel();
    task.await.unwrap().unwrap();
}

async fn get(address: SocketAddr, path: &str) -> String {
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: mic\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test(start_paused = true)]
async fn an_identity_lingers_and_is_taken_up_again_without_a_call() {
    let world = World::new();
    world.node("n1", 1, 0);
    world.bound(1);
    world.pod("web", "n1", "s1");
    let mic = world.start(config("mic-0")).await;
    world.until("assigned", |w| w.assigned() == 1).await;
    let writes = world.api.writes().len();
    for _ in 0..5 {
        world.api.delete("pods", "ns", "web");
        sleep(Duration::from_secs(20)).await;
        assert_eq!(world.assigned(), 1);
        world.pod("web", "n1", "s1");
        sleep(Duration::from_secs(20)).await;
    }
    assert_eq!(world.azure.patches().len(), 1);
    assert_eq!(world.api.writes().len(), writes);
    mic.stop().await;
}

/// A node's object may be deleted by mistake, or because the machine is gone. A new leader cannot know which, nor where the machine is.
#[tokio::test(start_paused = true)]
async fn what_pods_of_a_node_without_an_object_need_stays_also_under_the_next_leader() {
    let world = World::new();
    world.node("n1", 1, 0);
    world.bound(1);
    world.pod("web", "n1", "s1");
    let mic = world.start(config("mic-0")).await;
    world.until("assigned", |w| w.assigned() == 1).await;
    world.api.delete("nodes", "", "n1");
    sleep(Duration::from_secs(600)).await;
    assert_eq!(world.azure.attached(&host(1)), only(&[1]));
    mic.stop().await;
    let mic = world.start(config("mic-1")).await;
    sleep(Duration::from_secs(600)).await;
    assert_eq!(world.azure.attached(&host(1)), only(&[1]));
    // Now the pod is deleted, too.
    world.api.delete("pods", "ns", "web");
    world
        .until("detached", |w| w.azure.attached(&host(1)).is_empty())
        .await;
    mic.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_others_or_the_immutable_list_hold_stays() {
    let world = World::new();
    world.azure.0.lock().attached.insert(host(1), only(&[1]));
    world.node("n1", 1, 0);
    world.bound(1);
    world.bound(2);
    world.pod("one", "n1", "s1");
    world.pod("two", "n1", "s2");
    world.bound(3);
    world.pod("three", "n1", "s3");
    let mut config = config("mic-0");
    config.immutable.client_ids = BTreeSet::from([ClientId::parse(&client_id(2)).unwrap()]);
    config.immutable.resource_ids = only(&[3]);
    let mic = world.start(config).await;
    world.until("assigned", |w| w.assigned() == 3).await;
    for pod in ["one", "two", "three"] {
        world.api.delete("pods", "ns", pod);
    }
    world.until("gone", |w| w.objects().is_empty()).await;
    sleep(Duration::from_secs(600)).await;
    assert_eq!(world.azure.attached(&host(1)), only(&[1, 2, 3]));
    mic.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_service_principal_is_assigned_without_azure() {
    let world = World::new();
    world.node("n1", 1, 0);
    world.bound(1);
    world.api.put("azureidentities", json!({
        "apiVersion": "aadpodidentity.k8s.io/v1", "kind": "AzureIdentity",
        "metadata": { "namespace": "ns", "name": "id1", "generation": 2 },
        "spec": { "type": 1, "tenantID": "t", "clientID": client_id(1), "clientPassword": { "name": "s", "namespace": "ns" } },
    }));
    world.pod("web", "n1", "s1");
    let mic = world.start(config("mic-0")).await;
    world.until("assigned", |w| w.assigned() == 1).await;
    world.api.delete("pods", "ns", "web");
    world.until("gone", |w| w.objects().is_empty()).await;
    assert!(world.azure.0.lock().calls.is_empty());
    mic.stop().await;
}

#[tokio::test(start_paused = true)]
async fn objects_of_the_original_are_adopted_where_they_are() {
    let world = World::new();
    world.azure.0.lock().attached.insert(host(1), only(&[1]));
    world.node("n1", 1, 0);
    world.bound(1);
    world.pod("web", "n1", "s1");
    world.api.put("azureassignedidentities", json!({
        "apiVersion": "aadpodidentity.k8s.io/v1", "kind": "AzureAssignedIdentity",
        "metadata": {
            "namespace": "default", "name": "web-ns-id1", "labels": { "nodename": "n1" },
            "finalizers": [podid_api::assigned::FINALIZER],
        },
        "spec": {
            "pod": "web", "podNamespace": "ns", "nodename": "n1", "replicas": 1,
            "azureIdentityRef": {
                "apiVersion": "aadpodidentity.k8s.io/v1", "kind": "AzureIdentity",
                "metadata": { "namespace": "ns", "name": "id1", "uid": "u", "creationTimestamp": null },
                "spec": { "type": 0, "resourceID": id(1).as_str(), "clientID": client_id(1), "clientPassword": {}, "replicas": null },
                "status": {},
            },
            "azureBindingRef": {
                "apiVersion": "aadpodidentity.k8s.io/v1", "kind": "AzureIdentityBinding",
                "metadata": { "namespace": "ns", "name": "b1" },
                "spec": { "azureIdentity": "id1", "selector": "s1" }, "status": {},
            },
        },
        "status": { "status": "Assigned", "availableReplicas": 1 },
    }));
    let mic = world.start(config("mic-0")).await;
    sleep(Duration::from_secs(60)).await;
    let told = "PATCH /apis/aadpodidentity.k8s.io/v1/namespaces/ns/azureidentities/id1/status";
    assert_eq!(world.api.writes(), [told]);
    assert_eq!((world.azure.gets(), world.azure.patches().len()), (1, 0));
    world.api.delete("pods", "ns", "web");
    world.until("gone", |w| w.objects().is_empty()).await;
    assert_eq!(world.azure.attached(&host(1)), only(&[1]));
    mic.stop().await;
}

#[tokio::test(start_paused = true)]
async fn across_namespaces_the_objects_live_in_one() {
    let world = World::new();
    world.node("n1", 1, 0);
    world.bound(1);
    world.pod("web", "n1", "s1");
    let mut config = config("mic-0");
    config.scope = Scope::AcrossNamespaces;
    let mic = world.start(config).await;
    world.until("assigned", |w| w.assigned() == 1).await;
    assert!(
        world
            .api
            .get("azureassignedidentities", "default", "web-ns-id1")
            .is_some()
    );
    mic.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_object_that_somebody_deletes_comes_back() {
    let world = World::new();
    world.node("n1", 1, 0);
    world.bound(1);
    world.pod("web", "n1", "s1");
    let mic = world.start(config("mic-0")).await;
    world.until("assigned", |w| w.assigned() == 1).await;
    let uid = |w: &World| w.objects().first().map(|o| o["metadata"]["uid"].clone());
    let before = uid(&world);
    world
        .api
        .delete("azureassignedidentities", "ns", "web-ns-id1");
    world
        .until("back", |w| w.assigned() == 1 && uid(w) != before)
        .await;
    assert_eq!(world.azure.patches().len(), 1);
    mic.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_edited_identity_and_a_moved_pod_are_followed() {
    let world = World::new();
    world.node("n1", 1, 0);
    world.node("n2", 2, 0);
    world.bound(1);
    world.pod("web", "n1", "s1");
    let mic = world.start(config("mic-0")).await;
    world.until("assigned", |w| w.assigned() == 1).await;
    world.identity(1, 2, id(7).as_str());
    world
        .until("the other identity", |w| {
            w.azure.attached(&host(1)) == only(&[7]) && w.assigned() == 1
        })
        .await;
    world.api.delete("pods", "ns", "web");
    world.pod("web", "n2", "s1");
    world
        .until("moved", |w| {
            w.azure.attached(&host(2)) == only(&[7]) && w.azure.attached(&host(1)).is_empty()
        })
        .await;
    world.until("assigned", |w| w.assigned() == 1).await;
    let object = &world.objects()[0];
    assert_eq!(object["metadata"]["labels"]["nodename"], "n2");
    assert_eq!(object["spec"]["nodename"], "n2");
    assert_eq!(
        object["spec"]["azureIdentityRef"]["spec"]["resourceID"],
        id(7).as_str()
    );
    mic.stop().await;
}

#[tokio::test(start_paused = true)]
async fn pods_whose_objects_would_share_a_name_do_not_disturb_each_other() {
    let world = World::new();
    world.node("n1", 1, 0);
    // The pods "a-ns-b" with "id1" and "a" with "b-ns-id1" would both have an object named "a-ns-b-ns-id1".
    world.bound(1);
    world.api.put(
        "azureidentities",
        json!({
            "apiVersion": "aadpodidentity.k8s.io/v1", "kind": "AzureIdentity",
            "metadata": { "namespace": "ns", "name": "b-ns-id1", "generation": 1 },
            "spec": { "type": 0, "resourceID": id(2).as_str(), "clientID": client_id(2) },
        }),
    );
    world.api.put(
        "azureidentitybindings",
        json!({
            "apiVersion": "aadpodidentity.k8s.io/v1", "kind": "AzureIdentityBinding",
            "metadata": { "namespace": "ns", "name": "b2" },
            "spec": { "azureIdentity": "b-ns-id1", "selector": "s2" },
        }),
    );
    let mic = world.start(config("mic-0")).await;
    world.pod("a-ns-b", "n1", "s1");
    world.pod("a", "n1", "s2");
    world.until("both", |w| w.assigned() == 2).await;
    let long = "x".repeat(253);
    world.pod(&long, "n1", "s1");
    world.until("the long one", |w| w.assigned() == 3).await;
    for object in world.objects() {
        assert!(object["metadata"]["name"].as_str().unwrap().len() <= 253);
    }
    for pod in ["a-ns-b", "a", &long] {
        world.api.delete("pods", "ns", pod);
    }
    world.until("gone", |w| w.objects().is_empty()).await;
    mic.stop().await;
}
