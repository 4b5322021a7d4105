use super::*;
use crate::fake::{Answer, Fake};

const TOKEN: &str =
    r#"{"access_token":"t","expires_in":"3599","resource":"https://vault.azure.net"}"#;

fn imds(fake: &Fake) -> Imds {
    Imds::new(&fake.url, None, Duration::from_secs(5))
}

fn reader() -> Identity {
    Identity::Resource(
        ResourceId::parse("/subscriptions/s/resourceGroups/r/providers/Microsoft.ManagedIdentity/userAssignedIdentities/reader").unwrap(),
    )
}

#[tokio::test]
async fn a_token_is_asked_for_as_the_protocol_says() {
    let fake = Fake::start([Answer::ok(TOKEN)]).await;
    let token = imds(&fake)
        .token(&reader(), "https://vault.azure.net")
        .await
        .unwrap();
    assert_eq!(token.secret(), "t");
    let seen = fake.seen();
    assert_eq!(seen[0].headers["metadata"], "true");
    assert_eq!(
        seen[0].target,
        "/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https%3A%2F%2Fvault.azure.net&msi_res_id=%2Fsubscriptions%2Fs%2FresourceGroups%2Fr%2Fproviders%2FMicrosoft.ManagedIdentity%2FuserAssignedIdentities%2Freader"
    );
}

#[tokio::test]
async fn transient_failures_are_retried_and_others_are_not() {
    let fake = Fake::start([Answer::status(500), Answer::status(429), Answer::ok(TOKEN)]).await;
    imds(&fake).token(&Identity::System, "r").await.unwrap();
    assert_eq!(fake.seen().len(), 3);
    let body = r#"{"error":"invalid_request","error_description":"Identity not found"}"#;
    let fake = Fake::start([Answer::new(400, body)]).await;
    let error = imds(&fake).token(&reader(), "r").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::IdentityNotFound);
    assert_eq!(fake.seen().len(), 1);
}

#[tokio::test]
async fn an_absent_or_silent_service_is_an_error_in_time() {
    let closed = Url::parse("http://127.0.0.1:1").unwrap();
    let short = Duration::from_millis(300);
    let error = Imds::new(&closed, None, short)
        .token(&Identity::System, "r")
        .await;
    assert_eq!(error.unwrap_err().kind(), ErrorKind::Unavailable);
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = Url::parse(&format!("http://{}", silent.local_addr().unwrap())).unwrap();
    let error = Imds::new(&url, None, short)
        .token(&Identity::System, "r")
        .await;
    assert_eq!(error.unwrap_err().kind(), ErrorKind::Timeout);
}

#[tokio::test]
async fn a_forwarded_request_keeps_what_it_says() {
    let fake = Fake::start([Answer::new(418, "short and stout")]).await;
    let request = Request::post("http://elsewhere/metadata/x?bypass_cache=true&a=%20b")
        .header("metadata", "true")
        .header("x-own", "1")
        .body(Bytes::from_static(b"body"))
        .unwrap();
    let answer = imds(&fake).forward(request).await.unwrap();
    assert_eq!(
        (answer.status().as_u16(), &answer.body()[..]),
        (418, &b"short and stout"[..])
    );
    let seen = &fake.seen()[0];
    assert_eq!(seen.method, "POST");
    assert_eq!(seen.target, "/metadata/x?bypass_cache=true&a=%20b");
    assert_eq!(seen.headers["x-own"], "1");
    assert_eq!(&seen.body[..], b"body");
}

#[tokio::test]
async fn an_answer_without_end_is_cut() {
    let fake = Fake::start([Answer::ok(&"x".repeat(MAX_ANSWER + 1)), Answer::ok(TOKEN)]).await;
    let request = Request::get("/x").body(Bytes::new()).unwrap();
    let error = imds(&fake).forward(request).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
}
