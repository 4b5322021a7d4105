//! Whose fault a refused change is: the identity's, or the host's.

use super::faults::condition;
use super::*;

/// Azure refuses every change of one host and names no identity: its identities go onto other hosts at once, also a lone one.
#[tokio::test(start_paused = true)]
async fn a_host_that_refuses_everything_convicts_no_identity() {
    let world = World::new();
    world.azure.0.lock().invalid.insert(host(1));
    world.node("n1", 1, 0);
    for n in 0..8 {
        world.bound(n);
        world.pod(&format!("p{n}"), "n1", &format!("s{n}"));
    }
    let mic = world.start(config("mic-0")).await;
    sleep(Duration::from_secs(120)).await;
    world
        .until("told", |w| condition(w, 3).0 == "False HostRefused")
        .await;
    assert!(condition(&world, 3).1.contains("fault RefusedByAzure"));
    let second = Instant::now();
    world.node("n2", 2, 0);
    for n in 0..8 {
        world.pod(&format!("q{n}"), "n2", &format!("s{n}"));
    }
    world.until("the other host", |w| w.assigned() == 8).await;
    assert!(second.elapsed() < Duration::from_secs(15));
    let asked = world.azure.patches().len();
    sleep(Duration::from_secs(3600)).await;
    let hour = world.azure.patches().len() - asked;
    assert!(hour <= 20, "{hour} PATCHes in an hour");
    world.azure.0.lock().invalid.clear();
    world.until("mended", |w| w.assigned() == 16).await;
    mic.stop().await;
}

/// An identity that Azure refuses without naming it, alone on its host: it holds up none that come later, and is found then.
#[tokio::test(start_paused = true)]
async fn a_lone_identity_that_azure_refuses_holds_up_no_other() {
    let world = World::new();
    world.azure.0.lock().odd.insert(id(1));
    world.node("n1", 1, 0);
    world.bound(1);
    world.pod("one", "n1", "s1");
    let mic = world.start(config("mic-0")).await;
    sleep(Duration::from_secs(1800)).await;
    world.bound(2);
    world.pod("two", "n1", "s2");
    let asked = Instant::now();
    world.until("the other", |w| w.assigned() == 1).await;
    assert!(asked.elapsed() < Duration::from_secs(15));
    world
        .until("found", |w| condition(w, 1).0 == "False RefusedByAzure")
        .await;
    assert!(condition(&world, 1).1.contains("takes other identities"));
    mic.stop().await;
}

/// A PATCH that is answered by 404 does not say that the host is gone: what podid attached stays podid's.
#[tokio::test(start_paused = true)]
async fn only_a_read_says_that_a_host_is_gone() {
    let world = World::new();
    world.node("n1", 1, 0);
    world.bound(1);
    world.pod("web", "n1", "s1");
    let mic = world.start(config("mic-0")).await;
    world.until("assigned", |w| w.assigned() == 1).await;
    let gone = fault(Fault::NoHost, None);
    world.azure.0.lock().faults.push_back(gone);
    world.api.delete("pods", "ns", "web");
    world
        .until("detached", |w| w.azure.attached(&host(1)).is_empty())
        .await;
    mic.stop().await;
}
