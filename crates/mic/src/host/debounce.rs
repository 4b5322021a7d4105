//! Debounce and coalesce: what changes on a host is not sent at once but after a short quiet time, so that one PATCH carries the
//! needs of many pods.
//!
//! [`Host::decide`](super::Host::decide) asks for the time before it plans. It guards Azure's limit of writes per host: the more
//! PATCHes the host had lately, the longer the next one waits.

use std::time::Duration;

use tokio::time::Instant;

/// A change waits for quiet at most this many settle times, so that a steady stream of changes is sent, too.
const MAX_SETTLE_FACTOR: u32 = 8;
/// A change waits for quiet at most this many seconds, because a pod waits for its token meanwhile.
const MAX_SETTLE: Duration = Duration::from_secs(15);
/// PATCHes of the last 60 seconds lengthen the settle time: Azure takes 12 in a burst, then 4 a minute per host.
const BURST_WINDOW: Duration = Duration::from_secs(60);
/// The settle time grows to at most this many times the configured one.
const MAX_GROWTH: u32 = 100;

/// The changes that wait to be sent, and the PATCHes that were sent lately.
#[derive(Debug, Default)]
pub(super) struct Debounce {
    /// When the first and the last of the changes came that no PATCH carries yet.
    pending: Option<(Instant, Instant)>,
    /// When the host was patched within the last [`BURST_WINDOW`].
    recent_patches: Vec<Instant>,
}

impl Debounce {
    /// A pod needs an identity that no other pod needed.
    pub(super) fn on_change(&mut self, now: Instant) {
        self.pending = Some((self.pending.map_or(now, |(first, _)| first), now));
    }

    /// When the pending changes may be sent; `None` when there are none.
    pub(super) fn send_at(&self, now: Instant, settle: Duration) -> Option<Instant> {
        let (first, last) = self.pending?;
        let recent = self.recent_patches.iter().filter(|at| is_recent(at, now));
        let growth = u32::try_from(recent.count()).unwrap_or(MAX_GROWTH);
        let settle = settle * growth.saturating_add(1).min(MAX_GROWTH);
        let longest = (settle * MAX_SETTLE_FACTOR).min(MAX_SETTLE);
        Some((last + settle).min(first + longest))
    }

    /// A plan takes all pending changes into account.
    pub(super) fn on_planned(&mut self) {
        self.pending = None;
    }

    /// A PATCH is about to be sent.
    pub(super) fn on_patch(&mut self, now: Instant) {
        self.recent_patches.retain(|at| is_recent(at, now));
        self.recent_patches.push(now);
    }
}

fn is_recent(at: &Instant, now: Instant) -> bool {
    *at + BURST_WINDOW > now
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    /// With a settle time of one second: changes and PATCHes at these seconds, and when the changes are sent.
    #[rstest]
    #[case::nothing(&[], &[], None)]
    #[case::one_change(&[10], &[], Some(11))]
    #[case::each_change_starts_the_quiet_time_anew(&[10, 11, 12], &[], Some(13))]
    #[case::a_steady_stream_is_sent_after_eight(&[10, 11, 12, 13, 14, 15, 16, 17, 18], &[], Some(18))]
    #[case::two_patches_lately(&[70], &[20, 30], Some(73))]
    #[case::a_patch_a_minute_ago_counts_no_more(&[70], &[10], Some(71))]
    #[case::never_more_than_fifteen_seconds(&[70, 84], &[60, 61, 62, 63], Some(85))]
    fn changes_wait_for_quiet(
        #[case] changes: &[u64],
        #[case] patches: &[u64],
        #[case] sent: Option<u64>,
    ) {
        let start = Instant::now();
        let at = |second: &u64| start + Duration::from_secs(*second);
        let mut debounce = Debounce::default();
        patches
            .iter()
            .for_each(|patch| debounce.on_patch(at(patch)));
        changes
            .iter()
            .for_each(|change| debounce.on_change(at(change)));
        let now = changes.last().map_or(start, at);
        assert_eq!(
            debounce.send_at(now, Duration::from_secs(1)),
            sent.as_ref().map(at)
        );
        debounce.on_planned();
        assert_eq!(debounce.send_at(now, Duration::from_secs(1)), None);
    }
}
