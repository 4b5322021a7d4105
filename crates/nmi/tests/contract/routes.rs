//! Contract 1 to 12: which request target is which endpoint.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::common::client::{exchange, get};
use crate::common::objects::{BARE, BOTH, EXEMPT, LATE, NOBODY, READER, ROBOT, SOON, TENANT, WEB};
use crate::common::{METADATA, PATH, TEST_TIMEOUT, TOKEN, rig};

const RESOURCE: &str = "https://vault.azure.net";

#[tokio::test]
async fn c01_the_token_path_gives_a_token() {
    let rig = rig(|_| {}).await;
    let answer = rig.token(WEB, RESOURCE).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(answer.json()["access_token"].is_string());
}

#[tokio::test]
async fn c02_c03_c04_clients_spellings_of_it_give_the_same() {
    let rig = rig(|_| {}).await;
    let query = format!("?api-version=2018-02-01&resource={RESOURCE}");
    let first = rig.get(WEB, &format!("{PATH}{query}")).await.json();
    for path in [
        "/metadata/identity/oauth2/token/",
        "//metadata/identity/oauth2/token",
        "//metadata/identity/oauth2/token/",
        "/Metadata/identity/oauth2/token",
        "/METADATA/identity/oauth2/token",
    ] {
        let answer = rig.get(WEB, &format!("{path}{query}")).await;
        assert_eq!(answer.status, 200, "{path}");
        assert_eq!(answer.json()["access_token"], first["access_token"]);
        assert_eq!(answer.header("location"), None);
    }
    let answer = rig
        .get(WEB, &format!("/metadata/Identity/oauth2/token{query}"))
        .await;
    assert_eq!(answer.status, 404);
    assert!(answer.json()["error"].is_string());
}

/// The corpus has hundreds more.
#[tokio::test]
async fn c05_odd_spellings_are_refused_and_go_nowhere() {
    let rig = rig(|_| {}).await;
    rig.upstream.forget();
    for path in [
        "/metadata/identity/oauth2/token/x",
        "/metadata/identity/oauth2/tokenx",
        "/metadata/identity/oauth2%2ftoken",
        "/metadata\\identity\\oauth2\\token",
        "/metadata/instance/../identity/oauth2/token",
        "/metadata/identity;a=b/oauth2/token",
        "/metadata/identity%00/oauth2/token",
        "/metadata/identity//oauth2/token",
    ] {
        let target = format!("{path}?api-version=2018-02-01&resource={RESOURCE}");
        let answer = rig.get(WEB, &target).await;
        assert!(matches!(answer.status, 400 | 404), "{path}: {answer:?}");
        assert!(answer.json()["error"].is_string());
    }
    assert!(rig.upstream.seen().is_empty());
}

#[tokio::test]
async fn c06_other_methods_get_no_token() {
    let rig = rig(|_| {}).await;
    rig.upstream.forget();
    for method in ["HEAD", "POST", "PUT", "DELETE", "OPTIONS"] {
        let request = format!(
            "{method} {TOKEN}x HTTP/1.1\r\nHost: x\r\n{METADATA}Content-Length: 0\r\nConnection: close\r\n\r\n"
        );
        let answer = rig.raw(WEB, &request).await;
        assert_eq!(
            (answer.status, answer.header("allow")),
            (405, Some("get")),
            "{method}"
        );
        assert!(
            answer
                .header("content-type")
                .unwrap()
                .starts_with("application/json")
        );
        assert!(method == "HEAD" || answer.json()["error"].is_string());
    }
    assert!(rig.upstream.seen().is_empty());
}

#[tokio::test]
async fn c07_nothing_is_a_redirection() {
    let rig = rig(|config| config.allowed_categories = vec!["instance".into()]).await;
    let redirects = |_: &str| Some((302, "location: http://evil.example/\r\n", String::new()));
    rig.upstream.script(redirects);
    for target in [
        "/",
        "/metadata",
        "/metadata/",
        "/metadata/identity",
        "/metadata/identity/oauth2",
        "//",
        "/host/token",
        "/metadata/instance",
        "/metadata/instance/",
        "/metadata/instance?api-version=2021-02-01",
    ] {
        let answer = rig.get(WEB, target).await;
        assert!(answer.status >= 400, "{target}: {answer:?}");
        assert_eq!(answer.header("location"), None);
    }
}

