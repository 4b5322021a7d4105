//! Requests that are held for what is not there yet.

use std::time::Instant;

use super::*;

impl Rig {
    /// Waits until so many requests are held.
    async fn until_held(&self, count: usize) {
        while self.context.changes.receiver_count() != count {
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test]
async fn an_identity_that_the_metadata_service_does_not_have_yet_is_asked_for_again_once_for_all() {
    let rig = served_with(LONG).await;
    rig.not_found.store(2, Ordering::SeqCst);
    let answers = futures::future::join_all((0..30).map(|_| rig.get(TOKEN))).await;
    for answer in answers {
        assert_eq!(answer.status, 200, "{}", answer.body);
    }
    assert_eq!(rig.asked(), 3, "30 pods wait for one question");
}

#[tokio::test]
async fn an_identity_that_the_metadata_service_never_has_is_told_when_the_hold_is_over() {
    let rig = served().await;
    rig.not_found.store(usize::MAX, Ordering::SeqCst);
    let began = Instant::now();
    let got = rig.get(TOKEN).await;
    assert!(began.elapsed() >= SHORT, "it was not held");
    assert_eq!(got.status, 500, "{}", got.body);
    assert!(got.head.contains("retry-after: 5"));
    let said = got.body["error_description"].as_str().unwrap();
    assert!(
        said.contains("Identity not found") && said.contains("by itself"),
        "{said}"
    );
    assert_eq!(rig.asked(), 1, "and not in a loop");
}

#[tokio::test]
async fn an_object_id_of_an_identity_on_its_way_is_held_like_any_other() {
    let rig = served_with(LONG).await;
    rig.assign(AssignmentState::Created);
    let target = format!("{TOKEN}&object_id={OTHER}");
    let (got, ()) = tokio::join!(rig.get(&target), async {
        rig.until_held(1).await;
        rig.assign(AssignmentState::Assigned);
    });
    // Its token has no claim `oid`, so that it is nobody's in the end.
    assert_eq!(got.status, 400, "{}", got.body);
}

#[tokio::test]
async fn a_drain_ends_holds() {
    let rig = served_with(LONG).await;
    rig.assign(AssignmentState::Created);
    let (got, ()) = tokio::join!(rig.get(TOKEN), async {
        rig.until_held(1).await;
        rig.stop.cancel();
        rig.holds_ended.cancel();
    });
    assert_eq!(got.status, 500, "{}", got.body);
    assert!(got.head.contains("connection: close"));
}

#[tokio::test]
async fn the_final_drain_ends_holds() {
    let rig = served_with(LONG).await;
    rig.assign(AssignmentState::Created);
    let (got, ()) = tokio::join!(rig.get(TOKEN), async {
        rig.until_held(1).await;
        rig.context.final_drain.0.holds_ended.cancel();
    });
    assert_eq!(got.status, 500, "{}", got.body);
}

#[tokio::test]
async fn a_hold_ends_when_its_client_goes_away() {
    let rig = served_with(LONG).await;
    rig.assign(AssignmentState::Created);
    let mut stream = TcpStream::connect(rig.address).await.unwrap();
    let request = format!("GET {TOKEN} HTTP/1.1\r\nHost: x\r\nMetadata: true\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    rig.until_held(1).await;
    drop(stream);
    rig.until_held(0).await;
    assert_eq!(rig.context.metrics.connections().get(), 0);
}

#[tokio::test]
async fn an_identity_that_azure_refuses_is_told_at_once_and_with_azures_reason() {
    let rig = served_with(LONG).await;
    rig.assign(AssignmentState::Created);
    let key = ObjectKey::new("shop", "reader");
    let refusal = "IdentityRoleMissing: grant Managed Identity Operator";
    let (got, ()) = tokio::join!(rig.get(TOKEN), async {
        rig.until_held(1).await;
        rig.context
            .change(|index| index.apply_refusal(&key, Some(refusal.into())));
    });
    assert_eq!(got.status, 500, "{}", got.body);
    assert!(got.head.contains("retry-after: 5"));
    let said = got.body["error_description"].as_str().unwrap();
    assert!(said.contains(refusal), "{said}");
    // Repaired, it is waited for like any other.
    rig.context.change(|index| index.apply_refusal(&key, None));
    let (got, ()) = tokio::join!(rig.get(TOKEN), async {
        rig.until_held(1).await;
        rig.assign(AssignmentState::Assigned);
    });
    assert_eq!(got.status, 200, "{}", got.body);
}
