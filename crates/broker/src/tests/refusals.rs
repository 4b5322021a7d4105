//! Who gets a token, and each theft with its refusal.

use serde_json::json;

use crate::protocol::ErrorKind;
use crate::testing::*;

#[tokio::test]
async fn a_pod_of_the_callers_node_gets_a_token() {
    let world = World::start().await;
    let token = world.ask("nmi-n1", "web", "u1").await.unwrap();
    assert_eq!(*token.access_token, "token-1");
    assert_eq!(token.token_type, "Bearer");
    let form = &world.entra.forms()[0];
    assert!(
        form.contains("scope=https%3A%2F%2Fvault.azure.net%2F.default"),
        "{form}"
    );
    assert!(
        form.contains("client_id=6f1c0000-0000-0000-0000-0000000022ab"),
        "{form}"
    );
    let minted = "POST /api/v1/namespaces/podid-identities/serviceaccounts/shop.reader/token";
    assert_eq!(world.api.requests(minted), 1);
    // The second one comes from memory.
    world.ask("nmi-n1", "web", "u1").await.unwrap();
    assert_eq!(world.entra.forms().len(), 1);
}

#[tokio::test]
async fn a_token_that_the_api_server_does_not_accept_is_refused() {
    let world = World::start().await;
    let (status, kind, text) = world.refused("forged", "web", "u1").await;
    assert_eq!((status, kind), (401, ErrorKind::Unauthenticated), "{text}");
    assert!(!text.contains("forged"), "{text}");
    let mut revoked = review("podid:podid-nmi", "podid-broker", Some("n1"));
    revoked["authenticated"] = json!(false);
    world.api.accept("revoked", revoked);
    let (_, kind, _) = world.refused("revoked", "web", "u1").await;
    assert_eq!(kind, ErrorKind::Unauthenticated);
}

#[tokio::test]
async fn a_token_for_another_audience_is_refused() {
    let world = World::start().await;
    let other = review(
        "podid:podid-nmi",
        "https://kubernetes.default.svc",
        Some("n1"),
    );
    world.api.accept("for-api-server", other);
    let (status, kind, _) = world.refused("for-api-server", "web", "u1").await;
    assert_eq!((status, kind), (401, ErrorKind::Unauthenticated));
}

#[tokio::test]
async fn a_pods_own_token_is_refused() {
    let world = World::start().await;
    world.api.accept(
        "pods-own",
        review("shop:default", "podid-broker", Some("n1")),
    );
    // An account of the same name in another namespace, and no account at all.
    world
        .api
        .accept("copy", review("shop:podid-nmi", "podid-broker", Some("n1")));
    world.api.accept(
        "user",
        json!({ "authenticated": true, "audiences": ["podid-broker"], "user": { "username": "podid:podid-nmi" } }),
    );
    for token in ["pods-own", "copy", "mic"] {
        let (status, kind, _) = world.refused(token, "web", "u1").await;
        assert_eq!((status, kind), (403, ErrorKind::CallerRefused), "{token}");
    }
    let (_, kind, _) = world.refused("user", "web", "u1").await;
    assert_eq!(kind, ErrorKind::Unauthenticated);
}

#[tokio::test]
async fn a_token_without_a_node_is_refused() {
    let world = World::start().await;
    world
        .api
        .accept("unbound", review("podid:podid-nmi", "podid-broker", None));
    let (status, kind, text) = world.refused("unbound", "web", "u1").await;
    assert_eq!((status, kind), (403, ErrorKind::CallerRefused));
    assert!(text.contains("1.30"), "{text}");
}

#[tokio::test]
async fn a_pod_of_another_node_is_refused() {
    let world = World::start().await;
    let (status, kind, text) = world.refused("nmi-n2", "web", "u1").await;
    assert_eq!((status, kind), (403, ErrorKind::WrongNode), "{text}");
}

#[tokio::test]
async fn a_finished_pod_is_refused() {
    let world = World::start().await;
    for phase in ["Succeeded", "Failed"] {
        let mut done = pod(&phase.to_lowercase(), "u2", "n1");
        done["status"]["phase"] = json!(phase);
        world.api.put_ahead("pods", done);
        let (status, kind, _) = world.refused("nmi-n1", &phase.to_lowercase(), "u2").await;
        assert_eq!((status, kind), (403, ErrorKind::PodFinished));
    }
}

