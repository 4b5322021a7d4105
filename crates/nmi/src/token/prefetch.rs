//! Prefetch: fetches tokens before a pod asks for them. When a pod comes that is granted an identity, this task fills the token
//! cache with the resources that were requested of the identity before on this node, and with those of `--prefetch`. `lib.rs`
//! runs it; `grant.rs` records what is requested.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use parking_lot::Mutex;
use podid_policy::facts::{IdentityFacts, ObjectKey};
use tokio_util::sync::CancellationToken;

use crate::NmiError;
use crate::context::Context;

/// The most identities whose resources are remembered, far more than the pods of a node use; beyond it all are forgotten.
const MAX_IDENTITIES: usize = 1024;
/// The most resources that are remembered of one identity, more than an application usually needs.
const MAX_RESOURCES: usize = 8;

/// The resources for which tokens were requested on this node, by identity.
#[derive(Default)]
pub(crate) struct RequestedResources(Mutex<HashMap<ObjectKey, BTreeSet<Box<str>>>>);

impl RequestedResources {
    /// A token of `identity` for `resource` was given.
    pub(crate) fn record(&self, identity: &ObjectKey, resource: &str) {
        let mut requested = self.0.lock();
        if requested.len() >= MAX_IDENTITIES && !requested.contains_key(identity) {
            requested.clear();
        }
        let resources = requested.entry(identity.clone()).or_default();
        if resources.len() < MAX_RESOURCES {
            resources.insert(resource.into());
        }
    }

    fn of(&self, identity: &ObjectKey) -> BTreeSet<Box<str>> {
        self.0.lock().get(identity).cloned().unwrap_or_default()
    }
}

/// Prefetches for each identity that becomes usable, until shutdown; one token at a time, so that pods' requests go first.
pub(crate) async fn run(
    context: Arc<Context>,
    shutdown: CancellationToken,
) -> (&'static str, Result<(), NmiError>) {
    let mut changes = context.changes.subscribe();
    let mut known: HashSet<ObjectKey> = HashSet::new();
    let fetching = async {
        loop {
            let usable = match context.is_synced() {
                true => context.index.read().usable_identities(),
                false => HashMap::new(),
            };
            let new: Vec<_> = usable
                .values()
                .filter(|identity| !known.contains(&identity.key))
                .cloned()
                .collect();
            known = usable.into_keys().collect();
            for identity in new {
                prefetch(&context, &identity).await;
            }
            // `context` owns the sender, so that this never fails.
            let _ = changes.changed().await;
        }
    };
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = fetching => {}
    }
    ("prefetch", Ok(()))
}

async fn prefetch(context: &Context, identity: &Arc<IdentityFacts>) {
    let mut resources = context.requested_resources.of(&identity.key);
    let configured = context.config.prefetch.iter();
    resources.extend(configured.map(|name| name.as_str().into()));
    for resource in resources {
        if let Err(error) = context.cache.get(identity, &resource, false).await {
            // The pod that asks for this token is told the error; without one it troubles nobody.
            tracing::debug!(identity = %identity.key, %resource, reason = %error, "a token could not be fetched ahead");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_remembered_is_bounded() {
        let requested = RequestedResources::default();
        for n in 0..3 * MAX_IDENTITIES {
            let key = ObjectKey::new("shop", &n.to_string());
            for resource in 0..3 * MAX_RESOURCES {
                requested.record(&key, &resource.to_string());
            }
            assert_eq!(requested.of(&key).len(), MAX_RESOURCES);
        }
        assert!(requested.0.lock().len() <= MAX_IDENTITIES);
    }
}
