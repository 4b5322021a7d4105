//! Desired state: the assignments that must exist, one for each identity that a pod must be able to use. The controller's index
//! applies each change of a pod, binding, identity or node here, and gets the assignments that changed by it. A change costs as
//! much as it affects, however large the cluster is: secondary indexes by selector, node and identity find what to look at.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::Hash;
use std::sync::Arc;

use crate::facts::{BindingFacts, IdentityFacts, ObjectKey, PodFacts};
use crate::ids::HostKey;
use crate::intern::Interner;
use crate::matching::{BINDING_LABEL, Scope, Subject, grants};

/// The key of an assignment. A pod has at most one assignment of each AzureIdentity name, since AzureAssignedIdentity objects are
/// named by pod and identity.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AssignmentKey {
    /// The pod.
    pub pod: ObjectKey,
    /// The AzureIdentity's name.
    pub identity: Arc<str>,
}

/// One identity that one pod must be able to use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assignment {
    /// The pod.
    pub pod: ObjectKey,
    /// The pod's `metadata.uid`.
    pub uid: Arc<str>,
    /// The pod's node.
    pub node: Arc<str>,
    /// The Azure resource behind the node; `None` while it is unknown.
    pub host: Option<Arc<HostKey>>,
    /// The identity.
    pub identity: Arc<IdentityFacts>,
    /// The binding that grants it.
    pub binding: Arc<BindingFacts>,
}

impl Assignment {
    /// Its name.
    pub fn key(&self) -> AssignmentKey {
        AssignmentKey {
            pod: self.pod.clone(),
            identity: self.identity.key.name.clone(),
        }
    }
}

/// A changed assignment: at least one side is there, and the two differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delta {
    /// What it was; `None` when it is new.
    pub before: Option<Assignment>,
    /// What it is now; `None` when it must not exist any more.
    pub after: Option<Assignment>,
}

/// The part of a pod that the assignments depend on.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Pod {
    uid: Arc<str>,
    /// The value of the label `aadpodidbinding`.
    selector: Option<Arc<str>>,
    account: Arc<str>,
    node: Option<Arc<str>>,
    live: bool,
}

impl Pod {
    fn subject<'a>(&'a self, key: &'a ObjectKey) -> Subject<'a> {
        Subject {
            namespace: &key.namespace,
            selector: self.selector.as_deref(),
            service_account: &self.account,
            live: self.live,
        }
    }
}

/// The key by which pods and bindings find each other: a selector, in one namespace or (`None`) in all.
type SelectorKey = (Option<Arc<str>>, Arc<str>);

/// The objects that were seen, and the assignments that follow from them.
#[derive(Debug, Clone)]
pub struct DesiredState {
    scope: Scope,
    pods: HashMap<ObjectKey, Pod>,
    bindings: HashMap<ObjectKey, Arc<BindingFacts>>,
    identities: HashMap<ObjectKey, Arc<IdentityFacts>>,
    nodes: HashMap<Arc<str>, Arc<HostKey>>,
    /// Nodes that were deleted while pods are still on them.
    deleted_nodes: BTreeSet<Arc<str>>,
    pods_by_selector: SecondaryIndex<SelectorKey>,
    pods_by_node: SecondaryIndex<Arc<str>>,
    bindings_by_selector: SecondaryIndex<SelectorKey>,
    bindings_by_identity: SecondaryIndex<ObjectKey>,
    /// The assignments of each pod, sorted by the identities' names.
    assignments: HashMap<ObjectKey, Box<[Assignment]>>,
    /// Pods with assignments whose host is not known.
    without_host: BTreeSet<ObjectKey>,
    names: Interner,
}

impl DesiredState {
    /// An empty index under the given matching rule.
    pub fn new(scope: Scope) -> Self {
        Self {
            scope,
            pods: HashMap::new(),
            bindings: HashMap::new(),
            identities: HashMap::new(),
            nodes: HashMap::new(),
            deleted_nodes: BTreeSet::new(),
            pods_by_selector: SecondaryIndex::default(),
            pods_by_node: SecondaryIndex::default(),
            bindings_by_selector: SecondaryIndex::default(),
            bindings_by_identity: SecondaryIndex::default(),
            assignments: HashMap::new(),
            without_host: BTreeSet::new(),
            names: Interner::default(),
        }
    }

