//! What is known of one virtual machine or scale set, and what to do there next.

pub mod cloud;
pub(crate) mod ownership;
pub(crate) mod quarantine;
pub(crate) mod worker;

mod failing;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use podid_policy::desired::AssignmentKey;
use podid_policy::ids::{ClientId, HostKey, ResourceId};
use podid_policy::plan::{HostView, Plan, plan};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::config::Config;
use crate::host::cloud::{Fault, HostChange, HostIdentities, MAX_CHANGE};
use crate::host::quarantine::{Quarantine, Suspects};

/// Changes wait for quiet at most this many times the settle time.
const MAX_SETTLE_FACTOR: u32 = 8;
/// Azure takes 12 changes of a host in a burst and then 4 a minute: the more changes this span has seen, the longer the next
/// waits for company.
const BURST_WINDOW: Duration = Duration::from_secs(60);
const MAX_SETTLE: Duration = Duration::from_secs(15);
/// The longest wait after a failure, in units of the retry interval.
const MAX_BACKOFF: u32 = 300;
/// What is about to be called podid's own must not have been there so long before.
const MAX_READ_AGE: Duration = Duration::from_secs(30);
/// After this many failures in a row people are told.
pub(crate) const REPORT_AFTER: u32 = 3;
/// A host where nothing differs is read ever less often, down to once in this many reconcile intervals.
const MAX_INTERVAL_FACTOR: u32 = 10;

/// The identities that podid attached to a host, with their client ids.
pub(crate) type Owned = BTreeMap<ResourceId, Option<ClientId>>;

/// One host.
pub(crate) struct Host {
    pub(crate) key: Arc<HostKey>,
    /// Who needs what.
    pub(crate) wanted: BTreeMap<ResourceId, BTreeSet<AssignmentKey>>,
    /// Whose objects wait until an identity has left the host.
    pub(crate) held: BTreeMap<ResourceId, BTreeSet<AssignmentKey>>,
    /// What Azure shows; `None` until it has been asked.
    pub(crate) seen: Option<Arc<HostIdentities>>,
    /// What podid attached, and as the record of it says.
    pub(crate) owned: Owned,
    pub(crate) recorded: Owned,
    /// What is called owned for the first time because of the change that is about to be made.
    claimed: BTreeSet<ResourceId>,
    pub(crate) wake: Arc<Notify>,
    /// Since when each wanted identity is wanted, and each unwanted one is not.
    since: BTreeMap<ResourceId, Instant>,
    left: BTreeMap<ResourceId, Instant>,
    suspects: Suspects,
    /// On the host under another client id than its AzureIdentity says: Azure must be asked which is right.
    doubtful: BTreeSet<ResourceId>,
    /// On the host and dead: they were deleted, and must leave it before one of the same name can come.
    spoilt: BTreeSet<ResourceId>,
    looked: Option<Instant>,
    /// How many looks in a row have shown nothing new.
    calm: u32,
    /// Whether `seen` was read after the last change.
    fresh: bool,
    unsettled: Option<(Instant, Instant)>,
    /// When the host was changed lately.
    recent: Vec<Instant>,
    pub(crate) trouble: Option<Trouble>,
}

/// Why nothing is done on the host for a while.
pub(crate) struct Trouble {
    until: Instant,
    pub(crate) attempts: u32,
    pub(crate) fault: Fault,
    pub(crate) text: String,
    /// Whether it was met while looking, so that a look that succeeds ends it.
    looking: bool,
}

/// What a look at a host has shown.
#[derive(Debug, Default)]
pub(crate) struct Looked {
    /// Whose objects may have to change.
    pub(crate) touched: BTreeSet<AssignmentKey>,
    /// What pods need and somebody else has detached.
    pub(crate) drifted: Vec<ResourceId>,
}

/// What a failure leads to.
#[derive(Debug, Default)]
pub(crate) struct Failure {
    /// The identities that Azure refuses.
    pub(crate) apart: Vec<ResourceId>,
    /// Whose objects may have to change.
    pub(crate) touched: BTreeSet<AssignmentKey>,
}

/// What to do next on a host.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Move {
    /// Nothing, until then or until something changes.
    Wait(Option<Instant>),
    /// Ask Azure what is there.
    Look,
    /// Ask Azure for the client id of an identity.
    Verify(ResourceId),
    /// Write down what podid attached.
    Record(Owned),
    /// Change the host; what will be ours is recorded already.
    Change(Arc<HostIdentities>, HostChange),
    /// Forget the host: nothing of ours is there and no pod needs it.
    Retire,
}

