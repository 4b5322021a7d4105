//! Health: the HTTP probes `/healthz` and `/readyz` for the kubelet, and `/metrics` for Prometheus.
//!
//! `servers.rs` runs them. `/healthz` guards against a process that lives and does not serve: it asks the metadata listener itself.

use std::borrow::Cow;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::routing::get;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::watch::Receiver;
use tokio_util::sync::CancellationToken;

use crate::context::Context;
use crate::http::request::SELF_CHECK_PATH;

/// How long the metadata listener may take to answer, within the kubelet's own timeout of the probe.
const SELF_CHECK_TIMEOUT: Duration = Duration::from_secs(2);
/// How long `/readyz` waits before it answers 503, within the kubelet's timeout of the probe, which is 3 s in the manifests.
const READINESS_WAIT: Duration = Duration::from_secs(2);

/// Serves the probes until shutdown.
///
/// | probe | 200 | 503 |
/// | --- | --- | --- |
/// | `/healthz` | `Active` while requests are intercepted, else `Not Active`, as AAD Pod Identity says | `metadata`, the metadata listener, does not answer |
/// | `/readyz` | tokens can be served | for 2 s the cluster's objects are not known, or requests are not intercepted, with the cause |
///
/// # Errors
/// The listener cannot be used.
pub(crate) async fn probe(
    listener: TcpListener,
    context: Arc<Context>,
    active: Receiver<bool>,
    metadata: Option<SocketAddr>,
    shutdown: CancellationToken,
) -> std::io::Result<()> {
    let alive = active.clone();
    let router = Router::new()
        .route(
            "/healthz",
            get(move || {
                let alive = alive.clone();
                async move {
                    let answers = match metadata {
                        Some(address) => self_check(address).await,
                        None => true,
                    };
                    let is_active = *alive.borrow();
                    match (answers, is_active) {
                        (false, _) => (
                            StatusCode::SERVICE_UNAVAILABLE,
                            "the front door does not answer",
                        ),
                        (true, true) => (StatusCode::OK, "Active"),
                        (true, false) => (StatusCode::OK, "Not Active"),
                    }
                }
            }),
        )
        .route(
            "/readyz",
            get(move || readiness(Arc::clone(&context), active.clone())),
        );
    serve(listener, router, shutdown).await
}

/// Waits for what is missing, because it is missing for a moment at every start and takeover, and the kubelet writes an Event of
/// each 503.
async fn readiness(
    context: Arc<Context>,
    mut active: Receiver<bool>,
) -> (StatusCode, Cow<'static, str>) {
    let mut changes = context.changes.subscribe();
    let ready = async {
        while !context.is_synced() && changes.changed().await.is_ok() {}
        // An error means that the process ends.
        let _ = active.wait_for(|active| *active).await;
    };
    let _ = tokio::time::timeout(READINESS_WAIT, ready).await;
    let missing = match (context.is_synced(), *active.borrow()) {
        (true, true) => return (StatusCode::OK, "ready".into()),
        (false, _) => "the cluster's objects are not known yet".into(),
        (_, false) => match context.metrics.interception_trouble() {
            Some(trouble) => format!("requests are not intercepted: {trouble}").into(),
            None => "requests are not intercepted yet".into(),
        },
    };
    (StatusCode::SERVICE_UNAVAILABLE, missing)
}

/// Whether the metadata listener answers a request.
async fn self_check(mut address: SocketAddr) -> bool {
    if address.ip().is_unspecified() {
        address.set_ip(Ipv4Addr::LOCALHOST.into());
    }
    let check = async {
        let mut stream = TcpStream::connect(address).await?;
        let request = format!(
            "GET {SELF_CHECK_PATH} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await?;
        let mut first = [0; 9];
        stream.read_exact(&mut first).await?;
        std::io::Result::Ok(first.starts_with(b"HTTP/1.1"))
    };
    matches!(
        tokio::time::timeout(SELF_CHECK_TIMEOUT, check).await,
        Ok(Ok(true))
    )
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
    let text = move || {
        let text = context.metrics.text(context.cache.len());
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_listener_that_accepts_and_does_not_answer_is_dead() {
        let stuck = TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(!self_check(stuck.local_addr().unwrap()).await);
        let gone = stuck.local_addr().unwrap();
        drop(stuck);
        assert!(!self_check(gone).await);
    }
}
