//! Health: the HTTP probes `/healthz` and `/readyz` for the kubelet, and `/metrics` for Prometheus.
//!
//! `lib.rs` runs them, each on a port of its own. `/readyz` guards node agents against a broker that cannot answer.

use std::net::TcpListener;
use std::sync::Arc;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::routing::get;
use tokio_util::sync::CancellationToken;

use crate::context::Context;

/// Serves the probes until shutdown.
///
/// | probe | 200 | 503 |
/// | --- | --- | --- |
/// | `/healthz` | the process runs | |
/// | `/readyz` | tokens can be served | the cluster's objects or the certificate are not known yet, or the broker ends |
///
/// # Errors
/// The listener cannot be used.
pub(crate) async fn probe(
    listener: TcpListener,
    context: Arc<Context>,
    shutdown: CancellationToken,
) -> std::io::Result<()> {
    let router = Router::new()
        .route("/healthz", get(async || "ok"))
        .route("/readyz", get(async move || readiness(&context)));
    serve(listener, router, shutdown).await
}

fn readiness(context: &Context) -> (StatusCode, &'static str) {
    let missing = if context.draining.is_cancelled() {
        "the broker ends"
    } else if !context.is_synced() {
        "the cluster's objects are not known yet"
    } else if context.tls.current().is_none() {
        "there is no certificate yet; the log says why"
    } else {
        return (StatusCode::OK, "ready");
    };
    (StatusCode::SERVICE_UNAVAILABLE, missing)
}

/// Serves the metrics until shutdown.
///
/// # Errors
/// The listener cannot be used.
pub(crate) async fn metrics(
    listener: TcpListener,
    context: Arc<Context>,
    shutdown: CancellationToken,
) -> std::io::Result<()> {
    let text = async move || {
        let text = context.metrics.text(context.exchange.held());
        ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text)
    };
    let router = Router::new().route("/metrics", get(text));
    serve(listener, router, shutdown).await
}

async fn serve(
    listener: TcpListener,
    router: Router,
    shutdown: CancellationToken,
) -> std::io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    axum::serve(listener, router)
        .with_graceful_shutdown(shutdown.cancelled_owned())
        .await
}
