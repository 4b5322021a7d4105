//! Federated identities: no call is made for their sake before there is one.

use super::*;

#[tokio::test(start_paused = true)]
async fn nothing_is_asked_where_no_identity_is_federated() {
    let world = World::new();
    world.node("n1", 1, 0);
    world.bound(1);
    let mic = world.start(config("mic-0")).await;
    world.pod("web", "n1", "s1");
    world.until("assigned", |w| w.assigned() == 1).await;
    sleep(Duration::from_secs(7200)).await;
    assert!(!world.api.is_watched("serviceaccounts"));
    world.api.put(
        "azureidentities",
        json!({
            "apiVersion": "aadpodidentity.k8s.io/v1", "kind": "AzureIdentity",
            "metadata": { "namespace": "ns", "name": "federated", "generation": 1 },
            "spec": { "type": 0, "clientID": client_id(2), "federation": {} },
        }),
    );
    world
        .until("watched", |w| w.api.is_watched("serviceaccounts"))
        .await;
    let created = |w: &World| {
        w.api
            .get("serviceaccounts", "podid-identities", "ns.federated")
    };
    world.until("account", |w| created(w).is_some()).await;
    mic.stop().await;
}
