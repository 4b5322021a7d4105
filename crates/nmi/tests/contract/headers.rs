//! Contract 13 to 20: the header `Metadata`, and other headers.

use std::time::{Duration, Instant};

use crate::common::client::get;
use crate::common::log::Log;
use crate::common::objects::{BARE, BOTH, WEB, WRITER};
use crate::common::{METADATA, PATH, TOKEN, rig, rig_that_waits};

const MISSING: &str = "Required metadata header not specified";

#[tokio::test]
async fn c13_c14_c15_a_probe_is_answered_at_once_whatever_is_away() {
    let rig = rig_that_waits(false, |_| {}).await;
    for target in [
        PATH.to_owned(),
        format!("{PATH}?api-version=2018-02-01"),
        format!("{TOKEN}https://management.azure.com/"),
        format!("{TOKEN}r&client_id=6f1c0000-0000-0000-0000-0000000022ab"),
    ] {
        let start = Instant::now();
        let answer = get(WEB, rig.listener, &target, "").await;
        assert!(
            start.elapsed() < Duration::from_millis(500),
            "fifty, on a machine of its own"
        );
        assert_eq!(answer.status, 400);
        assert!(
            answer
                .header("content-type")
                .unwrap()
                .starts_with("application/json")
        );
        assert_eq!(answer.json()["error"], "invalid_request");
        assert_eq!(answer.json()["error_description"], MISSING);
        for word in ["Identity not found", "unreachable"] {
            assert!(!answer.body.contains(word));
        }
    }
    assert!(rig.upstream.seen().is_empty());
}

#[tokio::test]
async fn c16_the_value_is_true_in_any_case() {
    let rig = rig(|_| {}).await;
    for (lines, status) in [
        ("metadata: true\r\n", 200),
        ("METADATA: true\r\n", 200),
        ("Metadata: true\r\nMetadata: true\r\n", 200),
        ("Metadata: True\r\n", 200),
        ("Metadata: TRUE\r\n", 200),
        ("Metadata: \"true\"\r\n", 400),
        ("Metadata: 1\r\n", 400),
        ("Metadata:\r\n", 400),
        ("Metadata: true\r\nMetadata: false\r\n", 400),
        ("Metadata: true, true\r\n", 400),
    ] {
        let answer = get(WEB, rig.listener, &format!("{TOKEN}r"), lines).await;
        assert_eq!(answer.status, status, "{lines}");
        assert!(status == 200 || answer.description().starts_with(MISSING));
        assert!(
            status == 200 || answer.description().contains("came as"),
            "{answer:?}"
        );
    }
}

#[tokio::test]
async fn c17_a_proxied_request_is_refused_before_any_work() {
    let rig = rig(|_| {}).await;
    rig.upstream.forget();
    for (header, name) in [
        ("X-Forwarded-For: 10.0.0.9", "X-Forwarded-For"),
        ("Via: 1.1 tinyproxy (tinyproxy/1.11.0)", "Via"),
        ("via:", "Via"),
        ("Forwarded: for=10.0.0.9", "Forwarded"),
    ] {
        let lines = format!("{METADATA}{header}\r\n");
        let answer = get(WEB, rig.listener, &format!("{TOKEN}never-asked"), &lines).await;
        assert_eq!(answer.status, 400, "{header}");
        for part in ["NO_PROXY", name] {
            assert!(answer.description().contains(part), "{answer:?}");
        }
    }
    assert!(rig.upstream.seen().is_empty());
}

#[tokio::test]
async fn c18_clients_other_headers_mean_nothing() {
    let rig = rig(|_| {}).await;
    for line in [
        "Content-Type: application/x-www-form-urlencoded;charset=utf-8",
        "x-identity-header: a",
        "x-ms-identity: a",
        "secret: a",
        "x-client-SKU: MSAL.Python",
        "x-client-Ver: 1",
        "x-client-VER: 1",
        "sec-fetch-mode: cors",
        "accept-language: *",
        "X-Anything: at all",
    ] {
        let lines = format!("{METADATA}{line}\r\n");
        let answer = get(WEB, rig.listener, &format!("{TOKEN}r"), &lines).await;
        assert_eq!(answer.status, 200, "{line}");
    }
}

/// It is not forwarded to Entra: one fetch serves many requests, each of which may have its own.
#[tokio::test]
async fn c19_a_clients_request_id_is_logged_and_never_needed() {
    let (log, _listening) = Log::start();
    let rig = rig(|_| {}).await;
    let id = |id: &str| format!("{METADATA}x-ms-client-request-id: {id}\r\n");
    let target = format!("{TOKEN}r");
    assert_eq!(get(WEB, rig.listener, &target, METADATA).await.status, 200);
    assert_eq!(
        get(WEB, rig.listener, &target, &id("given-1")).await.status,
        200
    );
    let refused = get(BARE, rig.listener, &target, &id("refused-2")).await;
    assert_eq!(
        get(WEB, rig.listener, &target, &id(&"x".repeat(5000)))
            .await
            .status,
        200
    );
    let text = log.text();
    let line = |what: &str| text.lines().find(|line| line.contains(what)).unwrap();
    assert!(line("given-1").contains("token issued"));
    let correlation = refused.json()["correlationId"].as_str().unwrap().to_owned();
    assert!(
        line("refused-2").contains(&correlation),
        "the log tells more of {refused:?}"
    );
    assert!(!text.contains("xxxxxxxx"), "what is too long is left out");
}

#[tokio::test]
async fn c20_without_the_header_there_is_no_200() {
    let rig = rig(|config| config.allowed_categories = vec!["instance".into()]).await;
    for target in [
        format!("{TOKEN}r"),
        "/metadata/instance?api-version=2021-02-01".to_owned(),
        "/metadata/versions".to_owned(),
        "/metadata/identity/info?api-version=2018-02-01".to_owned(),
        "/host/token?resource=r".to_owned(),
    ] {
        assert_ne!(
            get(WEB, rig.listener, &target, "").await.status,
            200,
            "{target}"
        );
    }
}

/// Old SDKs and tools know `MSI_ENDPOINT` alone, at which they send a secret and no version that the metadata service has.
#[tokio::test]
async fn clients_of_msi_endpoint_are_served_where_the_header_is_not_demanded() {
    let rig = rig(|config| config.metadata_header_required = false).await;
    let target = format!("{PATH}/?resource=r&api-version=2017-09-01&clientid={WRITER}");
    let answer = get(BOTH, rig.listener, &target, "Secret: any\r\n").await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.json()["client_id"], WRITER);
    let answer = get(WEB, rig.listener, &format!("{PATH}?resource=r"), "").await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let strict = self::rig(|_| {}).await;
    let answer = get(BOTH, strict.listener, &target, METADATA).await;
    assert_eq!(answer.status, 400, "{answer:?}");
}
