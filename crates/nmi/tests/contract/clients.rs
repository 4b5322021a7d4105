//! The requests of clients as they send them, and their ways of reading the answer.

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::common::objects::{BOTH, READER, WEB, arm};
use crate::common::{Rig, rig};

const VAULT: &str = "https%3A%2F%2Fvault.azure.net";

/// Each client's request for the token of `reader`, to the byte.
fn requests() -> Vec<(&'static str, String)> {
    let path = "/metadata/identity/oauth2/token";
    let encoded = arm("reader").replace('/', "%2F");
    vec![
        (
            "Python",
            format!(
                "GET {path}?api-version=2018-02-01&resource=https://vault.azure.net&client_id={READER} HTTP/1.1\r\nHost: 169.254.169.254\r\nUser-Agent: azsdk-python-identity/1.27.0 Python/3.11.2\r\nAccept-Encoding: gzip, deflate\r\nAccept: */*\r\nConnection: keep-alive\r\nMetadata: true\r\nx-client-SKU: MSAL.Python\r\nx-client-Ver: 1.39.0\r\nx-ms-client-request-id: 3f2504e0-4f89-11d3-9a0c-0305e82c3301\r\n\r\n"
            ),
        ),
        (
            "Python, aio",
            format!(
                "GET {path}?api-version=2018-02-01&resource=https://vault.azure.net&resource_id={} HTTP/1.1\r\nHost: 169.254.169.254\r\nMetadata: true\r\nAccept: */*\r\nUser-Agent: azsdk-python-identity/1.27.0\r\n\r\n",
                arm("reader")
            ),
        ),
        (
            "az",
            format!(
                "GET {path}?api-version=2018-02-01&resource=https%3A%2F%2Fmanagement.core.windows.net%2F&msi_res_id={encoded} HTTP/1.1\r\nHost: 169.254.169.254\r\nUser-Agent: python-requests/2.32.3\r\nAccept: */*\r\nMetadata: true\r\n\r\n"
            ),
        ),
        (
            "msrestazure",
            format!(
                "GET {path}?resource={VAULT}&api-version=2018-02-01&client_id={READER} HTTP/1.1\r\nHost: 169.254.169.254\r\nMetadata: true\r\n\r\n"
            ),
        ),
        (
            "JavaScript",
            format!(
                "GET {path}/?api-version=2018-02-01&resource={VAULT}&client_id={READER}&xms_cc=cp1 HTTP/1.1\r\nMetadata: true\r\nContent-Type: application/x-www-form-urlencoded;charset=utf-8\r\nx-client-SKU: msal.js.node\r\nx-client-VER: 5.6.0\r\nHost: 169.254.169.254\r\nsec-fetch-mode: cors\r\naccept-language: *\r\nConnection: keep-alive\r\n\r\n"
            ),
        ),
        (
            "Go",
            format!(
                "GET {path}?api-version=2018-02-01&client_id={READER}&resource={VAULT} HTTP/1.1\r\nHost: 169.254.169.254\r\nUser-Agent: Go-http-client/1.1\r\nMetadata: true\r\nX-Client-Sku: MSAL.Go\r\nX-Client-Ver: 1.9.0\r\nAccept-Encoding: gzip\r\n\r\n"
            ),
        ),
        (
            "Go, adal",
            format!(
                "GET {path}?api-version=2018-02-01&mi_res_id={encoded}&resource={VAULT} HTTP/1.1\r\nHost: 169.254.169.254\r\nUser-Agent: Go/go1.19 go-autorest/adal/v1.0.0\r\nMetadata: true\r\n\r\n"
            ),
        ),
        (
            "Java",
            format!(
                "GET /{path}?resource={VAULT}&mi_res_id={encoded}&api-version=2018-02-01 HTTP/1.1\r\nMetadata: true\r\nUser-Agent: Java/17\r\nHost: 169.254.169.254\r\nAccept: text/html, image/gif, image/jpeg, *; q=.2, */*; q=.2\r\nConnection: keep-alive\r\n\r\n"
            ),
        ),
        (
            ".NET",
            format!(
                "GET {path}?api-version=2018-02-01&resource={VAULT}&msi_res_id={encoded} HTTP/1.1\r\nHost: 169.254.169.254\r\nMetadata: true\r\nx-client-SKU: MSAL.NetCore\r\nx-client-Ver: 4.70.0\r\nx-ms-client-request-id: 3f2504e0-4f89-11d3-9a0c-0305e82c3301\r\n\r\n"
            ),
        ),
        (
            "Rust",
            format!(
                "GET {path}?api-version=2019-08-01&resource={VAULT}&client_id={READER} HTTP/1.1\r\nmetadata: true\r\nx-identity-header: x\r\nhost: 169.254.169.254\r\naccept: */*\r\n\r\n"
            ),
        ),
        (
            "Terraform",
            format!(
                "GET {path}?api-version=2018-02-01&client_id={READER}&resource={VAULT} HTTP/1.1\r\nHost: 169.254.169.254\r\nUser-Agent: Go-http-client/1.1\r\nMetadata: true\r\nX-Ms-Identity: x\r\n\r\n"
            ),
        ),
        (
            "curl",
            format!(
                "GET {path}?api-version=2018-02-01&resource=https://vault.azure.net/&client_id={READER} HTTP/1.1\r\nHost: 169.254.169.254\r\nUser-Agent: curl/7.88.1\r\nAccept: */*\r\nMetadata:true\r\n\r\n"
            ),
        ),
    ]
}

