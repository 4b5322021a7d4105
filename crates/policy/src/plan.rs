//! What to change on one host: desired, observed and owned in, attach and detach out.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::ids::ResourceId;

/// What is known of one host.
#[derive(Debug, Clone, Copy)]
pub struct HostView<'a> {
    /// The identities that pods on the host must be able to use.
    pub wanted: &'a BTreeSet<ResourceId>,
    /// The identities that Azure shows on the host.
    pub observed: &'a BTreeSet<ResourceId>,
    /// Those that podid attached.
    pub owned: &'a BTreeSet<ResourceId>,
    /// Those that must never be detached.
    pub immutable: &'a BTreeSet<ResourceId>,
}

/// Why an identity that no pod wants stays on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leave {
    /// podid did not attach it.
    NotOurs,
    /// It is on the list of identities that are never detached.
    Immutable,
    /// A pod may want it again soon; the rest of the wait.
    Lingering(Duration),
}

/// What to do on one host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// To be attached.
    pub attach: Vec<ResourceId>,
    /// To be detached, in Azure's own spelling.
    pub detach: Vec<ResourceId>,
    /// Unwanted, and why each stays.
    pub leave: Vec<(ResourceId, Leave)>,
    /// Owned, but neither wanted nor there any more: somebody else detached them.
    pub forget: Vec<ResourceId>,
}

impl Plan {
    /// How long until something that lingers is due.
    pub fn next_due(&self) -> Option<Duration> {
        self.leave
            .iter()
            .filter_map(|(_, leave)| match leave {
                Leave::Lingering(rest) => Some(*rest),
                _ => None,
            })
            .min()
    }
}

/// Makes the plan. `unwanted_for` tells how long no pod has wanted an identity; below `linger` it stays.
pub fn plan(
    host: HostView<'_>,
    unwanted_for: impl Fn(&ResourceId) -> Duration,
    linger: Duration,
) -> Plan {
    let mut plan = Plan {
        attach: host.wanted.difference(host.observed).cloned().collect(),
        ..Plan::default()
    };
    for id in host.observed.difference(host.wanted) {
        let waited = unwanted_for(id);
        let leave = if !host.owned.contains(id) {
            Leave::NotOurs
        } else if host.immutable.contains(id) {
            Leave::Immutable
        } else if waited < linger {
            Leave::Lingering(linger - waited)
        } else {
            plan.detach.push(id.clone());
            continue;
        };
        plan.leave.push((id.clone(), leave));
    }
    plan.forget = host
        .owned
        .iter()
        .filter(|id| !host.observed.contains(*id) && !host.wanted.contains(*id))
        .cloned()
        .collect();
    plan
}

#[cfg(test)]
mod tests;
