//! Log limit: bounds the log lines about refusals, which pods can cause at will.
//!
//! `request.rs` asks it before it logs a refusal. It guards the node's disk and the people who read the log.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// Lines in one [`WINDOW`]: enough to see which pods are refused; metrics count all refusals.
const MAX_LINES: u32 = 100;
/// Length of a window, short so that a burst hides little of what comes after it.
const WINDOW: Duration = Duration::from_secs(1);

#[derive(Default)]
struct Window {
    since: Option<Instant>,
    lines: u32,
    omitted: u64,
}

/// Counts the lines of the current window.
#[derive(Default)]
pub(crate) struct LogLimit(Mutex<Window>);

impl LogLimit {
    /// Whether one more line may be logged: `Some` with the number of lines that were omitted since the last one that says so.
    pub(crate) fn admit(&self) -> Option<u64> {
        let now = Instant::now();
        let mut window = self.0.lock();
        let mut omitted = 0;
        if window.since.is_none_or(|since| now - since >= WINDOW) {
            omitted = std::mem::take(&mut window.omitted);
            window.since = Some(now);
            window.lines = 0;
        }
        if window.lines == MAX_LINES {
            window.omitted += 1;
            return None;
        }
        window.lines += 1;
        Some(omitted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn lines_are_bounded_and_the_rest_is_counted() {
        let limit = LogLimit::default();
        let admitted = (0..1000).filter(|_| limit.admit().is_some()).count();
        assert_eq!(admitted, 100);
        tokio::time::advance(WINDOW).await;
        assert_eq!(limit.admit(), Some(900));
        assert_eq!(limit.admit(), Some(0));
    }
}