#[tokio::test]
async fn a_deleted_pod_and_one_made_anew_are_refused() {
    let world = World::start().await;
    world.ask("nmi-n1", "web", "u1").await.unwrap();
    world.delete("pods", "web").await;
    let (status, kind, _) = world.refused("nmi-n1", "web", "u1").await;
    assert_eq!((status, kind), (404, ErrorKind::UnknownPod));
    // A StatefulSet's pod has its predecessor's name.
    let world = World::start().await;
    world.api.put_ahead("pods", pod("web", "u2", "n1"));
    let (_, kind, _) = world.refused("nmi-n1", "web", "u3").await;
    assert_eq!(kind, ErrorKind::UnknownPod);
    world.ask("nmi-n1", "web", "u2").await.unwrap();
}

#[tokio::test]
async fn a_pod_without_a_binding_is_refused() {
    let world = World::start().await;
    world.ask("nmi-n1", "web", "u1").await.unwrap();
    world.delete("azureidentitybindings", "reader").await;
    let (status, kind, text) = world.refused("nmi-n1", "web", "u1").await;
    assert_eq!((status, kind), (403, ErrorKind::NotGranted));
    assert!(text.contains("aadpodidbinding=app"), "{text}");
    // Nor by a binding of another identity, or of other service accounts.
    world
        .api
        .put("azureidentitybindings", binding("other", "other"));
    let mut limited = binding("limited", "reader");
    limited["spec"]["serviceAccounts"] = json!(["deployer"]);
    world.api.put_ahead("azureidentitybindings", limited);
    let (_, kind, _) = world.refused("nmi-n1", "web", "u1").await;
    assert_eq!(kind, ErrorKind::NotGranted);
}

#[tokio::test]
async fn a_grant_that_ends_during_the_exchange_gives_nothing() {
    let world = World::start().await;
    world.entra.gate.forget_permits(usize::MAX);
    let client = world.client("nmi-n1");
    let asked = request("web", "u1");
    let asking = client.token(&asked);
    let ending = async {
        world
            .until("asked", || !world.entra.forms().is_empty())
            .await;
        world.delete("azureidentitybindings", "reader").await;
        world.entra.gate.add_permits(1);
    };
    let (answer, ()) = tokio::join!(asking, ending);
    assert_eq!(refusal(answer.map(drop)).1, ErrorKind::NotGranted);
}

#[tokio::test]
async fn an_identity_that_changes_during_the_exchange_is_asked_for_again() {
    let world = World::start().await;
    world.entra.gate.forget_permits(usize::MAX);
    let client = world.client("nmi-n1");
    let asked = request("web", "u1");
    let changing = async {
        world
            .until("asked", || !world.entra.forms().is_empty())
            .await;
        let other = "00000000-0000-0000-0000-00000000000b";
        let mut changed = identity("reader");
        changed["spec"]["clientID"] = json!(other);
        world.api.put("azureidentities", changed);
        let key = podid_policy::facts::ObjectKey::new("shop", "reader");
        let is_known = || {
            let known = world.context.index.read().identity(&key);
            known.is_some_and(|identity| identity.client_id.as_str() == other)
        };
        world.until("the change", is_known).await;
        world.entra.gate.add_permits(1);
    };
    let (answer, ()) = tokio::join!(client.token(&asked), changing);
    let refused = refusal(answer.map(drop));
    assert_eq!((refused.0, refused.1), (503, ErrorKind::Unavailable));
}

/// The kubelet's credential of a node is enough to make one, in any namespace and with any label.
#[tokio::test]
async fn a_mirror_pod_is_refused() {
    let world = World::start().await;
    let mut mirror = pod("made-up", "u8", "n1");
    mirror["metadata"]["annotations"] = json!({ "kubernetes.io/config.mirror": "u8" });
    world.api.put("pods", mirror.clone());
    let (status, kind, text) = world.refused("nmi-n1", "made-up", "u8").await;
    assert_eq!((status, kind), (404, ErrorKind::UnknownPod));
    assert!(text.contains("static pod"), "{text}");
    mirror["metadata"]["name"] = json!("ahead");
    world.api.put_ahead("pods", mirror);
    let (status, kind, _) = world.refused("nmi-n1", "ahead", "u8").await;
    assert_eq!((status, kind), (404, ErrorKind::UnknownPod));
    assert!(world.entra.forms().is_empty());
}

