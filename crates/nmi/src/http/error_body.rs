//! Error body: gives hyper's own error responses (400, 414, 431) the JSON body that clients of the metadata service parse.
//!
//! hyper answers a request that it cannot parse itself, with an empty body. `server.rs` and `host_token.rs` put this stream between
//! hyper and the socket: what is written while no response of podid's is pending is hyper's own, and is replaced.
//!
//! ```text
//!  service makes a response ──► pending ──hyper has flushed it──► not pending
//!  write: pending     ──► passed through
//!         not pending ──► an error response of hyper's ──► replaced by JSON; the connection is shut down
//! ```

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::http::response::closing_bytes;
use crate::refusal::Refusal;

/// Bytes that are read and dropped before the connection is closed. The kernel resets a connection that is closed with unread
/// bytes, and the client may then lose the answer.
const MAX_DRAIN: usize = 1024 * 1024;

/// Whether hyper has a response of podid's that is not written yet.
#[derive(Debug, Clone, Default)]
pub(crate) struct ResponsePending(Arc<AtomicBool>);

impl ResponsePending {
    /// A response has been made.
    pub(crate) fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Every response is written.
    fn clear(&self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

/// A stream on which every error response has a body.
#[derive(Debug)]
pub(crate) struct WithErrorBody<S> {
    stream: S,
    pending: ResponsePending,
    /// What is left to write in place of hyper's own response, after which the connection is shut down.
    replacement: Option<Bytes>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> WithErrorBody<S> {
    pub(crate) fn new(stream: S, pending: ResponsePending) -> Self {
        Self {
            stream,
            pending,
            replacement: None,
        }
    }

    /// Writes a replacement of `theirs` when that is hyper's own error response; `None` when it is not.
    fn replace(&mut self, cx: &mut Context<'_>, theirs: &[u8]) -> Option<Poll<io::Result<()>>> {
        if self.replacement.is_none() && !self.pending.is_set() {
            self.replacement = replacement(theirs);
        }
        let bytes = self.replacement.as_mut()?;
        while bytes.has_remaining() {
            match Pin::new(&mut self.stream).poll_write(cx, bytes) {
                Poll::Ready(Ok(0)) => {
                    return Some(Poll::Ready(Err(io::ErrorKind::WriteZero.into())));
                }
                Poll::Ready(Ok(written)) => bytes.advance(written),
                Poll::Ready(Err(error)) => return Some(Poll::Ready(Err(error))),
                Poll::Pending => return Some(Poll::Pending),
            }
        }
        let shut = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.drain(cx);
        Some(shut)
    }

    fn drain(&mut self, cx: &mut Context<'_>) {
        let mut scratch = [0; 8192];
        for _ in 0..MAX_DRAIN / scratch.len() {
            let mut buffer = ReadBuf::new(&mut scratch);
            let read = Pin::new(&mut self.stream).poll_read(cx, &mut buffer);
            if !matches!(read, Poll::Ready(Ok(()))) || buffer.filled().is_empty() {
                return;
            }
        }
    }
}

/// What is written in place of `theirs`, if it is a response that hyper makes for a request that it cannot parse.
fn replacement(theirs: &[u8]) -> Option<Bytes> {
    let status = theirs.strip_prefix(b"HTTP/1.")?.get(2..5)?;
    let refusal = match status {
        b"400" => Refusal::Malformed,
        b"414" => Refusal::TooLong,
        b"431" => Refusal::HeadTooLong,
        _ => return None,
    };
    Some(closing_bytes(&refusal))
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for WithErrorBody<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for WithErrorBody<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if let Some(replaced) = self.replace(cx, bytes) {
            return replaced.map_ok(|()| bytes.len());
        }
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let first = parts.first().map_or(&[][..], |part| part);
        if let Some(replaced) = self.replace(cx, first) {
            return replaced.map_ok(|()| parts.iter().map(|part| part.len()).sum());
        }
        Pin::new(&mut self.stream).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    /// hyper flushes once it has written everything, so that nothing is pending afterwards.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
        self.pending.clear();
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;

    use http::{Request, Response, StatusCode};
    use http_body_util::Full;
    use hyper::body::Incoming;
    use hyper::service::service_fn;
    use hyper_util::rt::TokioIo;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    /// What a server answers to `request` over a connection that buffers so many bytes, and whose service answers with an empty body.
    async fn answers_to(request: &str, buffer: usize) -> String {
        let (client, server) = duplex(buffer);
        let (mut reader, mut writer) = tokio::io::split(client);
        let pending = ResponsePending::default();
        let stream = TokioIo::new(WithErrorBody::new(server, pending.clone()));
        let service = service_fn(move |_: Request<Incoming>| {
            let mut answer = Response::new(Full::new(Bytes::new()));
            *answer.status_mut() = StatusCode::BAD_REQUEST;
            pending.set();
            async { Ok::<_, Infallible>(answer) }
        });
        let serving = hyper::server::conn::http1::Builder::new().serve_connection(stream, service);
        let serving = tokio::spawn(serving);
        let mut heard = String::new();
        let talk = async {
            tokio::join!(
                writer.write_all(request.as_bytes()),
                reader.read_to_string(&mut heard)
            )
        };
        let in_time = tokio::time::timeout(std::time::Duration::from_secs(10), talk).await;
        assert!(in_time.is_ok(), "no end");
        drop((reader, writer));
        let _ = serving.await;
        heard
    }

    #[tokio::test]
    async fn a_request_that_is_not_http_gets_json_however_slowly_the_client_reads() {
        for at_a_time in [7, 64, 100_000] {
            let heard = answers_to("GET /\x01 HTTP/1.1\r\n\r\n", at_a_time).await;
            let (head, body) = heard.split_once("\r\n\r\n").unwrap();
            assert!(head.starts_with("HTTP/1.1 400"), "{heard}");
            assert!(head.contains(&format!("content-length: {}", body.len())));
            let body: serde_json::Value = serde_json::from_str(body).unwrap();
            assert!(body["error"].is_string());
        }
    }

    #[tokio::test]
    async fn a_response_of_the_service_is_left_alone() {
        let request = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";
        let heard = answers_to(&format!("{request}{request}garbage\r\n\r\n"), 100_000).await;
        assert_eq!(heard.matches("HTTP/1.1 400").count(), 3, "{heard}");
        assert_eq!(heard.matches("content-length: 0\r\n").count(), 2, "{heard}");
        assert_eq!(heard.matches("error_description").count(), 1, "{heard}");
    }
}
