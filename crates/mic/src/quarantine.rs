//! Which identities of a host are kept apart because Azure refuses them, and what is tried next.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use podid_policy::ids::ResourceId;
use tokio::time::Instant;

/// The first wait of a refused identity, and the longest, in units of the retry interval.
const FIRST: u32 = 15;
const LONGEST: u32 = 600;

/// A refused identity.
#[derive(Debug, Clone)]
struct Cell {
    attempts: u32,
    due: Instant,
    text: String,
}

/// The refused identities of one host, and batches that hold at least one that is not yet found out.
#[derive(Debug, Default)]
pub(crate) struct Quarantine {
    cells: BTreeMap<ResourceId, Cell>,
    suspects: Vec<BTreeSet<ResourceId>>,
}

/// What to attach next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Batch {
    pub(crate) ids: Vec<ResourceId>,
    /// Nothing speaks against them, so that other changes may go with them.
    pub(crate) clean: bool,
}

impl Quarantine {
    /// Of what is to be attached, what to try now: all that is not suspect; then suspect batches one by one; then a refused
    /// identity whose time has come, alone.
    pub(crate) fn choose(&mut self, attach: &[ResourceId], now: Instant) -> Batch {
        let wanted: BTreeSet<&ResourceId> = attach.iter().collect();
        self.cells.retain(|id, _| wanted.contains(id));
        for batch in &mut self.suspects {
            batch.retain(|id| wanted.contains(id));
        }
        self.suspects.retain(|batch| !batch.is_empty());
        let suspect = |id: &ResourceId| self.suspects.iter().any(|batch| batch.contains(id));
        let clean: Vec<_> = attach
            .iter()
            .filter(|id| !self.cells.contains_key(*id) && !suspect(id))
            .cloned()
            .collect();
        if !clean.is_empty() {
            return Batch {
                ids: clean,
                clean: true,
            };
        }
        let doubtful = match self.suspects.last() {
            Some(batch) => batch.iter().cloned().collect(),
            None => self.first_due(now).into_iter().collect(),
        };
        Batch {
            ids: doubtful,
            clean: false,
        }
    }

    /// Azure refused to attach `batch`, blaming `named`, or nobody. Returns the identities that are kept apart from now on.
    pub(crate) fn refused(
        &mut self,
        batch: &[ResourceId],
        named: &[ResourceId],
        text: &str,
        now: Instant,
        unit: Duration,
    ) -> Vec<ResourceId> {
        self.clear_of_suspicion(batch);
        let mut guilty: Vec<_> = batch
            .iter()
            .filter(|id| named.contains(id))
            .cloned()
            .collect();
        if guilty.is_empty() && batch.len() == 1 {
            guilty = batch.to_vec();
        }
        if guilty.is_empty() {
            let (one, other) = batch.split_at(batch.len() / 2);
            self.suspects.push(other.iter().cloned().collect());
            self.suspects.push(one.iter().cloned().collect());
        }
        for id in &guilty {
            let attempts = self.cells.get(id).map_or(0, |cell| cell.attempts) + 1;
            let wait = FIRST
                .saturating_mul(1 << (attempts - 1).min(16))
                .min(LONGEST);
            let cell = Cell {
                attempts,
                due: now + unit * wait,
                text: text.to_owned(),
            };
            self.cells.insert(id.clone(), cell);
        }
        guilty
    }

    /// These are on the host now.
    pub(crate) fn passed(&mut self, ids: &[ResourceId]) {
        self.clear_of_suspicion(ids);
        for id in ids {
            self.cells.remove(id);
        }
    }

    /// Why the identity is kept apart.
    pub(crate) fn reason(&self, id: &ResourceId) -> Option<&str> {
        self.cells.get(id).map(|cell| cell.text.as_str())
    }

    /// Lets an identity be tried again at once: its object was edited.
    pub(crate) fn pardon(&mut self, id: &ResourceId, now: Instant) -> bool {
        self.cells.get_mut(id).map(|cell| cell.due = now).is_some()
    }

    /// When the next one may be tried again.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.cells.values().map(|cell| cell.due).min()
    }

    /// How many are kept apart.
    pub(crate) fn len(&self) -> usize {
        self.cells.len()
    }

    fn clear_of_suspicion(&mut self, ids: &[ResourceId]) {
        for batch in &mut self.suspects {
            batch.retain(|id| !ids.contains(id));
        }
        self.suspects.retain(|batch| !batch.is_empty());
    }

    fn first_due(&self, now: Instant) -> Option<ResourceId> {
        let (id, cell) = self.cells.iter().min_by_key(|(_, cell)| cell.due)?;
        (cell.due <= now).then(|| id.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{id, ids};

    const UNIT: Duration = Duration::from_secs(1);

    /// Tries until nothing is due, with a host that refuses every batch with one of `bad`; returns the number of refusals.
    fn try_all(q: &mut Quarantine, want: &[ResourceId], bad: &[ResourceId], named: bool) -> usize {
        let (now, mut refusals, mut left) = (Instant::now(), 0, want.to_vec());
        loop {
            let batch = q.choose(&left, now).ids;
            if batch.is_empty() {
                return refusals;
            }
            let blamed: Vec<_> = batch
                .iter()
                .filter(|id| bad.contains(id))
                .cloned()
                .collect();
            if blamed.is_empty() {
                q.passed(&batch);
                left.retain(|id| !batch.contains(id));
            } else {
                refusals += 1;
                q.refused(
                    &batch,
                    if named { &blamed } else { &[] },
                    "no such identity",
                    now,
                    UNIT,
                );
            }
            assert!(refusals < 100, "no progress");
        }
    }

    #[test]
    fn one_that_azure_names_is_apart_at_once() {
        let mut q = Quarantine::default();
        assert_eq!(try_all(&mut q, &ids(0..20), &[id(7)], true), 1);
        assert_eq!(q.len(), 1);
        assert_eq!(q.reason(&id(7)), Some("no such identity"));
    }

    #[test]
    fn one_that_azure_does_not_name_is_found_by_halves() {
        let mut q = Quarantine::default();
        let refusals = try_all(&mut q, &ids(0..20), &[id(7)], false);
        assert!(refusals <= 6, "{refusals}");
        assert!(q.reason(&id(7)).is_some());
        assert_eq!(q.len(), 1);
    }

    #[test]
    fn several_bad_ones_are_all_found() {
        let mut q = Quarantine::default();
        try_all(&mut q, &ids(0..20), &[id(0), id(7), id(19)], false);
        assert_eq!(q.len(), 3);
    }

    #[test]
    fn a_refused_one_comes_back_alone_later_and_later() {
        let mut q = Quarantine::default();
        let now = Instant::now();
        q.refused(&[id(1)], &[], "no", now, UNIT);
        let all = ids(0..3);
        let batch = q.choose(&all, now + UNIT * 1000);
        assert_eq!((batch.ids, batch.clean), (vec![id(0), id(2)], true));
        assert!(q.choose(&[id(1)], now + UNIT * 14).ids.is_empty());
        let alone = q.choose(&[id(1)], now + UNIT * 15);
        assert_eq!((alone.ids, alone.clean), (vec![id(1)], false));
        for _ in 0..40 {
            q.refused(&[id(1)], &[], "no", now, UNIT);
        }
        assert_eq!(q.due(), Some(now + UNIT * LONGEST));
        assert!(q.pardon(&id(1), now));
        assert_eq!(q.choose(&[id(1)], now).ids, [id(1)]);
        q.choose(&[], now);
        assert_eq!(q.len(), 0);
    }
}
