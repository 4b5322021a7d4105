//! Tokens of federated identities: had without anything attached, shared, revoked with their grant, and outliving the broker.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::Value;

use crate::world::{FRESH, MOVING, READER, STRANGER, VAULT, World};

fn claims(answer: &Value) -> Value {
    let token = answer["access_token"].as_str().unwrap();
    let claims = token.split('.').nth(1).unwrap();
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).unwrap()).unwrap()
}

fn text(answer: &Value) -> &str {
    answer["error_description"].as_str().unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_has_its_token_and_nothing_is_attached() {
    let mut world = World::build().await;
    let (status, answer) = world.ask("web", VAULT).await;
    assert_eq!((status, &answer["token_type"]), (200, &"Bearer".into()));
    assert_eq!(answer["resource"], VAULT);
    assert!(answer["expires_on"].is_string(), "{answer}");
    let token = claims(&answer);
    assert_eq!(token["appid"], world.client_id(READER));
    assert_eq!(token["aud"], VAULT);
    assert_eq!(world.asked("imds").await, Vec::<String>::new());
    assert_eq!(world.asked("arm").await, Vec::<String>::new());

    // All pods of an identity share one exchange, on whatever node they are.
    let before = world.exchanges().await;
    world.start_pod("neighbour", READER, 0).await;
    world.start_pod("distant", READER, 1).await;
    for (node, pod) in [(0, "neighbour"), (1, "distant")] {
        world
            .until(pod, async || world.ask_at(node, pod, VAULT).await.0 == 200)
            .await;
    }
    assert_eq!(world.exchanges().await, before);
    // The resource's own slash is in the token's audience.
    let (status, answer) = world.ask("web", FRESH).await;
    assert_eq!((status, &claims(&answer)["aud"]), (200, &FRESH.into()));

    // The controller made the account that stands for the identity, and says that federation works.
    let account = "/api/v1/namespaces/podid-identities/serviceaccounts/shop.reader";
    assert!(!world.get(account).await.is_null());
    world
        .until("the identity is ready", async || {
            let identity = world.custom("azureidentities", READER).await;
            let conditions = identity["status"]["conditions"].as_array().cloned();
            let ready =
                |condition: &Value| condition["type"] == "Ready" && condition["status"] == "True";
            conditions.unwrap_or_default().iter().any(ready)
        })
        .await;

    a_missing_credential_is_said_with_the_command(&world).await;
    an_identity_that_moves_is_served_while_it_is_attached(&world).await;
    warm_tokens_outlive_the_broker(&mut world).await;
    the_grant_ends_at_once(&world).await;
    assert!(!world.logs().contains("eyJ"), "a token is in a log");
}

async fn a_missing_credential_is_said_with_the_command(world: &World) {
    world.start_pod("foreign", STRANGER, 0).await;
    world
        .until("a refusal of Entra's", async || {
            text(&world.ask("foreign", VAULT).await.1).contains("AADSTS")
        })
        .await;
    let (status, answer) = world.ask("foreign", VAULT).await;
    // As long as the credential may be new it is "not yet", and then "no".
    assert!(matches!(status, 500 | 403), "{answer}");
    for part in [
        "federated-credential create",
        "system:serviceaccount:podid-identities:shop.stranger",
        &world.api.issuer(),
    ] {
        assert!(text(&answer).contains(part), "{part}: {answer}");
    }
}

/// The controller detaches an identity that is given `spec.federation` only once that works; until then the node has its tokens.
async fn an_identity_that_moves_is_served_while_it_is_attached(world: &World) {
    world.grant_attached(MOVING).await;
    world.start_pod("moving", MOVING, 0).await;
    world
        .until("a token", async || {
            world.ask("moving", VAULT).await.0 == 200
        })
        .await;
    let (_, answer) = world.ask("moving", VAULT).await;
    assert_eq!(claims(&answer)["appid"], world.client_id(MOVING));
    assert!(!world.asked("imds").await.is_empty());
}

async fn warm_tokens_outlive_the_broker(world: &mut World) {
    world.broker.take();
    assert_eq!(world.ask("web", VAULT).await.0, 200);
    let (status, answer) = world.ask("web", "https://storage.azure.com").await;
    assert_eq!(status, 500, "{answer}");
    assert!(text(&answer).contains("did not answer"), "{answer}");
    world.restart_broker().await;
    world
        .until("a token after the broker's restart", async || {
            world.ask("web", "https://storage.azure.com").await.0 == 200
        })
        .await;
}

async fn the_grant_ends_at_once(world: &World) {
    world.delete_binding(READER).await;
    world
        .until("400", async || world.ask("web", VAULT).await.0 == 400)
        .await;
    let (_, answer) = world.ask("web", VAULT).await;
    assert!(text(&answer).starts_with("Identity not found"), "{answer}");
}
