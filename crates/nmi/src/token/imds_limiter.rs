//! Rate limit and concurrency limit of podid's own calls to IMDS, the node's metadata service: a token bucket and semaphores.
//! `source.rs` takes a permit here for each token that it fetches, and for each request that it forwards for an exempted pod.
//!
//! The metadata service answers 20 requests a second, five at a time, for the whole node and refuses the rest. The limits keep
//! podid below that, and share it out: one identity that hangs does not delay the others, and forwarded requests do not delay
//! tokens.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use podid_policy::facts::ObjectKey;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};
use tokio::time::{Instant, sleep_until};

use crate::token_bucket::TokenBucket;

/// Calls at a time: what the metadata service allows.
const MAX_CONCURRENT: usize = 5;
/// Calls at a time for the tokens of one identity, so that two identities that hang leave a call to the others.
const MAX_CONCURRENT_PER_IDENTITY: usize = 2;
/// Forwarded calls at a time, so that three are left for tokens.
const MAX_CONCURRENT_FORWARDED: usize = 2;
/// Calls a second, and calls at once after a pause: together the 20 a second that the metadata service answers.
const RATE: u32 = 15;
const BURST: u32 = 5;
/// Forwarded calls a second, and at once after a pause: a third of the rate, so that tokens keep the greater part.
const FORWARDED_RATE: u32 = 5;
const FORWARDED_BURST: u32 = 5;
/// A forwarded request that would wait longer for its turn is refused, before its client gives up.
const MAX_FORWARDED_WAIT: Duration = Duration::from_secs(2);

/// The limits of all calls to the metadata service.
pub(super) struct ImdsLimiter {
    calls: Semaphore,
    rate: TokenBucket,
    forwarded: Semaphore,
    forwarded_rate: TokenBucket,
    by_identity: Mutex<HashMap<ObjectKey, Arc<Semaphore>>>,
}

/// One call may be made as long as this is held. The semaphores are never closed, so that a permit which was waited for is there.
pub(super) struct ImdsPermit<'a> {
    _identity: Option<OwnedSemaphorePermit>,
    _forwarded: Option<SemaphorePermit<'a>>,
    _call: Option<SemaphorePermit<'a>>,
}

impl Default for ImdsLimiter {
    fn default() -> Self {
        Self {
            calls: Semaphore::new(MAX_CONCURRENT),
            rate: TokenBucket::new(RATE, BURST),
            forwarded: Semaphore::new(MAX_CONCURRENT_FORWARDED),
            forwarded_rate: TokenBucket::new(FORWARDED_RATE, FORWARDED_BURST),
            by_identity: Mutex::default(),
        }
    }
}

impl ImdsLimiter {
    /// Waits until a token of `identity` may be fetched.
    pub(super) async fn acquire(&self, identity: &ObjectKey) -> ImdsPermit<'_> {
        let share = {
            let mut shares = self.by_identity.lock();
            // Shares that no call holds or waits for.
            shares.retain(|_, share| Arc::strong_count(share) > 1);
            let share = shares
                .entry(identity.clone())
                .or_insert_with(|| Arc::new(Semaphore::new(MAX_CONCURRENT_PER_IDENTITY)));
            Arc::clone(share)
        };
        // The identity's own share comes first: a call that waits for it must not occupy one of the five.
        ImdsPermit {
            _identity: share.acquire_owned().await.ok(),
            _forwarded: None,
            _call: self.call().await,
        }
    }

    /// Waits until a request may be forwarded; `None` at once when that is not within two seconds.
    pub(super) async fn acquire_forwarded(&self) -> Option<ImdsPermit<'_>> {
        if !acquire_within(&self.forwarded_rate, MAX_FORWARDED_WAIT).await {
            return None;
        }
        Some(ImdsPermit {
            _identity: None,
            _forwarded: self.forwarded.acquire().await.ok(),
            _call: self.call().await,
        })
    }

    async fn call(&self) -> Option<SemaphorePermit<'_>> {
        let call = self.calls.acquire().await.ok();
        acquire_within(&self.rate, Duration::MAX).await;
        call
    }
}

/// Takes a token and waits for it if that is no longer than `limit`; else takes none and gives false at once.
async fn acquire_within(bucket: &TokenBucket, limit: Duration) -> bool {
    let now = Instant::now();
    let Some(wait) = bucket.take(now, limit) else {
        return false;
    };
    if !wait.is_zero() {
        sleep_until(now + wait).await;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt as _;

    #[test]
    fn an_identity_that_hangs_leaves_calls_to_the_others() {
        let limiter = ImdsLimiter::default();
        let enter = |name: &str| {
            let key = ObjectKey::new("shop", name);
            async { limiter.acquire(&key).await }
                .now_or_never()
                .is_some()
        };
        let stuck = ObjectKey::new("shop", "stuck");
        let held: Vec<_> = (0..MAX_CONCURRENT_PER_IDENTITY)
            .map(|_| limiter.acquire(&stuck).now_or_never().unwrap())
            .collect();
        assert!(!enter("stuck"), "beyond its share");
        assert!(enter("other"));
        drop(held);
        assert!(enter("stuck"));
        assert!(enter("other"));
        assert_eq!(
            limiter.by_identity.lock().len(),
            1,
            "idle shares are forgotten"
        );
    }

    #[test]
    fn forwarded_requests_leave_calls_to_tokens() {
        let limiter = ImdsLimiter::default();
        let held: Vec<_> = (0..MAX_CONCURRENT_FORWARDED)
            .map(|_| limiter.acquire_forwarded().now_or_never().flatten())
            .collect();
        assert!(held.iter().all(Option::is_some));
        assert!(limiter.acquire_forwarded().now_or_never().is_none());
        let key = ObjectKey::new("shop", "reader");
        assert!(limiter.acquire(&key).now_or_never().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn no_second_has_more_than_rate_and_burst() {
        let bucket = TokenBucket::new(15, 5);
        let start = Instant::now();
        let mut taken = Vec::new();
        for _ in 0..100 {
            acquire_within(&bucket, Duration::MAX).await;
            taken.push(start.elapsed());
        }
        let second = Duration::from_secs(1);
        for from in &taken {
            let within = taken
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
    async fn a_token_that_is_due_too_late_is_refused_at_once() {
        let bucket = TokenBucket::new(5, 5);
        let take = async |tries: u32| {
            let start = Instant::now();
            let mut taken = 0;
            for _ in 0..tries {
                taken += u32::from(acquire_within(&bucket, Duration::ZERO).await);
            }
            assert_eq!(start.elapsed(), Duration::ZERO);
            taken
        };
        assert_eq!(take(100).await, 5);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(take(100).await, 5);
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(take(100).await, 5);
        assert!(acquire_within(&bucket, Duration::from_secs(1)).await);
    }
}
