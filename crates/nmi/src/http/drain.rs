//! Graceful drain: ends connections so that no client loses a request.
//!
//! `lifecycle/servers.rs` drains at shutdown and at takeover; `podid nmi --interception=withdraw` drains with [`FinalDrain`] while
//! the listeners stay open. `server.rs` obeys both.
//!
//! ```text
//!  serving ──► started ─────KEEP_ALIVE_GRACE────► idle closed ─────REQUEST_GRACE────► cut off
//!              no connection is accepted,         a connection without a              requests still under way
//!              every answer says                  request under way is closed         lose their connection
//!              `Connection: close`
//! ```

use std::time::Duration;

use tokio_util::sync::CancellationToken;

/// How long a kept connection may still bring a request, whose answer then says `Connection: close`; clients that are busy send
/// one within it.
const KEEP_ALIVE_GRACE: Duration = Duration::from_secs(2);
/// How long requests under way may take after that: longer than the longest wait for an assignment and then for a token.
pub(crate) const REQUEST_GRACE: Duration = Duration::from_secs(12);

/// One drain, which listeners and connections follow.
#[derive(Debug, Clone, Default)]
pub(crate) struct Drain {
    /// No more connections are accepted, and every answer closes its connection.
    pub(crate) started: CancellationToken,
    /// Connections without a request under way are closed.
    pub(crate) idle_closed: CancellationToken,
}

impl Drain {
    /// Starts it, and returns when idle connections are closed.
    pub(crate) async fn close_idle(&self) {
        self.started.cancel();
        tokio::time::sleep(KEEP_ALIVE_GRACE).await;
        self.idle_closed.cancel();
    }
}

/// The drain after which neither this node agent nor its predecessor serves any more. The listeners stay open, because requests are
/// no longer intercepted and nobody connects.
#[derive(Debug, Clone, Default)]
pub struct FinalDrain(pub(crate) Drain);

impl FinalDrain {
    /// Drains the connections of this node agent and of its predecessor; returns when their requests are answered or had the time
    /// for it.
    pub async fn run(&self) {
        self.0.close_idle().await;
        tokio::time::sleep(REQUEST_GRACE).await;
    }
}
