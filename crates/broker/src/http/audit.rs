//! Audit line: who got which token for which pod, and who was refused.
//!
//! `request.rs` calls it once a request is answered. It guards the log: a line has no token, and a refusal that repeats is logged once in
//! a while; metrics count all.

use std::time::Duration;

use moka::sync::Cache;

use crate::cluster::reviewer::Caller;
use crate::protocol::{ErrorKind, PodTokenRequest};
use crate::refusal::Refusal;
use crate::token::exchange::Source;

/// How long the same refusal of the same caller is not logged again.
const REPEAT_AFTER: Duration = Duration::from_secs(10);
/// Refusals that are remembered at once, a bound on memory.
const MAX_REMEMBERED: u64 = 4096;

/// Logs answers.
pub(crate) struct Audit {
    said: Cache<(String, ErrorKind), ()>,
}

impl Default for Audit {
    fn default() -> Self {
        let said = Cache::builder().max_capacity(MAX_REMEMBERED);
        Self {
            said: said.time_to_live(REPEAT_AFTER).build(),
        }
    }
}

impl Audit {
    /// A pod's token was given to a node agent.
    pub(crate) fn token(&self, caller: &Caller, request: &PodTokenRequest, source: Source) {
        let PodTokenRequest {
            pod,
            identity,
            resource,
        } = request;
        tracing::info!(
            target: "podid::audit",
            node = caller.node.as_deref().unwrap_or_default(),
            pod = %format_args!("{}/{}", pod.namespace, pod.name),
            uid = pod.uid,
            identity = %format_args!("{}/{}", identity.namespace, identity.name),
            resource,
            source = match source {
                Source::Cache => "cache",
                Source::Entra => "entra",
            },
            "token issued"
        );
    }

    /// A request was refused. `caller` is the account and node, or the address of one that is not known.
    pub(crate) fn refused(&self, caller: &str, refusal: &Refusal) {
        let key = (caller.to_owned(), refusal.kind);
        if self.said.contains_key(&key) {
            return;
        }
        self.said.insert(key, ());
        tracing::warn!(
            caller,
            kind = refusal.kind.name(),
            reason = refusal.message,
            "request refused"
        );
    }
}
