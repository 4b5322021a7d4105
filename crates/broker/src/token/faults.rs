//! Gate in front of Entra: after a federation error nobody asks Entra about that identity before its time is over (negative caching).
//!
//! `exchange.rs` asks it before each exchange. It guards new federated credentials: a request before Entra knows one everywhere makes
//! Entra keep its old answer for minutes.
//!
//! ```text
//!            an exchange is refused                its time is over: one more exchange
//!   open ───────────────────────────► closed ───────────────────────────────────────► open
//!    ▲                                                                                 │
//!    └─────────────────────────── an exchange succeeds: what was refused is forgotten ─┘
//! ```

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use podid_azure::{Error, Healing};
use tokio::time::Instant;

use crate::token::exchange::{ExchangeError, Principal};

/// How long a missing credential counts as one that is new and not known everywhere yet.
const PROPAGATION_BOUND: Duration = Duration::from_secs(5 * 60);
/// How long Entra is not asked after an error that time does not heal, so that a repair is seen soon.
const UNHEALED_WAIT: Duration = Duration::from_secs(30);
/// Identities that are kept at once, a bound on memory.
const MAX_IDENTITIES: usize = 10_000;

struct Fault {
    error: Arc<ExchangeError>,
    /// When the first of the errors came that have come without a success between them.
    since: Instant,
    until: Instant,
}

/// The federation error of each identity that has one. The key has what Entra sees of the identity, so that an edit opens the gate.
#[derive(Default)]
pub(crate) struct Faults(Mutex<HashMap<Principal, Fault>>);

impl Faults {
    /// The error that stands for an exchange now.
    pub(crate) fn standing(&self, principal: &Principal) -> Option<Arc<ExchangeError>> {
        let faults = self.0.lock();
        let fault = faults.get(principal)?;
        (Instant::now() < fault.until).then(|| Arc::clone(&fault.error))
    }

    /// Whether a missing credential of this identity may still be one that is new.
    pub(crate) fn may_be_new(&self, principal: &Principal) -> bool {
        let faults = self.0.lock();
        let since = faults.get(principal).map(|fault| fault.since);
        since.is_none_or(|since| since.elapsed() < PROPAGATION_BOUND)
    }

    /// An exchange was refused.
    pub(crate) fn refused(&self, principal: &Principal, error: &Arc<ExchangeError>, cause: &Error) {
        let Some(fault) = cause.federation_fault() else {
            return;
        };
        let wait = match fault.healing() {
            Healing::After(wait) => cause.retry_after().unwrap_or(wait),
            Healing::Never | Healing::FreshAssertion => UNHEALED_WAIT,
        };
        let now = Instant::now();
        let mut faults = self.0.lock();
        if faults.len() >= MAX_IDENTITIES {
            faults.retain(|_, fault| now < fault.until);
        }
        let since = faults.get(principal).map_or(now, |fault| fault.since);
        let fault = Fault {
            error: Arc::clone(error),
            since,
            until: now + wait,
        };
        faults.insert(principal.clone(), fault);
    }

    /// An exchange succeeded.
    pub(crate) fn succeeded(&self, principal: &Principal) {
        self.0.lock().remove(principal);
    }
}
