//! Rate limit per pod: a token bucket for requests, and a bound on open connections.
//!
//! `server.rs` takes a [`Permit`] for each connection, and `request.rs` asks it for each request. It guards the other pods of the
//! node against one that is busy or broken.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::token_bucket::TokenBucket;

/// Open connections of one pod beyond which its requests are answered with 429; far more than SDKs keep.
const MAX_SERVED: usize = 128;
/// Open connections of one pod beyond which a new one is closed at once: above [`MAX_SERVED`], so that most clients read a 429 first.
const MAX_OPEN: usize = 256;
/// Size of the bucket in seconds: as many requests may come at once as the rate allows in this time.
const BURST_SECONDS: u32 = 2;
/// Number of buckets at which unused ones are dropped; after that, twice the number that was left.
const FIRST_SWEEP: usize = 64;

/// The buckets of all pods, by address.
#[derive(Debug)]
pub(crate) struct RateLimiter {
    /// Requests a second.
    rate: u32,
    buckets: Mutex<Buckets>,
}

#[derive(Debug, Default)]
struct Buckets {
    by_address: HashMap<IpAddr, Arc<Bucket>>,
    sweep_at: usize,
}

#[derive(Debug)]
struct Bucket {
    /// Open connections.
    open: AtomicUsize,
    requests: TokenBucket,
}

/// The permit of one open connection, which counts until it is dropped.
#[derive(Debug)]
pub(crate) struct Permit(Arc<Bucket>);

impl RateLimiter {
    /// Each address may send `requests` a second, at least one.
    pub(crate) fn new(requests: u32) -> Self {
        Self {
            rate: requests.max(1),
            buckets: Mutex::default(),
        }
    }

    /// A permit for a new connection; `None` when the address has too many.
    pub(crate) fn open(&self, address: IpAddr) -> Option<Permit> {
        let now = Instant::now();
        let mut buckets = self.buckets.lock();
        if buckets.by_address.len() >= buckets.sweep_at.max(FIRST_SWEEP) {
            buckets.by_address.retain(|_, bucket| bucket.is_used(now));
            buckets.sweep_at = buckets.by_address.len() * 2;
        }
        let new = || {
            Arc::new(Bucket {
                open: AtomicUsize::new(0),
                requests: TokenBucket::new(self.rate, self.rate.saturating_mul(BURST_SECONDS)),
            })
        };
        let bucket = Arc::clone(buckets.by_address.entry(address).or_insert_with(new));
        // No race: this is the only place that counts up, and it holds the lock.
        if bucket.open.load(Ordering::Relaxed) >= MAX_OPEN {
            return None;
        }
        bucket.open.fetch_add(1, Ordering::Relaxed);
        Some(Permit(bucket))
    }
}

impl Bucket {
    fn is_used(&self, now: Instant) -> bool {
        self.open.load(Ordering::Relaxed) > 0 || !self.requests.is_full(now)
    }
}

impl Permit {
    /// Whether the pod may send a request `now`; one that may is taken from the bucket.
    pub(crate) fn admit(&self, now: Instant) -> bool {
        self.0.open.load(Ordering::Relaxed) <= MAX_SERVED
            && self.0.requests.take(now, Duration::ZERO).is_some()
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOISY: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));
    const QUIET: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2));

    #[test]
    fn a_pod_with_many_connections_does_not_count_against_its_neighbour() {
        let limiter = RateLimiter::new(1_000_000);
        let mut held: Vec<_> = std::iter::from_fn(|| limiter.open(NOISY)).collect();
        assert_eq!(held.len(), MAX_OPEN);
        let now = Instant::now();
        assert!(!held[0].admit(now));
        assert!(limiter.open(QUIET).unwrap().admit(now));
        held.truncate(MAX_SERVED);
        assert!(held[0].admit(now));
    }

    #[test]
    fn requests_are_allowed_at_once_and_then_at_a_rate() {
        let limiter = RateLimiter::new(100);
        let noisy = limiter.open(NOISY).unwrap();
        let now = Instant::now();
        let admitted =
            |permit: &Permit, now, tries: u32| (0..tries).filter(|_| permit.admit(now)).count();
        assert_eq!(admitted(&noisy, now, 1000), 200);
        assert_eq!(admitted(&noisy, now + Duration::from_millis(500), 1000), 50);
        // A new connection has the same bucket.
        drop(noisy);
        let noisy = limiter.open(NOISY).unwrap();
        assert_eq!(admitted(&noisy, now + Duration::from_millis(500), 1000), 0);
        assert!(limiter.open(QUIET).unwrap().admit(now));
        assert_eq!(admitted(&noisy, now + Duration::from_secs(60), 1000), 200);
    }

    #[test]
    fn unused_buckets_are_dropped() {
        let limiter = RateLimiter::new(100);
        let busy = limiter.open(NOISY).unwrap();
        for n in 0..10_000_u32 {
            drop(limiter.open(IpAddr::from(n.to_be_bytes())));
        }
        let buckets = limiter.buckets.lock();
        let count = buckets.by_address.len();
        assert!(count <= FIRST_SWEEP + 1, "{count}");
        assert!(buckets.by_address.contains_key(&NOISY));
        drop(busy);
    }
}
