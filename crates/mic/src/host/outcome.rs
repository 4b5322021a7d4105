//! The outcome of an action that went well, and drift: what a read, an answer, a record or a PATCH changes in what is
//! known of the host.
//!
//! The host's worker ([`super::worker`]) calls these after it has carried out an [`Action`](super::Action). They guard drift
//! detection: a read that misses an identity that the read before has shown and a pod needs is drift, which somebody else has caused,
//! unless podid may have detached it itself.

use std::collections::BTreeSet;
use std::sync::Arc;

use podid_policy::desired::AssignmentKey;
use podid_policy::ids::{ClientId, ResourceId};
use tokio::time::Instant;

use super::{Host, Users};
use crate::host::cloud::{HostChange, HostIdentities};
use crate::host::ownership::Owned;

/// What a read of a host has shown.
#[derive(Debug, Default)]
pub(crate) struct ReadOutcome {
    /// Assignments whose objects may have to change.
    pub(crate) affected: BTreeSet<AssignmentKey>,
    /// Drift: what pods need and somebody else has detached.
    pub(crate) drifted: Vec<ResourceId>,
}

impl Host {
    /// Azure has shown the identities on the host. `client_id` tells what the AzureIdentity of an assignment says.
    pub(crate) fn on_read(
        &mut self,
        now: Instant,
        shown: HostIdentities,
        client_id: impl Fn(&AssignmentKey) -> Option<ClientId>,
    ) -> ReadOutcome {
        let changed = |id: &ResourceId| self.has(id) != Some(shown.user.contains_key(id));
        let affected = users_of_all([&self.demand.wanted, &self.demand.held], changed);
        let drifted = self.demand.wanted.keys();
        let drifted = drifted
            .filter(|id| self.has(id) == Some(true) && !shown.user.contains_key(id))
            .filter(|id| !self.ownership.may_have_detached(id))
            .cloned()
            .collect();
        let is_there = |id: &ResourceId| shown.user.contains_key(id);
        self.ownership.confirm_detaches(now, is_there);
        self.ownership.confirm_record(is_there);
        self.find_mismatches(&shown, client_id);
        let there: Vec<_> = shown.user.keys().cloned().collect();
        self.doubts.suspects.clear(&there);
        self.demand.held.retain(|id, _| shown.user.contains_key(id));
        let observed = &mut self.observed;
        let before = observed.identities.as_ref();
        let is_same = before.is_some_and(|before| before.user.keys().eq(shown.user.keys()));
        observed.unchanged_reads = if is_same {
            observed.unchanged_reads.saturating_add(1)
        } else {
            0
        };
        observed.identities = Some(Arc::new(shown));
        observed.read_at = Some(now);
        observed.is_fresh = true;
        self.trouble = self.trouble.take().filter(|t| !t.ends_with_read);
        ReadOutcome { affected, drifted }
    }

    fn find_mismatches(
        &mut self,
        shown: &HostIdentities,
        client_id: impl Fn(&AssignmentKey) -> Option<ClientId>,
    ) {
        let wanted = &self.demand.wanted;
        let mismatched = &mut self.doubts.mismatched;
        mismatched.retain(|id| wanted.contains_key(id));
        for (id, users) in wanted {
            let Some(Some(shown)) = shown.user.get(id) else {
                continue;
            };
            let mut specified = users.iter().filter_map(&client_id);
            if specified.any(|specified| specified != *shown) {
                mismatched.insert(id.clone());
            }
        }
    }

    /// Azure was asked for the client id of an identity that is attached under another one than its AzureIdentity says. The answer
    /// is `Some(None)` when there is no such identity, `None` when Azure gave no answer. Returns the assignments whose
    /// AzureIdentity may need another condition.
    pub(crate) fn on_verified(
        &mut self,
        id: &ResourceId,
        answer: Option<&Option<ClientId>>,
    ) -> BTreeSet<AssignmentKey> {
        self.doubts.mismatched.remove(id);
        if let (Some(Some(real)), Some(shown)) = (answer, self.shown_client_id(id))
            && real != shown
        {
            self.doubts.dead.insert(id.clone());
        }
        self.users_of(id).cloned().collect()
    }

