//! Pods that ask before the API server has their address.

use super::*;
use crate::caller::testing::Node;

const UID: &str = "2f1c7a10-93b0-4c3e-9a51-0d0c6a1f22ab";

/// The caller is shop/web by the kernel's word alone, and is granted shop/reader.
async fn eager() -> (Rig, Node) {
    let node = Node::new();
    node.link(pod().addresses[0], Some(7), true);
    node.process(1, UID, 7);
    let rig = rig_with(Some(node.attestor()), SHORT).await;
    rig.context.change(|index| {
        index.apply_pod(PodFacts {
            uid: UID.into(),
            addresses: Vec::new(),
            ..pod()
        });
        index.apply_identity(identity("reader", CLIENT));
        index.apply_binding(binding("reader"));
    });
    rig.assign(AssignmentState::Assigned);
    (rig, node)
}

#[tokio::test]
async fn a_pod_gets_its_token_before_its_address_is_known() {
    let (rig, _node) = eager().await;
    let answer = rig.get(TOKEN).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert_eq!(answer.body["client_id"], CLIENT);
    assert_eq!(rig.api.asked.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn an_exempted_pod_gets_the_metadata_services_own_answer_from_its_first_request() {
    let (rig, _node) = eager().await;
    rig.context.change(|index| {
        index.apply_exception(ExceptionFacts {
            key: ObjectKey::new("shop", "exception"),
            pod_labels: [("aadpodidbinding".to_owned(), "app".to_owned())].into(),
        });
    });
    for target in ["/metadata/instance?api-version=2021-02-01", TOKEN] {
        let answer = rig.get(target).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        assert_eq!(answer.body["uri"], target);
    }
}

#[tokio::test]
async fn a_probe_without_the_header_is_answered_at_once() {
    let node = Node::new();
    node.link(pod().addresses[0], Some(7), false);
    let rig = rig_with(Some(node.attestor_without_processes()), SHORT).await;
    let answer = rig.raw(&format!("GET {TOKEN} HTTP/1.1\nHost: x")).await;
    assert_eq!(answer.status, 400, "{}", answer.body);
    assert_eq!(rig.api.asked.load(Ordering::SeqCst), 0, "it was looked up");
}
