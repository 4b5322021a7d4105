//! Quarantine of the identities that Azure refuses to attach, and the bisection that finds a bad identity in a refused batch.
//!
//! [`Host::decide`](super::Host::decide) asks it what may be attached, [`Host::on_failed`](super::Host::on_failed) puts identities into
//! it. It guards the good identities: a bad one never shares a PATCH with them. An identity that does not exist, or that the
//! controller may not attach, is refused on every host; so all hosts share one [`Quarantine`], and one host at a time tries it again,
//! alone, ever less often. An identity that Azure refuses for another cause ([`Fault::Refused`]) is tried by every other host at once,
//! alone, because the cause may be the host. A host has [`Suspects`] of its own to bisect a batch, whose halves are tried in turn:
//!
//! ```text
//!   batch refused, Azure names none ─► first half, second half, … ─ attached ─► the host takes changes
//!                                          └─ refused ─► halve again
//!   one is left and refused: the host takes changes ──────────► quarantine
//!                            it has taken none ───────────────► the host's fault, like the third refusal in a row: back off
//! ```

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use podid_policy::ids::{HostKey, ResourceId};
use tokio::time::Instant;

use crate::host::cloud::Fault;

/// The wait after the first refusal, in retry intervals (1 minute by default): roles that were just granted take about as long.
const FIRST_RETRY: u32 = 60;
/// The wait grows by this factor with every further refusal, which makes six attempts in the first hour.
const RETRY_GROWTH: u32 = 4;
/// The longest wait, in retry intervals (15 minutes by default), which makes four attempts in every later hour.
const MAX_RETRY: u32 = 900;
/// A host's turn ends after 20 minutes, which is longer than any call to Azure takes, so that a dead worker blocks no other host.
const TURN_TIMEOUT: Duration = Duration::from_secs(20 * 60);
/// After so many refusals in a row (a batch and both of its halves) the host is to blame: most batches hold at most one bad identity.
const HOST_REFUSALS: u32 = 3;

/// A refused identity.
#[derive(Debug)]
struct Quarantined {
    /// How often Azure has refused it.
    attempts: u32,
    /// When it may be tried again.
    due: Instant,
    fault: Fault,
    /// What Azure said at the first refusal with this fault.
    text: String,
    /// The hosts on which it was refused.
    hosts: BTreeSet<Arc<HostKey>>,
    /// The host that tries it now, and until when no other host may.
    turn: Option<(Arc<HostKey>, Instant)>,
}

impl Quarantined {
    /// Whether the refusal tells nothing of this host.
    fn is_elsewhere(&self, host: &HostKey) -> bool {
        self.fault == Fault::Refused && !self.hosts.contains(host)
    }
}

/// The refused identities.
#[derive(Debug, Default)]
pub(crate) struct Quarantine(BTreeMap<ResourceId, Quarantined>);

impl Quarantine {
    /// Whether the identity is refused.
    pub(crate) fn contains(&self, id: &ResourceId) -> bool {
        self.0.contains_key(id)
    }

    /// Why the identity is refused on the host.
    pub(crate) fn reason(&self, id: &ResourceId, host: &HostKey) -> Option<(Fault, &str)> {
        let entry = self.0.get(id).filter(|entry| !entry.is_elsewhere(host))?;
        Some((entry.fault, entry.text.as_str()))
    }

    /// Azure refused to attach the identity to the host.
    pub(crate) fn refuse(
        &mut self,
        id: &ResourceId,
        host: &Arc<HostKey>,
        (fault, text): (Fault, &str),
        now: Instant,
        unit: Duration,
    ) {
        // No host has tried these for long: no pod needs them any more.
        self.0
            .retain(|_, entry| entry.due + unit * MAX_RETRY * RETRY_GROWTH > now);
        let entry = self.0.entry(id.clone()).or_insert_with(|| Quarantined {
            attempts: 0,
            due: now,
            fault,
            text: text.to_owned(),
            hosts: BTreeSet::new(),
            turn: None,
        });
        if entry.fault != fault {
            entry.fault = fault;
            text.clone_into(&mut entry.text);
        }
        let growth = RETRY_GROWTH.saturating_pow(entry.attempts.min(8));
        entry.due = now + unit * FIRST_RETRY.saturating_mul(growth).min(MAX_RETRY);
        entry.attempts += 1;
        entry.hosts.insert(host.clone());
        entry.turn = None;
    }

