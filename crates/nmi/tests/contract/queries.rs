//! Contract 21 to 28: the query.

use serde_json::json;

use crate::common::objects::{BOTH, READER, WEB, WRITER, arm, object};
use crate::common::{PATH, TOKEN, rig};

#[tokio::test]
async fn c21_a_version_is_needed_and_every_one_with_identities_will_do() {
    let rig = rig(|_| {}).await;
    for version in [
        "",
        "api-version=&",
        "api-version=2017-12-01&",
        "api-version=latest&",
        "api-version=2018-2-1&",
    ] {
        let answer = rig.get(WEB, &format!("{PATH}?{version}resource=r")).await;
        assert_eq!(answer.status, 400, "{version}");
        let newest = answer.json()["newest-versions"].clone();
        assert_eq!(newest.as_array().map(Vec::len), Some(3));
    }
    // Unknown versions are valid, so that newer clients work.
    for version in [
        "2018-02-01",
        "2018-10-01",
        "2019-08-01",
        "2021-12-13",
        "2025-04-07",
        "2031-01-01",
    ] {
        let answer = rig
            .get(WEB, &format!("{PATH}?api-version={version}&resource=r"))
            .await;
        assert_eq!(answer.status, 200, "{version}");
    }
}

#[tokio::test]
async fn c22_a_resource_is_needed() {
    let rig = rig(|_| {}).await;
    for query in ["api-version=2018-02-01", "api-version=2018-02-01&resource="] {
        let answer = rig.get(WEB, &format!("{PATH}?{query}")).await;
        assert_eq!(answer.status, 400);
        assert_eq!(answer.json()["error"], "invalid_request");
    }
}

#[tokio::test]
async fn c23_a_resource_is_kept_as_it_is_meant() {
    let rig = rig(|_| {}).await;
    rig.upstream.forget();
    for (sent, meant) in [
        ("https://x/", "https://x/"),
        ("https%3A%2F%2Fx%2F", "https://x/"),
        ("https://x", "https://x"),
        ("https://x//", "https://x//"),
        (
            "00000002-0000-0000-c000-000000000000",
            "00000002-0000-0000-c000-000000000000",
        ),
        ("api://a-b/c", "api://a-b/c"),
    ] {
        let answer = rig.token(WEB, sent).await;
        assert_eq!(answer.json()["resource"], meant);
    }
    assert_eq!(rig.upstream.tokens(), 5, "raw and encoded are one");
    let doubled = |seen: &String| seen.contains("resource=https%3A%2F%2Fx%2F%2F&");
    assert!(rig.upstream.seen().iter().any(doubled), "to the byte");
}

#[tokio::test]
async fn c24_an_identity_has_many_names() {
    let rig = rig(|_| {}).await;
    for (name, client) in [("reader", READER), ("writer", WRITER)] {
        let (arm, object) = (arm(name), object(name));
        for query in [
            format!("client_id={client}"),
            format!("client_id={}", client.to_uppercase()),
            format!("object_id={object}"),
            format!("object_id={}", object.to_uppercase()),
            format!("msi_res_id={arm}"),
            format!("msi_res_id={}", arm.to_uppercase()),
            format!("msi_res_id={}", arm.replace('/', "%2F")),
            format!("mi_res_id={arm}"),
            format!("resource_id={arm}"),
            format!("msi-res-id={arm}"),
        ] {
            let answer = rig.get(BOTH, &format!("{TOKEN}r&{query}")).await;
            assert_eq!(answer.status, 200, "{query}: {answer:?}");
            assert_eq!(answer.json()["client_id"], client, "{query}");
        }
    }
    assert_eq!(
        rig.token(BOTH, "r").await.status,
        400,
        "none is not a choice"
    );
}

