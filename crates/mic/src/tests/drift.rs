//! Drift: what somebody else detaches is attached again and told; a detach of podid's own is not drift.

use rstest::rstest;

use super::faults::attached_once;
use super::*;

fn event_count(world: &World, reason: &str) -> usize {
    world.api.count("events", |event| event["reason"] == reason)
}

#[tokio::test(start_paused = true)]
async fn drift_is_told_on_ten_pods_besides_the_identity() {
    let world = World::new();
    world.node("n1", 1, 0);
    world.bound(1);
    for n in 0..12 {
        world.pod(&format!("p{n}"), "n1", "s1");
    }
    let mic = world.start(config("mic-0")).await;
    world.until("assigned", |w| w.assigned() == 12).await;
    world.azure.0.lock().attached.clear();
    world
        .until("repaired", |w| w.azure.attached(&host(1)) == only(&[1]))
        .await;
    sleep(Duration::from_secs(10)).await;
    assert_eq!(event_count(&world, "IdentityDetached"), 1);
    assert_eq!(event_count(&world, "IdentityNotAttached"), 10);
    mic.stop().await;
}

/// The PATCH that detaches is carried out, now or later, its outcome cannot be read, and the pod has come back meanwhile.
#[rstest]
#[case::gone_at_the_next_read(2)]
#[case::gone_after_the_next_read(60)]
#[tokio::test(start_paused = true)]
async fn a_detach_of_its_own_whose_outcome_is_unknown_is_no_drift(#[case] seconds: u64) {
    let (world, mic) = attached_once().await;
    let carried_out_after = Duration::from_secs(seconds);
    let sent = world.azure.patches().len();
    world.azure.0.lock().unreadable.push_back(carried_out_after);
    world.api.delete("pods", "ns", "web");
    world
        .until("the detach is sent", |w| w.azure.patches().len() > sent)
        .await;
    world.pod("web", "n1", "s1");
    world
        .until("attached again", |w| w.azure.patches().len() > sent + 1)
        .await;
    sleep(Duration::from_secs(10)).await;
    assert_eq!(world.azure.attached(&host(1)), only(&[1]));
    assert_eq!(world.assigned(), 1);
    assert_eq!(event_count(&world, "IdentityDetached"), 0);
    assert_eq!(event_count(&world, "IdentityNotAttached"), 0);
    // What somebody else detaches afterwards is drift.
    world.azure.0.lock().attached.clear();
    world
        .until("told", |w| event_count(w, "IdentityDetached") == 1)
        .await;
    mic.stop().await;
}
