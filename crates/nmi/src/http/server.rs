//! The front door: a connection becomes requests.

use std::convert::Infallible;
use std::net::{IpAddr, TcpListener};
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
use crate::http::drain::Closing;
use crate::http::error_body::{Due, Wire};
use crate::http::rate_limit::Permit;
use crate::http::request;
use crate::http::response::closing_bytes;
use crate::refusal::Refusal;

/// A connection without a request is closed after this.
const IDLE: Duration = Duration::from_secs(75);
// Clients keep connections for a minute and do not expect to lose them sooner.
const _: () = assert!(IDLE.as_secs() >= 60);
/// Larger request heads are refused.
const MAX_HEAD: usize = 64 * 1024;
/// After a failed accept (too many open files) the next one waits this long.
const BREATH: Duration = Duration::from_millis(50);
const CLOSE: HeaderValue = HeaderValue::from_static("close");

/// Serves a listener until it is closed; requests under way are finished.
pub(crate) async fn serve(
    listener: TcpListener,
    context: Arc<Context>,
    closing: Closing,
) -> std::io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let mut tasks = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = closing.announced.cancelled() => break,
            accepted = listener.accept() => accepted,
            Some(_) = tasks.join_next() => continue,
        };
        match accepted {
            Ok((stream, peer)) => {
                let address = peer.ip().to_canonical();
                match context.rate_limiter.open(address) {
                    Some(permit) => {
                        // Answers are small and whole; waiting for more only delays them.
                        let _ = stream.set_nodelay(true);
                        let talk = converse(
                            stream,
                            permit,
                            address,
                            Arc::clone(&context),
                            closing.clone(),
                        );
                        tasks.spawn(talk);
                    }
                    None => {
                        // As far as that goes without waiting.
                        let _ = stream.try_write(&closing_bytes(&Refusal::Busy));
                        context.metrics.dropped();
                    }
                }
            }
            Err(error) => {
                tracing::warn!(reason = %error, "a connection could not be accepted");
                tokio::time::sleep(BREATH).await;
            }
        }
    }
    // Others may hold the same socket and go on accepting.
    drop(listener);
    while tasks.join_next().await.is_some() {}
    Ok(())
}

/// Serves one connection to its end.
pub(crate) async fn converse(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    permit: Permit,
    peer: IpAddr,
    context: Arc<Context>,
    closing: Closing,
) {
    context.metrics.connections().inc();
    let caller = ConnectionContext::new(peer, context.config.attestor.clone());
    let due = Due::default();
    let parting = &context.parting.0;
    // The node's own programs and the kubelet's probe may come later still.
    let is_late = parting.enforced.is_cancelled();
    let service = service_fn(|request| {
        let answer = request::respond(&context, request, &caller, &permit);
        let (due, closing) = (&due, &closing);
        async move {
            let mut answer = answer.await;
            if closing.announced.is_cancelled() || parting.announced.is_cancelled() {
                answer.headers_mut().insert(CONNECTION, CLOSE);
            }
            due.set();
            Ok::<_, Infallible>(answer)
        }
    });
    let stream = Wire::new(stream, due.clone());
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => Some(ended),
        () = closing.enforced.cancelled() => None,
        () = parting.enforced.cancelled(), if !is_late => None,
    };
    let ended = match ended {
        Some(ended) => ended,
        None => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%peer, reason = %error, "a connection ended early");
        if error.is_parse() {
            context.metrics.refused(Refusal::Malformed.name());
        }
    }
    context.metrics.connections().dec();
}

#[cfg(test)]
mod tests;
