//! Leader election, as the controller sees it: when this replica may act.
//!
//! `podid_cluster::lease` says whether this replica holds the Lease; [`crate::Mic::run`] starts [`serve`], which makes the context ready and
//! not ready. It guards Azure from a replica that knows too little:
//!
//! ```text
//!   complete lists of all watches ─► wait for the Lease ─► read the ownership records ─► ready: workers and writers act
//!                                          ▲                                                   │
//!                                          └────────────── Lease lost: not ready, queue cleared ┘
//! ```

use std::sync::Arc;

use podid_cluster::error_text::describe;
use tokio::sync::watch::Receiver;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::context::Context;
use crate::watches::WatchStatuses;

/// Keeps the context ready while this replica leads, until shutdown.
pub(crate) async fn serve(
    context: Arc<Context>,
    mut leading: Receiver<bool>,
    watch_statuses: WatchStatuses,
    shutdown: CancellationToken,
) {
    let leading_terms = async {
        for (_, mut status) in watch_statuses {
            if status.wait_for(|status| status.synced).await.is_err() {
                return;
            }
        }
        loop {
            if leading.wait_for(|leading| *leading).await.is_err() {
                return;
            }
            context.metrics.elected();
            tokio::select! {
                () = begin(&context) => {}
                _ = leading.wait_for(|leading| !*leading) => continue,
            }
            let _ = leading.wait_for(|leading| !*leading).await;
            context.ready.send_replace(false);
            context.queue.clear();
        }
    };
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = leading_terms => shutdown.cancelled().await,
    }
    context.ready.send_replace(false);
}

/// Reads the ownership records and makes the context ready.
async fn begin(context: &Context) {
    let mut last_error = String::new();
    let records = loop {
        match context.records.load().await {
            Ok(records) => break records,
            Err(error) => {
                let text = describe(&error);
                if last_error != text {
                    tracing::warn!(reason = %text, "the records of what podid attached cannot be read; check that RBAC allows list of configmaps; retried");
                    last_error = text;
                }
                sleep(context.config.retry_interval).await;
            }
        }
    };
    context.index.lock().invalidate();
    for (host, owned) in records {
        context.update(|index| index.recall(host, owned));
    }
    context.ready.send_replace(true);
    let all = context.index.lock().all_keys();
    tracing::info!(assignments = all.len(), "leading");
    context.enqueue(all);
    context.type_upgrade.on_leading();
    let not_ready = context.index.lock().not_ready();
    context.recheck_conditions(not_ready);
}

/// Resync: puts every assignment into the queue at every sync interval, until shutdown.
pub(crate) async fn resync(context: Arc<Context>, shutdown: CancellationToken) {
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = sleep(context.config.sync_interval) => {}
        }
        let all = context.index.lock().all_keys();
        context.enqueue(all);
    }
}
