//! The terms of a leader: nothing is done before it leads, has seen complete lists, and has read what podid attached.

use podid_cluster::error_text::describe;
use std::sync::Arc;

use tokio::sync::watch::Receiver;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::context::Context;
use crate::watches::WatchStatuses;

/// Keeps `ready` true through every term, until shutdown.
pub(crate) async fn serve(
    context: Arc<Context>,
    mut leading: Receiver<bool>,
    watch_statuses: WatchStatuses,
    shutdown: CancellationToken,
) {
    let term = async {
        for (_, mut health) in watch_statuses {
            if health.wait_for(|health| health.synced).await.is_err() {
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
        () = term => shutdown.cancelled().await,
    }
    context.ready.send_replace(false);
}

/// Reads the records and begins to act.
async fn begin(context: &Context) {
    let mut said = String::new();
    let records = loop {
        match context.records.load().await {
            Ok(records) => break records,
            Err(error) => {
                let text = describe(&error);
                if said != text {
                    tracing::warn!(reason = %text, "the records of what podid attached cannot be read; check that RBAC allows list of configmaps; retried");
                    said = text;
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
    context.type_upgrade.begin();
    let doubtful = context.index.lock().not_ready();
    context.recheck_conditions(doubtful);
}

/// Looks at every object again now and then, until shutdown.
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
