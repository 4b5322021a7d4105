//! What Azure asked to be spared, per subscription and class of operation.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::error::{Error, ErrorKind, Service};

/// The wait when a 429 names none, or none worth the name.
const DEFAULT: Duration = Duration::from_secs(5);
const FLOOR: Duration = Duration::from_secs(1);

/// Azure counts these apart.
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
    /// Refuses locally while Azure would.
    pub(super) fn admit(&self, subscription: &str, class: Class) -> Result<(), Error> {
        let key = (subscription.to_ascii_lowercase().into(), class);
        let now = Instant::now();
        let mut spared = self.0.lock();
        match spared.get(&key) {
            Some(until) if *until > now => {
                let left = *until - now;
                let text = format!("asked to wait {} s more", left.as_secs() + 1);
                Err(Error::new(Service::Arm, ErrorKind::Throttled, text).with_retry_after(left))
            }
            Some(_) => {
                spared.remove(&key);
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Remembers a 429, and gives the error the wait that is kept.
    pub(super) fn learn(&self, subscription: &str, class: Class, error: Error) -> Error {
        if error.kind() != ErrorKind::Throttled {
            return error;
        }
        let wait = error.retry_after().unwrap_or(DEFAULT).max(FLOOR);
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
        let told = throttle.learn("S", Class::Write, busy.with_retry_after(Duration::ZERO));
        assert_eq!(told.retry_after(), Some(FLOOR));
        assert_eq!(
            throttle.admit("s", Class::Write).unwrap_err().kind(),
            ErrorKind::Throttled
        );
        assert!(throttle.admit("s", Class::Read).is_ok());
        assert!(throttle.admit("t", Class::Write).is_ok());
        tokio::time::advance(FLOOR).await;
        assert!(throttle.admit("s", Class::Write).is_ok());
        assert!(throttle.0.lock().is_empty());
    }
}
