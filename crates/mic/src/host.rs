//! What is known of one virtual machine or scale set, and what to do there next.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use podid_policy::desired::AssignmentKey;
use podid_policy::ids::{ClientId, HostKey, ResourceId};
use podid_policy::plan::{HostView, Plan, plan};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::config::Config;
use crate::hosts::{Fault, HostChange, HostError, MAX_CHANGE, OnHost};
use crate::quarantine::Quarantine;

/// Changes wait for quiet at most this many times the settle time.
const SETTLE_MOST: u32 = 8;
/// Azure takes 12 changes of a host in a burst and then 4 a minute: the more changes this span has seen, the longer the next
/// waits for company.
const BURST: Duration = Duration::from_secs(60);
const LONGEST_SETTLE: Duration = Duration::from_secs(15);
/// The longest wait after a failure, in units of the retry interval.
const LONGEST: u32 = 300;

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
    pub(crate) seen: Option<OnHost>,
    /// What podid attached, and as the record of it says.
    pub(crate) owned: Owned,
    pub(crate) recorded: Owned,
    pub(crate) quarantine: Quarantine,
    pub(crate) wake: Arc<Notify>,
    left: BTreeMap<ResourceId, Instant>,
    looked: Option<Instant>,
    /// Whether `seen` was read after the last change.
    fresh: bool,
    unsettled: Option<(Instant, Instant)>,
    /// When the host was changed lately.
    recent: Vec<Instant>,
    trouble: Option<Trouble>,
}

/// Why nothing is done on the host for a while.
struct Trouble {
    until: Instant,
    attempts: u32,
    text: String,
    /// Whether it was met while looking, so that a look that succeeds ends it.
    looking: bool,
}

