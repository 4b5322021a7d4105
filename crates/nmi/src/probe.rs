//! `/healthz` and `/readyz` for the kubelet, `/metrics` for Prometheus.

use std::net::TcpListener;
use std::sync::Arc;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::routing::get;
use tokio::sync::watch::Receiver;
use tokio_util::sync::CancellationToken;

use crate::shared::Shared;

/// `/healthz` answers 200 with `Active` once requests are intercepted, else with `Not Active`, as the original does; `/readyz`
/// answers 503 until tokens can be served.
pub(crate) async fn health(
    listener: TcpListener,
    shared: Arc<Shared>,
    active: Receiver<bool>,
    shutdown: CancellationToken,
) -> std::io::Result<()> {
    let alive = active.clone();
    let router = Router::new()
        .route(
            "/healthz",
            get(move || {
                let text = if *alive.borrow() {
                    "Active"
                } else {
                    "Not Active"
                };
                async move { text }
            }),
        )
        .route(
            "/readyz",
            get(move || {
                let answer = match (shared.is_synced(), *active.borrow()) {
                    (true, true) => (StatusCode::OK, "ready"),
                    (false, _) => (
                        StatusCode::SERVICE_UNAVAILABLE,
                        "the cluster's objects are not known yet",
                    ),
                    (_, false) => (
                        StatusCode::SERVICE_UNAVAILABLE,
                        "requests are not intercepted yet",
                    ),
                };
                async move { answer }
            }),
        );
    serve(listener, router, shutdown).await
}

pub(crate) async fn metrics(
    listener: TcpListener,
    shared: Arc<Shared>,
    shutdown: CancellationToken,
) -> std::io::Result<()> {
    let text = move || {
        let text = shared.metrics.text(shared.cache.len());
        async move { ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text) }
    };
    serve(
        listener,
        Router::new().route("/metrics", get(text)),
        shutdown,
    )
    .await
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