impl Host {
    pub(crate) fn new(key: Arc<HostKey>) -> Self {
        Self {
            key,
            wanted: BTreeMap::new(),
            held: BTreeMap::new(),
            seen: None,
            owned: Owned::new(),
            recorded: Owned::new(),
            claimed: BTreeSet::new(),
            wake: Arc::default(),
            since: BTreeMap::new(),
            left: BTreeMap::new(),
            suspects: Suspects::default(),
            doubtful: BTreeSet::new(),
            spoilt: BTreeSet::new(),
            looked: None,
            calm: 0,
            fresh: false,
            unsettled: None,
            recent: Vec::new(),
            trouble: None,
        }
    }

    /// A pod needs an identity here.
    pub(crate) fn want(&mut self, id: &ResourceId, who: AssignmentKey, now: Instant) {
        self.left.remove(id);
        let users = self.wanted.entry(id.clone()).or_default();
        if users.is_empty() {
            self.since.insert(id.clone(), now);
            self.unsettled = Some((self.unsettled.map_or(now, |(first, _)| first), now));
            // To a host that has an identity, one more pod that needs it is no news.
            self.wake.notify_one();
        }
        users.insert(who);
    }

    /// A pod needs it no longer.
    pub(crate) fn unwant(&mut self, id: &ResourceId, who: &AssignmentKey, now: Instant) {
        let Some(users) = self.wanted.get_mut(id) else {
            return;
        };
        users.remove(who);
        if users.is_empty() {
            self.wanted.remove(id);
            self.since.remove(id);
            self.left.insert(id.clone(), now);
            self.wake.notify_one();
        }
    }

    /// Whether Azure shows the identity; `None` while that is not known.
    pub(crate) fn has(&self, id: &ResourceId) -> Option<bool> {
        Some(self.seen.as_ref()?.user.contains_key(id))
    }

    /// How long the identity that has been missing longest is wanted.
    pub(crate) fn lag(&self, now: Instant) -> Option<Duration> {
        let missing = |id: &ResourceId| self.has(id) != Some(true);
        let since = self.since.iter().filter(|(id, _)| missing(id));
        since.map(|(_, at)| now - *at).max()
    }

    /// Whether podid is going to detach the identity, so that objects that show it must wait.
    pub(crate) fn will_detach(&self, id: &ResourceId, immutable: &BTreeSet<ClientId>) -> bool {
        self.owned.contains_key(id)
            && !self.wanted.contains_key(id)
            && self.has(id) != Some(false)
            && !self.is_immutable(id, immutable)
    }

    /// What was known of Azure may no longer be so: another led meanwhile.
    pub(crate) fn invalidate(&mut self) {
        self.seen = None;
        self.looked = None;
        self.trouble = None;
        self.suspects = Suspects::default();
        self.doubtful.clear();
        self.spoilt.clear();
        self.wake.notify_one();
    }

    /// What podid attached and no pod wants any more.
    pub(crate) fn leaving(&self) -> Vec<ResourceId> {
        let owned = self.owned.keys();
        owned
            .filter(|id| !self.wanted.contains_key(*id))
            .cloned()
            .collect()
    }

    /// The identity lingers from now on again.
    pub(crate) fn linger_anew(&mut self, id: ResourceId, now: Instant) {
        self.left.insert(id, now);
    }

    /// Decides what to do next. `client_id` tells a wanted identity's.
    pub(crate) fn next_move(
        &mut self,
        now: Instant,
        config: &Config,
        quarantine: &mut Quarantine,
        client_id: impl Fn(&AssignmentKey) -> Option<ClientId>,
    ) -> Move {
        if self.wanted.is_empty() && self.owned.is_empty() && self.recorded.is_empty() {
            return Move::Retire;
        }
        if self.wanted.is_empty() && self.owned.is_empty() {
            return Move::Record(Owned::new());
        }
        if let Some(trouble) = self.trouble.as_ref().filter(|t| t.until > now) {
            return Move::Wait(Some(trouble.until));
        }
        let patience = (1 << self.calm.min(16)).min(MAX_INTERVAL_FACTOR);
        let next_look = self
            .looked
            .map(|at| at + config.reconcile_interval * patience);
        let next_look = next_look.filter(|at| *at > now);
        let (Some(seen), Some(next_look)) = (self.seen.clone(), next_look) else {
            return Move::Look;
        };
        self.doubtful.retain(|id| self.wanted.contains_key(id));
        if let Some(id) = self.doubtful.first() {
            return Move::Verify(id.clone());
        }
        let quiet = self.quiet_from(now, config.settle);
        if let Some(quiet) = quiet.filter(|at| *at > now) {
            return Move::Wait(Some(quiet));
        }
        let plan = self.plan(&seen, now, config);
        for id in &plan.forget {
            self.owned.remove(id);
        }
        let linger_ends = plan.next_due().map(|rest| now + rest);
        if let Some(change) = self.change(&seen, plan, now, config, quarantine) {
            let stale = self.looked.is_none_or(|at| at + MAX_READ_AGE < now);
            if (seen.etag.is_none() && !self.fresh) || (stale && !change.attach.is_empty()) {
                return Move::Look;
            }
            for id in &change.attach {
                let user = self.wanted.get(id).and_then(BTreeSet::first);
                let client = user.and_then(&client_id);
                if self.owned.insert(id.clone(), client).is_none() {
                    self.claimed.insert(id.clone());
                }
            }
            if self.owned != self.recorded {
                return Move::Record(self.owned.clone());
            }
            self.unsettled = None;
            self.recent.push(now);
            return Move::Change(seen, change);
        }
        self.unsettled = None;
        if self.owned != self.recorded {
            return Move::Record(self.owned.clone());
        }
        self.trouble = None;
        let missing = self.wanted.keys().filter(|id| !seen.user.contains_key(id));
        let refused = quarantine.due(missing);
        let due = [Some(next_look), linger_ends, refused];
        Move::Wait(due.into_iter().flatten().min())
    }

