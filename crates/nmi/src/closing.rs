//! How a door closes: first politely, then for good.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

/// For so long a kept connection may still bring a request, whose answer says that it is the last.
const POLITE: Duration = Duration::from_secs(2);

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
