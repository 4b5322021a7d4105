//! One identity's token for one resource.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use arc_swap::ArcSwapOption;
use futures::future::{BoxFuture, Shared};
use parking_lot::Mutex;

use super::{CachedToken, HOLD, MAX_HOLD};
use crate::token::source::SourceError;

pub(super) type Outcome = Result<Arc<CachedToken>, Arc<SourceError>>;
pub(super) type Flight = Shared<BoxFuture<'static, Outcome>>;

/// One identity's token for one resource.
#[derive(Default)]
pub(super) struct Slot {
    pub(super) current: ArcSwapOption<CachedToken>,
    pub(super) flight: Mutex<Option<Flight>>,
    pub(super) renewing: AtomicBool,
    pub(super) renewed: Mutex<Option<tokio::time::Instant>>,
    landed: Mutex<Option<Landed>>,
}

/// The last fetch: how it ended, and until when that is the answer to those who would fetch again.
pub(super) struct Landed {
    pub(super) error: Option<Arc<SourceError>>,
    holds: tokio::time::Instant,
}

impl Slot {
    pub(super) fn held<T>(&self, read: impl FnOnce(&Landed) -> Option<T>) -> Option<T> {
        let landed = self.landed.lock();
        let landed = landed.as_ref()?;
        (tokio::time::Instant::now() < landed.holds)
            .then(|| read(landed))
            .flatten()
    }

    pub(super) fn note(&self, outcome: &Outcome) {
        let error = outcome.as_ref().err().cloned();
        let asked = error.as_ref().and_then(|error| error.retry_after());
        let hold = asked.unwrap_or(HOLD).clamp(HOLD, MAX_HOLD);
        *self.landed.lock() = Some(Landed {
            error,
            holds: tokio::time::Instant::now() + hold,
        });
    }
}

/// Makes way for the next fetch however this one ends, a panic included.
pub(super) struct UnderWay(pub(super) Arc<Slot>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        *self.0.flight.lock() = None;
    }
}
