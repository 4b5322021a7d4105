//! Federated identities: their service accounts, the broker's checks, and what was attached before.

use std::sync::Arc;

use parking_lot::Mutex;
use podid_broker::client::ClientError;
use podid_broker::protocol::ErrorKind;
use podid_mic::BrokerCheck;
use serde_json::{Value, json};

use crate::world::{World, config, names, until};

const ACCOUNTS: &str = "podid-identities";

/// What stands for the broker.
#[derive(Clone)]
struct Broker {
    answer: Arc<Mutex<Result<(), ClientError>>>,
    asked: Arc<Mutex<usize>>,
}

impl Broker {
    fn that(answer: Result<(), ClientError>) -> Self {
        Self {
            answer: Arc::new(Mutex::new(answer)),
            asked: Arc::default(),
        }
    }

    fn check(&self) -> BrokerCheck {
        let broker = self.clone();
        Arc::new(move |_| {
            *broker.asked.lock() += 1;
            let answer = broker.answer.lock().clone();
            Box::pin(async move { answer })
        })
    }
}

fn missing() -> Result<(), ClientError> {
    Err(ClientError::Refused {
        status: 403,
        kind: ErrorKind::CredentialMissing,
        message: "create it: az identity federated-credential create".to_owned(),
        retry_after: None,
    })
}

impl World {
    async fn with_federation() -> Self {
        let world = Self::new().await;
        world.namespace(ACCOUNTS).await;
        world
    }

    /// Adds the block, or takes it away.
    async fn federate(&self, name: &str, block: Value) {
        let patch = json!({ "spec": { "federation": block } });
        self.patch("AzureIdentity", "default", name, patch).await;
    }

    async fn accounts(&self) -> Vec<String> {
        let all = self.all("ServiceAccount").await;
        let there = all
            .iter()
            .filter(|o| o["metadata"]["namespace"] == ACCOUNTS);
        let names = there.map(|o| o["metadata"]["name"].as_str().unwrap().to_owned());
        let mut names: Vec<_> = names.collect();
        names.sort();
        names
    }

    /// Status, reason and message of the condition.
    async fn condition(&self, name: &str) -> [String; 3] {
        let all = self.all("AzureIdentity").await;
        let identity = all.iter().find(|o| o["metadata"]["name"] == name).unwrap();
        let condition = &identity["status"]["conditions"][0];
        ["status", "reason", "message"]
            .map(|field| condition[field].as_str().unwrap_or_default().to_owned())
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_attached_and_a_service_account_stands_for_the_identity() {
    let world = World::with_federation().await;
    let set = world.set("pool").await;
    world.bound("reader").await;
    world.federate("reader", json!({})).await;
    // Somebody else's account is left alone, also where it has the name of one that is needed.
    let others = ["default.writer", "theirs"];
    for name in others {
        let meta = json!({ "namespace": ACCOUNTS, "name": name });
        world
            .create(json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta }))
            .await;
    }
    world.bound("writer").await;
    world.federate("writer", json!({})).await;
    let broker = Broker::that(Ok(()));
    let mic = world.start_with(config("mic-0"), broker.check()).await;
    world.pod("default", "web", "pool-0", "reader").await;
    // A node that is not Azure's does as well.
    world.node("kind", "kind://docker/kind/node").await;
    world.pod("default", "far", "kind", "writer").await;
    until!("assigned", world.assigned().await == 2);
    let all = ["default.reader", "default.writer", "theirs"];
    until!("account", world.accounts().await == all);
    for name in ["reader", "writer"] {
        until!(
            "ready",
            world.condition(name).await[..2] == ["True", "Federated"]
        );
    }
    // What somebody deletes comes again.
    world
        .delete("ServiceAccount", ACCOUNTS, "default.reader")
        .await;
    until!("account again", world.accounts().await == all);
    assert_eq!(world.patches(&set), 0);
    // What works is left in peace.
    let asked = *broker.asked.lock();
    world.wait(600).await;
    assert_eq!(*broker.asked.lock(), asked);
    world.delete("AzureIdentity", "default", "reader").await;
    world.delete("AzureIdentity", "default", "writer").await;
    until!("no account", world.accounts().await == others);
    mic.stop().await;
    world.end().await;
}

