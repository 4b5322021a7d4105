//! A bound on log lines about refusals, which pods can cause at will.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// At most this many lines in a [`WINDOW`]; metrics count all.
const LINES: u32 = 100;
const WINDOW: Duration = Duration::from_secs(1);

#[derive(Default)]
struct Window {
    since: Option<Instant>,
    lines: u32,
    left_out: u64,
}

/// Says which refusals are logged.
#[derive(Default)]
pub(crate) struct Quiet(Mutex<Window>);

impl Quiet {
    /// Whether this one is. When the first of a new window is, how many of the last were left out.
    pub(crate) fn admit(&self) -> Option<u64> {
        let now = Instant::now();
        let mut window = self.0.lock();
        let mut left_out = 0;
        if window.since.is_none_or(|since| now - since >= WINDOW) {
            left_out = std::mem::take(&mut window.left_out);
            window.since = Some(now);
            window.lines = 0;
        }
        if window.lines == LINES {
            window.left_out += 1;
            return None;
        }
        window.lines += 1;
        Some(left_out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn lines_are_bounded_and_the_rest_is_counted() {
        let quiet = Quiet::default();
        let admitted = (0..1000).filter(|_| quiet.admit().is_some()).count();
        assert_eq!(admitted, 100);
        tokio::time::advance(WINDOW).await;
        assert_eq!(quiet.admit(), Some(900));
        assert_eq!(quiet.admit(), Some(0));
    }
}
