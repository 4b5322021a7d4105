//! The connection beneath hyper. What hyper cannot read it answers itself, with an empty body; here that answer gets one that
//! clients can read.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::http::response::closing_bytes;
use crate::refusal::Refusal;

/// What has arrived after a request that cannot be read is read up to this much and thrown away: to close a connection that has
/// unread bytes is to reset it, which can cost the client the answer.
const MAX_DRAIN: usize = 1024 * 1024;

/// Whether what is written next is the answer to a request.
#[derive(Debug, Clone, Default)]
pub(crate) struct Due(Arc<AtomicBool>);

impl Due {
    /// An answer has been made.
    pub(crate) fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// All that was due is written.
    fn clear(&self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

/// A stream on which no error is without a body.
#[derive(Debug)]
pub(crate) struct Wire<S> {
    stream: S,
    due: Due,
    /// What is left to write in place of hyper's own answer, which is a connection's last.
    last: Option<Bytes>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    pub(crate) fn new(stream: S, due: Due) -> Self {
        Self {
            stream,
            due,
            last: None,
        }
    }

    /// Writes the connection's last answer in place of `theirs`, if that is what it is.
    fn replace(&mut self, cx: &mut Context<'_>, theirs: &[u8]) -> Option<Poll<io::Result<()>>> {
        if self.last.is_none() && !self.due.is_set() {
            self.last = replacement(theirs);
        }
        let last = self.last.as_mut()?;
        while last.has_remaining() {
            match Pin::new(&mut self.stream).poll_write(cx, last) {
                Poll::Ready(Ok(0)) => {
                    return Some(Poll::Ready(Err(io::ErrorKind::WriteZero.into())));
                }
                Poll::Ready(Ok(written)) => last.advance(written),
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

/// What is said in place of hyper's own answer: it is one when it is an error and no answer was due.
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

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Wire<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Wire<S> {
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

    /// hyper flushes when everything that it had to write is written.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
        self.due.clear();
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

    /// What a server says to these bytes over a connection that takes so many at a time, and whose own answers are empty.
    async fn said(bytes: &str, at_a_time: usize) -> String {
        let (client, server) = duplex(at_a_time);
        let (mut reader, mut writer) = tokio::io::split(client);
        let due = Due::default();
        let stream = TokioIo::new(Wire::new(server, due.clone()));
        let service = service_fn(move |_: Request<Incoming>| {
            let mut answer = Response::new(Full::new(Bytes::new()));
            *answer.status_mut() = StatusCode::BAD_REQUEST;
            due.set();
            async { Ok::<_, Infallible>(answer) }
        });
        let serving = hyper::server::conn::http1::Builder::new().serve_connection(stream, service);
        let serving = tokio::spawn(serving);
        let mut heard = String::new();
        let talk = async {
            tokio::join!(
                writer.write_all(bytes.as_bytes()),
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
    async fn what_is_not_http_is_told_so_however_slowly_it_reads() {
        for at_a_time in [7, 64, 100_000] {
            let heard = said("GET /\x01 HTTP/1.1\r\n\r\n", at_a_time).await;
            let (head, body) = heard.split_once("\r\n\r\n").unwrap();
            assert!(head.starts_with("HTTP/1.1 400"), "{heard}");
            assert!(head.contains(&format!("content-length: {}", body.len())));
            let body: serde_json::Value = serde_json::from_str(body).unwrap();
            assert!(body["error"].is_string());
        }
    }

    #[tokio::test]
    async fn an_answer_of_the_services_own_is_left_alone() {
        let request = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";
        let heard = said(&format!("{request}{request}garbage\r\n\r\n"), 100_000).await;
        assert_eq!(heard.matches("HTTP/1.1 400").count(), 3, "{heard}");
        assert_eq!(heard.matches("content-length: 0\r\n").count(), 2, "{heard}");
        assert_eq!(heard.matches("error_description").count(), 1, "{heard}");
    }
}
