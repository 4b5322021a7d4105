//! Faults of Azure and of the API server: each delays nothing else, and nothing is lost.

use super::*;
use crate::host::cloud::HostError;
use crate::testing::azure::Call;

fn stage(world: &World, name: &str) -> Value {
    let object = world.api.get("azureassignedidentities", "ns", name);
    object.map(|o| o["status"].clone()).unwrap_or_default()
}

async fn one_bad_among_ten(names: bool) {
    let world = World::new();
    {
        let mut azure = world.azure.0.lock();
        azure.missing.insert(id(3));
        azure.names = names;
    }
    world.node("n1", 1, 0);
    for n in 0..10 {
        world.bound(n);
        world.pod(&format!("p{n}"), "n1", &format!("s{n}"));
    }
    let mic = world.start(config("mic-0")).await;
    let began = Instant::now();
    world.until("the others", |w| w.assigned() == 9).await;
    assert!(
        began.elapsed() < Duration::from_secs(40),
        "{:?}",
        began.elapsed()
    );
    assert_eq!(stage(&world, "p3-ns-id3")["status"], "Created");
    world
        .until("told", |w| {
            let text = stage(w, "p3-ns-id3")["message"].to_string();
            let identity = w.api.get("azureidentities", "ns", "id3").unwrap();
            let condition = &identity["status"]["conditions"][0];
            text.contains("was not found") && condition["status"] == "False"
        })
        .await;
    // A good identity that comes later does not wait, and never shares a PATCH with the bad one.
    let refused_together = world.azure.patches().len();
    world.bound(20);
    world.pod("p20", "n1", "s20");
    world.until("a later one", |w| w.assigned() == 10).await;
    sleep(Duration::from_secs(3600)).await;
    let later = world.azure.patches().split_off(refused_together);
    for (_, _, change) in &later {
        assert!(!change.attach.contains(&id(3)) || change.attach.len() == 1);
    }
    let retries = later.len() - 1;
    assert!((3..=5).contains(&retries), "{retries} retries in an hour");

    world.azure.0.lock().missing.clear();
    world.until("mended", |w| w.assigned() == 11).await;
    world
        .until("the condition", |w| {
            let identity = w.api.get("azureidentities", "ns", "id3").unwrap();
            identity["status"]["conditions"][0]["status"] == "True"
        })
        .await;
    assert!(stage(&world, "p3-ns-id3")["message"].is_null());
    mic.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_missing_identity_that_azure_names_delays_no_other() {
    one_bad_among_ten(true).await;
}

#[tokio::test(start_paused = true)]
async fn a_missing_identity_that_azure_does_not_name_delays_no_other() {
    one_bad_among_ten(false).await;
}

#[tokio::test(start_paused = true)]
async fn an_edited_identity_is_tried_again_at_once() {
    let world = World::new();
    world.azure.0.lock().missing.insert(id(1));
    world.node("n1", 1, 0);
    world.bound(1);
    world.pod("web", "n1", "s1");
    let mic = world.start(config("mic-0")).await;
    sleep(Duration::from_secs(2000)).await;
    assert_eq!(world.assigned(), 0);
    world.azure.0.lock().missing.clear();
    let edited = Instant::now();
    world.identity(1, 2, id(1).as_str());
    world.until("assigned", |w| w.assigned() == 1).await;
    assert!(edited.elapsed() < Duration::from_secs(10));
    mic.stop().await;
}

#[tokio::test(start_paused = true)]
async fn retry_after_is_honoured_and_hosts_do_not_wait_for_one_another() {
    let world = World::new();
    world
        .azure
        .0
        .lock()
        .faults
        .push_back(fault(Fault::Throttled, Some(120)));
    world.node("n1", 1, 0);
    world.bound(1);
    world.pod("one", "n1", "s1");
    let mic = world.start(config("mic-0")).await;
    world
        .until("throttled", |w| w.azure.patches().len() == 1)
        .await;
    world.node("n2", 2, 0);
    world.pod("two", "n2", "s1");
    world.until("the other host", |w| w.assigned() == 1).await;
    world.until("this host", |w| w.assigned() == 2).await;
    let patches = world.azure.patches();
    let waited = patches[2].0 - patches[0].0;
    assert!(waited >= Duration::from_secs(120) && waited < Duration::from_secs(125));
    mic.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_conflict_is_retried_after_another_look() {
    let world = World::new();
    world
        .azure
        .0
        .lock()
        .faults
        .push_back(fault(Fault::Conflict, None));
    world.node("n1", 1, 0);
    world.bound(1);
    world.pod("web", "n1", "s1");
    let mic = world.start(config("mic-0")).await;
    world.until("assigned", |w| w.assigned() == 1).await;
    assert_eq!((world.azure.gets(), world.azure.patches().len()), (2, 2));
    mic.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_forbidden_host_is_asked_ever_less_often() {
    let world = World::new();
    let faults = std::iter::repeat_with(|| fault(Fault::Forbidden, None)).take(1000);
    world.azure.0.lock().faults.extend(faults);
    world.node("n1", 1, 0);
    world.bound(1);
    world.pod("web", "n1", "s1");
    let mic = world.start(config("mic-0")).await;
    sleep(Duration::from_secs(3600)).await;
    assert!(
        world.azure.patches().len() < 25,
        "{}",
        world.azure.patches().len()
    );
    assert!(
        stage(&world, "web-ns-id1")["message"]
            .to_string()
            .contains("HostRoleMissing")
    );
    mic.stop().await;
}

#[tokio::test(start_paused = true)]
async fn killed_between_patch_and_status_the_next_leader_converges_and_still_owns() {
    let world = World::new();
    world.node("n1", 1, 0);
    world.bound(1);
    world.pod("web", "n1", "s1");
    world.api.break_writes(Some("azureassignedidentities"));
    let first = world.start(config("mic-0")).await;
    world
        .until("attached", |w| w.azure.attached(&host(1)) == only(&[1]))
        .await;
    first.kill().await;
    world.api.break_writes(None);
    let second = world.start(config("mic-1")).await;
    world.until("assigned", |w| w.assigned() == 1).await;
    assert_eq!(world.azure.patches().len(), 1);
    world.api.delete("pods", "ns", "web");
    world.until("gone", |w| w.objects().is_empty()).await;
    assert!(
        world.azure.attached(&host(1)).is_empty(),
        "the second detaches what the first attached"
    );
    second.stop().await;
}

#[tokio::test(start_paused = true)]
async fn killed_while_the_pod_leaves_the_next_leader_finishes() {
    let world = World::new();
    world.node("n1", 1, 0);
    world.bound(1);
    world.pod("web", "n1", "s1");
    let first = world.start(config("mic-0")).await;
    world.until("assigned", |w| w.assigned() == 1).await;
    world.api.delete("pods", "ns", "web");
    sleep(Duration::from_secs(1)).await;
    first.kill().await;
    let second = world.start(config("mic-1")).await;
    world.until("gone", |w| w.objects().is_empty()).await;
    assert!(world.azure.attached(&host(1)).is_empty());
    assert_eq!(world.azure.patches().len(), 2);
    second.stop().await;
}

#[tokio::test(start_paused = true)]
async fn only_the_leader_acts_and_another_takes_over() {
    let world = World::new();
    world.node("n1", 1, 0);
    world.bound(1);
    let first = world.start(config("mic-0")).await;
    let second = world.start(config("mic-1")).await;
    world.pod("one", "n1", "s1");
    world.until("assigned", |w| w.assigned() == 1).await;
    assert_eq!((world.azure.gets(), world.azure.patches().len()), (1, 1));
    first.stop().await;
    world.bound(2);
    world.pod("two", "n1", "s2");
    world.until("the second acts", |w| w.assigned() == 2).await;
    assert_eq!(world.azure.attached(&host(1)), only(&[1, 2]));
    second.stop().await;
}

#[tokio::test(start_paused = true)]
async fn without_a_record_nothing_is_attached() {
    let world = World::new();
    world.api.break_writes(Some("configmaps"));
    world.node("n1", 1, 0);
    world.bound(1);
    world.pod("web", "n1", "s1");
    let mic = world.start(config("mic-0")).await;
    sleep(Duration::from_secs(60)).await;
    assert!(world.azure.patches().is_empty());
    world.api.break_writes(None);
    world.until("assigned", |w| w.assigned() == 1).await;
    mic.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_malformed_identity_is_told_and_harms_no_other() {
    let world = World::new();
    world.node("n1", 1, 0);
    world.bound(1);
    world.bound(2);
    world.pod("one", "n1", "s1");
    world.pod("two", "n1", "s2");
    let mic = world.start(config("mic-0")).await;
    world.until("assigned", |w| w.assigned() == 2).await;
    world.identity(2, 2, "/not/an/identity");
    world
        .until("told", |w| {
            let events = w.api.all("events");
            events
                .iter()
                .any(|event| event["reason"] == "Malformed" && event["regarding"]["name"] == "id2")
        })
        .await;
    world.until("one is left", |w| w.objects().len() == 1).await;
    assert_eq!(world.azure.attached(&host(1)), only(&[1]));
    world.identity(2, 3, id(2).as_str());
    world.until("mended", |w| w.assigned() == 2).await;
    mic.stop().await;
}

#[tokio::test(start_paused = true)]
async fn azure_that_is_down_is_waited_for() {
    let world = World::new();
    world.azure.0.lock().down = true;
    world.node("n1", 1, 0);
    world.bound(1);
    world.pod("web", "n1", "s1");
    let mic = world.start(config("mic-0")).await;
    sleep(Duration::from_secs(3600)).await;
    assert_eq!(stage(&world, "web-ns-id1")["status"], "Created");
    world.azure.0.lock().down = false;
    world.until("assigned", |w| w.assigned() == 1).await;
    mic.stop().await;
}

#[tokio::test(start_paused = true)]
async fn drift_on_azure_is_repaired_and_told_meanwhile() {
    let world = World::new();
    world.node("n1", 1, 0);
    world.bound(1);
    world.pod("web", "n1", "s1");
    let mic = world.start(config("mic-0")).await;
    world.until("assigned", |w| w.assigned() == 1).await;
    world.azure.0.lock().attached.clear();
    world.until("noticed", |w| w.assigned() == 0).await;
    world.until("repaired", |w| w.assigned() == 1).await;
    assert_eq!(world.azure.attached(&host(1)), only(&[1]));
    mic.stop().await;
}

pub(super) fn condition(world: &World, n: usize) -> (String, String) {
    let identity = world.api.get("azureidentities", "ns", &format!("id{n}"));
    let condition = identity.unwrap()["status"]["conditions"][0].clone();
    let text = |name: &str| condition[name].as_str().unwrap_or_default().to_owned();
    (text("status") + " " + &text("reason"), text("message"))
}

async fn with_one_bad_in_fifty(sets: usize) -> (World, Running) {
    let world = World::new();
    {
        let mut azure = world.azure.0.lock();
        azure.missing.insert(id(3));
        azure.names = true;
    }
    for set in 0..sets {
        world.node(&format!("n{set}"), set, 0);
    }
    for n in 0..50 {
        world.bound(n);
        for set in 0..sets {
            world.pod(&format!("p{n}-{set}"), &format!("n{set}"), &format!("s{n}"));
        }
    }
    let mic = world.start(config("mic-0")).await;
    (world, mic)
}

#[tokio::test(start_paused = true)]
async fn a_poisoned_identity_costs_its_batch_one_patch() {
    let (world, mic) = with_one_bad_in_fifty(1).await;
    world.until("the others", |w| w.assigned() == 49).await;
    assert_eq!(world.azure.patches().len(), 2);
    mic.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_one_host_learns_of_a_poisoned_identity_all_know() {
    let (world, mic) = with_one_bad_in_fifty(10).await;
    let bad = |w: &World| {
        let patches = w.azure.patches();
        patches
            .iter()
            .filter(|(_, _, change)| change.attach.contains(&id(3)))
            .count()
    };
    world.until("the others", |w| w.assigned() == 490).await;
    let first = bad(&world);
    sleep(Duration::from_secs(3600)).await;
    let hour = bad(&world) - first;
    assert!(hour <= 12, "{hour} attempts in an hour on 10 hosts");
    assert_eq!(condition(&world, 3).0, "False IdentityNotFound");
    assert_eq!(condition(&world, 4).0, "True Attached");
    world.azure.0.lock().missing.clear();
    let mended = Instant::now();
    world.until("mended", |w| w.assigned() == 500).await;
    assert!(mended.elapsed() < Duration::from_secs(16 * 60));
    world
        .until("told", |w| condition(w, 3).0 == "True Attached")
        .await;
    mic.stop().await;
}

fn clients(world: &World, told: usize, shown: usize) {
    let client = |n| ClientId::parse(&client_id(n)).unwrap();
    let mut azure = world.azure.0.lock();
    azure.clients.insert(id(1), client(told));
    azure.shown.insert((host(1), id(1)), client(shown));
}

pub(super) async fn attached_once() -> (World, Running) {
    let world = World::new();
    clients(&world, 1, 1);
    world.node("n1", 1, 0);
    world.bound(1);
    world.pod("web", "n1", "s1");
    let mic = world.start(config("mic-0")).await;
    world
        .until("ready", |w| condition(w, 1).0 == "True Attached")
        .await;
    (world, mic)
}

#[tokio::test(start_paused = true)]
async fn an_identity_that_was_made_anew_is_attached_anew() {
    let (world, mic) = attached_once().await;
    // The identity is deleted and created again: the host keeps the dead one, the AzureIdentity gets the new client id.
    clients(&world, 7, 1);
    world.api.put(
        "azureidentities",
        json!({
            "apiVersion": "aadpodidentity.k8s.io/v1", "kind": "AzureIdentity",
            "metadata": { "namespace": "ns", "name": "id1", "generation": 2 },
            "spec": { "type": 0, "resourceID": id(1).as_str(), "clientID": client_id(7) },
        }),
    );
    world
        .until("anew", |w| {
            let azure = w.azure.0.lock();
            azure.shown.get(&(host(1), id(1))) == azure.clients.get(&id(1))
        })
        .await;
    let patches = world.azure.patches();
    let sent: Vec<_> = patches
        .iter()
        .map(|(_, _, c)| (c.attach.len(), c.detach.len()))
        .collect();
    assert_eq!(sent, [(1, 0), (0, 1), (1, 0)]);
    world
        .until("ready", |w| {
            w.assigned() == 1 && condition(w, 1).0 == "True Attached"
        })
        .await;
    mic.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_wrong_client_id_is_told_and_nothing_is_detached() {
    let (world, mic) = attached_once().await;
    world.api.put(
        "azureidentities",
        json!({
            "apiVersion": "aadpodidentity.k8s.io/v1", "kind": "AzureIdentity",
            "metadata": { "namespace": "ns", "name": "id1", "generation": 2 },
            "spec": { "type": 0, "resourceID": id(1).as_str(), "clientID": client_id(8) },
        }),
    );
    world
        .until("told", |w| condition(w, 1).0 == "False ClientIDMismatch")
        .await;
    assert!(condition(&world, 1).1.contains("az identity show"));
    sleep(Duration::from_secs(3600)).await;
    assert_eq!(world.azure.patches().len(), 1);
    let asked = |(_, call): &&(Instant, Call)| matches!(call, Call::Identity(_));
    let asked = world.azure.0.lock().calls.iter().filter(asked).count();
    assert!((1..=6).contains(&asked), "{asked} questions in an hour");
    world.identity(1, 3, id(1).as_str());
    world
        .until("mended", |w| condition(w, 1).0 == "True Attached")
        .await;
    mic.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_dead_identity_on_the_host_that_spoils_changes_is_taken_off() {
    let (world, mic) = attached_once().await;
    world.bound(2);
    let dead = HostError {
        identities: vec![id(1)],
        ..fault(Fault::IdentityNotFound, None)
    };
    world.azure.0.lock().faults.push_back(dead);
    world.azure.0.lock().missing.insert(id(1));
    world.azure.0.lock().names = true;
    world.pod("two", "n1", "s2");
    world
        .until("the other", |w| w.azure.attached(&host(1)) == only(&[2]))
        .await;
    world
        .until("told", |w| condition(w, 1).0 == "False IdentityNotFound")
        .await;
    mic.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_malformed_identity_has_a_condition_that_says_so() {
    let (world, mic) = attached_once().await;
    world.identity(1, 2, "/not/an/identity");
    world
        .until("told", |w| condition(w, 1).0 == "False Malformed")
        .await;
    world.identity(1, 3, id(1).as_str());
    world
        .until("mended", |w| condition(w, 1).0 == "True Attached")
        .await;
    mic.stop().await;
}

#[tokio::test(start_paused = true)]
async fn drift_and_lasting_trouble_are_events() {
    let (world, mic) = attached_once().await;
    world.azure.0.lock().attached.clear();
    let told = |w: &World, reason: &str, kind: &str| {
        let events = w.api.all("events");
        events
            .iter()
            .any(|e| e["reason"] == reason && e["regarding"]["kind"] == kind)
    };
    world
        .until("drift", |w| told(w, "IdentityDetached", "AzureIdentity"))
        .await;
    world.azure.0.lock().down = true;
    world.bound(2);
    world.pod("two", "n1", "s2");
    world
        .until("the pod knows", |w| told(w, "IdentityNotAttached", "Pod"))
        .await;
    world
        .until("the identity knows", |w| {
            condition(w, 2).0 == "False AzureUnavailable"
        })
        .await;
    mic.stop().await;
}

#[tokio::test(start_paused = true)]
async fn objects_in_the_old_spelling_are_rewritten_once_and_work_before() {
    let world = World::new();
    world.node("n1", 1, 0);
    let old = |kind: &str, name: &str, spec: Value| {
        json!({
            "apiVersion": "aadpodidentity.k8s.io/v1", "kind": kind,
            "metadata": { "namespace": "ns", "name": name, "generation": 1 }, "spec": spec,
        })
    };
    let identity = json!({ "type": 0, "ResourceID": id(1).as_str(), "ClientID": client_id(1) });
    let binding = json!({ "AzureIdentity": "id1", "Selector": "s1" });
    let exception = json!({ "PodLabels": { "app": "mic" } });
    world
        .api
        .put("azureidentities", old("AzureIdentity", "id1", identity));
    world.api.put(
        "azureidentitybindings",
        old("AzureIdentityBinding", "b1", binding.clone()),
    );
    world.api.put(
        "azurepodidentityexceptions",
        old("AzurePodIdentityException", "e1", exception),
    );
    world.pod("web", "n1", "s1");
    world.api.break_writes(Some("azureidentitybindings"));
    let mic = world.start(config("mic-0")).await;
    world.until("assigned", |w| w.assigned() == 1).await;
    let spec = |w: &World, plural: &str, name: &str| {
        w.api.get(plural, "ns", name).unwrap()["spec"].clone()
    };
    let identity = json!({ "type": 0, "resourceID": id(1).as_str(), "clientID": client_id(1) });
    world
        .until("identity", |w| {
            spec(w, "azureidentities", "id1") == identity
        })
        .await;
    let exception = json!({ "podLabels": { "app": "mic" } });
    world
        .until("exception", |w| {
            spec(w, "azurepodidentityexceptions", "e1") == exception
        })
        .await;
    assert_eq!(spec(&world, "azureidentitybindings", "b1"), binding);
    world.api.break_writes(None);
    // A change is reason enough to try again, as after a write of somebody else's that came between.
    let changed = Instant::now();
    world.api.put(
        "azureidentitybindings",
        old("AzureIdentityBinding", "b1", binding),
    );
    let binding = json!({ "azureIdentity": "id1", "selector": "s1" });
    world
        .until("binding", |w| {
            spec(w, "azureidentitybindings", "b1") == binding
        })
        .await;
    assert!(changed.elapsed() < Duration::from_secs(5));
    let writes = world.api.writes().len();
    sleep(Duration::from_secs(3600)).await;
    assert_eq!(world.api.writes().len(), writes);
    assert_eq!((world.assigned(), world.azure.patches().len()), (1, 1));
    mic.stop().await;
}
