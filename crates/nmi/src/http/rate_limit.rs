//! A pod's share of connections and requests, so that a noisy one does not starve its neighbours.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Requests on connections beyond this are answered with 429.
const SHARE: usize = 128;
/// RateLimiter beyond this are closed at once.
const LIMIT: usize = 256;
/// As many requests may come at once as in this time.
const BURST: Duration = Duration::from_secs(2);
/// Shares that nobody uses are looked for when there are more than this, and twice as many as were left the last time.
const SWEEP: usize = 64;

/// Shares by address.
#[derive(Debug)]
pub struct RateLimiter {
    /// The time that one request uses up.
    pace: Duration,
    shares: Mutex<Shares>,
}

#[derive(Debug, Default)]
struct Shares {
    all: HashMap<IpAddr, Arc<Share>>,
    sweep_at: usize,
}

#[derive(Debug)]
struct Share {
    open: AtomicUsize,
    /// When the requests so far are used up. In the past, all of the burst is left.
    spent_until: Mutex<Instant>,
}

/// One open connection.
#[derive(Debug)]
pub struct Permit {
    pace: Duration,
    share: Arc<Share>,
}

impl RateLimiter {
    /// `requests` a second are allowed to each address, at least one.
    pub fn new(requests: u32) -> Self {
        Self {
            pace: Duration::from_secs(1) / requests.max(1),
            shares: Mutex::default(),
        }
    }

    /// Counts a new connection; `None` when the address has too many.
    pub fn open(&self, address: IpAddr) -> Option<Permit> {
        let now = Instant::now();
        let mut shares = self.shares.lock();
        if shares.all.len() >= shares.sweep_at.max(SWEEP) {
            shares.all.retain(|_, share| share.is_used(now));
            shares.sweep_at = shares.all.len() * 2;
        }
        let new = || {
            Arc::new(Share {
                open: AtomicUsize::new(0),
                spent_until: Mutex::new(now),
            })
        };
        let share = Arc::clone(shares.all.entry(address).or_insert_with(new));
        // The only place that counts up, under the lock.
        if share.open.load(Ordering::Relaxed) >= LIMIT {
            return None;
        }
        share.open.fetch_add(1, Ordering::Relaxed);
        Some(Permit {
            pace: self.pace,
            share,
        })
    }
}

impl Share {
    fn is_used(&self, now: Instant) -> bool {
        self.open.load(Ordering::Relaxed) > 0 || *self.spent_until.lock() > now
    }
}

impl Permit {
    /// Whether a request that comes `now` is within its pod's share.
    pub fn admit(&self, now: Instant) -> bool {
        if self.share.open.load(Ordering::Relaxed) > SHARE {
            return false;
        }
        let mut spent_until = self.share.spent_until.lock();
        let from = (*spent_until).max(now);
        if from - now + self.pace > BURST {
            return false;
        }
        *spent_until = from + self.pace;
        true
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.share.open.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOISY: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));
    const QUIET: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2));

    #[test]
    fn a_pod_with_many_connections_does_not_count_against_its_neighbour() {
        let all = RateLimiter::new(1_000_000);
        let mut held: Vec<_> = std::iter::from_fn(|| all.open(NOISY)).collect();
        assert_eq!(held.len(), LIMIT);
        let now = Instant::now();
        assert!(!held[0].admit(now));
        assert!(all.open(QUIET).unwrap().admit(now));
        held.truncate(SHARE);
        assert!(held[0].admit(now));
    }

    #[test]
    fn requests_are_allowed_at_once_and_then_at_a_rate() {
        let all = RateLimiter::new(100);
        let noisy = all.open(NOISY).unwrap();
        let now = Instant::now();
        let admitted = |connection: &Permit, now, tries: u32| {
            (0..tries).filter(|_| connection.admit(now)).count()
        };
        assert_eq!(admitted(&noisy, now, 1000), 200);
        assert_eq!(admitted(&noisy, now + Duration::from_millis(500), 1000), 50);
        // To connect anew is no way out.
        drop(noisy);
        let noisy = all.open(NOISY).unwrap();
        assert_eq!(admitted(&noisy, now + Duration::from_millis(500), 1000), 0);
        assert!(all.open(QUIET).unwrap().admit(now));
        assert_eq!(admitted(&noisy, now + Duration::from_secs(60), 1000), 200);
    }

    #[test]
    fn shares_that_nobody_uses_are_forgotten() {
        let all = RateLimiter::new(100);
        let busy = all.open(NOISY).unwrap();
        for n in 0..10_000_u32 {
            drop(all.open(IpAddr::from(n.to_be_bytes())));
        }
        let shares = all.shares.lock();
        assert!(shares.all.len() <= SWEEP + 1, "{}", shares.all.len());
        assert!(shares.all.contains_key(&NOISY));
        drop(busy);
    }
}
