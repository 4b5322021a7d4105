//! Prefetch: fetches tokens before a pod asks for them. When a pod comes that is granted an identity, this task fills the token
//! cache with the resources that were requested of the identity before on this node, and with those of `--prefetch`. `lib.rs`
//! runs it; `requested_resources.rs` says what was requested.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use podid_policy::facts::{IdentityFacts, ObjectKey};
use tokio_util::sync::CancellationToken;

use crate::NmiError;
use crate::context::Context;

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
