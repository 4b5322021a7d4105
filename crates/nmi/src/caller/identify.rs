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

/// Which pod the caller is, found out if the index does not say so; `None` until the index is complete. Holds the request of a pod
/// that is not known yet for up to `assignment_wait`.
pub(crate) async fn identify(context: &Context, connection: &ConnectionContext) -> Option<Caller> {
    match connection.caller(context) {
        caller if is_unknown(caller.as_ref()) => wait_for_pod(context, connection).await,
        caller => caller,
    }
}

async fn wait_for_pod(context: &Context, connection: &ConnectionContext) -> Option<Caller> {
    let until = Instant::now() + context.config.assignment_wait;
    // Subscribed before the first look, so that no change after it is missed.
    let mut changes = context.changes.subscribe();
    loop {
        let peer = connection.ask_kernel(context).await;
        if is_unknown(connection.caller(context).as_ref()) {
            context.lookup.ask(connection.peer).await;
        }
        let caller = connection.caller(context);
        let now = Instant::now();
        if peer == LinkPeer::None || now >= until || !is_unknown(caller.as_ref()) {
            return caller;
        }
        let recheck = until.min(now + RECHECK_INTERVAL);
        let _ = tokio::time::timeout_at(recheck, changes.changed()).await;
    }
}

fn is_unknown(caller: Option<&Caller>) -> bool {
    matches!(caller, Some(Caller::Unknown | Caller::NotYet))
}

#[cfg(test)]
mod tests;
