//! An identity in use moves from federation to the nodes and back, and no request of its pods fails meanwhile.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::setup::Platform;
use crate::world::{READER, World};

/// The pause between two requests of the pod.
const PAUSE: Duration = Duration::from_millis(20);

#[tokio::test(flavor = "multi_thread")]
async fn the_block_is_taken_away_and_added_and_no_token_is_lost() {
    let world = World::build_on(Platform::Azure).await;
    let is_attached = async || {
        let attached = world.azure.attached().await;
        attached.iter().any(|id| id.ends_with("/reader"))
    };
    // The simulator attaches every identity; here the controller is to do so.
    world.azure.detach(READER).await;
    world.until("detached", async || !is_attached().await).await;
    let is_over = AtomicBool::new(false);
    let asking = async {
        let mut count = 0;
        while !is_over.load(Ordering::Relaxed) {
            // No cache has a token of this resource.
            let resource = format!("https://resource-{count}");
            let (status, answer) = world.ask("web", &resource).await;
            assert_eq!(status, 200, "request {count}: {answer}");
            count += 1;
            tokio::time::sleep(PAUSE).await;
        }
        count
    };
    let moving = async {
        for is_federated in [false, true] {
            world.set_federation(READER, is_federated).await;
            world
                .until("it has moved", async || is_attached().await != is_federated)
                .await;
            let before = tokens(&world, is_federated).await;
            world
                .until("tokens come the new way", async || {
                    tokens(&world, is_federated).await > before + 5
                })
                .await;
        }
        is_over.store(true, Ordering::Relaxed);
    };
    let (count, ()) = tokio::join!(asking, moving);
    assert!(count > 20, "{count}");
}

/// How many tokens Entra was asked for, or the metadata service.
async fn tokens(world: &World, is_federated: bool) -> usize {
    match is_federated {
        true => world.exchanges().await,
        false => world.asked("imds").await.len(),
    }
}
