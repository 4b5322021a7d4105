//! Single flight with a time to live: the answers of the API server and of Entra, each kept for as long as it says.
//!
//! Reviews, look-ups, assertions and exchanges come through here. It guards both servers: while a question is under way everybody who
//! asks it waits for the one answer. Its size is bounded, since callers choose the questions.

use std::hash::Hash;
use std::time::Duration;

use moka::future::Cache;
use tokio::time::Instant;

/// How long an answer that nobody asks for is in memory: as long as the longest of them, an assertion, is valid.
const MAX_AGE: Duration = Duration::from_secs(3600);

/// Answers by question.
pub(crate) struct FlightCache<K, V> {
    kept: Cache<K, Kept<V>>,
}

#[derive(Clone)]
struct Kept<V> {
    answer: V,
    until: Instant,
}

impl<K, V> FlightCache<K, V>
where
    K: Hash + Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// A cache of at most `capacity` answers.
    pub(crate) fn new(capacity: u64) -> Self {
        Self {
            kept: Cache::builder()
                .max_capacity(capacity)
                .time_to_live(MAX_AGE)
                .build(),
        }
    }

    /// The answer that is kept, or the one of `ask`, which says how long it may be kept.
    pub(crate) async fn get(&self, question: K, ask: impl Future<Output = (V, Duration)>) -> V {
        let ask = async {
            let (answer, ttl) = ask.await;
            let until = Instant::now() + ttl;
            Kept { answer, until }
        };
        let is_stale = |kept: &Kept<V>| kept.until <= Instant::now();
        let entry = self.kept.entry(question);
        let entry = entry.or_insert_with_if(Box::pin(ask), is_stale).await;
        entry.into_value().answer
    }

    /// Forgets an answer.
    pub(crate) async fn forget(&self, question: &K) {
        self.kept.invalidate(question).await;
    }

    #[cfg(test)]
    pub(crate) async fn clear(&self) {
        self.kept.invalidate_all();
        self.kept.run_pending_tasks().await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_question_is_asked_once_until_its_answer_is_old() {
        let cache = Arc::new(FlightCache::<&str, u32>::new(10));
        let asked = Arc::new(AtomicU32::new(0));
        let get = || {
            let (cache, asked) = (Arc::clone(&cache), Arc::clone(&asked));
            async move {
                let ask = async {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    let count = asked.fetch_add(1, Ordering::SeqCst);
                    (count, Duration::from_secs(10))
                };
                cache.get("question", ask).await
            }
        };
        let (one, other) = tokio::join!(get(), get());
        assert_eq!((one, other), (0, 0));
        tokio::time::advance(Duration::from_secs(9)).await;
        assert_eq!(get().await, 0);
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(get().await, 1);
        cache.forget(&"question").await;
        assert_eq!(get().await, 2);
    }
}