    /// When what has changed may be sent.
    fn quiet_from(&mut self, now: Instant, settle: Duration) -> Option<Instant> {
        self.recent.retain(|at| *at + BURST_WINDOW > now);
        let (first, last) = self.unsettled?;
        let crowd = u32::try_from(self.recent.len()).unwrap_or(u32::MAX);
        let settle = settle * crowd.saturating_add(1).min(100);
        let most = (settle * MAX_SETTLE_FACTOR).min(MAX_SETTLE);
        Some((last + settle).min(first + most))
    }

    fn plan(&mut self, seen: &HostIdentities, now: Instant, config: &Config) -> Plan {
        let wanted = self.wanted.keys().cloned().collect();
        let observed: BTreeSet<_> = seen.user.keys().cloned().collect();
        let owned: BTreeSet<_> = self.owned.keys().cloned().collect();
        let immutable = owned
            .iter()
            .filter(|id| self.is_immutable(id, &config.immutable))
            .cloned()
            .collect();
        for id in &owned {
            if !self.wanted.contains_key(id) {
                self.left.entry(id.clone()).or_insert(now);
            }
        }
        self.left.retain(|id, _| owned.contains(id));
        let view = HostView {
            wanted: &wanted,
            observed: &observed,
            owned: &owned,
            immutable: &immutable,
        };
        let waited = |id: &ResourceId| self.left.get(id).map_or(Duration::ZERO, |at| now - *at);
        plan(view, waited, config.linger)
    }

    fn change(
        &mut self,
        seen: &HostIdentities,
        plan: Plan,
        now: Instant,
        config: &Config,
        quarantine: &mut Quarantine,
    ) -> Option<HostChange> {
        let (there, ours) = (&seen.user, &self.owned);
        self.spoilt
            .retain(|id| there.contains_key(id) && ours.contains_key(id));
        let dead: Vec<ResourceId> = self
            .spoilt
            .iter()
            .filter(|id| !self.is_immutable(id, &config.immutable))
            .take(MAX_CHANGE)
            .cloned()
            .collect();
        if !dead.is_empty() {
            return Some(HostChange {
                attach: Vec::new(),
                detach: dead,
            });
        }
        let mut detach = plan.detach;
        detach.truncate(MAX_CHANGE);
        let mut attach = self.choose(plan.attach, !detach.is_empty(), now, quarantine);
        attach.truncate(MAX_CHANGE - detach.len());
        (!attach.is_empty() || !detach.is_empty()).then_some(HostChange { attach, detach })
    }

    /// Of what is to be attached, what to try now: all that nothing speaks against; else, when nothing is to go with it, a
    /// suspect batch, or a refused identity whose turn it is.
    fn choose(
        &mut self,
        missing: Vec<ResourceId>,
        in_company: bool,
        now: Instant,
        quarantine: &mut Quarantine,
    ) -> Vec<ResourceId> {
        self.suspects
            .retain(|id| missing.contains(id) && !quarantine.contains(id));
        let (doubted, clean): (Vec<_>, Vec<_>) = missing
            .into_iter()
            .partition(|id| quarantine.contains(id) || self.suspects.contains(id));
        if !clean.is_empty() || in_company {
            return clean;
        }
        match self.suspects.next_batch() {
            Some(batch) => batch.iter().cloned().collect(),
            None => {
                let turn = quarantine.turn(&self.key, doubted.iter(), now);
                turn.into_iter().collect()
            }
        }
    }

