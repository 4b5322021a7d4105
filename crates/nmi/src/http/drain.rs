//! Graceful drain: ends connections so that no client loses a request.
//!
//! `lifecycle/servers.rs` drains at shutdown and at takeover; `podid nmi --interception=withdraw` drains with [`FinalDrain`] while
//! the listeners stay open. `server.rs` obeys both.
//!
//! ```text
//!  serving ──► started ─────KEEP_ALIVE_GRACE────► idle closed ───HOLD_GRACE───► holds ended ───REQUEST_GRACE───► cut off
//!              no connection is accepted,         a connection without a        a request that is held      requests still under
//!              every answer says                  request under way is closed   (hold.rs) is answered       way lose their connection
//!              `Connection: close`
//! ```

use std::time::Duration;

use tokio_util::sync::CancellationToken;

/// How long a kept connection may still bring a request, whose answer then says `Connection: close`; clients that are busy send
/// one within it.
const KEEP_ALIVE_GRACE: Duration = Duration::from_secs(2);
/// How long a request may still be held after that: most identities are attached within it, and the kubelet waits for the whole drain.
const HOLD_GRACE: Duration = Duration::from_secs(5);
/// How long requests under way may take after that: longer than the longest wait for a token.
const REQUEST_GRACE: Duration = Duration::from_secs(7);

/// One drain, which listeners and connections follow.
#[derive(Debug, Clone, Default)]
pub(crate) struct Drain {
    /// No more connections are accepted, and every answer closes its connection.
    pub(crate) started: CancellationToken,
    /// Connections without a request under way are closed.
    pub(crate) idle_closed: CancellationToken,
    /// Requests that are held are answered.
    pub(crate) holds_ended: CancellationToken,
}

impl Drain {
    /// Goes through all its stages, and returns when the time of the requests under way is up.
    pub(crate) async fn run(&self) {
        self.started.cancel();
        tokio::time::sleep(KEEP_ALIVE_GRACE).await;
        self.idle_closed.cancel();
        tokio::time::sleep(HOLD_GRACE).await;
        self.holds_ended.cancel();
        tokio::time::sleep(REQUEST_GRACE).await;
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
        self.0.run().await;
    }
}
