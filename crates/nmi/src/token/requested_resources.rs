//! Requested resources: for which audiences tokens of each identity were requested on this node.
//!
//! `grant.rs` records them, and `prefetch.rs` fetches their tokens when another pod of the identity comes.

use std::collections::{BTreeSet, HashMap};

use parking_lot::Mutex;
use podid_policy::facts::ObjectKey;

/// The most identities whose resources are remembered, far more than the pods of a node use; beyond it all are forgotten.
const MAX_IDENTITIES: usize = 1024;
/// The most resources that are remembered of one identity, more than an application usually needs.
const MAX_RESOURCES: usize = 8;

/// The resources for which tokens were requested on this node, by identity.
#[derive(Default)]
pub(crate) struct RequestedResources(Mutex<HashMap<ObjectKey, BTreeSet<Box<str>>>>);

impl RequestedResources {
    /// A token of `identity` for `resource` was given.
    pub(crate) fn record(&self, identity: &ObjectKey, resource: &str) {
        let mut requested = self.0.lock();
        if requested.len() >= MAX_IDENTITIES && !requested.contains_key(identity) {
            requested.clear();
        }
        let resources = requested.entry(identity.clone()).or_default();
        if resources.len() < MAX_RESOURCES {
            resources.insert(resource.into());
        }
    }

    /// The resources that were requested of `identity`.
    pub(crate) fn of(&self, identity: &ObjectKey) -> BTreeSet<Box<str>> {
        self.0.lock().get(identity).cloned().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_remembered_is_bounded() {
        let requested = RequestedResources::default();
        for n in 0..3 * MAX_IDENTITIES {
            let key = ObjectKey::new("shop", &n.to_string());
            for resource in 0..3 * MAX_RESOURCES {
                requested.record(&key, &resource.to_string());
            }
            assert_eq!(requested.of(&key).len(), MAX_RESOURCES);
        }
        assert!(requested.0.lock().len() <= MAX_IDENTITIES);
    }
}