#[tokio::test]
async fn c08_what_imds_v2_is_known_by_is_not_there_even_without_the_header() {
    let rig = rig(|_| {}).await;
    for path in ["getplatformmetadata", "issuecredential", "credential"] {
        let target = format!("/metadata/identity/{path}?cred-api-version=2.0");
        let answer = get(WEB, rig.listener, &target, "").await;
        assert_eq!(answer.status, 404, "{path}");
        assert!(answer.json()["error"].is_string());
    }
}

#[tokio::test]
async fn c09_info_tells_the_tenant_of_ones_own_identity() {
    let rig = rig(|_| {}).await;
    let info = "/metadata/identity/info?api-version=2018-02-01";
    rig.upstream.forget();
    for _ in 0..3 {
        let answer = rig.get(WEB, info).await;
        assert_eq!(answer.json(), json!({ "tenantId": "tenant-of-the-node" }));
    }
    assert_eq!(rig.upstream.seen().len(), 1, "asked once");
    assert_eq!(
        rig.get(ROBOT, info).await.json(),
        json!({ "tenantId": TENANT })
    );
    let named = format!("{info}&client_id={READER}");
    assert_eq!(rig.get(BOTH, &named).await.status, 200);
    for (from, target, status) in [
        (BARE, info, 400),
        (NOBODY, info, 400),
        (BOTH, info, 400),
        (WEB, &format!("{info}&client_id={LATE}"), 400),
        (SOON, info, 500),
        (WEB, "/metadata/identity/info", 400),
    ] {
        let answer = rig.get(from, target).await;
        assert_eq!(answer.status, status, "{from} {target}: {answer:?}");
        assert!(answer.json()["error"].is_string());
    }
    assert_eq!(
        get(WEB, rig.listener, info, "").await.status,
        400,
        "no header"
    );
}

#[tokio::test]
async fn c09_a_metadata_service_that_does_not_tell_is_asked_again() {
    let rig = rig(|_| {}).await;
    let info = "/metadata/identity/info?api-version=2018-02-01";
    for body in ["", "{}", r#"{"tenantId":"a b"}"#, "<html>"] {
        rig.upstream
            .script(move |_| Some((200, "", body.to_owned())));
        let answer = rig.get(WEB, info).await;
        assert_eq!(answer.status, 500, "{body}");
        assert!(answer.header("retry-after").is_some());
    }
    rig.upstream.script(|_| None);
    assert_eq!(rig.get(WEB, info).await.status, 200);
}

#[tokio::test]
async fn c10_versions_are_told_without_a_version() {
    let rig = rig(|_| {}).await;
    rig.upstream.forget();
    let answer = rig.get(BARE, "/metadata/versions").await;
    assert_eq!(answer.status, 200);
    let versions = answer.json()["apiVersions"].clone();
    assert!(versions.as_array().unwrap().contains(&json!("2018-02-01")));
    assert_eq!(
        get(WEB, rig.listener, "/metadata/versions", "")
            .await
            .status,
        400
    );
    assert!(rig.upstream.seen().is_empty());
}

#[tokio::test]
async fn c11_other_categories_are_refused_at_once() {
    let rig = rig(|_| {}).await;
    rig.upstream.forget();
    for category in [
        "instance",
        "instance/compute",
        "attested/document",
        "scheduledevents",
        "loadbalancer",
    ] {
        let start = Instant::now();
        let target = format!("/metadata/{category}?api-version=2021-02-01");
        let answer = rig.get(WEB, &target).await;
        assert!(
            start.elapsed() < Duration::from_millis(500),
            "fifty, on a machine of its own"
        );
        assert_eq!(
            (answer.status, answer.header("retry-after")),
            (403, None),
            "{category}"
        );
        assert_eq!(answer.json()["error"], "access_denied");
    }
    assert!(rig.upstream.seen().is_empty());
}