/// What to do next on a host.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Move {
    /// Nothing, until then or until something changes.
    Wait(Option<Instant>),
    /// Ask Azure what is there.
    Look,
    /// Write down what podid attached.
    Record(Owned),
    /// Change the host; what will be ours is recorded already.
    Change(OnHost, HostChange),
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
            quarantine: Quarantine::default(),
            wake: Arc::default(),
            left: BTreeMap::new(),
            looked: None,
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
            self.unsettled = Some((self.unsettled.map_or(now, |(first, _)| first), now));
        }
        users.insert(who);
        self.wake.notify_one();
    }

    /// A pod needs it no longer.
    pub(crate) fn unwant(&mut self, id: &ResourceId, who: &AssignmentKey, now: Instant) {
        let Some(users) = self.wanted.get_mut(id) else {
            return;
        };
        users.remove(who);
        if users.is_empty() {
            self.wanted.remove(id);
            self.left.insert(id.clone(), now);
            self.wake.notify_one();
        }
    }

    /// Whether Azure shows the identity; `None` while that is not known.
    pub(crate) fn has(&self, id: &ResourceId) -> Option<bool> {
        Some(self.seen.as_ref()?.user.contains_key(id))
    }

    /// Why the identity is not there yet, for a person.
    pub(crate) fn reason(&self, id: &ResourceId) -> Option<&str> {
        self.quarantine
            .reason(id)
            .or_else(|| self.trouble.as_ref().map(|t| t.text.as_str()))
    }

    /// Whether podid is going to detach the identity, so that objects that show it must wait.
    pub(crate) fn will_detach(&self, id: &ResourceId, immutable: &BTreeSet<ClientId>) -> bool {
        self.owned.contains_key(id)
            && !self.wanted.contains_key(id)
            && self.has(id) != Some(false)
            && !self.is_immutable(id, immutable)
    }

    /// What was known of Azure may no longer be so: another led meanwhile.
    pub(crate) fn doubt(&mut self) {
        self.seen = None;
        self.looked = None;
        self.trouble = None;
        self.quarantine = Quarantine::default();
        self.wake.notify_one();
    }

    /// Decides what to do next. `client_id` tells a wanted identity's.
    pub(crate) fn next_move(
        &mut self,
        now: Instant,
        config: &Config,
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
        let next_look = self.looked.map(|at| at + config.reconcile_interval);
        let next_look = next_look.filter(|at| *at > now);
        let (Some(seen), Some(next_look)) = (self.seen.clone(), next_look) else {
            return Move::Look;
        };
        let quiet = self.quiet_from(now, config.settle);
        if let Some(quiet) = quiet.filter(|at| *at > now) {
            return Move::Wait(Some(quiet));
        }
        let plan = self.plan(&seen, now, config);
        for id in &plan.forget {
            self.owned.remove(id);
        }
        let linger_ends = plan.next_due().map(|rest| now + rest);
        if let Some(change) = self.change(&seen, plan, now) {
            let empties = change.attach.is_empty() && change.detach.len() == seen.user.len();
            if empties && !self.fresh {
                return Move::Look;
            }
            for id in &change.attach {
                let user = self.wanted.get(id).and_then(BTreeSet::first);
                self.owned.insert(id.clone(), user.and_then(&client_id));
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
        let due = [Some(next_look), linger_ends, self.quarantine.due()];
        Move::Wait(due.into_iter().flatten().min())
    }

    /// When what has changed may be sent.
    fn quiet_from(&mut self, now: Instant, settle: Duration) -> Option<Instant> {
        self.recent.retain(|at| *at + BURST > now);
        let (first, last) = self.unsettled?;
        let crowd = u32::try_from(self.recent.len()).unwrap_or(u32::MAX);
        let settle = settle * crowd.saturating_add(1).min(100);
        let most = (settle * SETTLE_MOST).min(LONGEST_SETTLE);
        Some((last + settle).min(first + most))
    }

    fn plan(&mut self, seen: &OnHost, now: Instant, config: &Config) -> Plan {
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

    fn change(&mut self, seen: &OnHost, plan: Plan, now: Instant) -> Option<HostChange> {
        let mut detach = plan.detach;
        detach.truncate(MAX_CHANGE);
        let batch = self.quarantine.choose(&plan.attach, now);
        let mut attach = batch.ids;
        if !batch.clean && !detach.is_empty() {
            attach.clear();
        }
        attach.truncate(MAX_CHANGE - detach.len());
        attach.retain(|id| !seen.user.contains_key(id));
        (!attach.is_empty() || !detach.is_empty()).then_some(HostChange { attach, detach })
    }

    fn is_immutable(&self, id: &ResourceId, immutable: &BTreeSet<ClientId>) -> bool {
        let shown = self.seen.as_ref().and_then(|seen| seen.user.get(id));
        [shown, self.owned.get(id)]
            .into_iter()
            .flatten()
            .flatten()
            .any(|client| immutable.contains(client))
    }

    /// Azure told what is there. Returns whose objects may have to change.
    pub(crate) fn looked(&mut self, now: Instant, shown: OnHost) -> BTreeSet<AssignmentKey> {
        let changed = |id: &ResourceId| {
            let before = self.has(id);
            before != Some(shown.user.contains_key(id))
        };
        let of = |users: &BTreeMap<ResourceId, BTreeSet<AssignmentKey>>| {
            let touched = users.iter().filter(|(id, _)| changed(id));
            touched.flat_map(|(_, who)| who.clone()).collect::<Vec<_>>()
        };
        let touched = [of(&self.wanted), of(&self.held)].concat();
        let there: Vec<_> = shown.user.keys().cloned().collect();
        self.quarantine.passed(&there);
        self.held.retain(|id, _| shown.user.contains_key(id));
        self.seen = Some(shown);
        self.looked = Some(now);
        self.fresh = true;
        self.trouble = self.trouble.take().filter(|trouble| !trouble.looking);
        touched.into_iter().collect()
    }

    /// The record of what podid attached says this now.
    pub(crate) fn recorded(&mut self, owned: Owned) {
        self.recorded = owned;
    }

    /// Azure carried the change out. Returns whose objects may have to change.
    pub(crate) fn changed(&mut self, change: &HostChange) -> BTreeSet<AssignmentKey> {
        let mut touched = BTreeSet::new();
        self.trouble = None;
        self.quarantine.passed(&change.attach);
        if let Some(seen) = &mut self.seen {
            seen.etag = None;
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

    /// Something failed; `change` is what was being carried out. Returns the identities that are kept apart from now on and
    /// whose objects may have to change.
    pub(crate) fn failed(
        &mut self,
        now: Instant,
        config: &Config,
        error: &HostError,
        change: Option<&HostChange>,
    ) -> (Vec<ResourceId>, BTreeSet<AssignmentKey>) {
        let batch = change.map_or(&[][..], |change| &change.attach);
        let (mut apart, mut ids) = (Vec::new(), Vec::new());
        if error.fault == Fault::Identity && !batch.is_empty() {
            let unit = config.retry_interval;
            let named = &error.identities;
            apart = self
                .quarantine
                .refused(batch, named, &error.text, now, unit);
            for id in &apart {
                self.owned.remove(id);
            }
        } else {
            if error.fault == Fault::NoHost {
                self.seen = None;
                self.owned.clear();
            } else if change.is_some() {
                self.looked = None;
            }
            if self.pause(now, config, error, change.is_none()) {
                ids.extend(self.wanted.keys().chain(self.held.keys()).cloned());
            }
        }
        ids.extend(apart.iter().cloned());
        let users = |of: &BTreeMap<ResourceId, BTreeSet<AssignmentKey>>| {
            let found = ids.iter().filter_map(|id| of.get(id));
            found.flatten().cloned().collect::<Vec<_>>()
        };
        let touched = [users(&self.wanted), users(&self.held)].concat();
        (apart, touched.into_iter().collect())
    }

    /// Says whether the reason that people are told is another one than before.
    fn pause(&mut self, now: Instant, config: &Config, error: &HostError, looking: bool) -> bool {
        let text = match error.fault {
            Fault::Forbidden | Fault::NoHost | Fault::Identity => error.text.clone(),
            fault => format!("{} for {}; retried", fault.name(), self.key),
        };
        let news = self
            .trouble
            .as_ref()
            .is_none_or(|trouble| trouble.text != text);
        let attempts = self.trouble.as_ref().map_or(0, |t| t.attempts) + 1;
        let wait = config.retry_interval * (1u32 << (attempts - 1).min(16)).min(LONGEST);
        self.trouble = Some(Trouble {
            until: now + wait.max(error.retry_after.unwrap_or_default()),
            attempts,
            text,
            looking,
        });
        news
    }
}
