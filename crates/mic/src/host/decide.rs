//! Reconcile one host: which action comes next, by comparing what pods need with what Azure shows and what podid owns.
//!
//! [`Index::next_action`](crate::index::Index::next_action) calls [`Host::decide`] and then [`Host::commit`] under one lock. The
//! decision is a pure function: it names everything that becomes true with it, down to the turn of a quarantined identity, and the
//! commit applies that. [`super`] draws the whole state machine.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use podid_policy::desired::AssignmentKey;
use podid_policy::ids::{ClientId, ResourceId};
use podid_policy::plan::{HostView, Leave, Plan, plan};
use tokio::time::Instant;

use super::{Demand, Host};
use crate::config::Config;
use crate::host::cloud::{HostChange, HostIdentities, MAX_CHANGE};
use crate::host::ownership::Owned;
use crate::host::quarantine::{Quarantine, Suspects};

/// A host is read again before an identity is attached when the last read is older than this many seconds: what somebody else
/// attached since must not be taken for podid's own.
const MAX_READ_AGE: Duration = Duration::from_secs(30);
/// A host where nothing changes is read ever less often, down to once in this many reconcile intervals: reads are limited per
/// subscription.
const MAX_INTERVAL_FACTOR: u32 = 10;
/// An identity that may be needed stays at least 5 seconds longer, even where the linger time is zero.
const MIN_RESTARTED_LINGER: Duration = Duration::from_secs(5);

/// What to do next on a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    /// Do nothing until then, or until the host is woken.
    Wait(Option<Instant>),
    /// Ask Azure which identities are on the host.
    Read,
    /// Ask Azure for the client id of an identity.
    Verify(ResourceId),
    /// Make the ownership record say this.
    Record(Owned),
    /// Attach and detach; the ownership record names already what will be podid's.
    Patch(Arc<HostIdentities>, HostChange),
    /// Forget the host: no pod needs anything there and nothing of podid's is left.
    Retire,
}

/// What a decision depends on besides the host.
pub(crate) struct Surroundings<'a> {
    pub(crate) now: Instant,
    pub(crate) config: &'a Config,
    /// What Azure refuses to attach.
    pub(crate) quarantine: &'a Quarantine,
    /// The client id that the AzureIdentity of an assignment says.
    pub(crate) client_id: &'a dyn Fn(&AssignmentKey) -> Option<ClientId>,
    /// Whether the identity stays for now: a pod whose host is not known needs it, so that it may be needed on this host, or pods on
    /// the host use it by federation that has not been seen to work.
    pub(crate) may_be_needed: &'a dyn Fn(&ResourceId) -> bool,
}

/// The next action and all that becomes true of the host with it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Decision {
    pub(crate) action: Action,
    /// Identities whose linger time starts anew.
    restart_linger: BTreeSet<ResourceId>,
    /// What the plan has shown; `None` when the action was clear without one.
    planned: Option<Planned>,
}

/// What follows from a plan.
#[derive(Debug, Default, PartialEq, Eq)]
struct Planned {
    /// Identities that are not podid's any more: neither wanted nor on the host.
    forget: Vec<ResourceId>,
    /// Deleted identities that are still on the host and podid's.
    dead: BTreeSet<ResourceId>,
    /// Batches that are still under suspicion.
    suspects: Suspects,
    /// The quarantined identity whose turn this host takes.
    turn: Option<ResourceId>,
    /// Identities that are podid's from now on, because they are about to be attached.
    claim: Owned,
    /// Whether the plan is carried out, so that no change is pending any more.
    is_settled: bool,
    /// Whether nothing is left to do, so that earlier failures are over.
    is_done: bool,
}

/// What a plan is made from.
struct Ground<'a> {
    seen: &'a Arc<HostIdentities>,
    /// When the host must be read again.
    next_read: Instant,
}

impl Host {
    /// Decides what to do next and changes nothing.
    pub(crate) fn decide(&self, around: &Surroundings<'_>) -> Decision {
        let unwanted = self.ownership.owned.keys().filter(|id| !self.is_wanted(id));
        let restart_linger = unwanted.filter(|id| (around.may_be_needed)(id));
        let restart_linger = restart_linger.cloned().collect();
        let (action, planned) = match self.ground(around) {
            Ok(ground) => {
                let (action, planned) = self.decide_by_plan(&ground, around, &restart_linger);
                (action, Some(planned))
            }
            Err(action) => (action, None),
        };
        Decision {
            action,
            restart_linger,
            planned,
        }
    }

