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
//!              │ ├──► not at a pod's link, or the hold is over (hold.rs) ──► unknown
//!              └─┘ the index changes, or a second passes
//! ```

use crate::caller::attest::LinkPeer;
use crate::caller::connection::ConnectionContext;
use crate::caller::index::Caller;
use crate::context::Context;
use crate::hold::Hold;

/// Which pod the caller is, found out if the index does not say so; `None` while the index is not complete. Holds the request until
/// the index is complete, and the request of a pod that is not known yet.
pub(crate) async fn identify(
    context: &Context,
    connection: &ConnectionContext,
    hold: &Hold<'_>,
) -> Option<Caller> {
    if !context.is_synced() {
        wait_for_index(context, hold).await;
    }
    match connection.caller(context) {
        caller if is_unknown(caller.as_ref()) => wait_for_pod(context, connection, hold).await,
        caller => caller,
    }
}

async fn wait_for_index(context: &Context, hold: &Hold<'_>) {
    let mut changes = context.changes.subscribe();
    while !context.is_synced() && hold.wait(&mut changes).await {}
}

async fn wait_for_pod(
    context: &Context,
    connection: &ConnectionContext,
    hold: &Hold<'_>,
) -> Option<Caller> {
    // Subscribed before the first look, so that no change after it is missed.
    let mut changes = context.changes.subscribe();
    let mut is_over = false;
    loop {
        let peer = connection.ask_kernel(context).await;
        if is_unknown(connection.caller(context).as_ref()) {
            context.lookup.ask(connection.peer).await;
        }
        let caller = connection.caller(context);
        if peer == LinkPeer::None || is_over || !is_unknown(caller.as_ref()) {
            return caller;
        }
        is_over = !hold.wait(&mut changes).await;
    }
}

fn is_unknown(caller: Option<&Caller>) -> bool {
    matches!(caller, Some(Caller::Unknown | Caller::NotYet))
}

#[cfg(test)]
mod tests;
