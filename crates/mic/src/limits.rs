//! Limits of bindings to service accounts, kept where pruning does not reach them: an annotation on each limited binding.
//!
//! The watches report every binding ([`Limits::on_seen`]); [`crate::Mic::run`] starts [`keep`], which writes the annotation while this
//! replica leads, asks what schema the API server serves, and tells of bindings whose field was pruned. It guards limited bindings:
//! AAD Pod Identity's definitions lack `spec.serviceAccounts`, and whoever applies them again would open these to every labelled pod.
//! A limit is never lifted by podid itself.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kube::Api;
use kube::api::{Patch, PatchParams};
use parking_lot::Mutex;
use podid_api::binding::{AzureIdentityBinding, LIMIT};
use podid_cluster::error_text::describe;
use podid_cluster::served_schema::prunes_service_accounts;
use podid_policy::facts::ObjectKey;
use serde_json::json;
use tokio::sync::Notify;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::context::Context;
use crate::report::events;

/// Definitions change rarely, and limits do not depend on this question: once a minute spares the API server.
const CHECK_INTERVAL: Duration = Duration::from_secs(60);
/// The first question comes 5 seconds after this replica begins to lead: what pods wait for goes first.
const FIRST_CHECK_DELAY: Duration = Duration::from_secs(5);

/// What is known of limited bindings.
#[derive(Default)]
pub(crate) struct Limits {
    /// Bindings whose annotation must be written, and what it must say.
    unnoted: Mutex<BTreeMap<ObjectKey, String>>,
    /// Bindings whose field is gone, with uid and limit.
    pruned: Mutex<BTreeMap<ObjectKey, (String, String)>>,
    is_schema_outdated: AtomicBool,
    changed: Notify,
}

impl Limits {
    /// A watch has seen the binding.
    pub(crate) fn on_seen(&self, key: &ObjectKey, binding: &AzureIdentityBinding) {
        let limit = binding.new_limit();
        let is_new = match limit {
            Some(limit) => self.unnoted.lock().insert(key.clone(), limit).is_none(),
            None => {
                self.unnoted.lock().remove(key);
                false
            }
        };
        let mut pruned = self.pruned.lock();
        let is_news = if binding.is_pruned() {
            let uid = binding.metadata.uid.clone().unwrap_or_default();
            let limit = binding.limit().join(", ");
            pruned.insert(key.clone(), (uid, limit)).is_none()
        } else {
            pruned.remove(key);
            false
        };
        if is_new || is_news {
            self.changed.notify_one();
        }
    }

    /// The binding is gone.
    pub(crate) fn on_deleted(&self, key: &ObjectKey) {
        self.unnoted.lock().remove(key);
        self.pruned.lock().remove(key);
    }

    /// How many bindings are limited by what pruning has left.
    pub(crate) fn pruned(&self) -> usize {
        self.pruned.lock().len()
    }

    /// Whether the API server prunes the field.
    pub(crate) fn is_schema_outdated(&self) -> bool {
        self.is_schema_outdated.load(Ordering::Relaxed)
    }
}

/// Keeps the annotations and tells what is pruned while this replica leads, until shutdown.
pub(crate) async fn keep(context: Arc<Context>, shutdown: CancellationToken) {
    let mut ready = context.ready.subscribe();
    let mut told = BTreeSet::new();
    let mut delay = FIRST_CHECK_DELAY;
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            ready = ready.wait_for(|ready| *ready) => if ready.is_err() { return },
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = context.limits.changed.notified() => {}
            () = sleep(delay) => {}
        }
        delay = CHECK_INTERVAL;
        if !context.is_ready() {
            continue;
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = check(&context, &mut told) => {}
        }
    }
}

async fn check(context: &Context, told: &mut BTreeSet<ObjectKey>) {
    let limits = &context.limits;
    let unnoted = limits.unnoted.lock().clone();
    for (key, limit) in unnoted {
        note(context, &key, &limit).await;
    }
    match prunes_service_accounts(&context.client).await {
        Ok(prunes) => {
            let before = limits.is_schema_outdated.swap(prunes, Ordering::Relaxed);
            if prunes && !before {
                tracing::warn!(
                    "the API server's definition of AzureIdentityBindings is not podid's and prunes spec.serviceAccounts: bindings that were limited stay so, and new ones can be limited by kubectl apply only; put podid's definitions back: podid crds --apply"
                );
            }
        }
        Err(error) => {
            tracing::debug!(reason = %describe(&error), "what definition the API server serves is not known");
        }
    }
    let pruned = limits.pruned.lock().clone();
    told.retain(|key| pruned.contains_key(key));
    for (key, (uid, limit)) in pruned {
        if told.insert(key.clone()) {
            let text = format!(
                "spec.serviceAccounts is gone, and the binding stays limited to {limit}; put podid's definitions back (podid crds --apply) and apply the binding again, or open it by the annotation {LIMIT}=*"
            );
            tracing::warn!(binding = %key, "{text}");
            context.record_event(events::of_pruned(&key, &uid, text));
        }
    }
}

/// Writes the annotation. What fails is tried again with the next check.
async fn note(context: &Context, key: &ObjectKey, limit: &str) {
    let api: Api<AzureIdentityBinding> = Api::namespaced(context.client.clone(), &key.namespace);
    let patch = Patch::Merge(json!({ "metadata": { "annotations": { LIMIT: limit } } }));
    let params = PatchParams::default();
    if let Err(error) = api.patch(&key.name, &params, &patch).await {
        tracing::warn!(binding = %key, reason = %describe(&error), "the annotation that keeps the binding's limit was not written; check that RBAC allows patch of azureidentitybindings; retried");
    }
}
