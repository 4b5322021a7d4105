//! Startup taint: keeps pods off a new node until the node agent there is ready, which then removes the taint by this file.
//!
//! Needs the verbs `get` and `patch` on nodes.

use std::str::FromStr;
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::sync::watch::Receiver;
use tokio::sync::watch::error::RecvError;
use tokio_util::sync::CancellationToken;

use crate::error_text::describe;

/// The wait before the second attempt; it doubles with each further one.
const MIN_RETRY_DELAY: Duration = Duration::from_secs(1);
/// The longest wait between two attempts: a node must not stay empty much longer than its API server was away.
const MAX_RETRY_DELAY: Duration = Duration::from_secs(30);
/// The wait between two looks at a node without the taint: each is a read per node at the API server.
const LOOK_AGAIN: Duration = Duration::from_secs(30);
/// The effects that Kubernetes knows.
const EFFECTS: [&str; 3] = ["NoSchedule", "PreferNoSchedule", "NoExecute"];

/// The value of `--startup-taint`, `KEY` or `KEY:EFFECT`; without an effect it means every taint with the key. `KEY=VALUE:EFFECT`, as
/// the kubelet and node pools are given it, is taken; the value does not matter, because a node has one taint of a key and an effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StartupTaint {
    key: String,
    effect: Option<String>,
}

impl FromStr for StartupTaint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (key, effect) = match text.split_once(':') {
            Some((key, effect)) => (key, Some(effect)),
            None => (text, None),
        };
        if let Some(effect) = effect
            && !EFFECTS.contains(&effect)
        {
            return Err(format!(
                "{effect} is no effect of a taint; give one of {}",
                EFFECTS.join(", ")
            ));
        }
        let (key, value) = key.split_once('=').unwrap_or((key, ""));
        let valid =
            |character: char| character.is_ascii_alphanumeric() || "-_./".contains(character);
        if key.is_empty() || !key.chars().chain(value.chars()).all(valid) {
            return Err(format!(
                "{key:?} is no key of a taint; give KEY or KEY:EFFECT, such as podid.io/agent-not-ready:NoSchedule"
            ));
        }
        Ok(Self {
            key: key.to_owned(),
            effect: effect.map(str::to_owned),
        })
    }
}

impl StartupTaint {
    fn matches(&self, taint: &k8s_openapi::api::core::v1::Taint) -> bool {
        taint.key == self.key
            && self
                .effect
                .as_ref()
                .is_none_or(|effect| *effect == taint.effect)
    }
}

/// Removes the taint from the node and leaves all others; retries until it is gone, or until shutdown.
pub async fn remove(
    client: &Client,
    node: &str,
    taint: &StartupTaint,
    shutdown: &CancellationToken,
) {
    let nodes: Api<Node> = Api::all(client.clone());
    let mut delay = MIN_RETRY_DELAY;
    loop {
        match try_remove(&nodes, node, taint).await {
            Ok(true) => {
                tracing::info!(
                    host = node,
                    taint = taint.key,
                    "the startup taint is lifted"
                );
                return;
            }
            Ok(false) => return,
            // Somebody else changed the node in between.
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(error) => {
                tracing::warn!(
                    host = node,
                    taint = taint.key,
                    reason = describe(&error),
                    "the startup taint is not lifted yet; podid's service account needs get and patch on nodes"
                );
            }
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(delay) => delay = (delay * 2).min(MAX_RETRY_DELAY),
        }
    }
}

/// Takes the taint off the node whenever it is there and all conditions are true, until shutdown: a kubelet that registers anew, because
/// somebody has deleted its node, brings it back while the node agent lives on. Returns early when a condition can never be true again.
pub async fn keep_removed(
    client: &Client,
    node: &str,
    taint: &StartupTaint,
    conditions: &mut [Receiver<bool>],
    shutdown: &CancellationToken,
) {
    loop {
        let hold = tokio::select! {
            () = shutdown.cancelled() => return,
            hold = all_true(conditions) => hold,
        };
        if hold.is_err() {
            return;
        }
        remove(client, node, taint, shutdown).await;
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(LOOK_AGAIN) => {}
        }
    }
}

/// Waits until all are true at the same time.
async fn all_true(conditions: &mut [Receiver<bool>]) -> Result<(), RecvError> {
    while !conditions.iter().all(|condition| *condition.borrow()) {
        for condition in &mut *conditions {
            condition.wait_for(|is_true| *is_true).await?;
        }
    }
    Ok(())
}

