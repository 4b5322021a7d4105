//! Single flight, refresh ahead and negative caching of one token: the slot of one identity and resource. The cache looks into
//! it on every request; a request that the held token answers takes no lock.
//!
//! ```text
//!           a request               a token came
//!   Idle ──────────────► Fetching ────────────────► Fetched
//!    ▲                    │ ▲  ▲                       │
//!    │ the fetch panicked │ │  └───────────────────────┘
//!    └────────────────────┤ │    the token is due for refresh or about to expire, or
//!                   error │ │    a request bypasses the cache
//!                         ▼ │
//!                        Failed: the error is the answer until its time is over
//! ```
//!
//! - *Single flight*: while the slot is `Fetching`, every request that memory cannot answer waits for the same fetch.
//! - *Refresh ahead*: the fetch runs in the background while requests are served the held token. A transient error leaves that
//!   token in place; a permanent one drops it.
//! - *Negative caching*: `Failed` answers without asking the issuer. In the same way `Fetched` answers requests that bypass the
//!   cache for a moment.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use futures::future::{BoxFuture, Shared};
use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::CachedToken;
use crate::token::source::SourceError;

/// A fetch's outcome answers further requests for at least this long, so that requests in a loop do not reach the issuer.
const MIN_REUSE: Duration = Duration::from_secs(1);
/// An error answers for no longer than this, whatever wait the issuer asks for: a repair must show within half a minute.
pub(super) const MAX_ERROR_REUSE: Duration = Duration::from_secs(30);

/// The longest pause between two questions about an identity that the metadata service does not have yet. It doubles up to here, so
/// that identities which never come leave calls to the others.
const MAX_NOT_FOUND_REUSE: Duration = Duration::from_secs(4);

pub(super) type Outcome = Result<Arc<CachedToken>, Arc<SourceError>>;
/// The fetch that is under way; every clone gives its outcome.
pub(super) type Flight = Shared<BoxFuture<'static, Outcome>>;

/// One identity's token for one resource.
#[derive(Default)]
pub(super) struct Slot {
    /// The token that requests are served, read without a lock.
    token: ArcSwapOption<CachedToken>,
    progress: Mutex<Progress>,
}

#[derive(Default)]
struct Progress {
    state: SlotState,
    /// When the next refresh ahead may begin; at once before the first.
    next_refresh: Option<Instant>,
    /// How long the last "identity not found" answered; zero when the last fetch ended otherwise.
    not_found_reuse: Duration,
}

/// See the drawing at the top of this file.
#[derive(Default)]
enum SlotState {
    #[default]
    Idle,
    Fetching {
        flight: Flight,
        /// Whether requests are served the held token meanwhile, which a permanent error then drops.
        is_refresh: bool,
    },
    Fetched {
        /// Until then the token answers requests that bypass the cache, too.
        reuse_until: Instant,
    },
    Failed {
        error: Arc<SourceError>,
        until: Instant,
    },
}

/// What a slot has for a request that its held token does not answer.
pub(super) enum Fetch {
    Done(Outcome),
    InFlight(Flight),
}

impl Slot {
    /// The held token, if it is valid for `floor` from `now`.
    pub(super) fn valid_token(&self, now: Timestamp, floor: Duration) -> Option<Arc<CachedToken>> {
        let token = self.token.load_full()?;
        (token.remaining(now) >= floor).then_some(token)
    }

    /// Whether a token is held, valid or not.
    pub(super) fn holds_token(&self) -> bool {
        self.token.load().is_some()
    }

    /// The outcome of a fetch that is over but still counts, or else the fetch that is under way. `start` begins one where there
    /// is neither; `valid` gives the held token.
    pub(super) fn single_flight(
        &self,
        valid: impl FnOnce() -> Option<Arc<CachedToken>>,
        start: impl FnOnce() -> Flight,
    ) -> Fetch {
        let mut progress = self.progress.lock();
        let now = Instant::now();
        match &progress.state {
            SlotState::Fetching { flight, .. } => return Fetch::InFlight(flight.clone()),
            SlotState::Failed { error, until } if now < *until => {
                return Fetch::Done(Err(Arc::clone(error)));
            }
            SlotState::Fetched { reuse_until } if now < *reuse_until => {
                // A permanent error of a refresh may have dropped the token since.
                if let Some(token) = valid() {
                    return Fetch::Done(Ok(token));
                }
            }
            SlotState::Idle | SlotState::Fetched { .. } | SlotState::Failed { .. } => {}
        }
        let flight = start();
        progress.state = SlotState::Fetching {
            flight: flight.clone(),
            is_refresh: false,
        };
        Fetch::InFlight(flight)
    }

    /// Makes the fetch that is under way a refresh, or begins one by `start`; neither within `spacing` of the last refresh.
    pub(super) fn refresh_ahead(&self, spacing: Duration, start: impl FnOnce() -> Flight) {
        let mut progress = self.progress.lock();
        let now = Instant::now();
        if progress.next_refresh.is_some_and(|next| now < next) {
            return;
        }
        match &mut progress.state {
            SlotState::Fetching {
                is_refresh: true, ..
            } => return,
            SlotState::Fetching { is_refresh, .. } => *is_refresh = true,
            other => {
                *other = SlotState::Fetching {
                    flight: start(),
                    is_refresh: true,
                };
            }
        }
        progress.next_refresh = Some(now + spacing);
    }

    /// The fetch is over; without an outcome it panicked.
    fn settle(&self, outcome: Option<Outcome>) {
        let mut progress = self.progress.lock();
        let now = Instant::now();
        let was_refresh = matches!(
            progress.state,
            SlotState::Fetching {
                is_refresh: true,
                ..
            }
        );
        let before = std::mem::take(&mut progress.not_found_reuse);
        progress.state = match outcome {
            None => SlotState::Idle,
            Some(Ok(token)) => {
                self.token.store(Some(token));
                SlotState::Fetched {
                    reuse_until: now + MIN_REUSE,
                }
            }
            Some(Err(error)) => {
                if was_refresh {
                    tracing::warn!(reason = %error, "a token could not be renewed");
                    if !error.is_transient() {
                        self.token.store(None);
                    }
                }
                let reuse = if error.is_identity_not_found() {
                    (before * 2).clamp(MIN_REUSE, MAX_NOT_FOUND_REUSE)
                } else {
                    let wait = error.retry_after().unwrap_or(MIN_REUSE);
                    wait.clamp(MIN_REUSE, MAX_ERROR_REUSE)
                };
                if error.is_identity_not_found() {
                    progress.not_found_reuse = reuse;
                }
                SlotState::Failed {
                    error,
                    until: now + reuse,
                }
            }
        };
    }

    #[cfg(test)]
    pub(super) fn is_fetching(&self) -> bool {
        matches!(self.progress.lock().state, SlotState::Fetching { .. })
    }

    #[cfg(test)]
    pub(super) fn replace_token(&self, token: CachedToken) {
        self.token.store(Some(Arc::new(token)));
    }
}

/// Settles the slot however the fetch ends, a panic included, so that none stays `Fetching` for ever.
pub(super) struct Landing {
    slot: Arc<Slot>,
    outcome: Option<Outcome>,
}

impl Landing {
    pub(super) fn new(slot: Arc<Slot>) -> Self {
        let outcome = None;
        Self { slot, outcome }
    }

    pub(super) fn land(mut self, outcome: Outcome) -> Outcome {
        self.outcome = Some(outcome.clone());
        outcome
    }
}

impl Drop for Landing {
    fn drop(&mut self) {
        self.slot.settle(self.outcome.take());
    }
}
