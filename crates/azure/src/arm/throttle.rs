//! Throttling by ARM (429): after one, requests of the same subscription and class are refused here until Azure's `Retry-After` is
//! over, so that the controller does not prolong the throttling. `mod.rs` asks before each request.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::error::{Error, ErrorKind, Service};

/// The wait after a 429 without `Retry-After`.
const DEFAULT_RETRY_AFTER: Duration = Duration::from_secs(5);
/// The shortest wait after a 429: some answers ask for zero.
const MIN_RETRY_AFTER: Duration = Duration::from_secs(1);

/// Classes of requests that ARM counts apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Class {
    Read,
    Write,
    Operation,
    Identity,
}

#[derive(Default)]
pub(super) struct Throttle(Mutex<HashMap<(Arc<str>, Class), Instant>>);

impl Throttle {
    /// Refuses a request while ARM would.
    pub(super) fn admit(&self, subscription: &str, class: Class) -> Result<(), Error> {
        let key = (subscription.to_ascii_lowercase().into(), class);
        let now = Instant::now();
        let mut throttled_until = self.0.lock();
        match throttled_until.get(&key) {
            Some(until) if *until > now => {
                let left = *until - now;
                let text = format!("asked to wait {} s more", left.as_secs() + 1);
                Err(Error::new(Service::Arm, ErrorKind::Throttled, text).with_retry_after(left))
            }
            Some(_) => {
                throttled_until.remove(&key);
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Notes an error that is a 429, and gives it back with the wait that is kept.
    pub(super) fn note(&self, subscription: &str, class: Class, error: Error) -> Error {
        if error.kind() != ErrorKind::Throttled {
            return error;
        }
        let wait = error
            .retry_after()
            .unwrap_or(DEFAULT_RETRY_AFTER)
            .max(MIN_RETRY_AFTER);
        let key = (subscription.to_ascii_lowercase().into(), class);
        self.0.lock().insert(key, Instant::now() + wait);
        error.with_retry_after(wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_throttled_class_is_spared_and_others_are_not() {
        let throttle = Throttle::default();
        let busy = Error::new(Service::Arm, ErrorKind::Throttled, "busy");
        let told = throttle.note("S", Class::Write, busy.with_retry_after(Duration::ZERO));
        assert_eq!(told.retry_after(), Some(MIN_RETRY_AFTER));
        assert_eq!(
            throttle.admit("s", Class::Write).unwrap_err().kind(),
            ErrorKind::Throttled
        );
        assert!(throttle.admit("s", Class::Read).is_ok());
        assert!(throttle.admit("t", Class::Write).is_ok());
        tokio::time::advance(MIN_RETRY_AFTER).await;
        assert!(throttle.admit("s", Class::Write).is_ok());
        assert!(throttle.0.lock().is_empty());
    }
}
