//! Hold: how long a request waits for what is not there yet, such as an identity that is being attached, before it is told to ask again.
//!
//! `http/request.rs` and `http/host_token.rs` make one for each request; `caller/identify.rs` and `token/grant.rs` wait by it. It guards
//! clients that ask only once from an error that would pass by itself, and a drain from requests that are held for longer than it takes.
//!
//! ```text
//!            the index changes, or RECHECK_INTERVAL passes ──► the request is tried again
//!  held ──┬─ `--assignment-wait` is over since the request came ─┬──► the last refusal is the answer
//!         └─ the drain ends holds (http/drain.rs) ───────────────┘
//!  The client goes away: hyper drops the request, and its hold with it.
//! ```

use std::time::Duration;

use tokio::sync::watch::Receiver;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::context::Context;

/// A held request is tried again after this time even if the index does not change: the metadata service says nothing when it learns
/// of an identity, and a watch may be interrupted.
const RECHECK_INTERVAL: Duration = Duration::from_secs(1);

/// The hold of one request.
pub(crate) struct Hold<'a> {
    until: Instant,
    /// Cancelled when a drain ends holds: the drain of these servers, and the final one.
    ended: [&'a CancellationToken; 2],
}

impl<'a> Hold<'a> {
    /// A hold that begins now. `ended` is cancelled when the drain of the servers ends it.
    pub(crate) fn new(context: &'a Context, ended: &'a CancellationToken) -> Self {
        Self {
            until: Instant::now() + context.config.assignment_wait,
            ended: [ended, &context.final_drain.0.holds_ended],
        }
    }

    /// Waits for the next try, and says whether there is one: false when the hold is over.
    pub(crate) async fn wait(&self, changes: &mut Receiver<u64>) -> bool {
        let [servers, finally] = self.ended;
        tokio::select! {
            biased;
            () = servers.cancelled() => false,
            () = finally.cancelled() => false,
            () = sleep_until(self.until) => false,
            _ = changes.changed() => true,
            () = sleep(RECHECK_INTERVAL) => true,
        }
    }
}
