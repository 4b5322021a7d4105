//! Entra's answers: kept, shared, refreshed, and each error with its owner.

use serde_json::json;

use crate::protocol::ErrorKind;
use crate::testing::*;

#[tokio::test]
async fn many_who_ask_at_once_cause_one_exchange() {
    let world = World::start().await;
    let client = world.client("nmi-n1");
    let asked = request("web", "u1");
    let asks = (0..30).map(|_| client.token(&asked));
    for answer in futures::future::join_all(asks).await {
        assert_eq!(*answer.unwrap().access_token, "token-1");
    }
    assert_eq!(world.entra.forms().len(), 1);
}

#[tokio::test]
async fn a_missing_credential_has_its_command_and_closes_the_gate() {
    let world = World::start().await;
    world.entra.refuse(700_213);
    let (status, kind, text) = world.refused("nmi-n1", "web", "u1").await;
    assert_eq!((status, kind), (503, ErrorKind::Propagating), "{text}");
    for part in [
        "federated-credential create",
        "https://issuer.example/",
        "system:serviceaccount:podid-identities:shop.reader",
        "api://AzureADTokenExchange",
    ] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    assert!(!text.contains("e30."), "an assertion is in {text}");
    // Nobody asks Entra before its time, not for another resource and not for a check.
    let client = world.client("nmi-n1");
    let mut other = request("web", "u1");
    other.resource = "https://storage.azure.com/".to_owned();
    let answer = client.token(&other).await;
    let wait = answer.as_ref().err().unwrap().retry_after();
    assert!(wait.unwrap().as_secs() >= 30, "{wait:?}");
    let checked = refusal(world.client("mic").check(&reader()).await);
    assert_eq!(checked.1, ErrorKind::Propagating);
    assert_eq!(world.entra.forms().len(), 1);
}

#[tokio::test]
async fn errors_have_owners() {
    for (number, status, kind) in [
        (7_002_138, 403, ErrorKind::CredentialMismatch),
        (700_223, 403, ErrorKind::TenantRefused),
        (50_166, 503, ErrorKind::IssuerUnreachable),
        (90_002, 403, ErrorKind::CredentialMismatch),
    ] {
        let world = World::start().await;
        world.entra.refuse(number);
        let refused = world.refused("nmi-n1", "web", "u1").await;
        assert_eq!(
            (refused.0, refused.1),
            (status, kind),
            "{number}: {}",
            refused.2
        );
    }
    let world = World::start().await;
    world
        .entra
        .prepare((429, json!({ "error": "temporarily_unavailable" })));
    let refused = world.refused("nmi-n1", "web", "u1").await;
    assert_eq!((refused.0, refused.1), (429, ErrorKind::Throttled));
}

#[tokio::test]
async fn an_assertion_that_is_out_of_date_is_minted_anew_once() {
    let world = World::start().await;
    world.entra.refuse(700_024);
    world.ask("nmi-n1", "web", "u1").await.unwrap();
    let forms = world.entra.forms();
    assert_eq!(forms.len(), 2);
    assert_ne!(forms[0], forms[1], "the same assertion was tried again");
    let world = World::start().await;
    world.entra.refuse(700_024);
    world.entra.refuse(700_024);
    let refused = world.refused("nmi-n1", "web", "u1").await;
    assert_eq!(refused.1, ErrorKind::IssuerUnreachable);
    assert_eq!(world.entra.forms().len(), 2);
}

#[tokio::test]
async fn a_held_token_goes_on_while_entra_fails() {
    let due = json!({ "access_token": "held", "expires_in": 3600, "refresh_in": 0 });
    let world = World::start().await;
    world.entra.prepare((200, due.clone()));
    world.ask("nmi-n1", "web", "u1").await.unwrap();
    forget_flights(&world).await;
    world.entra.prepare((503, json!({})));
    let token = world.ask("nmi-n1", "web", "u1").await.unwrap();
    assert_eq!(*token.access_token, "held");
    assert_eq!(world.entra.forms().len(), 2);
    // What time does not heal ends it.
    let world = World::start().await;
    world.entra.prepare((200, due));
    world.ask("nmi-n1", "web", "u1").await.unwrap();
    forget_flights(&world).await;
    world.entra.refuse(700_223);
    let refused = world.refused("nmi-n1", "web", "u1").await;
    assert_eq!(refused.1, ErrorKind::TenantRefused);
}

#[tokio::test]
async fn a_held_token_goes_on_while_entra_is_slow() {
    let due = json!({ "access_token": "held", "expires_in": 3600, "refresh_in": 0 });
    let world = World::start().await;
    world.entra.prepare((200, due));
    world.ask("nmi-n1", "web", "u1").await.unwrap();
    forget_flights(&world).await;
    world.entra.gate.forget_permits(usize::MAX);
    let token = world.ask("nmi-n1", "web", "u1").await.unwrap();
    assert_eq!(*token.access_token, "held");
    // The exchange has not ended with the request that began it.
    world.entra.gate.add_permits(1);
    let client = world.client("nmi-n1");
    let asked = request("web", "u1");
    let token = client.token(&asked).await.unwrap();
    assert_eq!(*token.access_token, "token-2");
    assert_eq!(world.entra.forms().len(), 2);
}

/// As if the time had passed for which an outcome is the answer to all who wait.
async fn forget_flights(world: &World) {
    world.context.exchange.forget_flights().await;
}

#[tokio::test]
async fn a_service_account_that_is_not_made_yet_is_waited_for() {
    let world = World::start().await;
    world
        .api
        .delete("serviceaccounts", "podid-identities", "shop.reader");
    let (status, kind, text) = world.refused("nmi-n1", "web", "u1").await;
    assert_eq!((status, kind), (503, ErrorKind::Unavailable));
    assert!(text.contains("podid mic makes it"), "{text}");
}

#[tokio::test]
async fn identities_of_one_client_id_share_no_token() {
    let world = World::start().await;
    world.ask("nmi-n1", "web", "u1").await.unwrap();
    world.api.put_ahead("azureidentities", identity("copy"));
    world
        .api
        .put_ahead("azureidentitybindings", binding("copy", "copy"));
    let mut copy = request("web", "u1");
    copy.identity.name = "copy".to_owned();
    // Its own service account is the subject, and that one is not there.
    let refused = refusal(world.client("nmi-n1").token(&copy).await.map(drop));
    assert!(refused.2.contains("shop.copy"), "{}", refused.2);
}
