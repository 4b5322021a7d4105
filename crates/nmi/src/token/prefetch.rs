//! Tokens before they are asked for: when a pod comes that is granted an identity, the tokens that the identity was asked for
//! before on this node, and those that an operator names.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use parking_lot::Mutex;
use podid_policy::facts::{IdentityFacts, ObjectKey};
use tokio_util::sync::CancellationToken;

use crate::NmiError;
use crate::context::Context;

/// Of so many identities it is remembered what they were asked for.
const MAX_IDENTITIES: usize = 1024;
/// So many resources of each; longer than most applications' lists.
const MAX_RESOURCES: usize = 8;

/// What identities were asked for on this node.
#[derive(Default)]
pub(crate) struct Asked(Mutex<HashMap<ObjectKey, BTreeSet<Box<str>>>>);

impl Asked {
    /// A token of `identity` for `resource` was given.
    pub(crate) fn note(&self, identity: &ObjectKey, resource: &str) {
        let mut asked = self.0.lock();
        if asked.len() >= MAX_IDENTITIES && !asked.contains_key(identity) {
            asked.clear();
        }
        let resources = asked.entry(identity.clone()).or_default();
        if resources.len() < MAX_RESOURCES {
            resources.insert(resource.into());
        }
    }

    fn of(&self, identity: &ObjectKey) -> BTreeSet<Box<str>> {
        self.0.lock().get(identity).cloned().unwrap_or_default()
    }
}

/// Fetches for each identity that becomes usable, one token at a time so that whoever asks for one goes first.
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
                warm(&context, &identity).await;
            }
            // The sender is in `context`, so that it is there for as long as this runs.
            let _ = changes.changed().await;
        }
    };
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = fetching => {}
    }
    ("prefetch", Ok(()))
}

async fn warm(context: &Context, identity: &Arc<IdentityFacts>) {
    let mut resources = context.asked.of(&identity.key);
    let named = context
        .config
        .prefetch
        .iter()
        .map(|name| name.as_str().into());
    resources.extend(named);
    for resource in resources {
        if let Err(error) = context.cache.get(identity, &resource, false).await {
            // Whoever asks is told; that nobody has asked yet is no trouble.
            tracing::debug!(identity = %identity.key, %resource, reason = %error, "a token could not be fetched ahead");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_remembered_is_bounded() {
        let asked = Asked::default();
        for n in 0..3 * MAX_IDENTITIES {
            let key = ObjectKey::new("shop", &n.to_string());
            for resource in 0..3 * MAX_RESOURCES {
                asked.note(&key, &resource.to_string());
            }
            assert_eq!(asked.of(&key).len(), MAX_RESOURCES);
        }
        assert!(asked.0.lock().len() <= MAX_IDENTITIES);
    }
}