    /// A pod exists and looks like this.
    pub fn apply_pod(&mut self, facts: PodFacts) -> Vec<Delta> {
        let pod = self.summarize(&facts);
        if self.pods.get(&facts.key) == Some(&pod) {
            return Vec::new();
        }
        let left = self.remove_pod(&facts.key);
        let key = ObjectKey {
            namespace: self.names.intern(&facts.key.namespace),
            name: facts.key.name,
        };
        if let Some(selector) = &pod.selector {
            let reach = self.selector_key(&key.namespace, selector);
            self.pods_by_selector.add(reach, &key);
        }
        if let Some(node) = &pod.node {
            self.pods_by_node.add(node.clone(), &key);
        }
        self.pods.insert(key.clone(), pod);
        self.drop_deleted_node(left);
        self.refresh([key])
    }

    fn summarize(&mut self, pod: &PodFacts) -> Pod {
        let names = &mut self.names;
        let selector = pod.labels.get(BINDING_LABEL);
        Pod {
            uid: pod.uid.clone(),
            selector: selector.map(|selector| names.intern(selector)),
            account: names.intern(&pod.service_account),
            node: pod.node.as_deref().map(|node| names.intern(node)),
            live: pod.is_live(),
        }
    }

    /// A pod is gone.
    pub fn delete_pod(&mut self, key: &ObjectKey) -> Vec<Delta> {
        let left = self.remove_pod(key);
        self.drop_deleted_node(left);
        self.refresh([key.clone()])
    }

    /// A binding exists and looks like this.
    pub fn apply_binding(&mut self, binding: BindingFacts) -> Vec<Delta> {
        if self.bindings.get(&binding.key).map(|b| &**b) == Some(&binding) {
            return Vec::new();
        }
        let mut touched = self.remove_binding(&binding.key);
        let reach = self.selector_key(&binding.key.namespace, &binding.selector);
        touched.extend(self.pods_by_selector.of(&reach));
        self.bindings_by_selector.add(reach, &binding.key);
        self.bindings_by_identity
            .add(named_by(&binding), &binding.key);
        self.bindings.insert(binding.key.clone(), Arc::new(binding));
        self.refresh(touched)
    }

    /// A binding is gone.
    pub fn delete_binding(&mut self, key: &ObjectKey) -> Vec<Delta> {
        let touched = self.remove_binding(key);
        self.refresh(touched)
    }

    /// An identity exists and looks like this.
    pub fn apply_identity(&mut self, identity: IdentityFacts) -> Vec<Delta> {
        if self.identities.get(&identity.key).map(|i| &**i) == Some(&identity) {
            return Vec::new();
        }
        let key = identity.key.clone();
        self.identities.insert(key.clone(), Arc::new(identity));
        self.refresh(self.pods_of_identity(&key))
    }

    /// An identity is gone.
    pub fn delete_identity(&mut self, key: &ObjectKey) -> Vec<Delta> {
        self.identities.remove(key);
        self.refresh(self.pods_of_identity(key))
    }

    /// A node exists; `host` is the Azure resource behind it, `None` while that is unknown.
    pub fn apply_node(&mut self, name: &str, host: Option<HostKey>) -> Vec<Delta> {
        let name: Arc<str> = name.into();
        self.deleted_nodes.remove(&name);
        if self.nodes.get(&name).map(|h| &**h) == host.as_ref() {
            return Vec::new();
        }
        match host {
            Some(host) => self.nodes.insert(name.clone(), Arc::new(host)),
            None => self.nodes.remove(&name),
        };
        self.refresh(self.pods_by_node.of(&name).collect::<Vec<_>>())
    }

    /// A node is gone. The assignments of its pods stay until the pods are gone as well: containers may go on running there, and
    /// the node may come back.
    pub fn delete_node(&mut self, name: &str) -> Vec<Delta> {
        let name = self.names.intern(name);
        if self.pods_by_node.of(&name).next().is_none() {
            return self.apply_node(&name, None);
        }
        self.deleted_nodes.insert(name);
        Vec::new()
    }