/// Whether there was a taint to remove.
async fn try_remove(
    nodes: &Api<Node>,
    name: &str,
    taint: &StartupTaint,
) -> Result<bool, kube::Error> {
    let node = nodes.get(name).await?;
    let taints = node.spec.and_then(|spec| spec.taints).unwrap_or_default();
    let left: Vec<_> = taints
        .iter()
        .filter(|found| !taint.matches(found))
        .collect();
    if left.len() == taints.len() {
        return Ok(false);
    }
    // A merge patch replaces the whole list; the resource version makes sure that nobody changed it since the read.
    let taints = if left.is_empty() {
        Value::Null
    } else {
        json!(left)
    };
    let patch = json!({
        "metadata": { "resourceVersion": node.metadata.resource_version },
        "spec": { "taints": taints },
    });
    nodes
        .patch_metadata(name, &PatchParams::default(), &Patch::Merge(patch))
        .await?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::Store;
    use tokio::sync::watch;

    fn node(taints: &Value) -> Value {
        json!({
            "apiVersion": "v1", "kind": "Node", "metadata": { "name": "node", "resourceVersion": "1" },
            "spec": { "taints": taints },
        })
    }

    #[test]
    fn what_is_no_taint_is_refused() {
        let taint: StartupTaint = "podid.io/agent-not-ready:NoSchedule".parse().unwrap();
        assert_eq!(taint.effect.as_deref(), Some("NoSchedule"));
        assert_eq!("key".parse::<StartupTaint>().unwrap().effect, None);
        for pasted in [
            "podid.io/agent-not-ready=true:NoSchedule",
            "podid.io/agent-not-ready=:NoSchedule",
        ] {
            assert_eq!(pasted.parse::<StartupTaint>().unwrap(), taint, "{pasted}");
        }
        assert_eq!("key=value".parse::<StartupTaint>().unwrap().key, "key");
        for wrong in [
            "",
            ":NoSchedule",
            "key:",
            "key:Never",
            "=value:NoSchedule",
            "key=value=more:NoSchedule",
            "a b",
        ] {
            assert!(wrong.parse::<StartupTaint>().is_err(), "{wrong}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_api_server_that_is_away_is_waited_for_and_shutdown_is_not() {
        let store = Store::default();
        store.put(node(&json!([{ "key": "podid", "effect": "NoSchedule" }])));
        store.cut("nmi");
        let (client, stop) = (store.client("nmi"), CancellationToken::new());
        let taint: StartupTaint = "podid".parse().unwrap();
        let told = stop.clone();
        let ended = tokio::time::timeout(
            Duration::from_secs(300),
            remove(&client, "node", &taint, &told),
        );
        assert!(ended.await.is_err(), "it gave up");
        store.mend();
        remove(&client, "node", &taint, &stop).await;
        assert!(
            store.object()["spec"]["taints"].is_null(),
            "{}",
            store.object()
        );
        store.cut("nmi");
        stop.cancel();
        remove(&client, "node", &taint, &stop).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_taint_that_comes_back_is_taken_off_again() {
        let store = Store::default();
        let tainted = json!([{ "key": "podid", "effect": "NoSchedule" }]);
        store.put(node(&tainted));
        let (client, stop) = (store.client("nmi"), CancellationToken::new());
        let taint: StartupTaint = "podid".parse().unwrap();
        let told = stop.clone();
        let kept = async {
            keep_removed(&client, "node", &taint, &mut [], &told).await;
        };
        let registers = async {
            for _ in 0..2 {
                tokio::time::sleep(LOOK_AGAIN * 2).await;
                let object = store.object();
                assert!(object["spec"]["taints"].is_null(), "{object}");
                store.put(node(&tainted));
            }
            stop.cancel();
        };
        tokio::join!(kept, registers);
    }

    #[tokio::test(start_paused = true)]
    async fn a_taint_that_comes_back_stays_while_the_node_agent_is_not_ready() {
        let store = Store::default();
        let tainted = json!([{ "key": "podid", "effect": "NoSchedule" }]);
        store.put(node(&tainted));
        let (client, stop) = (store.client("nmi"), CancellationToken::new());
        let taint: StartupTaint = "podid".parse().unwrap();
        let (ready, intercepted) = (watch::Sender::new(true), watch::Sender::new(true));
        let mut conditions = [ready.subscribe(), intercepted.subscribe()];
        let is_tainted = || !store.object()["spec"]["taints"].is_null();
        let told = stop.clone();
        let kept = keep_removed(&client, "node", &taint, &mut conditions, &told);
        let story = async {
            tokio::time::sleep(LOOK_AGAIN / 2).await;
            assert!(!is_tainted());
            intercepted.send_replace(false);
            store.put(node(&tainted));
            tokio::time::sleep(LOOK_AGAIN * 10).await;
            assert!(is_tainted(), "nmi does not intercept");
            intercepted.send_replace(true);
            tokio::time::sleep(LOOK_AGAIN).await;
            assert!(!is_tainted());
            stop.cancel();
        };
        tokio::join!(kept, story);
    }
}
