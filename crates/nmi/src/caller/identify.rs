//! Identification of a caller whose address the index does not have: a pod that asks as soon as its container runs, while the
//! kubelet has yet to write `status.podIP`.
//!
//! `http/request.rs` calls it before it looks at who the caller is. It guards a pod's first requests from an error, and the API
//! server from being asked more than once a second about an address.
//!
//! ```text
//!  address ──► index ──► known
//!                │ unknown
//!                ▼
//!              kernel: whose network namespace does the link lead to? ──► known, by the pod's uid
//!              ▲ │ it cannot tell
//!              │ ▼
//!              │ API server: which pod has the address? ──► known
//!              │ │ none
//!              │ ├──► not at a pod's link, or held for `assignment_wait` ──► unknown
//!              └─┘ the index changes, or a second passes
//! ```

use std::time::Duration;

use tokio::time::Instant;

use crate::caller::attest::LinkPeer;
use crate::caller::connection::ConnectionContext;
use crate::caller::index::Caller;
use crate::context::Context;

/// A held request is looked at again after this time even if the index does not change, because the watch may be interrupted.
const RECHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Finds out which pod the caller is, if the index does not say so. Holds the request of a pod that is not known yet for up to
/// `assignment_wait`.
pub(crate) async fn identify(context: &Context, connection: &ConnectionContext) {
    let until = Instant::now() + context.config.assignment_wait;
    // Subscribed before the first look, so that no change after it is missed.
    let mut changes = context.changes.subscribe();
    while is_unknown(context, connection) {
        let peer = connection.ask_kernel(context).await;
        if !is_unknown(context, connection) {
            return;
        }
        context.lookup.ask(connection.peer).await;
        let now = Instant::now();
        if peer == LinkPeer::None || now >= until || !is_unknown(context, connection) {
            return;
        }
        let recheck = until.min(now + RECHECK_INTERVAL);
        let _ = tokio::time::timeout_at(recheck, changes.changed()).await;
    }
}

fn is_unknown(context: &Context, connection: &ConnectionContext) -> bool {
    matches!(
        connection.caller(context),
        Some(Caller::Unknown | Caller::NotYet)
    )
}

#[cfg(test)]
mod tests;