#[tokio::test]
async fn c24_an_object_id_names_only_what_one_is_granted() {
    let rig = rig(|_| {}).await;
    let by = |name: &str| format!("{TOKEN}r&object_id={}", object(name));
    assert_eq!(rig.get(BOTH, &by("writer")).await.status, 200);
    let before = rig.upstream.tokens();
    // WEB is granted reader alone, though the object ids of both are known by now.
    let answer = rig.get(WEB, &by("writer")).await;
    assert_eq!(answer.status, 400, "{answer:?}");
    assert!(answer.description().starts_with("Identity not found"));
    assert_eq!(rig.get(WEB, &by("victim")).await.status, 400);
    assert_eq!(rig.get(WEB, &by("reader")).await.status, 200);
    assert_eq!(rig.upstream.tokens(), before, "the rest is remembered");
    assert_eq!(
        rig.get(WEB, &format!("{TOKEN}r&object_id=x")).await.status,
        400
    );
}

#[tokio::test]
async fn c24_an_object_id_is_not_denied_for_a_token_that_cannot_be_had() {
    let rig = rig(|_| {}).await;
    rig.upstream.script(|request| {
        let writers = request.contains("userAssignedIdentities%2Fwriter");
        writers.then(|| {
            (
                429,
                "retry-after: 3\r\n",
                json!({ "error": "busy" }).to_string(),
            )
        })
    });
    let answer = rig
        .get(BOTH, &format!("{TOKEN}r&object_id={}", object("writer")))
        .await;
    assert_eq!(answer.status, 429, "{answer:?}");
    let answer = rig
        .get(BOTH, &format!("{TOKEN}r&object_id={}", object("reader")))
        .await;
    assert_eq!(answer.status, 200, "{answer:?}");
}

#[tokio::test]
async fn c25_contradictions_are_refused() {
    let rig = rig(|_| {}).await;
    let arm = arm("reader");
    for query in [
        format!("client_id={READER}&msi_res_id={arm}"),
        format!("client_id={READER}&object_id={READER}"),
        format!("client_id={READER}&client_id={READER}"),
        format!("msi_res_id={arm}&mi_res_id={arm}"),
        "resource=again".to_owned(),
        "api-version=2018-02-01".to_owned(),
    ] {
        let answer = rig.get(WEB, &format!("{TOKEN}r&{query}")).await;
        assert_eq!(answer.status, 400, "{query}");
        assert_eq!(answer.json()["error"], "invalid_request");
    }
}

#[tokio::test]
async fn c26_an_empty_name_is_none() {
    let rig = rig(|_| {}).await;
    for query in [
        "client_id=",
        "object_id=",
        "msi_res_id=",
        "client_id=&msi_res_id=&object_id=",
    ] {
        let answer = rig.get(WEB, &format!("{TOKEN}r&{query}")).await;
        assert_eq!(answer.status, 200, "{query}");
    }
}

#[tokio::test]
async fn c27_other_variables_do_no_harm() {
    let rig = rig(|_| {}).await;
    rig.token(WEB, "r").await;
    rig.upstream.forget();
    for query in [
        "xms_cc=cp1,cp2",
        "token_sha256_to_refresh=ab",
        "authority=http://127.0.0.1:1/tenant",
        "bypass_cache=false",
        "anything",
        "",
    ] {
        let answer = rig.get(WEB, &format!("{TOKEN}r&{query}")).await;
        assert_eq!(answer.status, 200, "{query}");
    }
    assert_eq!(rig.upstream.tokens(), 0, "from memory");
    // bypass_cache takes effect a second after the last fetch, so that a pod cannot make podid flood the issuer.
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    assert_eq!(
        rig.get(WEB, &format!("{TOKEN}r&bypass_cache=true"))
            .await
            .status,
        200
    );
    assert_eq!(rig.upstream.tokens(), 1, "a new one");
    assert!(!rig.upstream.seen()[0].contains("authority"));
}

#[tokio::test]
async fn c28_the_order_does_not_matter() {
    let rig = rig(|_| {}).await;
    for query in [
        format!("resource=r&api-version=2018-02-01&client_id={READER}"),
        format!("client_id={READER}&resource=r&api-version=2018-02-01"),
        format!("api-version=2018-02-01&client_id={READER}&resource=r"),
    ] {
        assert_eq!(rig.get(WEB, &format!("{PATH}?{query}")).await.status, 200);
    }
}