    /// The assignment with this key, where one must exist.
    pub fn get(&self, key: &AssignmentKey) -> Option<&Assignment> {
        let all = self.assignments.get(&key.pod)?;
        all.iter().find(|a| a.identity.key.name == key.identity)
    }

    /// The text as the index holds it, so that equal names take memory once.
    pub fn intern(&mut self, text: &str) -> Arc<str> {
        self.names.intern(text)
    }

    /// An identity that was seen.
    pub fn identity(&self, key: &ObjectKey) -> Option<&Arc<IdentityFacts>> {
        self.identities.get(key)
    }

    /// The Azure resource behind a node, where it is known.
    pub fn host_of(&self, node: &str) -> Option<&Arc<HostKey>> {
        self.nodes.get(node)
    }

    /// All assignments, in no particular order.
    pub fn assignments(&self) -> impl Iterator<Item = &Assignment> {
        self.assignments.values().flatten()
    }

    /// The assignments whose host is not known, in no particular order.
    pub fn unplaced(&self) -> impl Iterator<Item = &Assignment> {
        let pods = self.without_host.iter();
        pods.flat_map(|pod| self.assignments.get(pod).into_iter().flatten())
    }

    /// The keys of all pods that were seen, for comparison with a complete list.
    pub fn pods(&self) -> impl Iterator<Item = &ObjectKey> {
        self.pods.keys()
    }

    /// The keys of all bindings that were seen.
    pub fn bindings(&self) -> impl Iterator<Item = &ObjectKey> {
        self.bindings.keys()
    }

    /// The keys of all identities that were seen.
    pub fn identities(&self) -> impl Iterator<Item = &ObjectKey> {
        self.identities.keys()
    }

    fn selector_key(&self, namespace: &Arc<str>, selector: &Arc<str>) -> SelectorKey {
        let namespace = (self.scope == Scope::Namespaced).then(|| namespace.clone());
        (namespace, selector.clone())
    }

    /// Removes a pod from the indexes, and gives the node that it was on.
    fn remove_pod(&mut self, key: &ObjectKey) -> Option<Arc<str>> {
        let old = self.pods.remove(key)?;
        if let Some(selector) = &old.selector {
            let reach = self.selector_key(&key.namespace, selector);
            self.pods_by_selector.remove(&reach, key);
        }
        if let Some(node) = &old.node {
            self.pods_by_node.remove(node, key);
        }
        old.node
    }

    /// Removes a deleted node once its last pod is gone.
    fn drop_deleted_node(&mut self, node: Option<Arc<str>>) {
        let Some(node) = node.filter(|node| self.deleted_nodes.contains(node)) else {
            return;
        };
        if self.pods_by_node.of(&node).next().is_none() {
            self.deleted_nodes.remove(&node);
            self.nodes.remove(&node);
        }
    }

    /// Removes a binding from the indexes, and gives the pods that it may have selected.
    fn remove_binding(&mut self, key: &ObjectKey) -> BTreeSet<ObjectKey> {
        let Some(old) = self.bindings.remove(key) else {
            return BTreeSet::new();
        };
        let reach = self.selector_key(&key.namespace, &old.selector);
        self.bindings_by_selector.remove(&reach, key);
        self.bindings_by_identity.remove(&named_by(&old), key);
        self.pods_by_selector.of(&reach).collect()
    }

    fn pods_of_identity(&self, key: &ObjectKey) -> BTreeSet<ObjectKey> {
        self.bindings_by_identity
            .of(key)
            .filter_map(|binding| self.bindings.get(&binding))
            .map(|binding| self.selector_key(&binding.key.namespace, &binding.selector))
            .flat_map(|reach| self.pods_by_selector.of(&reach).collect::<Vec<_>>())
            .collect()
    }

    fn refresh(&mut self, pods: impl IntoIterator<Item = ObjectKey>) -> Vec<Delta> {
        let mut deltas = Vec::new();
        for pod in pods {
            count();
            let after = self.assignments_of(&pod);
            let before = self.assignments.remove(&pod).unwrap_or_default();
            diff(before, &after, &mut deltas);
            if after.iter().any(|a| a.host.is_none()) {
                self.without_host.insert(pod.clone());
            } else {
                self.without_host.remove(&pod);
            }
            if !after.is_empty() {
                self.assignments.insert(pod, after);
            }
        }
        deltas
    }

