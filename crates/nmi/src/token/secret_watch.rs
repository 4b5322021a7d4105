//! Watches the Secrets of the service principals that pods of this node are granted: a token does not outlive the Secret that it
//! was had with, and a new Secret counts at once.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use kube::Client;
use podid_cluster::secrets;
use podid_policy::facts::ObjectKey;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::NmiError;
use crate::context::Context;

/// More are not watched; their changes count when a token is renewed.
const MAX_WATCHES: usize = 256;

pub(crate) async fn follow(
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
            // The sender is in `context`, so that it is there for as long as this runs.
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
    let forget = || {
        tracing::debug!(secret = %key, "a Secret is another than before; tokens had with it are dropped");
        context
            .cache
            .invalidate(|identity| context.upstream.secret(identity) == Some(&key));
    };
    secrets::watch(client, key.clone(), forget, stop).await;
}
