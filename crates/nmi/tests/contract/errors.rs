//! Contract 37 to 46: every answer without a token.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::common::client::{Answer, get};
use crate::common::log::Log;
use crate::common::objects::{
    BARE, BOTH, FEDERATED, MOVING, NOBODY, ROBOT, SOON, VICTIM, WEB, WRITER, pod,
};
use crate::common::{METADATA, PATH, Rig, TOKEN, rig, rig_that_waits};

fn retry_after(answer: &Answer) -> Option<u64> {
    answer
        .header("retry-after")
        .map(|text| text.parse().unwrap())
}

/// The answer to ROBOT when Entra answers this.
async fn entra_says(rig: &Rig, status: u16, headers: &'static str, body: &Value) -> Answer {
    let body = body.to_string();
    rig.upstream
        .script(move |_| Some((status, headers, body.clone())));
    let fresh = format!("never-asked-{}-{}", status, headers.len());
    rig.token(ROBOT, &fresh).await
}

#[tokio::test]
async fn c37_every_error_is_json_with_an_id() {
    let rig = rig(|_| {}).await;
    for (from, target, headers) in [
        (WEB, PATH.to_owned(), ""),
        (WEB, PATH.to_owned(), METADATA),
        (WEB, "/".to_owned(), METADATA),
        (WEB, "/metadata/identity/x".to_owned(), METADATA),
        (WEB, "/metadata/instance".to_owned(), METADATA),
        (WEB, "/host/token".to_owned(), METADATA),
        (WEB, format!("{TOKEN}r&client_id=x"), METADATA),
        (WEB, format!("{TOKEN}r&x={}", "x".repeat(9000)), METADATA),
        (WEB, format!("{TOKEN}r&x={}", "x".repeat(70_000)), METADATA),
        (WEB, "not a target".to_owned(), METADATA),
        (BARE, format!("{TOKEN}r"), METADATA),
        (NOBODY, format!("{TOKEN}r"), METADATA),
        (SOON, format!("{TOKEN}r"), METADATA),
    ] {
        let answer = get(from, rig.listener, &target, headers).await;
        assert!(answer.status >= 400, "{target}");
        let kind = answer.header("content-type").unwrap();
        assert!(kind.starts_with("application/json"), "{target}");
        let body = answer.json();
        for name in ["error", "error_description", "correlationId"] {
            assert!(
                body[name].as_str().is_some_and(|text| !text.is_empty()),
                "{target}: {body}"
            );
        }
    }
}

#[tokio::test]
async fn c38_no_identity_is_said_at_once_and_for_good() {
    let rig = rig(|_| {}).await;
    for (from, query) in [
        (BARE, String::new()),
        (WEB, format!("&client_id={WRITER}")),
        (BOTH, format!("&client_id={VICTIM}")),
    ] {
        let start = Instant::now();
        let answer = rig.get(from, &format!("{TOKEN}r{query}")).await;
        assert!(start.elapsed() < Duration::from_secs(1));
        assert_eq!((answer.status, retry_after(&answer)), (400, None));
        assert_eq!(answer.json()["error"], "invalid_request");
        assert!(answer.description().starts_with("Identity not found"));
    }
}

#[tokio::test]
async fn a_federated_identity_without_a_broker_is_named_and_holds_up_no_other() {
    let rig = rig(|_| {}).await;
    let answer = rig.token(FEDERATED, "r").await;
    assert_eq!((answer.status, retry_after(&answer)), (403, None));
    assert_eq!(answer.json()["error"], "access_denied");
    for text in ["shop/federated", "no broker", "--broker-url"] {
        assert!(answer.description().contains(text), "{answer:?}");
    }
    for other in [WEB, ROBOT] {
        assert_eq!(rig.token(other, "r").await.status, 200);
    }
}

/// The controller detaches an identity that gets `spec.federation` only once that works.
#[tokio::test]
async fn an_identity_that_moves_to_federation_is_served_while_it_is_attached() {
    let rig = rig(|_| {}).await;
    assert_eq!(rig.token(MOVING, "r").await.status, 200);
    let gone = r#"{"error":"invalid_request","error_description":"Identity not found"}"#;
    rig.upstream
        .script(move |_| Some((400, "", gone.to_owned())));
    let answer = rig.token(MOVING, "detached").await;
    assert_eq!(answer.status, 403);
    assert!(answer.description().contains("no broker"), "{answer:?}");
}

#[tokio::test]
async fn c39_not_yet_is_no_verdict() {
    let rig = rig(|_| {}).await;
    let answer = rig.token(SOON, "r").await;
    assert_eq!(answer.status, 500);
    assert!(retry_after(&answer).is_some());
    // A node agent that has not read the cluster's objects says 500, too.
    let cold = rig_that_waits(false, |_| {}).await;
    let answer = cold.token(WEB, "r").await;
    assert_eq!((answer.status, retry_after(&answer)), (500, Some(1)));
    let answer = cold
        .get(WEB, "/metadata/instance?api-version=2021-02-01")
        .await;
    assert_eq!(answer.status, 500, "it may be exempted");
}

