//! The connection beneath hyper. What hyper cannot read it answers itself, with an empty body; here that answer gets one that
//! clients can read.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::answer::Refusal;

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
    Some(refusal.last_words())
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