    /// Applies a decision that was made on the host as it is now, and gives the action to be carried out.
    pub(crate) fn commit(
        &mut self,
        decision: Decision,
        now: Instant,
        quarantine: &mut Quarantine,
    ) -> Action {
        for id in decision.restart_linger {
            self.demand.unwanted_since.insert(id, now);
        }
        if let Some(planned) = decision.planned {
            self.demand.start_linger(&self.ownership.owned, now);
            self.ownership.forget(&planned.forget);
            self.ownership.claim(planned.claim);
            self.doubts.dead = planned.dead;
            self.doubts.suspects = planned.suspects;
            if let Some(id) = &planned.turn {
                quarantine.take_turn(id, &self.key, now);
            }
            if planned.is_settled {
                self.debounce.on_planned();
            }
            if planned.is_done {
                self.trouble = None;
            }
        }
        if matches!(decision.action, Action::Patch(..)) {
            self.debounce.on_patch(now);
        }
        decision.action
    }

    /// What a plan can be made from; else the action that must come before.
    fn ground(&self, around: &Surroundings<'_>) -> Result<Ground<'_>, Action> {
        let now = around.now;
        if self.demand.wanted.is_empty() && self.ownership.owned.is_empty() {
            return Err(if self.ownership.recorded.is_empty() {
                Action::Retire
            } else {
                Action::Record(Owned::new())
            });
        }
        if let Some(trouble) = self.trouble.as_ref().filter(|t| t.until > now) {
            return Err(Action::Wait(Some(trouble.until)));
        }
        let factor = (1 << self.observed.unchanged_reads.min(16)).min(MAX_INTERVAL_FACTOR);
        let interval = around.config.reconcile_interval * factor;
        let next_read = self.observed.read_at.map(|at| at + interval);
        let next_read = next_read.filter(|at| *at > now);
        let (Some(seen), Some(next_read)) = (&self.observed.identities, next_read) else {
            return Err(Action::Read);
        };
        let mut mismatched = self.doubts.mismatched.iter();
        if let Some(id) = mismatched.find(|id| self.is_wanted(id)) {
            return Err(Action::Verify(id.clone()));
        }
        let send_at = self.debounce.send_at(now, around.config.settle);
        match send_at.filter(|at| *at > now) {
            Some(send_at) => Err(Action::Wait(Some(send_at))),
            None => Ok(Ground { seen, next_read }),
        }
    }

    fn decide_by_plan(
        &self,
        ground: &Ground<'_>,
        around: &Surroundings<'_>,
        restart_linger: &BTreeSet<ResourceId>,
    ) -> (Action, Planned) {
        let now = around.now;
        let plan = self.plan(ground.seen, around, restart_linger);
        let linger_ends = plan.next_due().map(|rest| now + rest);
        let (change, mut planned) = self.choose_change(ground.seen, plan, around);
        if let Some(change) = &change {
            if self.must_read_before(change, ground.seen, now) {
                return (Action::Read, planned);
            }
            planned.claim = self.claim_of(change, around);
        }
        let owned = self.owned_after(&planned);
        let is_recorded = self.ownership.is_recorded(&owned);
        planned.is_settled = is_recorded || change.is_none();
        planned.is_done = is_recorded && change.is_none();
        let action = match change {
            _ if !is_recorded => Action::Record(owned.into_owned()),
            Some(change) => Action::Patch(ground.seen.clone(), change),
            None => {
                let missing = self.demand.wanted.keys();
                let missing = missing.filter(|id| !ground.seen.user.contains_key(id));
                let retry = around.quarantine.due(missing);
                let due = [Some(ground.next_read), linger_ends, retry];
                Action::Wait(due.into_iter().flatten().min())
            }
        };
        (action, planned)
    }

    fn plan(
        &self,
        seen: &HostIdentities,
        around: &Surroundings<'_>,
        restart_linger: &BTreeSet<ResourceId>,
    ) -> Plan {
        let wanted = self.demand.wanted.keys().cloned().collect();
        let observed: BTreeSet<_> = seen.user.keys().cloned().collect();
        let owned: BTreeSet<_> = self.ownership.owned.keys().cloned().collect();
        let immutable = owned.iter();
        let immutable = immutable.filter(|id| self.is_immutable(id, &around.config.immutable));
        let immutable = immutable.cloned().collect();
        let view = HostView {
            wanted: &wanted,
            observed: &observed,
            owned: &owned,
            immutable: &immutable,
        };
        let unwanted_for = |id: &ResourceId| match self.demand.unwanted_since.get(id) {
            Some(since) if !restart_linger.contains(id) => around.now - *since,
            _ => Duration::ZERO,
        };
        let mut linger = around.config.linger;
        if !restart_linger.is_empty() {
            linger = linger.max(MIN_RESTARTED_LINGER);
        }
        plan(view, unwanted_for, linger)
    }

    /// Chooses what of the plan goes into one PATCH, if anything does.
    fn choose_change(
        &self,
        seen: &HostIdentities,
        plan: Plan,
        around: &Surroundings<'_>,
    ) -> (Option<HostChange>, Planned) {
        let mut forget = plan.forget;
        if around.config.detach_all {
            // What is never detached is not podid's any more, or the ownership record would stay for ever.
            let immutable = |(_, leave): &&(ResourceId, Leave)| *leave == Leave::Immutable;
            forget.extend(
                plan.leave
                    .iter()
                    .filter(immutable)
                    .map(|(id, _)| id.clone()),
            );
        }
        let mut planned = Planned {
            forget,
            dead: self.doubts.dead.clone(),
            suspects: self.doubts.suspects.clone(),
            ..Planned::default()
        };
        let owned = &self.ownership.owned;
        planned
            .dead
            .retain(|id| seen.user.contains_key(id) && owned.contains_key(id));
        let immutable = &around.config.immutable;
        let dead = planned.dead.iter();
        let dead = dead.filter(|id| !self.is_immutable(id, immutable));
        let mut change = HostChange {
            attach: Vec::new(),
            detach: dead.take(MAX_CHANGE).cloned().collect(),
        };
        if change.detach.is_empty() {
            change.detach = plan.detach;
            change.detach.truncate(MAX_CHANGE);
            let is_alone = change.detach.is_empty();
            change.attach = self.choose_attach(plan.attach, is_alone, around, &mut planned);
            change.attach.truncate(MAX_CHANGE - change.detach.len());
        }
        let is_empty = change.attach.is_empty() && change.detach.is_empty();
        ((!is_empty).then_some(change), planned)
    }

    /// Of the missing identities, those to attach now: all that are not suspect; else, where nothing is detached with them, the next
    /// batch of the bisection, or a quarantined identity whose turn it is.
    fn choose_attach(
        &self,
        missing: Vec<ResourceId>,
        is_alone: bool,
        around: &Surroundings<'_>,
        planned: &mut Planned,
    ) -> Vec<ResourceId> {
        let quarantine = around.quarantine;
        let suspects = &mut planned.suspects;
        suspects.retain(|id| missing.contains(id) && !quarantine.contains(id));
        let (doubtful, clean): (Vec<_>, Vec<_>) = missing
            .into_iter()
            .partition(|id| quarantine.contains(id) || suspects.contains(id));
        if !clean.is_empty() || !is_alone {
            return clean;
        }
        if let Some(batch) = suspects.next_batch() {
            return batch.iter().cloned().collect();
        }
        planned.turn = quarantine.next_turn(&self.key, doubtful.iter(), around.now);
        planned.turn.iter().cloned().collect()
    }

    /// Whether the host must be read before this change: its version is not known, or the last read is too old to tell what others
    /// attached.
    fn must_read_before(&self, change: &HostChange, seen: &HostIdentities, now: Instant) -> bool {
        let read_at = self.observed.read_at;
        let is_old = read_at.is_none_or(|at| at + MAX_READ_AGE < now);
        let is_version_unknown = seen.etag.is_none() && !self.observed.is_fresh;
        is_version_unknown || (is_old && !change.attach.is_empty())
    }

    /// What a change attaches, with the client ids of the AzureIdentities.
    fn claim_of(&self, change: &HostChange, around: &Surroundings<'_>) -> Owned {
        let attach = change.attach.iter();
        attach
            .map(|id| {
                (
                    id.clone(),
                    self.users_of(id).next().and_then(around.client_id),
                )
            })
            .collect()
    }

    fn owned_after(&self, planned: &Planned) -> Cow<'_, Owned> {
        let mut owned = Cow::Borrowed(&self.ownership.owned);
        if !planned.forget.is_empty() || !planned.claim.is_empty() {
            let owned = owned.to_mut();
            owned.retain(|id, _| !planned.forget.contains(id));
            owned.extend(planned.claim.clone());
        }
        owned
    }
}

impl Demand {
    /// The linger time of what podid owns and no pod wants starts now, unless it has started.
    fn start_linger(&mut self, owned: &Owned, now: Instant) {
        let unwanted = owned.keys().filter(|id| !self.wanted.contains_key(*id));
        for id in unwanted {
            self.unwanted_since.entry(id.clone()).or_insert(now);
        }
        self.unwanted_since.retain(|id, _| owned.contains_key(id));
    }
}

#[cfg(test)]
mod tests;
