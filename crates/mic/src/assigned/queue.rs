//! The work queue of assignments whose objects must be looked at, with back-off: each key is handed out once at a time, and a failed
//! one again after a growing wait.
//!
//! The index's effects and the hosts' workers add keys, the writers ([`super::writer`]) take them. It guards against two writers on
//! one object and against a write that fails at full speed.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::time::Duration;

use parking_lot::Mutex;
use podid_policy::desired::AssignmentKey;
use tokio::sync::Notify;
use tokio::time::Instant;

/// The longest back-off of a failed key, in retry intervals (2 minutes by default).
const MAX_BACKOFF: u32 = 120;

#[derive(Default)]
struct Inner {
    /// What may be handed out, in order.
    ready: VecDeque<AssignmentKey>,
    /// What is in `ready`.
    queued: HashSet<AssignmentKey>,
    /// What is handed out and not done yet.
    in_progress: HashSet<AssignmentKey>,
    /// What was added while it was in progress, and is handed out again afterwards.
    added_meanwhile: HashSet<AssignmentKey>,
    /// What failed, by the time of its next attempt; the number tells apart keys of the same time.
    delayed: BTreeMap<(Instant, u64), AssignmentKey>,
    /// How often each key has failed in a row.
    failures: HashMap<AssignmentKey, u32>,
    counter: u64,
}

/// The work queue.
pub(crate) struct WorkQueue {
    inner: Mutex<Inner>,
    added: Notify,
    retry_interval: Duration,
}

impl WorkQueue {
    pub(crate) fn new(retry_interval: Duration) -> Self {
        Self {
            inner: Mutex::default(),
            added: Notify::new(),
            retry_interval,
        }
    }

    /// Adds keys; one that is queued already is not queued twice.
    pub(crate) fn add(&self, keys: impl IntoIterator<Item = AssignmentKey>) {
        let mut inner = self.inner.lock();
        for key in keys {
            inner.push(key);
        }
        drop(inner);
        self.added.notify_one();
    }

    /// Forgets everything that waits, because another replica leads.
    pub(crate) fn clear(&self) {
        let mut inner = self.inner.lock();
        let in_progress = std::mem::take(&mut inner.in_progress);
        *inner = Inner {
            in_progress,
            ..Inner::default()
        };
    }

    /// Waits for the next key. [`WorkQueue::done`] must be called for it.
    pub(crate) async fn next(&self) -> AssignmentKey {
        loop {
            let due = {
                let mut inner = self.inner.lock();
                inner.release_due(Instant::now());
                if let Some(key) = inner.ready.pop_front() {
                    inner.queued.remove(&key);
                    inner.in_progress.insert(key.clone());
                    if !inner.ready.is_empty() {
                        self.added.notify_one();
                    }
                    return key;
                }
                inner.delayed.keys().next().map(|(due, _)| *due)
            };
            match due {
                Some(due) => {
                    let _ = tokio::time::timeout_at(due, self.added.notified()).await;
                }
                None => self.added.notified().await,
            }
        }
    }

    /// The work on a key has ended; a key that failed is handed out again after the back-off.
    pub(crate) fn done(&self, key: AssignmentKey, succeeded: bool) {
        let mut inner = self.inner.lock();
        inner.in_progress.remove(&key);
        let again = inner.added_meanwhile.remove(&key);
        if succeeded {
            inner.failures.remove(&key);
        } else {
            let failures = inner.failures.entry(key.clone()).or_default();
            *failures += 1;
            let wait = (1u32 << (*failures - 1).min(16)).min(MAX_BACKOFF);
            inner.counter += 1;
            let slot = (Instant::now() + self.retry_interval * wait, inner.counter);
            inner.delayed.insert(slot, key.clone());
        }
        if again {
            inner.push(key);
        }
        drop(inner);
        self.added.notify_one();
    }
}

impl Inner {
    fn push(&mut self, key: AssignmentKey) {
        if self.in_progress.contains(&key) {
            self.added_meanwhile.insert(key);
        } else if self.queued.insert(key.clone()) {
            self.ready.push_back(key);
        }
    }

    fn release_due(&mut self, now: Instant) {
        while let Some(entry) = self.delayed.first_entry() {
            if entry.key().0 > now {
                return;
            }
            let key = entry.remove();
            self.push(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use podid_policy::facts::ObjectKey;

    fn key(name: &str) -> AssignmentKey {
        AssignmentKey {
            pod: ObjectKey::new("ns", name),
            identity: "id".into(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn each_is_handed_out_once_at_a_time() {
        let queue = WorkQueue::new(Duration::from_secs(1));
        queue.add([key("a"), key("a"), key("b")]);
        assert_eq!(queue.next().await, key("a"));
        queue.add([key("a")]);
        assert_eq!(queue.next().await, key("b"));
        queue.done(key("b"), true);
        let nothing = tokio::time::timeout(Duration::from_secs(60), queue.next()).await;
        assert!(nothing.is_err());
        queue.done(key("a"), true);
        assert_eq!(queue.next().await, key("a"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_one_returns_later_and_later() {
        let queue = WorkQueue::new(Duration::from_secs(1));
        queue.add([key("a")]);
        for wait in [1, 2, 4, 8] {
            let key = queue.next().await;
            let at = Instant::now();
            queue.done(key, false);
            let key = queue.next().await;
            assert_eq!(at.elapsed().as_secs(), wait);
            queue.inner.lock().in_progress.remove(&key);
            queue.add([key]);
        }
    }
}