    fn is_immutable(&self, id: &ResourceId, immutable: &BTreeSet<ClientId>) -> bool {
        let shown = self.seen.as_ref().and_then(|seen| seen.user.get(id));
        [shown, self.owned.get(id)]
            .into_iter()
            .flatten()
            .flatten()
            .any(|client| immutable.contains(client))
    }

    /// Azure told what is there. `client_id` tells a wanted identity's.
    pub(crate) fn looked(
        &mut self,
        now: Instant,
        shown: HostIdentities,
        client_id: impl Fn(&AssignmentKey) -> Option<ClientId>,
    ) -> Looked {
        let changed = |id: &ResourceId| {
            let before = self.has(id);
            before != Some(shown.user.contains_key(id))
        };
        let of = |users: &BTreeMap<ResourceId, BTreeSet<AssignmentKey>>| {
            let touched = users.iter().filter(|(id, _)| changed(id));
            touched.flat_map(|(_, who)| who.clone()).collect::<Vec<_>>()
        };
        let touched = [of(&self.wanted), of(&self.held)].concat();
        let drifted = self.wanted.keys().filter(|id| {
            let there = shown.user.contains_key(id);
            self.has(id) == Some(true) && !there
        });
        let drifted: Vec<ResourceId> = drifted.cloned().collect();
        for (id, users) in &self.wanted {
            let Some(Some(shown)) = shown.user.get(id) else {
                continue;
            };
            let said = users.iter().filter_map(&client_id);
            if said.into_iter().any(|client| client != *shown) {
                self.doubtful.insert(id.clone());
            }
        }
        let there: Vec<_> = shown.user.keys().cloned().collect();
        self.suspects.clear(&there);
        self.held.retain(|id, _| shown.user.contains_key(id));
        let same = self
            .seen
            .as_ref()
            .is_some_and(|seen| seen.user.keys().eq(shown.user.keys()));
        self.calm = if same { self.calm.saturating_add(1) } else { 0 };
        self.seen = Some(Arc::new(shown));
        self.looked = Some(now);
        self.fresh = true;
        self.trouble = self.trouble.take().filter(|trouble| !trouble.looking);
        Looked {
            touched: touched.into_iter().collect(),
            drifted,
        }
    }

    /// The object of an identity was edited and says this client id now.
    pub(crate) fn compare(&mut self, id: &ResourceId, client: &ClientId) {
        let shown = self.seen.as_ref().and_then(|seen| seen.user.get(id));
        if self.wanted.contains_key(id) && matches!(shown, Some(Some(shown)) if shown != client) {
            self.doubtful.insert(id.clone());
            self.wake.notify_one();
        }
    }

    /// Azure told the client id of a doubtful identity: `None` when there is no such identity, and nothing where it would not
    /// say. Returns whose identity may have another condition.
    pub(crate) fn verified(
        &mut self,
        id: &ResourceId,
        truth: Option<&Option<ClientId>>,
    ) -> BTreeSet<AssignmentKey> {
        self.doubtful.remove(id);
        let shown = self.seen.as_ref().and_then(|seen| seen.user.get(id));
        if let (Some(Some(real)), Some(Some(shown))) = (truth, shown)
            && real != shown
        {
            self.spoilt.insert(id.clone());
        }
        self.wanted.get(id).cloned().unwrap_or_default()
    }

    /// The record of what podid attached says this now.
    pub(crate) fn recorded(&mut self, owned: Owned) {
        self.recorded = owned;
    }

    /// The record says something else: another leader attached that, and may have changed more.
    pub(crate) fn adopt_foreign_record(&mut self, theirs: Owned) {
        for (id, client) in &theirs {
            let ours = self.owned.entry(id.clone());
            ours.or_insert_with(|| client.clone());
            self.claimed.remove(id);
        }
        self.recorded = theirs;
        self.looked = None;
    }

    /// Azure carried the change out; the host has this version now. Returns whose objects may have to change.
    pub(crate) fn changed(
        &mut self,
        change: &HostChange,
        version: Option<String>,
    ) -> BTreeSet<AssignmentKey> {
        let mut touched = BTreeSet::new();
        self.trouble = None;
        self.calm = 0;
        self.claimed.clear();
        self.suspects.clear(&change.attach);
        if let Some(seen) = self.seen.as_mut().map(Arc::make_mut) {
            seen.etag = version;
            self.fresh = false;
            for id in &change.attach {
                let client = self.owned.get(id).cloned().flatten();
                seen.user.insert(id.clone(), client);
                touched.extend(self.wanted.get(id).into_iter().flatten().cloned());
            }
            for id in &change.detach {
                seen.user.remove(id);
                self.owned.remove(id);
                touched.extend(self.held.remove(id).into_iter().flatten());
                touched.extend(self.wanted.get(id).into_iter().flatten().cloned());
            }
        }
        touched
    }
}
