//! The front door: a connection becomes requests.

use std::convert::Infallible;
use std::net::{IpAddr, TcpListener};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use http::HeaderValue;
use http::header::CONNECTION;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use podid_policy::facts::PodFacts;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinSet;

use crate::caller::attest::Evidence;
use crate::context::Context;
use crate::http::error_body::{Due, Wire};
use crate::http::rate_limit::Connection;
use crate::http::request;
use crate::http::response::Refusal;
use crate::lifecycle::drain::Closing;

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
                match context.connections.open(address) {
                    Some(place) => {
                        // Answers are small and whole; waiting for more only delays them.
                        let _ = stream.set_nodelay(true);
                        let talk = converse(
                            stream,
                            place,
                            address,
                            Arc::clone(&context),
                            closing.clone(),
                        );
                        tasks.spawn(talk);
                    }
                    None => {
                        // As far as that goes without waiting.
                        let _ = stream.try_write(&Refusal::Busy.last_words());
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
    place: Connection,
    peer: IpAddr,
    context: Arc<Context>,
    closing: Closing,
) {
    context.metrics.connections().inc();
    let visit = Visit {
        peer,
        place,
        uid: OnceLock::new(),
        attested: AtomicBool::new(false),
    };
    let due = Due::default();
    let parting = &context.parting.0;
    // The node's own programs and the kubelet's probe may come later still.
    let is_late = parting.enforced.is_cancelled();
    let service = service_fn(|request| {
        let answer = request::respond(&context, request, &visit);
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

/// One connection: whoever opened it is the only one it serves, though its address pass to another pod.
pub(crate) struct Visit {
    pub(crate) peer: IpAddr,
    pub(crate) place: Connection,
    uid: OnceLock<Arc<str>>,
    /// Whether the pod is who it is for as long as the connection lasts.
    attested: AtomicBool,
}

impl Visit {
    pub(crate) fn is_of(&self, pod: &PodFacts) -> bool {
        *self.uid.get_or_init(|| Arc::clone(&pod.uid)) == pod.uid
    }

    /// Lets nobody through whom the node's kernel takes for somebody else than `pod`.
    pub(crate) async fn attest(&self, context: &Context, pod: &PodFacts) -> Result<(), Refusal> {
        let Some(attestor) = &context.config.attestor else {
            return Ok(());
        };
        if self.attested.load(Ordering::Relaxed) {
            return Ok(());
        }
        match attestor.look(pod, self.peer).await {
            Evidence::Genuine { fleeting } => {
                self.attested.store(!fleeting, Ordering::Relaxed);
                Ok(())
            }
            Evidence::None => Ok(()),
            Evidence::Other => Err(Refusal::NotAttested {
                pod: pod.key.clone(),
                address: self.peer,
            }),
        }
    }
}

#[cfg(test)]
mod tests;