    /// The ownership record says this now.
    pub(crate) fn on_recorded(&mut self, owned: Owned) {
        self.ownership.on_recorded(owned);
    }

    /// The ownership record says something else: another leader attached that, too, and may have changed more.
    pub(crate) fn adopt_foreign_record(&mut self, theirs: Owned) {
        self.ownership.adopt_foreign_record(theirs);
        self.observed.read_at = None;
    }

    /// Azure has carried a change out, and the host has this version (etag) now. Returns the assignments whose objects may have to
    /// change.
    pub(crate) fn on_patched(
        &mut self,
        change: &HostChange,
        version: Option<String>,
    ) -> BTreeSet<AssignmentKey> {
        let mut affected = BTreeSet::new();
        self.trouble = None;
        self.observed.unchanged_reads = 0;
        let ids = change.attach.iter().chain(&change.detach);
        self.ownership.on_patched(ids);
        self.doubts.suspects.on_accepted(&change.attach);
        let Some(seen) = self.observed.identities.as_mut().map(Arc::make_mut) else {
            return affected;
        };
        seen.etag = version;
        self.observed.is_fresh = false;
        for id in &change.attach {
            let client_id = self.ownership.owned.get(id).cloned().flatten();
            seen.user.insert(id.clone(), client_id);
        }
        for id in &change.detach {
            seen.user.remove(id);
            affected.extend(self.demand.held.remove(id).into_iter().flatten());
        }
        self.ownership.forget(&change.detach);
        for id in change.attach.iter().chain(&change.detach) {
            affected.extend(self.users_of(id).cloned());
        }
        affected
    }
}

/// The assignments that these need identities for which `is_meant` holds.
pub(super) fn users_of_all<const N: usize>(
    all: [&Users; N],
    is_meant: impl Fn(&ResourceId) -> bool,
) -> BTreeSet<AssignmentKey> {
    let all = all.into_iter().flatten();
    let meant = all.filter(|(id, _)| is_meant(id));
    meant.flat_map(|(_, users)| users).cloned().collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use podid_policy::facts::ObjectKey;
    use rstest::rstest;

    use super::*;
    use crate::config::Config;
    use crate::host::cloud::Fault;
    use crate::host::quarantine::Quarantine;
    use crate::testing::azure::fault;
    use crate::testing::{host, id};

    /// podid's detach fails at second 0 while a pod needs the identity again. Reads at these seconds show it; the read at the last second
    /// does not.
    #[rstest]
    #[case::the_next_read(true, &[], 10, false)]
    #[case::a_later_read(true, &[10], 190, false)]
    #[case::a_read_long_after_the_last_one(true, &[10], 6000, false)]
    #[case::the_operation_must_be_over(true, &[10, 3600], 3800, true)]
    #[case::it_was_never_made(false, &[], 10, true)]
    fn a_missing_identity_is_drift_unless_podid_may_have_detached_it(
        #[case] outcome_unknown: bool,
        #[case] shown: &[u64],
        #[case] gone: u64,
        #[case] is_drift: bool,
    ) {
        let start = Instant::now();
        let at = |second: u64| start + Duration::from_secs(second);
        let (mut host, mut quarantine) = (Host::new(Arc::new(host(1))), Quarantine::default());
        let who = AssignmentKey {
            pod: ObjectKey::new("ns", "pod"),
            identity: "id1".into(),
        };
        host.want(&id(1), who, start);
        let there = || HostIdentities {
            user: [(id(1), None)].into(),
            ..HostIdentities::default()
        };
        host.on_read(start, there(), |_| None);
        let change = HostChange {
            attach: Vec::new(),
            detach: vec![id(1)],
        };
        let mut error = fault(Fault::Unavailable, None);
        error.outcome_unknown = outcome_unknown;
        let config = Config::new("mic", "system");
        host.on_failed(start, &config, &error, Some(&change), &mut quarantine);
        for second in shown {
            let outcome = host.on_read(at(*second), there(), |_| None);
            assert_eq!(outcome.drifted, []);
        }
        let outcome = host.on_read(at(gone), HostIdentities::default(), |_| None);
        assert_eq!(outcome.drifted == [id(1)], is_drift);
    }
}