    /// Of the refused identities that the host needs, the one that it may try now, if any.
    pub(crate) fn next_turn<'a>(
        &self,
        host: &Arc<HostKey>,
        needed: impl Iterator<Item = &'a ResourceId>,
        now: Instant,
    ) -> Option<ResourceId> {
        let due = |entry: &Quarantined| match &entry.turn {
            _ if entry.is_elsewhere(host) => true,
            Some((whose, until)) => whose == host || *until <= now,
            None => entry.due <= now,
        };
        let ready = needed.filter_map(|id| Some((id, self.0.get(id).filter(|entry| due(entry))?)));
        let (id, _) = ready.min_by_key(|(_, entry)| entry.due)?;
        Some(id.clone())
    }

    /// The host tries the identity now: no other host may until Azure has answered or the turn has ended.
    pub(crate) fn take_turn(&mut self, id: &ResourceId, host: &Arc<HostKey>, now: Instant) {
        if let Some(entry) = self.0.get_mut(id).filter(|e| !e.is_elsewhere(host)) {
            entry.turn = Some((host.clone(), now + TURN_TIMEOUT));
        }
    }

    /// When the host may try one of these again.
    pub(crate) fn due<'a>(&self, needed: impl Iterator<Item = &'a ResourceId>) -> Option<Instant> {
        let entries = needed.filter_map(|id| self.0.get(id));
        let due = entries.map(|entry| entry.turn.as_ref().map_or(entry.due, |(_, until)| *until));
        due.min()
    }

    /// The identity is on the host. If it was refused there before, its quarantine ends on all hosts; says whether it did.
    pub(crate) fn on_attached(&mut self, id: &ResourceId, host: &HostKey) -> bool {
        let is_over = self.0.get(id).is_some_and(|entry| {
            let its_turn = entry
                .turn
                .as_ref()
                .is_some_and(|(whose, _)| **whose == *host);
            its_turn || entry.hosts.contains(host)
        });
        is_over && self.0.remove(id).is_some()
    }

    /// Lets any host try the identity at once, because its object was edited. Says whether it is in quarantine.
    pub(crate) fn retry_now(&mut self, id: &ResourceId, now: Instant) -> bool {
        let entry = self
            .0
            .get_mut(id)
            .map(|entry| (entry.due, entry.turn) = (now, None));
        entry.is_some()
    }

    /// How many identities are in quarantine.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }
}

/// Whose fault a refused change is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Blame {
    /// These identities'.
    Identities(Vec<ResourceId>),
    /// The host's, or that of all that is between.
    Host,
    /// It is not known yet: the next batch of the bisection tells.
    Unknown,
}

/// The bisection on one host: batches of which Azure refused the whole without naming the bad identity.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Suspects {
    /// The batches to try, in turn.
    batches: VecDeque<BTreeSet<ResourceId>>,
    /// Refused alone by a host that has taken no change since the first refusal.
    alone: BTreeSet<ResourceId>,
    /// How often the host has refused a batch without taking any between.
    refusals: u32,
    /// Whether the host has taken a change since the first refusal, so that it is not to blame.
    host_accepts: bool,
}

impl Suspects {
    /// Azure refused the batch and named no identity: both halves are suspect now. `is_of_identity` says that one of the batch is bad for
    /// certain.
    pub(crate) fn bisect(&mut self, batch: &[ResourceId], is_of_identity: bool) -> Blame {
        let host_accepts = is_of_identity || self.host_accepts;
        let refusals = self.refusals + 1;
        self.clear(batch);
        if let [only] = batch {
            if host_accepts {
                return Blame::Identities(vec![only.clone()]);
            }
            self.alone.insert(only.clone());
        } else {
            let (one, other) = batch.split_at(batch.len() / 2);
            self.batches.push_back(one.iter().cloned().collect());
            self.batches.push_back(other.iter().cloned().collect());
        }
        (self.host_accepts, self.refusals) = (host_accepts, refusals);
        let is_of_host = refusals >= HOST_REFUSALS || self.batches.is_empty();
        if is_of_host && !host_accepts {
            Blame::Host
        } else {
            Blame::Unknown
        }
    }

