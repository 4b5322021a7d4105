//! Packet counters: do the first packets of pods' connections, which the rules catch, also arrive at NMI's socket? The keeper reads the
//! counters all the time, because rules that stand prove nothing about what other programs do after them.
//!
//! ```text
//! pod ── SYN ──► prerouting  `entered` ──► policy rules ──► input, first  `reached` ──► others' rules ──► input, last  `arrived`
//!
//! UNKNOWN ──some arrive──► PROVEN ◄──some arrive, or none is lost for two minutes── LOST   (not in place)
//!    └────────────────────────┴──────────────some are lost, none arrives───────────► LOST
//! ```
//!
//! Some that are lost while others arrive are counted only, because a network policy may deny the metadata address to a pod. A node whose
//! pods ask nothing proves nothing, and is no fault.

use std::time::Duration;

use tokio::time::Instant;

use crate::Error;
use crate::error::LostWhere;

/// Time without a lost packet after which an older loss says nothing any more; clients that wait for an answer send a SYN again within 64 s.
const LOSS_MEMORY: Duration = Duration::from_secs(120);

/// How many first packets of pods' connections were seen, in the order of their way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// By podid's rules where packets enter the node, with a sender that the packet's link leads to.
    pub(crate) entered: u64,
    /// By podid's rules where packets for the node itself come.
    pub(crate) reached: u64,
    /// After all other programs' rules there.
    pub(crate) arrived: u64,
}

impl Counts {
    /// The counters of rules that were put in place anew begin at zero.
    fn since(self, before: Self) -> Self {
        let is_reset = self.entered < before.entered
            || self.reached < before.reached
            || self.arrived < before.arrived;
        if is_reset {
            return self;
        }
        Self {
            entered: self.entered - before.entered,
            reached: self.reached - before.reached,
            arrived: self.arrived - before.arrived,
        }
    }

    fn plus(self, more: Self) -> Self {
        Self {
            entered: self.entered + more.entered,
            reached: self.reached + more.reached,
            arrived: self.arrived + more.arrived,
        }
    }

    fn lost(self) -> Lost {
        Lost {
            before_input: self.entered.saturating_sub(self.reached),
            in_input: self.reached.saturating_sub(self.arrived),
        }
    }
}

/// How many packets did not arrive, by where they were lost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Lost {
    /// On the way to the node's own input: a policy rule took them elsewhere.
    pub before_input: u64,
    /// In the node's input: a firewall refused them.
    pub in_input: u64,
}

impl Lost {
    /// What both agree on: a packet that passed between two reads of one listing seems to be lost in it.
    fn confirmed(self, other: Self) -> Self {
        Self {
            before_input: self.before_input.min(other.before_input),
            in_input: self.in_input.min(other.in_input),
        }
    }
}

/// What the counters have said so far.
#[derive(Debug, Default)]
pub(crate) struct Arrivals {
    last: Option<Counts>,
    /// Since the first reading.
    total: Counts,
    seen: Lost,
    confirmed: Lost,
    lost: Option<(LostWhere, Instant)>,
}

impl Arrivals {
    /// Takes a reading. What the counters said before the first one happened while another NMI, or none, was there.
    pub(crate) fn observe(&mut self, counts: Counts, now: Instant) {
        let Some(last) = self.last.replace(counts) else {
            return;
        };
        let new = counts.since(last);
        self.total = self.total.plus(new);
        let seen = self.total.lost();
        let confirmed = seen.confirmed(self.seen);
        self.seen = seen;
        let place = if confirmed.in_input > self.confirmed.in_input {
            Some(LostWhere::Input)
        } else if confirmed.before_input > self.confirmed.before_input {
            Some(LostWhere::BeforeInput)
        } else {
            None
        };
        self.confirmed = confirmed;
        let is_old = |(_, at): &(LostWhere, Instant)| now.duration_since(*at) > LOSS_MEMORY;
        if new.arrived > 0 || (place.is_none() && self.lost.as_ref().is_some_and(is_old)) {
            self.lost = None;
        } else if let Some(place) = place {
            self.lost = Some((place, now));
        }
    }

