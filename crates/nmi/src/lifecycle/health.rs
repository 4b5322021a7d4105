//! `/healthz` and `/readyz` for the kubelet, `/metrics` for Prometheus.

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

/// What the front door is asked, and answers like everything that it does not know.
pub(crate) const DOOR: &str = "/healthz";
/// A front door that takes longer is taken for dead.
const PATIENCE: Duration = Duration::from_secs(2);

/// `/healthz` answers 200 with `Active` once requests are intercepted, else with `Not Active`, as the original does, and 503 when
/// the front door does not answer; `/readyz` answers 503 until tokens can be served.
pub(crate) async fn health(
    listener: TcpListener,
    context: Arc<Context>,
    active: Receiver<bool>,
    door: Option<SocketAddr>,
    shutdown: CancellationToken,
) -> std::io::Result<()> {
    let alive = active.clone();
    let router = Router::new()
        .route(
            "/healthz",
            get(move || {
                let alive = alive.clone();
                async move {
                    let answers = match door {
                        Some(door) => answers(door).await,
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
            get(move || {
                let answer = match (context.is_synced(), *active.borrow()) {
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

/// Whether a request through the front door comes to an end.
async fn answers(mut door: SocketAddr) -> bool {
    if door.ip().is_unspecified() {
        door.set_ip(Ipv4Addr::LOCALHOST.into());
    }
    let asking = async {
        let mut stream = TcpStream::connect(door).await?;
        let request = format!("GET {DOOR} HTTP/1.1\r\nHost: {door}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut first = [0; 9];
        stream.read_exact(&mut first).await?;
        std::io::Result::Ok(first.starts_with(b"HTTP/1.1"))
    };
    matches!(tokio::time::timeout(PATIENCE, asking).await, Ok(Ok(true)))
}

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
    async fn a_door_that_takes_connections_and_does_not_answer_is_dead() {
        let stuck = TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(!answers(stuck.local_addr().unwrap()).await);
        let gone = stuck.local_addr().unwrap();
        drop(stuck);
        assert!(!answers(gone).await);
    }
}
