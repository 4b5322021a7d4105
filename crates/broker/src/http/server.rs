//! HTTPS server: accepts connections of node agents and of the controller, and serves their requests.
//!
//! `lib.rs` runs it. It guards the process against callers: connections, the time of a handshake, the size of a request head, idle time.
//!
//! ```text
//!  accept ──► connections (limit) ──► TLS ──► request.rs, one after the other ──► idle for 75 s: closed
//!
//!  shutdown ──► draining: every response closes its connection, and new connections are still taken
//!           ──► ENDPOINT_GRACE: the listener is closed, idle connections too
//!           ──► REQUEST_GRACE: requests still under way lose their connection
//! ```

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;
use http::header::CONNECTION;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::context::Context;
use crate::http::connections::Connections;
use crate::http::request;

/// How long a TLS handshake may take: some round trips.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a connection may be without a request: longer than clients keep it.
const IDLE_TIMEOUT: Duration = Duration::from_secs(75);
/// The largest request head in bytes: a bearer token has less than 4 KiB.
const MAX_HEAD: usize = 32 * 1024;
/// Wait after a failed accept, which is mostly for lack of file descriptors.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(50);
/// How long new connections are still taken: until no node leads to this pod by the Service any more.
const ENDPOINT_GRACE: Duration = Duration::from_secs(5);
/// How long requests under way may take after that: longer than the time limit of a request.
const REQUEST_GRACE: Duration = Duration::from_secs(15);
const CLOSE: HeaderValue = HeaderValue::from_static("close");

/// Serves until `context.draining` is cancelled, and then drains.
///
/// # Errors
/// The listener cannot be used.
pub(crate) async fn serve(
    listener: std::net::TcpListener,
    context: Arc<Context>,
) -> std::io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = TcpListener::from_std(listener)?;
    let connections = Connections::default();
    let idle_closed = CancellationToken::new();
    let mut tasks = JoinSet::new();
    let end = async {
        context.draining.cancelled().await;
        tokio::time::sleep(ENDPOINT_GRACE).await;
    };
    tokio::pin!(end);
    loop {
        let accepted = tokio::select! {
            () = &mut end => break,
            accepted = listener.accept() => accepted,
            Some(_) = tasks.join_next() => continue,
        };
        match accepted {
            Ok((stream, peer)) => {
                let address = peer.ip().to_canonical();
                let Some(permit) = connections.open(address) else {
                    context.metrics.connection_dropped();
                    continue;
                };
                let (context, idle_closed) = (Arc::clone(&context), idle_closed.clone());
                tasks.spawn(async move {
                    let _permit = permit;
                    serve_connection(stream, peer, context, idle_closed).await;
                });
            }
            Err(error) => {
                tracing::warn!(reason = %error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_RETRY_DELAY).await;
            }
        }
    }
    drop(listener);
    idle_closed.cancel();
    let rest = async { while tasks.join_next().await.is_some() {} };
    if tokio::time::timeout(REQUEST_GRACE, rest).await.is_err() {
        tracing::warn!("requests were under way for too long and are cut off");
    }
    Ok(())
}

async fn serve_connection(
    stream: TcpStream,
    peer: SocketAddr,
    context: Arc<Context>,
    idle_closed: CancellationToken,
) {
    // Responses are small and whole, so that Nagle's algorithm would only delay them.
    let _ = stream.set_nodelay(true);
    let Some(tls) = context.tls.current() else {
        return;
    };
    let handshake = TlsAcceptor::from(tls).accept(stream);
    let stream = match tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return failed(&context, peer.ip(), &error),
        Err(_) => return failed(&context, peer.ip(), &"no handshake in time"),
    };
    context.metrics.connections().inc();
    let service = service_fn(|request| {
        let answer = request::respond(&context, request, peer.ip());
        let context = &context;
        async move {
            let mut answer = answer.await;
            if context.draining.is_cancelled() {
                answer.headers_mut().insert(CONNECTION, CLOSE);
            }
            Ok::<_, Infallible>(answer)
        }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE_TIMEOUT)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = idle_closed.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%peer, reason = %error, "a connection ended early");
    }
    context.metrics.connections().dec();
}

/// A handshake that fails is mostly a client with an old CA, or a probe of a port scanner.
fn failed(context: &Context, peer: IpAddr, reason: &dyn std::fmt::Display) {
    context.metrics.handshake_failed();
    tracing::debug!(%peer, %reason, "a TLS handshake failed");
}