/// The body of the answer to this pod.
async fn body(rig: &Rig, request: &str) -> String {
    let answer = rig.raw(BOTH, request).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.body
}

#[tokio::test]
async fn every_clients_request_is_answered_with_the_identity_it_names() {
    let rig = rig(|_| {}).await;
    for (client, request) in requests() {
        let body: Value = serde_json::from_str(&body(&rig, &request).await).unwrap();
        assert_eq!(body["client_id"], READER, "{client}");
    }
}

#[tokio::test]
async fn every_clients_decoder_reads_the_answer() {
    let rig = rig(|_| {}).await;
    let (_, request) = requests().swap_remove(0);
    // First from the issuer, then from the cache.
    for _ in 0..2 {
        let text = body(&rig, &request).await;
        let object: Map<String, Value> = serde_json::from_str(&text).unwrap();
        rust(&text);
        msal_python(&object);
        expires_on_only(&object);
        go(&object);
        msal_net(&text, &object);
        terraform(&object);
    }
}

/// azure_identity: all four are required, and expires_on is a string.
fn rust(text: &str) {
    #[derive(Deserialize)]
    struct Token {
        access_token: String,
        expires_on: String,
        token_type: String,
        resource: String,
    }
    let token: Token = serde_json::from_str(text).unwrap();
    assert!(token.expires_on.parse::<i64>().unwrap() > 1_600_000_000);
    assert!(!token.access_token.is_empty() && !token.resource.is_empty());
    assert_eq!(token.token_type, "Bearer");
}

/// msal: expires_in alone, truthy, an integer; tokens with less than five minutes are expired.
fn msal_python(body: &Map<String, Value>) {
    assert!(!body["access_token"].as_str().unwrap().is_empty());
    assert!(body["expires_in"].as_str().unwrap().parse::<i64>().unwrap() >= 300);
}

/// MSAL.js and MSAL4J: expires_on alone, seconds.
fn expires_on_only(body: &Map<String, Value>) {
    let text = body["expires_on"].as_str().unwrap();
    assert!(text.bytes().all(|b| b.is_ascii_digit()) && text.len() == 10);
}

/// MSAL Go and adal: what is there must be an integer, and an empty string is none.
fn go(body: &Map<String, Value>) {
    for name in [
        "expires_in",
        "expires_on",
        "ext_expires_in",
        "refresh_in",
        "not_before",
    ] {
        if let Some(value) = body.get(name) {
            value.as_str().unwrap().parse::<i64>().unwrap();
        }
    }
}

/// MSAL.NET: both expiries are one property, so that the later key wins; small numbers are lifetimes.
fn msal_net(text: &str, body: &Map<String, Value>) {
    let at = |name: &str| text.find(&format!("\"{name}\":")).unwrap();
    let last = match at("expires_in") > at("expires_on") {
        true => "expires_in",
        false => "expires_on",
    };
    let number: i64 = body[last].as_str().unwrap().parse().unwrap();
    let now = jiff::Timestamp::now().as_second();
    let expires = if number < 978_307_200 {
        now + number
    } else {
        number
    };
    assert!((300..90_000).contains(&(expires - now)), "{expires}");
}

/// go-azure-sdk: expires_in alone, a string or a number.
fn terraform(body: &Map<String, Value>) {
    body["expires_in"].as_str().unwrap().parse::<u64>().unwrap();
}

/// What clients send to find out whether there is a metadata service, and what they need to believe it.
#[tokio::test]
async fn every_clients_probe_finds_a_metadata_service() {
    let rig = rig(|_| {}).await;
    let path = "/metadata/identity/oauth2/token";
    for target in [
        // Python, JavaScript and Go, adal.
        format!("{path}?api-version=2018-02-01&resource={VAULT}&client_id={READER}"),
        path.to_owned(),
        format!("{path}?api-version=2018-02-01"),
        // .NET, by three names.
        format!("{path}?api-version=2018-02-01&resource={VAULT}&msi-res-id=x"),
        format!("{path}?api-version=2018-02-01&mi_res_id=x"),
    ] {
        let request = format!(
            "GET {target} HTTP/1.1\r\nHost: 169.254.169.254\r\nAccept: application/json\r\n\r\n"
        );
        let answer = rig.raw(WEB, &request).await;
        assert_eq!(answer.status, 400, "{target}");
        assert!(answer.json().is_object());
        assert!(!answer.body.contains("Identity not found"));
    }
    // MSAL.NET must not take it for version 2.
    let version_2 = format!(
        "GET /metadata/identity/getplatformmetadata?cred-api-version=2.0&client_id={READER} HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n"
    );
    assert_eq!(rig.raw(WEB, &version_2).await.status, 404);
}