#[tokio::test]
async fn c12_absolute_targets_and_any_host_work() {
    let rig = rig(|_| {}).await;
    for (target, host) in [
        ("http://169.254.169.254", "169.254.169.254"),
        ("http://127.0.0.1:2579", "evil.example"),
        ("", "nmi.kube-system.svc:80"),
        ("", "[::1]"),
        ("", ""),
    ] {
        let request = format!(
            "GET {target}{TOKEN}r HTTP/1.1\r\nHost: {host}\r\n{METADATA}Connection: close\r\n\r\n"
        );
        assert_eq!(rig.raw(WEB, &request).await.status, 200, "{request}");
    }
}

#[tokio::test]
async fn an_exempted_pod_talks_to_the_metadata_service_itself() {
    let rig = rig(|_| {}).await;
    rig.upstream.forget();
    let request = "POST /metadata/scheduledevents?api-version=2020-07-01 HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nX-A: b\r\nContent-Length: 3\r\nConnection: close\r\n\r\nabc";
    assert_eq!(rig.raw(EXEMPT, request).await.status, 200);
    let seen = rig.upstream.seen().remove(0);
    assert!(seen.starts_with("POST /metadata/scheduledevents?api-version=2020-07-01 HTTP/1.1"));
    assert!(
        seen.contains("x-a: b") && seen.ends_with("\r\n\r\nabc"),
        "{seen}"
    );
    assert!(!seen.contains("expect"));
    // A request whose body does not arrive is not forwarded.
    rig.upstream.forget();
    let half = request.replace("Content-Length: 3", "Content-Length: 30");
    let received = exchange(EXEMPT, rig.listener, half.as_bytes(), TEST_TIMEOUT).await;
    assert!(!String::from_utf8_lossy(&received).contains("HTTP/1.1 200"));
    assert!(rig.upstream.seen().is_empty());
}

#[tokio::test]
async fn hop_by_hop_headers_end_at_the_node_agent() {
    let rig = rig(|_| {}).await;
    rig.upstream.forget();
    rig.upstream.script(|_| {
        let headers = "Connection: X-Named\r\nX-Named: 1\r\nKeep-Alive: timeout=5\r\nProxy-Connection: close\r\nUpgrade: h2c\r\nTrailer: X-Sum\r\nX-Kept: 1\r\n";
        Some((200, headers, "{}".to_owned()))
    });
    // The metadata service refuses what has X-Forwarded-For, so that no client may make podid drop it.
    let request = "GET /metadata/instance?api-version=2021-02-01 HTTP/1.1\r\nHost: x\r\nMetadata: true\r\nX-Forwarded-For: 10.0.0.9\r\nX-Kept: 1\r\nX-Named: 1\r\nTE: trailers\r\nProxy-Connection: close\r\nProxy-Authorization: Basic eA==\r\nConnection: close, X-Named\r\nConnection: Metadata,x-forwarded-for\r\n\r\n";
    let answer = rig.raw(EXEMPT, request).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let seen = rig.upstream.seen().remove(0).to_ascii_lowercase();
    for kept in [
        "\r\nmetadata: true\r\n",
        "\r\nx-forwarded-for: 10.0.0.9\r\n",
        "\r\nx-kept: 1\r\n",
    ] {
        assert!(seen.contains(kept), "{kept}: {seen}");
    }
    assert_eq!(answer.header("x-kept"), Some("1"));
    for dropped in [
        "x-named",
        "te",
        "trailer",
        "keep-alive",
        "upgrade",
        "proxy-connection",
        "proxy-authorization",
    ] {
        assert!(
            !seen.contains(&format!("\r\n{dropped}: ")),
            "{dropped}: {seen}"
        );
        assert_eq!(answer.header(dropped), None, "{answer:?}");
    }
}
