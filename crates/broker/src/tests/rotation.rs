//! The CA: two brokers agree on it, and it is rotated under a client that asks all the time.

use jiff::{Timestamp, ToSpan as _};
use serde_json::json;

use crate::authority::Authority;
use crate::authority::keeper::Keeper;
use crate::testing::*;

fn empty() -> FakeApi {
    let api = FakeApi::default();
    for (plural, kind) in [("secrets", "Secret"), ("configmaps", "ConfigMap")] {
        let meta = json!({ "namespace": "podid", "name": "podid-broker-ca" });
        api.put(
            plural,
            json!({ "apiVersion": "v1", "kind": kind, "metadata": meta }),
        );
    }
    api
}

fn secret(api: &FakeApi) -> serde_json::Value {
    api.get("secrets", "podid", "podid-broker-ca").unwrap()["data"].clone()
}

async fn context(api: &FakeApi) -> crate::context::Context {
    let entra = FakeEntra::start().await;
    crate::context::Context::new(config(), &api.client(), entra.client())
}

#[tokio::test]
async fn brokers_that_start_at_once_agree_on_the_ca() {
    let api = empty();
    let brokers = [
        context(&api).await,
        context(&api).await,
        context(&api).await,
    ];
    let keeper = Keeper::new(&api.client(), &config());
    let looks = brokers
        .iter()
        .map(|context| keeper.sync(context, Timestamp::now()));
    for outcome in futures::future::join_all(looks).await {
        outcome.unwrap();
    }
    let made = secret(&api);
    assert_eq!(
        made.as_object().unwrap().len(),
        2,
        "one certificate and its key"
    );
    let object = api.get("secrets", "podid", "podid-broker-ca").unwrap();
    // The third change in all: nobody wrote over the first who did.
    assert_eq!(object["metadata"]["resourceVersion"], "3");
    let wrote = api.requests("PUT /api/v1/namespaces/podid/secrets");
    assert!(
        wrote > 1,
        "no broker came second, so that nothing was tried"
    );
    keeper.sync(&brokers[0], Timestamp::now()).await.unwrap();
    assert_eq!(secret(&api), made);
    for context in &brokers {
        assert!(context.tls.current().is_some());
    }
}

#[tokio::test]
async fn objects_that_are_missing_are_named() {
    let api = FakeApi::default();
    let keeper = Keeper::new(&api.client(), &config());
    let error = keeper
        .sync(&context(&api).await, Timestamp::now())
        .await
        .unwrap_err();
    assert!(
        error.contains("Secret podid/podid-broker-ca does not exist"),
        "{error}"
    );
}

/// The clients' clock is the real one, and the broker's is 25 hours behind at first, so that all certificates are valid at both.
#[tokio::test]
async fn the_ca_is_rotated_under_a_client() {
    let now = Timestamp::now();
    let before = now - 25.hours();
    let world = World::start().await;
    let old = Authority::new(now - (260 * 24).hours()).unwrap();
    let mut object = world
        .api
        .get("secrets", "podid", "podid-broker-ca")
        .unwrap();
    object["data"] = serde_json::to_value(old.content()).unwrap();
    world.api.put("secrets", object);
    let keeper = Keeper::new(&world.api.client(), &world.context.config);
    let client = world.client("nmi-n1");
    let ask = async || client.token(&request("web", "u1")).await.map(drop);

    // The successor is made, and does not sign yet.
    keeper.sync(&world.context, before).await.unwrap();
    world.copy_bundle();
    let first = secret(&world.api);
    assert_eq!(
        first["ca.crt"],
        serde_json::to_value(old.content()).unwrap()["ca.crt"]
    );
    assert!(first["next-ca.crt"].is_string());
    ask().await.unwrap();
    keeper
        .sync(&world.context, before + 23.hours())
        .await
        .unwrap();
    assert_eq!(secret(&world.api), first, "it signs before clients know it");

    // It signs now. The client has the bundle of before; new connections are served with the new certificate.
    let serving = world.context.tls.current().unwrap();
    keeper.sync(&world.context, now).await.unwrap();
    let second = secret(&world.api);
    assert_eq!(second["ca.crt"], first["next-ca.crt"]);
    assert_eq!(second["previous-ca.crt"], first["ca.crt"]);
    assert!(!std::sync::Arc::ptr_eq(
        &serving,
        &world.context.tls.current().unwrap()
    ));
    ask().await.unwrap();
    world.ask("nmi-n1", "web", "u1").await.unwrap();

    // The client gets the bundle of now, while another broker serves by the old CA still.
    world.copy_bundle();
    let names = &world.context.config.server_names;
    world
        .context
        .tls
        .renew(&old.current, names, now)
        .unwrap()
        .unwrap();
    world.ask("nmi-n1", "web", "u1").await.unwrap();
    ask().await.unwrap();
}

/// A client that trusts another CA, or none of the bundle, is no client.
#[tokio::test]
async fn a_server_of_another_ca_is_not_trusted() {
    let world = World::start().await;
    let other = Authority::new(Timestamp::now()).unwrap();
    let names = &world.context.config.server_names;
    let renewed = world
        .context
        .tls
        .renew(&other.current, names, Timestamp::now());
    assert!(renewed.unwrap().is_some());
    let error = world
        .ask("nmi-n1", "web", "u1")
        .await
        .map(drop)
        .unwrap_err();
    assert!(
        matches!(error, crate::client::ClientError::Unreachable { .. }),
        "{error}"
    );
    assert!(error.is_transient());
}
