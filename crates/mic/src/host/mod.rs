//! The state machine of one host: what is known of one virtual machine or scale set, and which identities are attached to it or
//! detached from it next.
//!
//! The index ([`crate::index`]) tells a [`Host`] what pods need; its worker ([`worker`]) asks for the next [`Action`], carries it
//! out and tells the host how it went. [`Host::decide`] reads, [`Host::commit`] and the `on_...` methods change. The state machine
//! guards three promises: what others attached is never detached, nothing is attached before the ownership record says so, and one
//! bad identity holds up no other.
//!
//! ```text
//!   want / unwant (pods)        recall (record of the last leader)
//!            │                        │
//!            ▼                        ▼
//!   ┌──► decide + commit ◄────────────────────────────────────────────────────────┐
//!   │        │                                                                    │
//!   │        ├─ not read yet, or read too long ago ─► Read (GET) ── on_read ──────┤
//!   │        ├─ Azure shows another client id ──────► Verify (GET) ─ on_verified ─┤
//!   │        ├─ changes still come (debounce) ──────► Wait                        │
//!   │        │                                                                    │
//!   │      plan: attach, detach, linger, forget                                   │
//!   │        │                                                                    │
//!   │        ├─ record differs from what is owned ──► Record ─────── on_recorded ─┤
//!   │        │                                          └─ written by another ────┤
//!   │        │                                             adopt_foreign_record   │
//!   │        ├─ something to attach or detach ──────► Patch ──────── on_patched ──┘
//!   │        ├─ nothing to do ──────────────────────► Wait (linger, next read, quarantine)
//!   │        └─ nothing wanted, owned or recorded ──► Retire
//!   │
//!   └─ on_failed (Read, Record or Patch failed; see `failing`):
//!        identity refused by name ──► quarantine          outcome unknown ──► read again
//!        batch refused ────────────► bisect               host or Azure ────► back off
//! ```
//!
//! Rooms: [`cloud`] is what is asked of Azure, [`debounce`] when changes are sent, [`decide`] and [`outcome`] the two halves of the
//! state machine, [`failing`] its failure paths, [`ownership`] the record, [`quarantine`] the refused identities, [`worker`] the task.

pub(crate) mod cloud;
pub(crate) mod decide;
pub(crate) mod ownership;
pub(crate) mod quarantine;
pub(crate) mod worker;

mod debounce;
mod failing;
mod outcome;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use podid_policy::desired::AssignmentKey;
use podid_policy::ids::{ClientId, HostKey, ResourceId};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::config::Immutable;
use crate::host::cloud::{Fault, HostIdentities};
use crate::host::debounce::Debounce;
use crate::host::ownership::Ownership;
use crate::host::quarantine::Suspects;

/// After this many failures in a row, Events and conditions report the failure: fewer mend themselves mostly.
pub(crate) const REPORT_AFTER: u32 = 3;

/// One host.
pub(crate) struct Host {
    pub(crate) key: Arc<HostKey>,
    /// Wakes the host's worker.
    pub(crate) wake: Arc<Notify>,
    /// Why nothing is done on the host for a while.
    pub(crate) trouble: Option<Trouble>,
    demand: Demand,
    observed: Observed,
    ownership: Ownership,
    doubts: Doubts,
    debounce: Debounce,
}

/// The assignments that need each identity.
type Users = BTreeMap<ResourceId, BTreeSet<AssignmentKey>>;

/// What pods need on the host.
#[derive(Debug, Default)]
struct Demand {
    /// The assignments that need each identity.
    wanted: Users,
    /// Since when each wanted identity has been wanted.
    wanted_since: BTreeMap<ResourceId, Instant>,
    /// Since when each identity has not been wanted any more: the linger time counts from then.
    unwanted_since: BTreeMap<ResourceId, Instant>,
    /// Assignments of the past whose objects stay until the identity has left the host.
    held: Users,
}

/// What Azure has shown of the host.
#[derive(Debug, Default)]
struct Observed {
    /// The identities on the host; `None` until Azure has shown them.
    identities: Option<Arc<HostIdentities>>,
    /// When the host was read last; `None` when it must be read before it is changed.
    read_at: Option<Instant>,
    /// How many reads in a row have shown the same identities.
    unchanged_reads: u32,
    /// Whether the host was read after the last PATCH, so that a missing version (etag) is no reason to read it again.
    is_fresh: bool,
}

/// Identities that may be bad.
#[derive(Debug, Default)]
struct Doubts {
    /// Batches that Azure refused without naming the bad identity.
    suspects: Suspects,
    /// Attached under another client id than their AzureIdentity says: Azure is asked which one is right.
    mismatched: BTreeSet<ResourceId>,
    /// Attached and deleted since: each must leave the host before a new identity of the same name can come.
    dead: BTreeSet<ResourceId>,
}

/// The back-off after a failure.
#[derive(Debug)]
pub(crate) struct Trouble {
    /// When the next attempt may be made.
    until: Instant,
    /// How many attempts have failed in a row.
    pub(crate) attempts: u32,
    pub(crate) fault: Fault,
    /// What people are told.
    pub(crate) text: String,
    /// Whether a read that succeeds ends it.
    ends_with_read: bool,
}

