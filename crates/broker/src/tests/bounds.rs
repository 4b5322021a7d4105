//! Bounded input, and the end of the process.

use std::time::Duration;

use crate::protocol::ErrorKind;
use crate::testing::*;

#[tokio::test]
async fn a_body_that_is_too_long_or_malformed_is_refused() {
    let world = World::start().await;
    let client = world.client("nmi-n1");
    let mut long = request("web", "u1");
    long.resource = "r".repeat(20_000);
    let (status, _, text) = refusal(client.token(&long).await.map(drop));
    assert_eq!(status, 400);
    assert!(text.contains("the body is cut short or too long"), "{text}");
    long.resource = "r".repeat(3000);
    assert_eq!(refusal(client.token(&long).await.map(drop)).0, 400);
    for name in ["", "../secrets/x", "a/b", "a%2Fb", "a b"] {
        let refused = refusal(client.token(&request(name, "u1")).await.map(drop));
        assert_eq!(
            (refused.0, refused.1),
            (400, ErrorKind::Malformed),
            "{name}"
        );
    }
    assert_eq!(
        refusal(client.token(&request("web", "")).await.map(drop)).0,
        400
    );
    assert!(world.entra.forms().is_empty());
}

#[tokio::test]
async fn a_body_is_read_of_those_alone_who_are_known() {
    let world = World::start().await;
    let client = world.client("forged");
    let mut long = request("web", "u1");
    long.resource = "r".repeat(20_000);
    assert_eq!(refusal(client.token(&long).await.map(drop)).0, 401);
}

#[tokio::test]
async fn a_broker_that_ends_finishes_what_is_under_way() {
    let world = World::start().await;
    world.entra.gate.forget_permits(usize::MAX);
    let client = world.client("nmi-n1");
    let asked = request("web", "u1");
    let ending = async {
        world
            .until("asked", || !world.entra.forms().is_empty())
            .await;
        world.shutdown.cancel();
        world
            .until("draining", || world.context.draining.is_cancelled())
            .await;
        world.entra.gate.add_permits(1);
    };
    let (answer, ()) = tokio::join!(client.token(&asked), ending);
    answer.unwrap();
    // New connections are taken until no node leads here by the Service any more.
    world.ask("nmi-n1", "web", "u1").await.unwrap();
}

#[tokio::test]
async fn a_client_says_what_is_wrong_with_its_files() {
    let world = World::start().await;
    let no_file = crate::client::BrokerClient::new(
        world.url.clone(),
        "/nowhere/ca.crt".into(),
        "/nowhere/token".into(),
        Duration::from_secs(5),
    );
    let error = no_file.check(&reader()).await.unwrap_err();
    assert!(error.to_string().contains("/nowhere/ca.crt"), "{error}");
    assert!(error.is_transient());
}
