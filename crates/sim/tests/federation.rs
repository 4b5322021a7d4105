//! Federation with a real kube-apiserver: tokens of its service accounts, and the issuer that they name.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use podid_testkit::apiserver::{ApiServer, Options, TokenIssuer};
use serde_json::Value;

#[tokio::test]
async fn the_issuer_of_a_real_server_can_be_read_by_anybody() {
    let server = ApiServer::start_with(Options {
        issuer: TokenIssuer::Published,
        ..Options::default()
    })
    .await
    .unwrap();
    let authority = std::fs::read(server.authority()).unwrap();
    let anonymous = reqwest::Client::builder()
        .tls_certs_only([reqwest::Certificate::from_pem(&authority).unwrap()])
        .no_proxy()
        .build()
        .unwrap();
    let read = async |url: String| -> Value {
        let answer = anonymous.get(url).send().await.unwrap();
        answer.error_for_status().unwrap().json().await.unwrap()
    };
    let issuer = server.issuer();
    let discovery = read(format!("{issuer}/.well-known/openid-configuration")).await;
    assert_eq!(discovery["issuer"], issuer);
    let keys = read(discovery["jwks_uri"].as_str().unwrap().to_owned()).await;
    assert_eq!(keys["keys"][0]["alg"], "RS256");
    let pods = anonymous.get(format!("{issuer}/api/v1/pods")).send().await;
    assert_eq!(pods.unwrap().status(), 403, "nothing else is open");
}
