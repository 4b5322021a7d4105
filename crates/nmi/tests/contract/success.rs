//! Contract 29 to 36: the answer with a token.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::common::objects::{READER, ROBOT, ROBOTS, WEB};
use crate::common::rig;
use crate::common::upstream::jwt;

#[tokio::test]
async fn c29_c30_c33_c34_c35_the_body_has_what_clients_read() {
    let rig = rig(|_| {}).await;
    for (from, client) in [(WEB, READER), (ROBOT, ROBOTS)] {
        let answer = rig.token(from, "https://vault.azure.net//").await;
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(
            answer.header("content-type"),
            Some("application/json; charset=utf-8")
        );
        assert_eq!(
            answer.header("content-length"),
            Some(&*answer.body.len().to_string())
        );
        let body = answer.json();
        let fields = body.as_object().unwrap();
        assert!(fields.values().all(Value::is_string), "{body}");
        for name in [
            "access_token",
            "expires_in",
            "expires_on",
            "resource",
            "token_type",
            "not_before",
            "refresh_token",
        ] {
            assert!(fields.contains_key(name), "{name}");
        }
        assert_eq!(body["token_type"], "Bearer");
        assert_eq!(body["resource"], "https://vault.azure.net//");
        assert_eq!(body["refresh_token"], "");
        assert_eq!(body["client_id"], client);
        for name in ["ext_expires_in", "refresh_in"] {
            assert!(!fields.contains_key(name), "empty, it breaks some");
        }
    }
}

#[tokio::test]
async fn c31_both_expiries_agree_at_the_moment_of_the_answer() {
    let rig = rig(|_| {}).await;
    for _ in 0..2 {
        let body = rig.token(WEB, "r").await.json();
        let number = |name: &str| body[name].as_str().unwrap().parse::<i64>().unwrap();
        let left = number("expires_on") - Timestamp::now().as_second();
        assert!((left - number("expires_in")).abs() <= 2, "{body}");
        tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    }
}

#[tokio::test]
async fn c32_no_token_is_about_to_expire() {
    let rig = rig(|_| {}).await;
    for (life, status) in [(299, 500), (310, 200)] {
        rig.upstream.script(move |_| {
            let body = json!({ "access_token": jwt("reader"), "expires_in": life.to_string() });
            Some((200, "", body.to_string()))
        });
        let answer = rig.token(WEB, &format!("life-{life}")).await;
        assert_eq!(answer.status, status, "{answer:?}");
        if status == 200 {
            let left: u32 = answer.json()["expires_in"]
                .as_str()
                .unwrap()
                .parse()
                .unwrap();
            assert!(left >= 300);
        } else {
            assert!(answer.header("retry-after").is_some());
        }
    }
}

#[tokio::test]
async fn c36_the_token_is_the_issuers_own() {
    let rig = rig(|_| {}).await;
    let body = rig.token(WEB, "r").await.json();
    assert_eq!(
        body["access_token"],
        jwt("reader"),
        "az reads its claim tid"
    );
}
