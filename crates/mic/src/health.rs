//! Health probe and metrics over HTTP: `/healthz` for the kubelet, `/metrics` for Prometheus.
//!
//! [`crate::Mic::run`] serves each on a port of its own, also while this replica does not lead.

use std::sync::Arc;

use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::context::Context;
use crate::metrics::Gauges;
use crate::watches::WatchStatuses;

/// `/healthz`: always 200; the body is `Active` while this replica leads and acts, else `Not Active`.
pub(crate) fn probe(context: Arc<Context>) -> Router {
    let answer = move || async move {
        if context.is_ready() {
            "Active"
        } else {
            "Not Active"
        }
    };
    Router::new().route("/healthz", get(answer))
}

/// `/metrics` in the Prometheus text format.
pub(crate) fn metrics(context: Arc<Context>, watch_statuses: WatchStatuses) -> Router {
    let watch_statuses = Arc::new(watch_statuses);
    let answer = move || async move {
        let text = context.metrics.text(&gauges(&context, &watch_statuses));
        ([(CONTENT_TYPE, "text/plain; version=0.0.4")], text)
    };
    Router::new().route("/metrics", get(answer))
}

fn gauges(context: &Context, watch_statuses: &WatchStatuses) -> Gauges {
    let now = tokio::time::Instant::now();
    let index = context.index.lock();
    let of = |(kind, status): &(
        _,
        tokio::sync::watch::Receiver<podid_cluster::watch::WatchStatus>,
    )| {
        let status = status.borrow();
        let interrupted = status.trouble.is_some() || !status.synced;
        (*kind, interrupted, status.malformed)
    };
    let watches: Vec<(&'static str, bool, u64)> = watch_statuses.iter().map(of).collect();
    Gauges {
        leading: context.is_ready(),
        hosts: index.hosts.len(),
        assignments: index.desired.assignments().count(),
        quarantined: index.quarantine.len(),
        is_schema_outdated: context.limits.is_schema_outdated(),
        pruned: context.limits.pruned(),
        troubled: index.hosts.values().filter(|h| h.trouble.is_some()).count(),
        lag: index
            .hosts
            .values()
            .filter_map(|h| h.lag(now))
            .max()
            .unwrap_or_default(),
        interrupted: watches.iter().map(|w| (w.0, w.1)).collect(),
        malformed: watches.iter().map(|w| (w.0, w.2)).collect(),
    }
}

/// Serves until shutdown.
pub(crate) async fn serve(listener: TcpListener, router: Router, shutdown: CancellationToken) {
    let serving = axum::serve(listener, router).with_graceful_shutdown(shutdown.cancelled_owned());
    if let Err(error) = serving.await {
        tracing::warn!(reason = %error, "the probe or metrics port failed");
    }
}
