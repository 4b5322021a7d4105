//! The outcome of an action that went well: what a read, an answer, a record or a PATCH changes in what is known of the host.
//!
//! The host's worker ([`super::worker`]) calls these after it has carried out an [`Action`](super::Action). They guard drift
//! detection: a read that misses what podid attached and a pod needs is drift, which somebody else has caused.

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
            .cloned()
            .collect();
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
        self.ownership.confirm_claims();
        self.doubts.suspects.clear(&change.attach);
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
