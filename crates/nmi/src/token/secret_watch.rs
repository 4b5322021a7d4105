//! Watches of service principals' Secrets: when the Secret of an identity that pods of this node are granted changes or is
//! deleted, the tokens that were fetched with it are dropped from the token cache. So a revoked client secret stops giving tokens
//! at once, and a new one counts at once. `lib.rs` runs this task; only metadata of Secrets travels.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use kube::Client;
use podid_cluster::secrets;
use podid_policy::facts::ObjectKey;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::NmiError;
use crate::context::Context;

/// The most watches at a time, for the sake of the API server; a change of a further Secret counts when a token is refreshed.
const MAX_WATCHES: usize = 256;

/// Keeps a watch on each Secret that is needed, until shutdown.
pub(crate) async fn run(
    context: Arc<Context>,
    client: Client,
    shutdown: CancellationToken,
) -> (&'static str, Result<(), NmiError>) {
    let mut changes = context.changes.subscribe();
    let mut watched: HashMap<ObjectKey, CancellationToken> = HashMap::new();
    let mut tasks = JoinSet::new();
    loop {
        let needed = needed(&context);
        watched.retain(|key, stop| {
            let stays = needed.contains(key);
            if !stays {
                stop.cancel();
            }
            stays
        });
        for key in needed {
            if watched.len() >= MAX_WATCHES || watched.contains_key(&key) {
                continue;
            }
            let stop = shutdown.child_token();
            watched.insert(key.clone(), stop.clone());
            tasks.spawn(watch(Arc::clone(&context), client.clone(), key, stop));
        }
        tokio::select! {
            () = shutdown.cancelled() => break,
            // `context` owns the sender, so that this never fails.
            _ = changes.changed() => {}
        }
        while tasks.try_join_next().is_some() {}
    }
    while tasks.join_next().await.is_some() {}
    ("secrets", Ok(()))
}

fn needed(context: &Context) -> HashSet<ObjectKey> {
    let granted = context.index.read().granted_identities();
    let secrets = granted
        .values()
        .filter_map(|identity| context.upstream.secret(identity));
    secrets.cloned().collect()
}

async fn watch(context: Arc<Context>, client: Client, key: ObjectKey, stop: CancellationToken) {
    let invalidate = || {
        tracing::debug!(secret = %key, "a Secret is another than before; tokens had with it are dropped");
        context
            .cache
            .invalidate(|identity| context.upstream.secret(identity) == Some(&key));
    };
    secrets::watch(client, key.clone(), invalidate, stop).await;
}
