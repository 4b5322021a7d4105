//! Which identities are kept apart because Azure refuses them, and what is tried next.
//!
//! What Azure refuses on one host it refuses on every other, so that the hosts share what they learn: an identity that is
//! refused is tried again by one host at a time, alone, and ever less often.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use podid_policy::ids::{HostKey, ResourceId};
use tokio::time::Instant;

use crate::host::cloud::Fault;

/// The first wait of a refused identity, by what it is multiplied after every further refusal, and the longest wait, in units
/// of the retry interval: six attempts in the first hour, four in every later one.
const FIRST_RETRY: u32 = 60;
const RETRY_GROWTH: u32 = 4;
const MAX_RETRY: u32 = 900;
/// A host whose turn it is has this long, which is longer than any call to Azure takes.
const TURN_TIMEOUT: Duration = Duration::from_secs(20 * 60);

/// A refused identity.
#[derive(Debug)]
struct Quarantined {
    attempts: u32,
    due: Instant,
    fault: Fault,
    /// The host that was refused first, and what Azure said.
    text: String,
    /// The hosts that were refused.
    hosts: BTreeSet<Arc<HostKey>>,
    /// The host that may try it now, and until when.
    turn: Option<(Arc<HostKey>, Instant)>,
}

/// The refused identities.
#[derive(Debug, Default)]
pub(crate) struct Quarantine(BTreeMap<ResourceId, Quarantined>);

impl Quarantine {
    /// Whether the identity is refused.
    pub(crate) fn contains(&self, id: &ResourceId) -> bool {
        self.0.contains_key(id)
    }

    /// Why the identity is refused.
    pub(crate) fn reason(&self, id: &ResourceId) -> Option<(Fault, &str)> {
        self.0
            .get(id)
            .map(|entry| (entry.fault, entry.text.as_str()))
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
        // Nobody has taken a turn for long: nobody needs it any more.
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

    /// Of the refused identities that the host needs, one that it may try now: its turn lasts until Azure has said yes or no.
    pub(crate) fn turn<'a>(
        &mut self,
        host: &Arc<HostKey>,
        needed: impl Iterator<Item = &'a ResourceId>,
        now: Instant,
    ) -> Option<ResourceId> {
        let due = |entry: &Quarantined| match &entry.turn {
            Some((whose, until)) => whose == host || *until <= now,
            None => entry.due <= now,
        };
        let ready = needed.filter_map(|id| Some((id, self.0.get(id).filter(|entry| due(entry))?)));
        let id = ready.min_by_key(|(_, entry)| entry.due)?.0.clone();
        self.0.get_mut(&id)?.turn = Some((host.clone(), now + TURN_TIMEOUT));
        Some(id)
    }

    /// When the host may try one of these again.
    pub(crate) fn due<'a>(&self, needed: impl Iterator<Item = &'a ResourceId>) -> Option<Instant> {
        let entries = needed.filter_map(|id| self.0.get(id));
        let due = entries.map(|entry| entry.turn.as_ref().map_or(entry.due, |(_, until)| *until));
        due.min()
    }

    /// The identity is on the host. Says whether it was refused there before: then it is refused no more anywhere.
    pub(crate) fn on_attached(&mut self, id: &ResourceId, host: &HostKey) -> bool {
        let cured = self.0.get(id).is_some_and(|entry| {
            let its_turn = entry
                .turn
                .as_ref()
                .is_some_and(|(whose, _)| **whose == *host);
            its_turn || entry.hosts.contains(host)
        });
        cured && self.0.remove(id).is_some()
    }

    /// Lets an identity be tried again at once: its object was edited. Says whether it was refused.
    pub(crate) fn retry_now(&mut self, id: &ResourceId, now: Instant) -> bool {
        let entry = self
            .0
            .get_mut(id)
            .map(|entry| (entry.due, entry.turn) = (now, None));
        entry.is_some()
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }
}

/// Batches that one host tried and of which at least one identity is bad that is not yet found out.
#[derive(Debug, Default)]
pub(crate) struct Suspects(Vec<BTreeSet<ResourceId>>);

impl Suspects {
    /// Azure refused the batch, without a word on which of it. Returns the culprit when there is only one to choose from.
    pub(crate) fn bisect(&mut self, batch: &[ResourceId]) -> Option<ResourceId> {
        self.clear(batch);
        if let [only] = batch {
            return Some(only.clone());
        }
        let (one, other) = batch.split_at(batch.len() / 2);
        self.0.push(other.iter().cloned().collect());
        self.0.push(one.iter().cloned().collect());
        None
    }

    /// Nothing speaks against these any more.
    pub(crate) fn clear(&mut self, ids: &[ResourceId]) {
        self.retain(|id| !ids.contains(id));
    }

    /// Forgets what is not needed any more.
    pub(crate) fn retain(&mut self, needed: impl Fn(&ResourceId) -> bool) {
        for batch in &mut self.0 {
            batch.retain(&needed);
        }
        self.0.retain(|batch| !batch.is_empty());
    }

    pub(crate) fn contains(&self, id: &ResourceId) -> bool {
        self.0.iter().any(|batch| batch.contains(id))
    }

    /// The batch to try next.
    pub(crate) fn next_batch(&self) -> Option<&BTreeSet<ResourceId>> {
        self.0.last()
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
        assert_eq!(quarantine.turn(&hosts[1], all.iter(), now), None);
        assert_eq!(quarantine.turn(&hosts[1], all.iter(), due), Some(id(1)));
        assert_eq!(quarantine.turn(&hosts[1], all.iter(), due), Some(id(1)));
        assert_eq!(quarantine.turn(&hosts[0], all.iter(), due), None);
        let after = due + TURN_TIMEOUT;
        assert_eq!(quarantine.turn(&hosts[0], all.iter(), after), Some(id(1)));
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
            assert!(quarantine.turn(&me, [id(1)].iter(), now).is_some());
        }
        assert_eq!(attempts, 6);
        assert!(quarantine.retry_now(&id(1), start));
        assert_eq!(quarantine.due([id(1)].iter()), Some(start));
    }

    /// Tries until all good ones are through; returns how often Azure refused.
    fn sift(all: usize, bad: &[usize]) -> usize {
        let mut suspects = Suspects::default();
        let mut left: Vec<_> = (0..all).map(id).collect();
        let (mut found, mut refusals) = (BTreeSet::new(), 0);
        loop {
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
                found.extend(suspects.bisect(&batch));
            } else {
                suspects.clear(&batch);
                left.retain(|i| !batch.contains(i));
            }
            assert!(refusals < 100, "no progress");
        }
        assert_eq!(found, bad.iter().map(|n| id(*n)).collect());
        refusals
    }

    #[test]
    fn one_that_azure_does_not_name_is_found_by_halves() {
        assert!(sift(20, &[7]) <= 6);
        assert!(sift(20, &[0, 7, 19]) <= 15);
    }
}
