//! Diff of one host, and its drift: the desired identities against those that Azure shows, as a plan of what to attach and detach.
//! The controller makes a plan whenever it has read a host. The plan guards identities that podid did not attach, or that an
//! operator declared immutable: these are never detached.
//!
//! | wanted | observed | owned | outcome |
//! | --- | --- | --- | --- |
//! | yes | no | | attach (where podid owned it, somebody detached it: drift) |
//! | yes | yes | | nothing |
//! | no | yes | no | leave: not podid's |
//! | no | yes | yes | detach, once it was unwanted for the delay, unless it is immutable |
//! | no | no | yes | forget: somebody else detached it |

use std::collections::BTreeSet;
use std::time::Duration;

use crate::ids::ResourceId;

/// The input of a plan: one host.
#[derive(Debug, Clone, Copy)]
pub struct HostView<'a> {
    /// The identities that pods on the host must be able to use.
    pub wanted: &'a BTreeSet<ResourceId>,
    /// The identities that Azure shows on the host.
    pub observed: &'a BTreeSet<ResourceId>,
    /// The identities that podid attached, by its ownership record.
    pub owned: &'a BTreeSet<ResourceId>,
    /// The identities that an operator declared immutable: never detached.
    pub immutable: &'a BTreeSet<ResourceId>,
}

/// Why an identity that no pod wants stays on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leave {
    /// podid did not attach it.
    NotOurs,
    /// An operator declared it immutable.
    Immutable,
    /// It stays for this long yet, since a pod may want it again soon.
    Lingering(Duration),
}

/// What to do on one host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// To be attached.
    pub attach: Vec<ResourceId>,
    /// To be detached, in Azure's own spelling.
    pub detach: Vec<ResourceId>,
    /// Not wanted, but left on the host, each with the reason.
    pub leave: Vec<(ResourceId, Leave)>,
    /// Owned, but neither wanted nor observed: somebody else detached them, and the ownership record may drop them.
    pub forget: Vec<ResourceId>,
}

impl Plan {
    /// The time until the first identity that lingers is due to be detached.
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

/// Makes the plan. `unwanted_for` tells for how long no pod has wanted an identity; one that is unwanted for less than `linger`
/// stays.
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
