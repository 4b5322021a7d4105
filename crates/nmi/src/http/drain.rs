//! How a door closes: first politely, then for good.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

/// For so long a kept connection may still bring a request, whose answer says that it is the last.
const POLITE: Duration = Duration::from_secs(2);
/// Requests under way when the doors are closed have this long; the longest wait for an assignment and then for a token is shorter.
pub(crate) const LAST_REQUESTS: Duration = Duration::from_secs(12);

/// Tells the doors and their connections that it is over.
#[derive(Debug, Clone, Default)]
pub(crate) struct Closing {
    /// No more connections are accepted, and every answer closes its connection.
    pub(crate) announced: CancellationToken,
    /// Connections without a request under way are closed.
    pub(crate) enforced: CancellationToken,
}

impl Closing {
    /// Announces the end, and enforces it a little later.
    pub(crate) async fn close(&self) {
        self.announced.cancel();
        tokio::time::sleep(POLITE).await;
        self.enforced.cancel();
    }
}

/// The end of serving while the doors stay open: nobody comes any more, as requests are no longer intercepted.
#[derive(Debug, Clone, Default)]
pub struct Parting(pub(crate) Closing);

impl Parting {
    /// From now on every answer closes its connection. Returns when whoever is connected to this node agent, or still to the one
    /// before it, has been served or has had the time for it.
    pub async fn run(&self) {
        self.0.close().await;
        tokio::time::sleep(LAST_REQUESTS).await;
    }
}