#[tokio::test]
async fn an_exempted_pod_is_refused() {
    let world = World::start().await;
    let spec = json!({ "podLabels": { "aadpodidbinding": "app" } });
    let exception = ours("AzurePodIdentityException", "none", spec);
    world.api.put("azurepodidentityexceptions", exception);
    let known = || !world.context.index.read().exception_keys().is_empty();
    world.until("the exception", known).await;
    let (_, kind, text) = world.refused("nmi-n1", "web", "u1").await;
    assert_eq!(kind, ErrorKind::NotGranted);
    assert!(
        text.contains("AzurePodIdentityException shop/none"),
        "{text}"
    );
}

#[tokio::test]
async fn an_identity_that_is_not_federated_is_refused() {
    let world = World::start().await;
    world.delete("azureidentities", "reader").await;
    let (status, kind, _) = world.refused("nmi-n1", "web", "u1").await;
    assert_eq!((status, kind), (404, ErrorKind::UnknownIdentity));
    let world = World::start().await;
    let mut attached = identity("reader");
    let spec = attached["spec"].as_object_mut().unwrap();
    spec.remove("federation");
    spec.insert("resourceID".to_owned(), json!("/subscriptions/s/resourceGroups/g/providers/Microsoft.ManagedIdentity/userAssignedIdentities/reader"));
    world.api.put("azureidentities", attached);
    world
        .until("the edit", || {
            let found = world
                .context
                .index
                .read()
                .identity(&podid_policy::facts::ObjectKey::new("shop", "reader"));
            found.is_some_and(|identity| identity.resource_id().is_some())
        })
        .await;
    let (status, kind, _) = world.refused("nmi-n1", "web", "u1").await;
    assert_eq!((status, kind), (403, ErrorKind::NotFederated));
    assert!(world.entra.forms().is_empty());
}

#[tokio::test]
async fn what_the_watches_do_not_know_yet_is_asked_for_once() {
    let world = World::start().await;
    world.api.put_ahead("pods", pod("new", "u9", "n1"));
    let client = world.client("nmi-n1");
    let asked = request("new", "u9");
    let asks = futures::future::join_all((0..20).map(|_| client.token(&asked)));
    for answer in asks.await {
        answer.unwrap();
    }
    let asked = world.api.requests("GET /api/v1/namespaces/shop/pods/new");
    assert!((1..=2).contains(&asked), "{asked}");
    // A binding and its identity likewise.
    let world = World::start().await;
    world.delete("azureidentitybindings", "reader").await;
    world.delete("azureidentities", "reader").await;
    world.api.put_ahead("azureidentities", identity("reader"));
    world
        .api
        .put_ahead("azureidentitybindings", binding("new", "reader"));
    world.ask("nmi-n1", "web", "u1").await.unwrap();
}

#[tokio::test]
async fn an_api_server_that_is_away_is_a_reason_to_ask_again() {
    let world = World::start().await;
    world.api.set_away(true);
    let (status, kind, _) = world.refused("nmi-n1", "web", "u1").await;
    assert_eq!((status, kind), (503, ErrorKind::Unavailable));
    // It is not kept: the next one is given.
    world.api.set_away(false);
    world.ask("nmi-n1", "web", "u1").await.unwrap();
}

#[tokio::test]
async fn only_the_controller_may_check() {
    let world = World::start().await;
    world.client("mic").check(&reader()).await.unwrap();
    assert!(
        world.entra.forms()[0].contains("scope=https%3A%2F%2Fmanagement.azure.com%2F%2F.default")
    );
    let refused = refusal(world.client("nmi-n1").check(&reader()).await);
    assert_eq!(refused.1, ErrorKind::CallerRefused);
    world.delete("azureidentities", "reader").await;
    let refused = refusal(world.client("mic").check(&reader()).await);
    assert_eq!(refused.1, ErrorKind::UnknownIdentity);
}