    /// Whether the last reading showed a loss that the next one has to confirm.
    pub(crate) fn is_suspicious(&self) -> bool {
        self.seen != self.confirmed
    }

    /// How many packets have arrived, and how many were lost.
    pub(crate) fn totals(&self) -> (u64, Lost) {
        (self.total.arrived, self.confirmed)
    }

    /// Where packets are lost of which none arrives.
    pub(crate) fn lost(&self) -> Option<LostWhere> {
        self.lost.map(|(place, _)| place)
    }

    /// # Errors
    /// [`Error::Lost`] while pods' packets are lost and none arrives.
    pub(crate) fn check(&self) -> Result<(), Error> {
        self.lost()
            .map_or(Ok(()), |place| Err(Error::Lost { place }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(entered: u64, reached: u64, arrived: u64) -> Counts {
        Counts {
            entered,
            reached,
            arrived,
        }
    }

    /// Readings every five seconds, and the verdict after the last one.
    fn verdict(readings: &[Counts]) -> Option<LostWhere> {
        let (mut arrivals, mut now) = (Arrivals::default(), Instant::now());
        for reading in readings {
            arrivals.observe(*reading, now);
            now += Duration::from_secs(5);
        }
        arrivals.lost()
    }

    #[test]
    fn nothing_seen_and_what_was_lost_before_is_no_fault() {
        assert_eq!(verdict(&[counts(7, 7, 0), counts(7, 7, 0)]), None);
        assert_eq!(verdict(&[counts(0, 0, 0); 9]), None);
    }

    #[test]
    fn a_loss_is_confirmed_by_the_next_reading() {
        let zero = counts(0, 0, 0);
        let on_its_way = [zero, counts(1, 0, 0), counts(1, 1, 1), counts(1, 1, 1)];
        assert_eq!(verdict(&on_its_way), None);
        // The listing names the arrival of a packet whose entry it had missed.
        let missed = [zero, counts(0, 0, 1), counts(1, 1, 1), counts(1, 1, 1)];
        assert_eq!(verdict(&missed), None);
        let refused = [zero, counts(1, 1, 0), counts(1, 1, 0)];
        assert_eq!(verdict(&refused), Some(LostWhere::Input));
        let taken = [zero, counts(1, 0, 0), counts(3, 0, 0)];
        assert_eq!(verdict(&taken), Some(LostWhere::BeforeInput));
    }

    #[test]
    fn a_pod_that_is_denied_by_a_policy_is_counted_while_others_arrive() {
        let (mut arrivals, now) = (Arrivals::default(), Instant::now());
        for n in 0..4 {
            arrivals.observe(counts(2 * n, 2 * n, n), now);
        }
        assert_eq!(arrivals.lost(), None);
        let lost = Lost {
            before_input: 0,
            in_input: 2,
        };
        assert_eq!(arrivals.totals(), (3, lost));
    }

    #[test]
    fn an_arrival_heals_and_so_does_time() {
        let refused = [counts(0, 0, 0), counts(1, 1, 0), counts(1, 1, 0)];
        let healed = [&refused[..], &[counts(2, 2, 1)]].concat();
        assert_eq!(verdict(&healed), None);
        let still = [&refused[..], &[counts(1, 1, 0); 20]].concat();
        assert_eq!(verdict(&still), Some(LostWhere::Input));
        let quiet = [&refused[..], &[counts(1, 1, 0); 40]].concat();
        assert_eq!(verdict(&quiet), None);
    }

    #[test]
    fn rules_that_were_put_in_place_anew_count_from_zero() {
        let anew = [counts(9, 9, 9), counts(1, 1, 1), counts(2, 2, 2)];
        assert_eq!(verdict(&anew), None);
        let refused = [counts(9, 9, 9), counts(1, 1, 0), counts(1, 1, 0)];
        assert_eq!(verdict(&refused), Some(LostWhere::Input));
    }
}