#[tokio::test(start_paused = true)]
async fn what_was_attached_stays_until_federation_works() {
    let world = World::with_federation().await;
    let (set, empty) = (world.set("pool").await, world.set("other").await);
    world.bound("reader").await;
    let broker = Broker::that(missing());
    let mic = world.start_with(config("mic-0"), broker.check()).await;
    world.pod("default", "web", "pool-0", "reader").await;
    until!("attached", world.on(&set) == names(["reader"]));
    until!("ready", world.condition("reader").await[1] == "Attached");
    world.federate("reader", json!({})).await;
    until!(
        "told",
        world.condition("reader").await[..2] == ["False", "CredentialMissing"]
    );
    let told = world.condition("reader").await;
    assert!(
        told[2].contains("az identity federated-credential create"),
        "{told:?}"
    );
    // Far longer than the linger time, also under another leader, and not on hosts that did not have it.
    world.wait(300).await;
    assert_eq!(world.on(&set), names(["reader"]));
    mic.kill().await;
    let mic = world.start_with(config("mic-1"), broker.check()).await;
    world.pod("default", "new", "other-0", "reader").await;
    until!("assigned", world.assigned().await == 2);
    world.wait(300).await;
    assert_eq!(world.on(&set), names(["reader"]));
    assert_eq!(world.on(&empty), names([]));
    *broker.answer.lock() = Ok(());
    until!(
        "ready",
        world.condition("reader").await[..2] == ["True", "Federated"]
    );
    until!("detached", world.on(&set).is_empty());
    assert_eq!(world.assigned().await, 2);
    // Without the block it is attached again, wherever it is needed.
    world.federate("reader", Value::Null).await;
    until!("attached", world.on(&set) == names(["reader"]));
    until!("attached", world.on(&empty) == names(["reader"]));
    until!("no account", world.accounts().await.is_empty());
    until!("ready", world.condition("reader").await[1] == "Attached");
    mic.stop().await;
    world.end().await;
}

/// Pods may go while federation does not work: then nothing holds the identity.
#[tokio::test(start_paused = true)]
async fn what_no_pod_uses_is_detached_before_federation_works() {
    let world = World::with_federation().await;
    let set = world.set("pool").await;
    world.bound("reader").await;
    let mic = world.start(config("mic-0")).await;
    world.pod("default", "web", "pool-0", "reader").await;
    until!("attached", world.on(&set) == names(["reader"]));
    world.federate("reader", json!({})).await;
    // It was started without a broker.
    until!(
        "told",
        world.condition("reader").await[..2] == ["False", "BrokerUnavailable"]
    );
    world.wait(120).await;
    assert_eq!(world.on(&set), names(["reader"]));
    world.delete("Pod", "default", "web").await;
    until!("detached", world.on(&set).is_empty());
    until!("no assignment", world.assignments().await.is_empty());
    mic.stop().await;
    world.end().await;
}

#[tokio::test(start_paused = true)]
async fn without_the_namespace_the_condition_says_so() {
    let world = World::new().await;
    world.bound("reader").await;
    world.federate("reader", json!({})).await;
    let broker = Broker::that(Ok(()));
    let mic = world.start_with(config("mic-0"), broker.check()).await;
    until!(
        "told",
        world.condition("reader").await[1] == "ServiceAccountMissing"
    );
    let told = world.condition("reader").await;
    assert!(told[2].contains(ACCOUNTS), "{told:?}");
    assert_eq!(*broker.asked.lock(), 0);
    world.namespace(ACCOUNTS).await;
    until!("ready", world.condition("reader").await[1] == "Federated");
    // No pod needs it: without the block nothing can be said.
    world.federate("reader", Value::Null).await;
    until!("idle", world.condition("reader").await[1] == "NotInUse");
    mic.stop().await;
    world.end().await;
}