    /// The host has taken a change that attached these: what it refuses from now on is not its own fault.
    pub(crate) fn on_accepted(&mut self, attached: &[ResourceId]) {
        self.clear(attached);
        if !self.is_empty() {
            (self.host_accepts, self.refusals) = (true, 0);
            let alone = std::mem::take(&mut self.alone);
            self.batches.extend(alone.into_iter().map(|id| [id].into()));
        }
    }

    /// These are not suspect any more.
    pub(crate) fn clear(&mut self, ids: &[ResourceId]) {
        self.retain(|id| !ids.contains(id));
    }

    /// Keeps under suspicion only what is needed.
    pub(crate) fn retain(&mut self, is_needed: impl Fn(&ResourceId) -> bool) {
        for batch in &mut self.batches {
            batch.retain(&is_needed);
        }
        self.batches.retain(|batch| !batch.is_empty());
        self.alone.retain(is_needed);
        if self.is_empty() {
            *self = Self::default();
        }
    }

    pub(crate) fn contains(&self, id: &ResourceId) -> bool {
        self.batches.iter().any(|batch| batch.contains(id)) || self.alone.contains(id)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.batches.is_empty() && self.alone.is_empty()
    }

    /// The batch to try next, alone.
    pub(crate) fn next_batch(&self) -> Option<&BTreeSet<ResourceId>> {
        let alone = Some(&self.alone).filter(|alone| !alone.is_empty());
        self.batches.front().or(alone)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{host, id};

    const UNIT: Duration = Duration::from_secs(1);

    fn refuse(quarantine: &mut Quarantine, n: usize, now: Instant) {
        let why = (Fault::IdentityNotFound, "no such identity");
        quarantine.refuse(&id(1), &Arc::new(host(n)), why, now, UNIT);
    }

    #[test]
    fn a_refused_one_is_tried_by_one_host_at_a_time() {
        let mut quarantine = Quarantine::default();
        let (now, all) = (Instant::now(), [id(1), id(2)]);
        let hosts = [1, 2].map(|n| Arc::new(host(n)));
        refuse(&mut quarantine, 1, now);
        assert!(quarantine.contains(&id(1)) && !quarantine.contains(&id(2)));
        let due = quarantine.due(all.iter()).unwrap();
        assert_eq!(due, now + UNIT * FIRST_RETRY);
        let turn = |quarantine: &Quarantine, host: usize, at| {
            quarantine.next_turn(&hosts[host], all.iter(), at)
        };
        assert_eq!(turn(&quarantine, 1, now), None);
        assert_eq!(turn(&quarantine, 1, due), Some(id(1)));
        quarantine.take_turn(&id(1), &hosts[1], due);
        assert_eq!(turn(&quarantine, 1, due), Some(id(1)));
        assert_eq!(turn(&quarantine, 0, due), None);
        let after = due + TURN_TIMEOUT;
        assert_eq!(turn(&quarantine, 0, after), Some(id(1)));
        quarantine.take_turn(&id(1), &hosts[0], after);
        assert!(quarantine.on_attached(&id(1), &hosts[0]));
        assert_eq!(quarantine.len(), 0);
    }

    #[test]
    fn what_is_on_a_host_that_was_never_refused_tells_nothing() {
        let mut quarantine = Quarantine::default();
        refuse(&mut quarantine, 1, Instant::now());
        assert!(!quarantine.on_attached(&id(1), &host(2)));
        assert!(quarantine.on_attached(&id(1), &host(1)));
    }

    #[test]
    fn a_bad_one_costs_six_attempts_in_an_hour() {
        let mut quarantine = Quarantine::default();
        let (start, me) = (Instant::now(), Arc::new(host(1)));
        let (mut now, mut attempts) = (start, 0);
        while now < start + Duration::from_secs(3600) {
            refuse(&mut quarantine, 1, now);
            attempts += 1;
            now = quarantine.due([id(1)].iter()).unwrap();
            assert!(quarantine.next_turn(&me, [id(1)].iter(), now).is_some());
            quarantine.take_turn(&id(1), &me, now);
        }
        assert_eq!(attempts, 6);
        assert!(quarantine.retry_now(&id(1), start));
        assert_eq!(quarantine.due([id(1)].iter()), Some(start));
    }

    /// Tries until all good ones are through, or until the host has been blamed for long; returns how often Azure refused.
    fn sift(all: usize, bad: &[usize], is_of_identity: bool) -> usize {
        let mut suspects = Suspects::default();
        let mut left: Vec<_> = (0..all).map(id).collect();
        let (mut found, mut refusals, mut blamed) = (BTreeSet::new(), 0, 0);
        while blamed < 50 {
            let clean = |i: &&ResourceId| !suspects.contains(i) && !found.contains(*i);
            let mut batch: Vec<_> = left.iter().filter(clean).cloned().collect();
            if batch.is_empty() {
                match suspects.next_batch() {
                    Some(next) => batch = next.iter().cloned().collect(),
                    None => break,
                }
            }
            if bad.iter().any(|n| batch.contains(&id(*n))) {
                refusals += 1;
                match suspects.bisect(&batch, is_of_identity) {
                    Blame::Identities(ids) => found.extend(ids),
                    Blame::Host => blamed += 1,
                    Blame::Unknown => {}
                }
            } else {
                suspects.on_accepted(&batch);
                left.retain(|i| !batch.contains(i));
            }
            assert!(refusals < 100, "no progress");
        }
        let all_bad = bad.len() == all;
        let expected = bad.iter().filter(|_| !all_bad || is_of_identity);
        assert_eq!(found, expected.map(|n| id(*n)).collect());
        refusals
    }

    #[rstest::rstest]
    #[case(true)]
    #[case(false)]
    fn one_that_azure_does_not_name_is_found_by_bisection(#[case] is_of_identity: bool) {
        assert!(sift(20, &[7], is_of_identity) <= 6);
        assert!(sift(20, &[0], is_of_identity) <= 6);
        assert!(sift(20, &[0, 7, 19], is_of_identity) <= 15);
    }

    #[test]
    fn a_refusal_that_every_subset_meets_convicts_nobody() {
        sift(1, &[0], false);
        sift(4, &[0, 1, 2, 3], false);
        assert_eq!(sift(4, &[0, 1, 2, 3], true), 7);
    }

    /// The host mends while its bisection is under way: nobody is convicted for what it refused before.
    #[test]
    fn what_a_host_refused_before_it_took_a_change_is_tried_again() {
        let mut suspects = Suspects::default();
        assert_eq!(suspects.bisect(&[id(1), id(2)], false), Blame::Unknown);
        assert_eq!(suspects.bisect(&[id(1)], false), Blame::Unknown);
        suspects.on_accepted(&[id(2)]);
        assert_eq!(suspects.next_batch(), Some(&[id(1)].into()));
        let convicted = Blame::Identities(vec![id(1)]);
        assert_eq!(suspects.bisect(&[id(1)], false), convicted);
        assert_eq!(suspects, Suspects::default());
    }

    #[test]
    fn what_azure_refuses_for_another_cause_every_host_tries_once() {
        let mut quarantine = Quarantine::default();
        let now = Instant::now();
        let [one, two] = [1, 2].map(|n| Arc::new(host(n)));
        quarantine.refuse(&id(1), &one, (Fault::Refused, "no"), now, UNIT);
        let turn = |quarantine: &Quarantine, host| quarantine.next_turn(host, [id(1)].iter(), now);
        assert_eq!(turn(&quarantine, &one), None);
        assert_eq!(turn(&quarantine, &two), Some(id(1)));
        assert_eq!(quarantine.reason(&id(1), &two), None);
        quarantine.take_turn(&id(1), &two, now);
        quarantine.refuse(&id(1), &two, (Fault::Refused, "no"), now, UNIT);
        assert_eq!(turn(&quarantine, &two), None);
        assert!(quarantine.reason(&id(1), &two).is_some());
    }
}
