//! The probe and the metrics over HTTP.

use std::sync::Arc;

use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::context::Context;
use crate::metrics::Gauges;
use crate::watches::Healths;

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
pub(crate) fn metrics(context: Arc<Context>, healths: Healths) -> Router {
    let healths = Arc::new(healths);
    let answer = move || async move {
        let text = context.metrics.text(&gauges(&context, &healths));
        ([(CONTENT_TYPE, "text/plain; version=0.0.4")], text)
    };
    Router::new().route("/metrics", get(answer))
}

fn gauges(context: &Context, healths: &Healths) -> Gauges {
    let now = tokio::time::Instant::now();
    let state = context.state.lock();
    let of = |(kind, health): &(
        _,
        tokio::sync::watch::Receiver<podid_cluster::watch::WatchStatus>,
    )| {
        let health = health.borrow();
        let interrupted = health.trouble.is_some() || !health.synced;
        (*kind, interrupted, health.malformed)
    };
    let healths: Vec<(&'static str, bool, u64)> = healths.iter().map(of).collect();
    Gauges {
        leading: context.is_ready(),
        hosts: state.hosts.len(),
        assignments: state.desired.assignments().count(),
        quarantined: state.quarantine.len(),
        troubled: state.hosts.values().filter(|h| h.trouble.is_some()).count(),
        lag: state
            .hosts
            .values()
            .filter_map(|h| h.lag(now))
            .max()
            .unwrap_or_default(),
        interrupted: healths.iter().map(|h| (h.0, h.1)).collect(),
        malformed: healths.iter().map(|h| (h.0, h.2)).collect(),
    }
}

/// Serves until shutdown.
pub(crate) async fn serve(listener: TcpListener, router: Router, shutdown: CancellationToken) {
    let serving = axum::serve(listener, router).with_graceful_shutdown(shutdown.cancelled_owned());
    if let Err(error) = serving.await {
        tracing::warn!(reason = %error, "the probe or metrics port failed");
    }
}