impl Host {
    /// A host of which nothing is known yet.
    pub(crate) fn new(key: Arc<HostKey>) -> Self {
        Self {
            key,
            wake: Arc::default(),
            trouble: None,
            demand: Demand::default(),
            observed: Observed::default(),
            ownership: Ownership::default(),
            doubts: Doubts::default(),
            debounce: Debounce::default(),
        }
    }

    /// A pod needs an identity here.
    pub(crate) fn want(&mut self, id: &ResourceId, who: AssignmentKey, now: Instant) {
        self.demand.unwanted_since.remove(id);
        if !self.is_wanted(id) {
            self.retry_with_new(now);
        }
        let users = self.demand.wanted.entry(id.clone()).or_default();
        if users.is_empty() {
            self.demand.wanted_since.insert(id.clone(), now);
            self.debounce.on_change(now);
            // One more pod of an identity that is wanted already changes nothing on the host.
            self.wake.notify_one();
        }
        users.insert(who);
    }

    /// A pod does not need an identity any more.
    pub(crate) fn unwant(&mut self, id: &ResourceId, who: &AssignmentKey, now: Instant) {
        let Some(users) = self.demand.wanted.get_mut(id) else {
            return;
        };
        users.remove(who);
        if users.is_empty() {
            self.demand.wanted.remove(id);
            self.demand.wanted_since.remove(id);
            self.demand.unwanted_since.insert(id.clone(), now);
            self.wake.notify_one();
        }
    }

    /// Whether some pod needs the identity here.
    pub(crate) fn is_wanted(&self, id: &ResourceId) -> bool {
        self.demand.wanted.contains_key(id)
    }

    /// The assignments that need the identity here.
    pub(crate) fn users_of(&self, id: &ResourceId) -> impl Iterator<Item = &AssignmentKey> {
        self.demand.wanted.get(id).into_iter().flatten()
    }

    /// The assignments whose identity is not on the host yet.
    pub(crate) fn waiting_users(&self) -> impl Iterator<Item = &AssignmentKey> {
        let missing = |(id, _): &(&ResourceId, _)| self.has(id) != Some(true);
        let waiting = self.demand.wanted.iter().filter(missing);
        waiting.flat_map(|(_, users)| users)
    }

    /// Whether Azure shows the identity on the host; `None` while that is not known.
    pub(crate) fn has(&self, id: &ResourceId) -> Option<bool> {
        let identities = self.observed.identities.as_ref()?;
        Some(identities.user.contains_key(id))
    }

    /// The client id under which Azure shows the identity on the host, where it shows one.
    pub(crate) fn shown_client_id(&self, id: &ResourceId) -> Option<&ClientId> {
        let identities = self.observed.identities.as_ref()?;
        identities.user.get(id)?.as_ref()
    }

    /// How long the identity that has been missing longest has been wanted.
    pub(crate) fn lag(&self, now: Instant) -> Option<Duration> {
        let missing = |id: &ResourceId| self.has(id) != Some(true);
        let since = self.demand.wanted_since.iter();
        let since = since.filter(|(id, _)| missing(id));
        since.map(|(_, at)| now - *at).max()
    }

    /// Whether podid is going to detach the identity, so that objects that show it must wait.
    pub(crate) fn will_detach(&self, id: &ResourceId, immutable: &Immutable) -> bool {
        self.ownership.owned.contains_key(id)
            && !self.is_wanted(id)
            && self.has(id) != Some(false)
            && !self.is_immutable(id, immutable)
    }

    /// The object of this assignment stays until the identity has left the host.
    pub(crate) fn hold_until_detached(&mut self, id: &ResourceId, who: AssignmentKey) {
        self.demand.held.entry(id.clone()).or_default().insert(who);
    }

    /// The ownership record that the last leader left says that podid attached this.
    pub(crate) fn recall(&mut self, owned: Owned) {
        self.ownership.recall(owned);
    }

    /// Forgets what may be outdated because another replica has led meanwhile.
    pub(crate) fn invalidate(&mut self) {
        self.ownership.recall(Owned::new());
        self.observed.identities = None;
        self.observed.read_at = None;
        self.trouble = None;
        self.doubts = Doubts::default();
        self.wake.notify_one();
    }

    /// The object of an identity was edited and says this client id now.
    pub(crate) fn compare_client_id(&mut self, id: &ResourceId, client_id: &ClientId) {
        let shown = self.shown_client_id(id);
        if self.is_wanted(id) && shown.is_some_and(|shown| shown != client_id) {
            self.doubts.mismatched.insert(id.clone());
            self.wake.notify_one();
        }
    }

    /// Whether the identity is never detached, by its ARM id, or by its client id as Azure or the record shows it.
    fn is_immutable(&self, id: &ResourceId, immutable: &Immutable) -> bool {
        let recorded = self.ownership.owned.get(id).and_then(Option::as_ref);
        let known = [self.shown_client_id(id), recorded];
        let mut known = known.into_iter().flatten();
        immutable.resource_ids.contains(id) || known.any(|c| immutable.client_ids.contains(c))
    }
}

pub(crate) use decide::{Action, Surroundings};
pub(crate) use ownership::Owned;
