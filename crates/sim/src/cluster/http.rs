//! The HTTP side: one handler for every path.

use std::{io, sync::Arc};

use axum::{Router, http::StatusCode};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::api::Server;

pub(super) async fn serve(
    listener: TcpListener,
    server: Arc<Server>,
    shutdown: CancellationToken,
) -> io::Result<()> {
    let app = Router::new().fallback(|| async { StatusCode::SERVICE_UNAVAILABLE });
    let _ = server;
    axum::serve(listener, app)
        .with_graceful_shutdown(shutdown.cancelled_owned())
        .await
}
