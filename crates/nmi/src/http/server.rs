//! HTTP server: accepts the connections that pods meant for the metadata service, and serves their requests.
//!
//! `lifecycle/servers.rs` runs it, one per listener. It guards this process against pods: connections per pod, the size of a request
//! head and the idle time are bounded.
//!
//! ```text
//!  accept ──► rate_limit ──permit──► connection ──► request.rs ──► endpoint
//!                 │                  (error_body.rs           ├── token ──────► token/grant.rs ──► cache ──► source ──► Azure
//!                 └──too many──► 429, closed   beneath hyper) ├── host token, to root of the node ──► host_token.rs
//!                                                             ├── info, versions ──► info.rs
//!                                                             ├── category, or an exempted pod ──► passthrough.rs ──► metadata service
//!                                                             └── anything else ──► Refusal ──► response.rs
//! ```

use std::convert::Infallible;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;
use http::header::CONNECTION;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinSet;

use crate::caller::connection::ConnectionContext;
use crate::context::Context;
use crate::hold::Hold;
use crate::http::drain::Drain;
use crate::http::error_body::{ResponsePending, WithErrorBody};
use crate::http::rate_limit::Permit;
use crate::http::request;
use crate::http::response::closing_bytes;
use crate::refusal::Refusal;

/// How long a connection may be without a request. Clients keep connections for a minute and do not expect to lose them sooner.
const IDLE_TIMEOUT: Duration = Duration::from_secs(75);
const _: () = assert!(IDLE_TIMEOUT.as_secs() >= 60);
/// Largest request head in bytes, far more than any client of the metadata service sends.
const MAX_HEAD: usize = 64 * 1024;
/// Wait after a failed accept, which is mostly for lack of file descriptors.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(50);
/// The user id of root.
const ROOT: u32 = 0;
const CLOSE: HeaderValue = HeaderValue::from_static("close");

/// Accepts connections until the drain starts, and returns when the last of them has ended.
///
/// # Errors
/// The listener cannot be used.
pub(crate) async fn serve(
    listener: TcpListener,
    context: Arc<Context>,
    drain: Drain,
) -> std::io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let mut tasks = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = drain.started.cancelled() => break,
            accepted = listener.accept() => accepted,
            Some(_) = tasks.join_next() => continue,
        };
        match accepted {
            Ok((stream, peer)) => {
                let address = peer.ip().to_canonical();
                match context.rate_limiter.open(address) {
                    Some(permit) => {
                        // Answers are small and whole, so that Nagle's algorithm would only delay them.
                        let _ = stream.set_nodelay(true);
                        let attestor = context.config.attestor.clone();
                        let mut caller = ConnectionContext::new(address, attestor);
                        caller.is_root_of_node =
                            context.config.host_token_loopback && is_roots(&stream, peer);
                        let serve = serve_connection(
                            stream,
                            permit,
                            caller,
                            Arc::clone(&context),
                            drain.clone(),
                        );
                        tasks.spawn(serve);
                    }
                    None => {
                        // Without waiting: a client that does not read must not hold up the others.
                        let _ = stream.try_write(&closing_bytes(&Refusal::Busy));
                        context.metrics.dropped();
                    }
                }
            }
            Err(error) => {
                tracing::warn!(reason = %error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_RETRY_DELAY).await;
            }
        }
    }
    // Closed before the connections are waited for; a successor accepts from its own duplicate of the socket.
    drop(listener);
    while tasks.join_next().await.is_some() {}
    Ok(())
}

/// Whether the other end is a socket of root's in this network namespace, which is the host's.
fn is_roots(stream: &tokio::net::TcpStream, peer: SocketAddr) -> bool {
    let (SocketAddr::V4(theirs), Ok(SocketAddr::V4(ours))) = (peer, stream.local_addr()) else {
        return false;
    };
    if !theirs.ip().is_loopback() {
        return false;
    }
    podid_intercept::socket_owner(theirs, ours).unwrap_or_else(|error| {
        tracing::warn!(reason = %error, "the kernel does not tell whose a loopback connection is");
        None
    }) == Some(ROOT)
}

/// Serves the requests of one connection until it ends or is drained.
pub(crate) async fn serve_connection(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    permit: Permit,
    caller: ConnectionContext,
    context: Arc<Context>,
    drain: Drain,
) {
    context.metrics.connections().inc();
    let pending = ResponsePending::default();
    let final_drain = &context.final_drain.0;
    // The kubelet's probe and the node's own programs still connect after it.
    let is_after_final_drain = final_drain.idle_closed.is_cancelled();
    let service = service_fn(|request| {
        let hold = Hold::new(&context, &drain.holds_ended);
        let answer = request::respond(&context, request, &caller, &permit, hold);
        let (pending, drain) = (&pending, &drain);
        async move {
            let mut answer = answer.await;
            if drain.started.is_cancelled() || final_drain.started.is_cancelled() {
                answer.headers_mut().insert(CONNECTION, CLOSE);
            }
            pending.set();
            Ok::<_, Infallible>(answer)
        }
    });
    let stream = WithErrorBody::new(stream, pending.clone());
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE_TIMEOUT)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => Some(ended),
        () = drain.idle_closed.cancelled() => None,
        () = final_drain.idle_closed.cancelled(), if !is_after_final_drain => None,
    };
    let ended = match ended {
        Some(ended) => ended,
        None => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(peer = %caller.peer, reason = %error, "a connection ended early");
        if error.is_parse() {
            context.metrics.refused(Refusal::Malformed.name());
        }
    }
    context.metrics.connections().dec();
}

#[cfg(test)]
mod tests;
