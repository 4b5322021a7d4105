//! Token bucket of a rate limit, by the generic cell rate algorithm: kept as the time when its next token is due, so that it needs no timer.
//!
//! `http/rate_limit.rs` has one for each pod, `token/imds_limiter.rs` for the calls to the metadata service.
//!
//! ```text
//!  next due:  ──now──────────────────────────► a token is due at once
//!             ──now──due─────────────────────► taken before its time, within `tolerance`: the burst
//!             ──now──────tolerance──due──────► wait until `due - tolerance`, or take none
//!  Each token taken moves `due` on by `interval`.
//! ```

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// A token bucket.
#[derive(Debug)]
pub(crate) struct TokenBucket {
    /// The time in which one token comes.
    interval: Duration,
    /// How long before its time a token may be taken: as long as the other tokens of a burst take to come.
    tolerance: Duration,
    next_due: Mutex<Option<Instant>>,
}

impl TokenBucket {
    /// A full bucket of `burst` tokens, at least one, into which `rate` come in a second, so that at most `rate + burst` are taken in any.
    pub(crate) fn new(rate: u32, burst: u32) -> Self {
        let interval = Duration::from_secs(1) / rate.max(1);
        Self {
            interval,
            tolerance: interval * burst.saturating_sub(1),
            next_due: Mutex::new(None),
        }
    }

    /// Takes a token if it may be used within `limit`, and says how long to wait for that.
    pub(crate) fn take(&self, now: Instant, limit: Duration) -> Option<Duration> {
        let mut next_due = self.next_due.lock();
        let due = next_due.map_or(now, |due| due.max(now));
        let wait = (due - now).saturating_sub(self.tolerance);
        if wait > limit {
            return None;
        }
        *next_due = Some(due + self.interval);
        Some(wait)
    }

    /// Whether no token is missing.
    pub(crate) fn is_full(&self, now: Instant) -> bool {
        self.next_due.lock().is_none_or(|due| due <= now)
    }
}