/// The contract wants "not yet" always. podid refuses at once when the API server says that no pod of the node has the address, because
/// retries would cost the client a minute and change nothing. While some pod has no address yet, the caller may be that pod.
#[tokio::test]
async fn c40_an_unknown_caller_may_be_a_pod_that_is_starting() {
    let rig = rig_that_waits(false, |_| {}).await;
    rig.api.up.send_replace(true);
    rig.until(200).await;
    let answer = rig.token(NOBODY, "r").await;
    assert_eq!(
        (answer.status, retry_after(&answer)),
        (400, None),
        "{answer:?}"
    );
    assert!(answer.description().contains(NOBODY));

    let rig = rig_that_waits(false, |_| {}).await;
    let mut starting = pod("starting", "", "app");
    starting["status"] = json!({ "phase": "Pending" });
    rig.api
        .objects
        .lock()
        .get_mut("pods")
        .unwrap()
        .push(starting);
    rig.api.up.send_replace(true);
    rig.until(200).await;
    let answer = rig.token(NOBODY, "r").await;
    assert_eq!(answer.status, 500, "{answer:?}");
    assert!((1..=5).contains(&retry_after(&answer).unwrap()));
}

#[tokio::test]
async fn c41_a_denial_is_403_in_words_that_no_client_takes_for_a_network_error() {
    let rig = rig(|_| {}).await;
    let said = json!({ "error": "x", "error_description": "A socket operation was attempted to an Unreachable network" });
    rig.upstream
        .script(move |_| Some((403, "", said.to_string())));
    for answer in [
        rig.token(WEB, "denied").await,
        rig.get(WEB, "/metadata/instance").await,
    ] {
        assert_eq!(
            (answer.status, retry_after(&answer)),
            (403, None),
            "{answer:?}"
        );
        assert!(!answer.body.to_lowercase().contains("unreachable"));
    }
}

#[tokio::test]
async fn c42_entras_verdicts_keep_their_meaning() {
    let rig = rig(|_| {}).await;
    let said = json!({ "error": "invalid_resource", "error_description": "AADSTS50001: no such resource" });
    let answer = entra_says(&rig, 400, "", &said).await;
    assert_eq!(answer.status, 400, "{answer:?}");
    assert_eq!(answer.json()["error"], "invalid_resource");
    assert!(answer.description().contains("AADSTS50001"));
    assert_eq!(retry_after(&answer), None);

    let answer = entra_says(&rig, 429, "retry-after: 7\r\n", &json!({})).await;
    assert_eq!((answer.status, retry_after(&answer)), (429, Some(7)));
    let answer = entra_says(&rig, 503, "", &json!({})).await;
    assert_eq!(answer.status, 500);
    assert!(retry_after(&answer).is_some());
}

#[tokio::test]
async fn c43_c45_there_is_a_bounded_number_of_seconds_with_every_429_and_500() {
    let rig = rig(|_| {}).await;
    for (status, headers, seconds) in [
        (429, "", 1..=60),
        (429, "retry-after: 0\r\n", 1..=60),
        (429, "retry-after: 86400\r\n", 60..=60),
        (
            429,
            "retry-after: Fri, 31 Dec 2100 23:59:59 GMT\r\n",
            60..=60,
        ),
        (503, "retry-after: soon\r\n", 1..=60),
    ] {
        let answer = entra_says(&rig, status, headers, &json!({})).await;
        let expected = if status == 503 { 500 } else { status };
        assert_eq!(answer.status, expected, "{headers}: {answer:?}");
        let found = retry_after(&answer).unwrap();
        assert!(seconds.contains(&found), "{headers}: {found}");
    }
}

/// The metadata service answers 410 while it restarts. podid hands its listeners over instead, so that it never has to.
#[tokio::test]
async fn c44_there_is_no_410_even_if_the_metadata_service_says_so() {
    let rig = rig(|_| {}).await;
    rig.upstream.script(|_| Some((410, "", String::new())));
    let answer = rig.token(WEB, "gone").await;
    assert_eq!(answer.status, 500, "{answer:?}");
    assert!(retry_after(&answer).is_some());
}

#[tokio::test]
async fn c46_no_error_and_no_log_line_tells_a_secret_or_of_others() {
    let (log, _listening) = Log::start();
    let rig = rig(|_| {}).await;
    assert_eq!(rig.token(WEB, "r").await.status, 200);
    assert_eq!(rig.token(ROBOT, "r").await.status, 200);
    let answer = rig.get(BOTH, &format!("{TOKEN}r&client_id={VICTIM}")).await;
    assert!(!answer.body.contains("victim"), "{answer:?}");
    let refused = entra_says(
        &rig,
        401,
        "",
        &json!({ "error": "invalid_client", "error_description": "AADSTS7000215" }),
    )
    .await;
    assert_eq!(refused.status, 403);
    for text in [
        answer.body,
        answer.head,
        refused.body,
        refused.head,
        log.text(),
    ] {
        assert!(!text.contains("eyJ") && !text.contains("hush"), "{text}");
    }
}