    fn assignments_of(&self, key: &ObjectKey) -> Box<[Assignment]> {
        let Some(pod) = self.pods.get(key).filter(|pod| pod.live) else {
            return Box::default();
        };
        let (Some(selector), Some(node)) = (&pod.selector, &pod.node) else {
            return Box::default();
        };
        let mut best: BTreeMap<&Arc<str>, (&Arc<BindingFacts>, &Arc<IdentityFacts>)> =
            BTreeMap::new();
        for found in self
            .bindings_by_selector
            .of(&self.selector_key(&key.namespace, selector))
        {
            let Some(binding) = self.bindings.get(&found) else {
                continue;
            };
            let Some(identity) = self.identities.get(&named_by(binding)) else {
                continue;
            };
            if !grants(self.scope, binding, identity, pod.subject(key)) {
                continue;
            }
            let (name, found) = (&identity.key.name, (binding, identity));
            let better = best
                .get(name)
                .is_none_or(|known| rank(key, found) < rank(key, *known));
            if better {
                best.insert(name, found);
            }
        }
        let host = self.nodes.get(node);
        let assigned = best.into_values().map(|(binding, identity)| Assignment {
            pod: key.clone(),
            uid: pod.uid.clone(),
            node: node.clone(),
            host: host.cloned(),
            identity: identity.clone(),
            binding: binding.clone(),
        });
        assigned.collect()
    }
}

/// Sorts the identities of one name that are granted to a pod; the first is assigned. The pod's own namespace comes first, and of
/// several bindings of one identity the one with the highest weight.
fn rank<'a>(
    pod: &ObjectKey,
    (binding, identity): (&'a Arc<BindingFacts>, &'a Arc<IdentityFacts>),
) -> (bool, &'a Arc<str>, Reverse<i32>, &'a Arc<str>) {
    (
        identity.key.namespace != pod.namespace,
        &identity.key.namespace,
        Reverse(binding.weight),
        &binding.key.name,
    )
}

fn named_by(binding: &BindingFacts) -> ObjectKey {
    ObjectKey {
        namespace: binding.key.namespace.clone(),
        name: binding.identity.clone(),
    }
}

fn diff(before: Box<[Assignment]>, after: &[Assignment], deltas: &mut Vec<Delta>) {
    let mut before = before.into_vec();
    for new in after {
        let name = &new.identity.key.name;
        let same = before.iter().position(|old| old.identity.key.name == *name);
        let old = same.map(|at| before.swap_remove(at));
        if old.as_ref() != Some(new) {
            deltas.push(Delta {
                before: old,
                after: Some(new.clone()),
            });
        }
    }
    deltas.extend(before.into_iter().map(|old| Delta {
        before: Some(old),
        after: None,
    }));
}

/// A secondary index: the keys of objects by a value that they share.
#[derive(Debug, Clone)]
struct SecondaryIndex<K>(HashMap<K, BTreeSet<ObjectKey>>);

impl<K> Default for SecondaryIndex<K> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<K: Eq + Hash> SecondaryIndex<K> {
    fn add(&mut self, group: K, key: &ObjectKey) {
        self.0.entry(group).or_default().insert(key.clone());
    }

    fn remove(&mut self, group: &K, key: &ObjectKey) {
        if let Some(keys) = self.0.get_mut(group) {
            keys.remove(key);
            if keys.is_empty() {
                self.0.remove(group);
            }
        }
    }

    fn of(&self, group: &K) -> impl Iterator<Item = ObjectKey> {
        let keys = self.0.get(group).into_iter().flatten();
        keys.inspect(|_| count()).cloned()
    }
}

/// Counts in tests the objects that are looked at, since the cost of a change must not depend on the size of the cluster.
fn count() {
    #[cfg(test)]
    tests::LOOKED_AT.set(tests::LOOKED_AT.get() + 1);
}

#[cfg(test)]
mod tests;
