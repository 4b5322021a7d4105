//! podid takes over from AAD Pod Identity's controller, and gives back: its objects, its lock, its spelling. The other controller is
//! played by what it leaves in the API server, and by a holder of its lock who writes as client-go does.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use k8s_openapi::api::core::v1::Endpoints;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use crate::world::{World, until};

const LOCK: &str = "aad-pod-identity-mic";
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";
/// What the original puts on its objects.
const FINALIZER: &str = "azureassignedidentity.finalizers.aadpodidentity.k8s.io";

/// As the original leaves it: capitalised fields, two pods with their identities attached and assigned.
pub async fn furnish(world: &World) {
    for identity in &world.identities {
        world.azure.attach(&world.set, identity);
    }
    for (name, identity) in ["one", "two"].into_iter().zip(&world.identities) {
        world.create("AzureIdentity", json!({
                "metadata": { "name": name },
                "spec": { "type": 0, "ResourceID": identity.id, "ClientID": identity.client_id },
            }))
            .await;
        world
            .create(
                "AzureIdentityBinding",
                json!({
                    "metadata": { "name": format!("{name}-binding") },
                    "spec": { "AzureIdentity": name, "Selector": name },
                }),
            )
            .await;
        world.pod(name, name).await;
        world.create("AzureAssignedIdentity", json!({
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

fn lock(world: &World) -> Api<Endpoints> {
    Api::namespaced(world.client.clone(), "default")
}

pub async fn holder(world: &World) -> String {
    let lock = lock(world).get(LOCK).await.unwrap();
    let text = lock.metadata.annotations.unwrap()[LEADER].clone();
    let record: Value = serde_json::from_str(&text).unwrap();
    record["holderIdentity"].as_str().unwrap().to_owned()
}

/// The other controller's leader: renews its lock every half second while it lives.
pub struct Original {
    lives: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Original {
    pub async fn start(world: &World, name: &'static str) -> Self {
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
        let lock = lock(world);
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

    pub async fn stop(self) {
        self.lives.store(false, Ordering::Relaxed);
        self.task.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn podid_waits_takes_over_carries_on_and_gives_back() {
    let world = World::new().await;
    furnish(&world).await;
    let before = world.assignments().await;
    assert_eq!(before.len(), 2);
    let original = Original::start(&world, "mic-5d8c").await;

    // It waits, and says so.
    let mut mic = world.start(&["--forceNamespaced=false"]);
    until!(mic, mic.log().contains("podid waits until it is gone"));
    world.pod("three", "one").await;
    sleep(Duration::from_secs(6)).await;
    assert_eq!(world.assignments().await, before, "{}", mic.log());
    assert_eq!(world.changes(), 0);

    // It takes over: nothing is made anew, attached or detached, and the spelling is brought to today's.
    original.stop().await;
    until!(mic, world.assignments().await.len() == 3);
    assert_eq!(holder(&world).await, "podid/podid-0");
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
    assert_eq!(holder(&world).await, "");
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
    let mut again = world.start(&["--forceNamespaced=false"]);
    until!(again, again.log().contains("leading"));
    sleep(Duration::from_secs(3)).await;
    assert_eq!(world.assignments().await, settled);
    assert_eq!(world.changes(), 0);
    again.kill();
    mic.kill();
}
