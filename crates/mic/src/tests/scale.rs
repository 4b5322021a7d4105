//! Scale: how many calls many pods cost.

use super::*;
use crate::bench::{OfflineController, Work};
use podid_policy::facts::{
    BindingFacts, IdentityFacts, IdentitySource, ObjectKey, PodFacts, PodPhase,
};
use podid_policy::matching::BINDING_LABEL;

const SETS: usize = 20;
const PODS: usize = 2000;
const IDENTITIES: usize = 100;

fn crowd(world: &World) {
    for n in 0..SETS {
        world.node(&format!("n{n}"), n, 0);
    }
    for n in 0..IDENTITIES {
        world.bound(n);
    }
    for n in 0..PODS {
        let (node, selector) = (
            format!("n{}", n % SETS),
            format!("s{}", n / SETS % IDENTITIES),
        );
        world.pod(&format!("p{n}"), &node, &selector);
    }
}

#[tokio::test(start_paused = true)]
async fn two_thousand_pods_cost_one_get_and_one_patch_a_host() {
    let world = World::new();
    let mic = world.start(config("mic-0")).await;
    crowd(&world);
    world.until("assigned", |w| w.assigned() == PODS).await;
    assert!(
        world.azure.patches().len() <= SETS,
        "{} PATCHes",
        world.azure.patches().len()
    );
    assert!(world.azure.gets() <= SETS, "{} GETs", world.azure.gets());
    let creations = world
        .api
        .writes()
        .iter()
        .filter(|w| w.starts_with("POST") && w.ends_with("azureassignedidentities"))
        .count();
    assert_eq!(creations, PODS);
    let told = |identity: &Value| !identity["status"]["conditions"][0].is_null();
    world
        .until("all conditions", |w| {
            w.api.all("azureidentities").iter().all(told)
        })
        .await;
    mic.stop().await;

    let (patches, writes) = (world.azure.patches().len(), world.api.writes().len());
    let mic = world.start(config("mic-1")).await;
    sleep(Duration::from_secs(100)).await;
    assert_eq!(world.azure.patches().len(), patches);
    assert_eq!(world.azure.gets(), 2 * SETS);
    assert_eq!(
        world.api.writes().len(),
        writes,
        "a new leader writes nothing that is so"
    );
    mic.stop().await;
}

#[tokio::test(start_paused = true)]
async fn at_rest_a_host_is_read_ever_less_often() {
    let world = World::new();
    world.node("n1", 1, 0);
    world.bound(1);
    world.pod("web", "n1", "s1");
    let mic = world.start(config("mic-0")).await;
    world.until("assigned", |w| w.assigned() == 1).await;
    let before = world.azure.gets();
    sleep(Duration::from_secs(1800)).await;
    assert_eq!(world.azure.gets() - before, 3, "after 3, 6 and 12 minutes");
    sleep(Duration::from_secs(3600)).await;
    assert_eq!(world.azure.gets() - before, 5, "then every half hour");
    // Any change on the host brings the first interval back.
    world.bound(2);
    world.pod("other", "n1", "s2");
    world.until("assigned", |w| w.assigned() == 2).await;
    let before = world.azure.gets();
    sleep(Duration::from_secs(1000)).await;
    assert_eq!(world.azure.gets() - before, 2);
    assert_eq!(world.azure.patches().len(), 2);
    mic.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_day_of_rest_with_47_identities_costs_few_calls() {
    let world = World::new();
    (0..47).for_each(|n| world.bound(n));
    for set in 0..10 {
        world.node(&format!("n{set}"), set, 0);
    }
    for pod in 0..150 {
        let (node, selector) = (format!("n{}", pod % 10), format!("s{}", pod % 47));
        world.pod(&format!("p{pod}"), &node, &selector);
    }
    let mic = world.start(config("mic-0")).await;
    sleep(Duration::from_secs(24 * 3600)).await;
    assert_eq!(world.assigned(), 150);
    let calls = world.azure.0.lock().calls.len();
    assert!(
        calls < 1000,
        "{calls} calls in a day, the first ones included"
    );
    assert!(calls > 400, "{calls}: the hosts are looked at");
    mic.stop().await;
}

#[tokio::test(start_paused = true)]
async fn pods_that_trickle_in_stay_within_what_azure_takes() {
    let world = World::new();
    world.node("n1", 1, 0);
    let mic = world.start(config("mic-0")).await;
    for n in 0..240 {
        world.bound(n);
        world.pod(&format!("p{n}"), "n1", &format!("s{n}"));
        sleep(Duration::from_secs(1)).await;
    }
    world.until("assigned", |w| w.assigned() == 240).await;
    let patches = world.azure.patches();
    // Azure takes 12 PATCHes in a burst, then 4 a minute.
    for (n, (at, ..)) in patches.iter().enumerate() {
        let since = *at - patches[0].0;
        let allowed = 12 + since.as_secs() / 15;
        assert!(n as u64 <= allowed, "PATCH {n} after {since:?}");
    }
    mic.stop().await;
}

/// The work that a few events cause in a cluster with this many pods.
fn work(pods: usize) -> Vec<Work> {
    let mut controller = OfflineController::default();
    let identities = 10;
    for n in 0..SETS {
        controller.node(&format!("n{n}"), &provider_id(n, 0));
    }
    for n in 0..identities {
        controller.identity(IdentityFacts {
            key: ObjectKey::new("ns", &format!("id{n}")),
            client_id: ClientId::parse("00000000-0000-0000-0000-000000000001").unwrap(),
            source: IdentitySource::UserAssigned { resource_id: id(n) },
            namespaced: false,
        });
        controller.binding(binding(n, 0));
    }
    (0..pods).for_each(|n| {
        controller.pod(pod(n, n % (identities - 1)));
    });
    controller.pod(pod(pods, identities - 1));
    controller.lead();
    assert_eq!(controller.objects(), pods + 1);
    vec![
        controller.pod(pod(pods + 1, 1)),
        controller.pod(pod(pods + 1, 1)),
        controller.delete_pod(&pod(pods + 1, 1).key),
        controller.binding(binding(identities - 1, 1)),
        controller.compare(),
    ]
}

fn binding(n: usize, weight: i32) -> BindingFacts {
    BindingFacts {
        key: ObjectKey::new("ns", &format!("b{n}")),
        identity: format!("id{n}").into(),
        selector: format!("s{n}").into(),
        weight,
        service_accounts: Vec::new(),
    }
}

fn pod(n: usize, identity: usize) -> PodFacts {
    PodFacts {
        key: ObjectKey::new("ns", &format!("p{n}")),
        uid: "uid".into(),
        labels: [(BINDING_LABEL.to_owned(), format!("s{identity}"))].into(),
        service_account: "default".into(),
        node: Some(format!("n{}", identity % SETS).into()),
        addresses: Vec::new(),
        host_network: false,
        phase: PodPhase::Live,
    }
}

#[test]
fn what_an_event_leads_to_does_not_depend_on_the_size_of_the_cluster() {
    let small = work(20);
    assert_eq!(small, work(2_000));
    let one = Work {
        looked_at: 2,
        writes: 1,
        ..Work::default()
    };
    assert_eq!(small[..4], [one, Work::default(), one, one]);
    assert_eq!(
        (small[4].looked_at, small[4].writes, small[4].changes),
        (0, 0, 0)
    );
}
