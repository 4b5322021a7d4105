//! How often something may be done.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, sleep_until};

/// So many times a second, and a few more at once.
#[derive(Debug)]
pub(crate) struct Pace {
    each: Duration,
    /// How far ahead of its time a turn may be taken.
    ahead: Duration,
    next: Mutex<Option<Instant>>,
}

impl Pace {
    /// In any second at most `rate + burst`.
    pub(crate) fn new(rate: u32, burst: u32) -> Self {
        let each = Duration::from_secs(1) / rate.max(1);
        Self {
            each,
            ahead: each * burst.saturating_sub(1),
            next: Mutex::new(None),
        }
    }

    /// Waits for a turn.
    pub(crate) async fn wait(&self) {
        self.wait_at_most(Duration::MAX).await;
    }

    /// Waits for a turn, if it comes within `limit`; else takes none and gives false at once.
    pub(crate) async fn wait_at_most(&self, limit: Duration) -> bool {
        let now = Instant::now();
        let wait = {
            let mut next = self.next.lock();
            let turn = next.map_or(now, |next| next.max(now));
            let wait = (turn - now).saturating_sub(self.ahead);
            if wait > limit {
                return false;
            }
            *next = Some(turn + self.each);
            wait
        };
        if !wait.is_zero() {
            sleep_until(now + wait).await;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn no_second_has_more_than_its_share() {
        let pace = Pace::new(15, 5);
        let start = Instant::now();
        let mut turns = Vec::new();
        for _ in 0..100 {
            pace.wait().await;
            turns.push(start.elapsed());
        }
        let second = Duration::from_secs(1);
        for from in &turns {
            let within = turns
                .iter()
                .filter(|at| *at >= from && **at < *from + second);
            assert!(within.count() <= 20);
        }
        assert!(
            start.elapsed() < Duration::from_secs(7),
            "and no less than that"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_would_wait_too_long_is_told_at_once() {
        let pace = Pace::new(5, 5);
        let taken = async |tries: u32| {
            let start = Instant::now();
            let mut taken = 0;
            for _ in 0..tries {
                taken += u32::from(pace.wait_at_most(Duration::ZERO).await);
            }
            assert_eq!(start.elapsed(), Duration::ZERO);
            taken
        };
        assert_eq!(taken(100).await, 5);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(taken(100).await, 5);
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(taken(100).await, 5);
        assert!(pace.wait_at_most(Duration::from_secs(1)).await);
    }
}
