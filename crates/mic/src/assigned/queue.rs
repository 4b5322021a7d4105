//! Which assignments' objects must be looked at: each once at a time, a failed one again after a growing wait.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::time::Duration;

use parking_lot::Mutex;
use podid_policy::desired::AssignmentKey;
use tokio::sync::Notify;
use tokio::time::Instant;

/// The longest wait of a failed one, in units of the retry interval.
const MAX_BACKOFF: u32 = 120;

#[derive(Default)]
struct Inner {
    ready: VecDeque<AssignmentKey>,
    /// What is in `ready`.
    listed: HashSet<AssignmentKey>,
    busy: HashSet<AssignmentKey>,
    /// Busy ones that must be looked at again.
    again: HashSet<AssignmentKey>,
    later: BTreeMap<(Instant, u64), AssignmentKey>,
    failures: HashMap<AssignmentKey, u32>,
    counter: u64,
}

/// The queue.
pub(crate) struct Queue {
    inner: Mutex<Inner>,
    news: Notify,
    unit: Duration,
}

impl Queue {
    pub(crate) fn new(unit: Duration) -> Self {
        Self {
            inner: Mutex::default(),
            news: Notify::new(),
            unit,
        }
    }

    pub(crate) fn add(&self, keys: impl IntoIterator<Item = AssignmentKey>) {
        let mut inner = self.inner.lock();
        for key in keys {
            inner.push(key);
        }
        drop(inner);
        self.news.notify_one();
    }

    /// Forgets everything that waits: another leads.
    pub(crate) fn clear(&self) {
        let mut inner = self.inner.lock();
        let busy = std::mem::take(&mut inner.busy);
        *inner = Inner {
            busy,
            ..Inner::default()
        };
    }

    /// The next one to look at. It must be given back to [`Queue::done`].
    pub(crate) async fn next(&self) -> AssignmentKey {
        loop {
            let due = {
                let mut inner = self.inner.lock();
                inner.ripen(Instant::now());
                if let Some(key) = inner.ready.pop_front() {
                    inner.listed.remove(&key);
                    inner.busy.insert(key.clone());
                    if !inner.ready.is_empty() {
                        self.news.notify_one();
                    }
                    return key;
                }
                inner.later.keys().next().map(|(due, _)| *due)
            };
            match due {
                Some(due) => {
                    let _ = tokio::time::timeout_at(due, self.news.notified()).await;
                }
                None => self.news.notified().await,
            }
        }
    }

    /// The work on a key has ended.
    pub(crate) fn done(&self, key: AssignmentKey, fine: bool) {
        let mut inner = self.inner.lock();
        inner.busy.remove(&key);
        let again = inner.again.remove(&key);
        if fine {
            inner.failures.remove(&key);
        } else {
            let failures = inner.failures.entry(key.clone()).or_default();
            *failures += 1;
            let wait = (1u32 << (*failures - 1).min(16)).min(MAX_BACKOFF);
            inner.counter += 1;
            let slot = (Instant::now() + self.unit * wait, inner.counter);
            inner.later.insert(slot, key.clone());
        }
        if again {
            inner.push(key);
        }
        drop(inner);
        self.news.notify_one();
    }
}

impl Inner {
    fn push(&mut self, key: AssignmentKey) {
        if self.busy.contains(&key) {
            self.again.insert(key);
        } else if self.listed.insert(key.clone()) {
            self.ready.push_back(key);
        }
    }

    fn ripen(&mut self, now: Instant) {
        while let Some(entry) = self.later.first_entry() {
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
        let queue = Queue::new(Duration::from_secs(1));
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
        let queue = Queue::new(Duration::from_secs(1));
        queue.add([key("a")]);
        for wait in [1, 2, 4, 8] {
            let key = queue.next().await;
            let at = Instant::now();
            queue.done(key, false);
            let key = queue.next().await;
            assert_eq!(at.elapsed().as_secs(), wait);
            queue.inner.lock().busy.remove(&key);
            queue.add([key]);
        }
    }
}
