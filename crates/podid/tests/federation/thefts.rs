//! Stolen things: whatever a taken-over node, pod or namespace has is tried at the broker, and refused with its reason. Before each,
//! the same request without the theft succeeds, so that the refusal is about the theft.

use podid_broker::protocol::{ErrorKind, PodRef};
use podid_policy::federation::BROKER_AUDIENCE;

use crate::world::{Proof, READER, VAULT, World};

const FOR_BROKER: Option<&str> = Some(BROKER_AUDIENCE);

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_not_the_node_agent_of_the_pods_node_is_refused() {
    let world = World::build().await;
    let here = world.start_pod("here", READER, 0).await;
    let there = world.start_pod("there", READER, 1).await;
    let (node_a, node_b) = (world.nmi_proof(0), world.nmi_proof(1));
    for (proof, pod) in [(&node_a, &here), (&node_b, &there)] {
        world
            .until("the node's own pod", async || {
                world.refusal(proof, pod, READER).await.is_none()
            })
            .await;
    }
    let refused = async |proof: &Proof, pod: &PodRef| world.refusal(proof, pod, READER).await;
    let wrong_node = Some((403, ErrorKind::WrongNode));
    assert_eq!(refused(&node_a, &there).await, wrong_node);
    assert_eq!(refused(&node_b, &here).await, wrong_node);

    let caller = Some((403, ErrorKind::CallerRefused));
    let own = world
        .proof("shop", "default", FOR_BROKER, Some(&here))
        .await;
    assert_eq!(refused(&own, &here).await, caller, "a pod's own token");
    let unbound = world.proof("podid", "podid-nmi", FOR_BROKER, None).await;
    assert_eq!(refused(&unbound, &here).await, caller, "bound to no pod");
    let mic = world.proof("podid", "podid-mic", FOR_BROKER, None).await;
    assert_eq!(refused(&mic, &here).await, caller, "the controller's");
    let check = world.refusal_of_check(&node_a, READER).await;
    assert_eq!(check, caller, "a node agent checks nothing");

    let unauthenticated = Some((401, ErrorKind::Unauthenticated));
    let agent = world.start_agent("thief", 0).await;
    let of_agent = async |audience| {
        let proof = world.proof("podid", "podid-nmi", audience, Some(&agent));
        proof.await
    };
    let right = of_agent(FOR_BROKER).await;
    assert_eq!(refused(&right, &here).await, None);
    let other = Some("api://AzureADTokenExchange");
    for audience in [None, other] {
        let wrong = of_agent(audience).await;
        assert_eq!(
            refused(&wrong, &here).await,
            unauthenticated,
            "{audience:?}"
        );
    }
    let gone = of_agent(FOR_BROKER).await;
    world.delete_pod("podid", "thief").await;
    // The API server keeps what it has verified for ten seconds.
    world
        .until("the token of a pod that is gone", async || {
            refused(&gone, &here).await == unauthenticated
        })
        .await;
    assert_eq!(refused(&node_a, &here).await, None, "at the end as before");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_is_gone_finished_made_anew_or_not_bound_gets_nothing() {
    let world = World::build().await;
    let node_a = world.nmi_proof(0);
    let given = async |pod: &PodRef| {
        world
            .until("a token", async || {
                world.refusal(&node_a, pod, READER).await.is_none()
            })
            .await;
    };
    let becomes = async |pod: &PodRef, kind: ErrorKind, status: u16| {
        world
            .until(kind.name(), async || {
                world.refusal(&node_a, pod, READER).await == Some((status, kind))
            })
            .await;
    };
    let finished = world.start_pod("finished", READER, 0).await;
    given(&finished).await;
    world.finish_pod(&finished).await;
    becomes(&finished, ErrorKind::PodFinished, 403).await;

    let deleted = world.start_pod("deleted", READER, 0).await;
    given(&deleted).await;
    world.delete_pod("shop", "deleted").await;
    becomes(&deleted, ErrorKind::UnknownPod, 404).await;
    let anew = world.start_pod("deleted", READER, 0).await;
    given(&anew).await;
    becomes(&deleted, ErrorKind::UnknownPod, 404).await;

    let unlabelled = world.start_pod("unlabelled", "", 0).await;
    becomes(&unlabelled, ErrorKind::NotGranted, 403).await;
    let elsewhere = world.start_pod_in("evil", "elsewhere", READER, 0).await;
    becomes(&elsewhere, ErrorKind::NotGranted, 403).await;
    // The same client id in an AzureIdentity of another namespace is another subject, for which Azure has no credential.
    world
        .until("a refusal of Entra's", async || {
            let (status, answer) = world.ask("elsewhere", VAULT).await;
            assert_ne!(status, 200, "{answer}");
            answer.to_string().contains("podid-identities:evil.reader")
        })
        .await;

    let bound = world.start_pod("bound", READER, 0).await;
    given(&bound).await;
    world.delete_binding(READER).await;
    becomes(&bound, ErrorKind::NotGranted, 403).await;
}
