//! Index: the objects of the cluster that matter on this node, by what a request asks for: the caller's address and its binding label.
//!
//! `watches.rs` writes it, one object at a time; requests read it through `Context`. It guards the API server: a request whose caller
//! is in it causes no call.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use podid_api::assigned::{AssignedFacts, AssignmentState};
use podid_policy::facts::{
    BindingFacts, ExceptionFacts, IdentityFacts, IdentitySource, ObjectKey, PodFacts,
};
use podid_policy::matching::{BINDING_LABEL, Scope, exempts, grants};
use podid_policy::reason::DenialReason;
use podid_policy::verdict::{PolicyObjects, RequestedIdentity, Verdict, authorize};

/// Which pod has an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Caller {
    /// This pod and no other.
    Pod(Arc<PodFacts>),
    /// Several live pods.
    Ambiguous,
    /// No pod so far; it may be one of this node's pods that have no address yet.
    NotYet,
    /// No pod.
    Unknown,
}

/// What a pod is granted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Tokens of this identity.
    Grant(Arc<IdentityFacts>),
    /// Tokens of this identity once it is on the pod's host.
    Pending {
        /// The identity.
        identity: Arc<IdentityFacts>,
        /// Why Azure refuses to attach it, where the controller says so.
        refusal: Option<Arc<str>>,
    },
    /// The metadata service's own answers, by this exception.
    Exempt(ObjectKey),
    /// Nothing, for this reason.
    Refused(DenialReason),
}

/// The objects, and for each question of a request a map that answers it.
#[derive(Debug)]
pub(crate) struct Index {
    scope: Scope,
    /// Whether an identity is usable only once it is assigned; see `Config::assigned_first`.
    assigned_first: bool,
    /// Whether the first of several identities of equal weight is granted; see `Config::pick_first`.
    pick_first: bool,
    pods: HashMap<ObjectKey, Arc<PodFacts>>,
    /// The live pods at an address; those on the host network have none of their own.
    addresses: HashMap<IpAddr, Vec<Arc<PodFacts>>>,
    bindings: HashMap<ObjectKey, Arc<BindingFacts>>,
    /// Bindings by their selector.
    selectors: HashMap<Arc<str>, BTreeSet<ObjectKey>>,
    identities: HashMap<ObjectKey, Arc<IdentityFacts>>,
    /// Exceptions by namespace and name.
    /// Why Azure refuses to attach an identity.
    refusals: HashMap<ObjectKey, Arc<str>>,
    exceptions: HashMap<Arc<str>, BTreeMap<Arc<str>, ExceptionFacts>>,
    assigned: HashMap<ObjectKey, AssignedFacts>,
    /// How many AzureAssignedIdentities in state Assigned each pair of pod and identity has.
    ready: HashMap<(ObjectKey, ObjectKey), usize>,
}

impl Index {
    /// An empty index.
    pub(crate) fn new(scope: Scope, assigned_first: bool) -> Self {
        Self {
            scope,
            assigned_first,
            pick_first: false,
            pods: HashMap::new(),
            addresses: HashMap::new(),
            bindings: HashMap::new(),
            selectors: HashMap::new(),
            identities: HashMap::new(),
            refusals: HashMap::new(),
            exceptions: HashMap::new(),
            assigned: HashMap::new(),
            ready: HashMap::new(),
        }
    }

    /// Sets `pick_first`.
    pub(crate) fn picking_first(mut self, pick_first: bool) -> Self {
        self.pick_first = pick_first;
        self
    }

    /// Adds or replaces a pod.
    pub(crate) fn apply_pod(&mut self, pod: PodFacts) {
        self.delete_pod(&pod.key);
        let pod = Arc::new(pod);
        if pod.is_live() && !pod.host_network {
            for address in &pod.addresses {
                self.addresses
                    .entry(*address)
                    .or_default()
                    .push(Arc::clone(&pod));
            }
        }
        self.pods.insert(pod.key.clone(), pod);
    }

    /// Removes a pod.
    pub(crate) fn delete_pod(&mut self, key: &ObjectKey) {
        let Some(pod) = self.pods.remove(key) else {
            return;
        };
        for address in &pod.addresses {
            if let Some(pods) = self.addresses.get_mut(address) {
                pods.retain(|other| other.key != *key);
                if pods.is_empty() {
                    self.addresses.remove(address);
                }
            }
        }
    }

    /// Adds or replaces a binding.
    pub(crate) fn apply_binding(&mut self, binding: BindingFacts) {
        self.delete_binding(&binding.key);
        self.selectors
            .entry(Arc::clone(&binding.selector))
            .or_default()
            .insert(binding.key.clone());
        self.bindings.insert(binding.key.clone(), Arc::new(binding));
    }

    /// Removes a binding that is deleted or cannot be read.
    pub(crate) fn delete_binding(&mut self, key: &ObjectKey) {
        let Some(binding) = self.bindings.remove(key) else {
            return;
        };
        if let Some(keys) = self.selectors.get_mut(&binding.selector) {
            keys.remove(key);
            if keys.is_empty() {
                self.selectors.remove(&binding.selector);
            }
        }
    }

    /// Adds or replaces an identity.
    pub(crate) fn apply_identity(&mut self, identity: IdentityFacts) {
        match self.identities.get(&identity.key) {
            Some(known) if **known == identity => {}
            _ => {
                self.identities
                    .insert(identity.key.clone(), Arc::new(identity));
            }
        }
    }

    /// Sets or removes why Azure refuses to attach an identity.
    pub(crate) fn apply_refusal(&mut self, identity: &ObjectKey, refusal: Option<Arc<str>>) {
        match refusal {
            Some(refusal) => self.refusals.insert(identity.clone(), refusal),
            None => self.refusals.remove(identity),
        };
    }

    /// Removes an identity that is deleted or cannot be read.
    pub(crate) fn delete_identity(&mut self, key: &ObjectKey) {
        self.identities.remove(key);
        self.refusals.remove(key);
    }

    /// Adds or replaces an exception.
    pub(crate) fn apply_exception(&mut self, exception: ExceptionFacts) {
        let key = exception.key.clone();
        self.exceptions
            .entry(key.namespace)
            .or_default()
            .insert(key.name, exception);
    }

    /// Removes an exception that is deleted or cannot be read.
    pub(crate) fn delete_exception(&mut self, key: &ObjectKey) {
        if let Some(names) = self.exceptions.get_mut(&key.namespace) {
            names.remove(&key.name);
            if names.is_empty() {
                self.exceptions.remove(&key.namespace);
            }
        }
    }

    /// Adds or replaces an AzureAssignedIdentity.
    pub(crate) fn apply_assigned(&mut self, assigned: AssignedFacts) {
        self.delete_assigned(&assigned.key);
        if assigned.state == AssignmentState::Assigned && !assigned.deleting {
            let pair = (assigned.pod.clone(), assigned.identity.clone());
            *self.ready.entry(pair).or_default() += 1;
        }
        self.assigned.insert(assigned.key.clone(), assigned);
    }

    /// Removes an AzureAssignedIdentity that is deleted or cannot be read.
    pub(crate) fn delete_assigned(&mut self, key: &ObjectKey) {
        let Some(assigned) = self.assigned.remove(key) else {
            return;
        };
        if assigned.state == AssignmentState::Assigned && !assigned.deleting {
            let pair = (assigned.pod, assigned.identity);
            if let Some(count) = self.ready.get_mut(&pair) {
                *count -= 1;
                if *count == 0 {
                    self.ready.remove(&pair);
                }
            }
        }
    }

    /// The keys of the pods, for comparing with a complete list.
    pub(crate) fn pod_keys(&self) -> Vec<ObjectKey> {
        self.pods.keys().cloned().collect()
    }

    /// The keys of the bindings.
    pub(crate) fn binding_keys(&self) -> Vec<ObjectKey> {
        self.bindings.keys().cloned().collect()
    }

    /// The keys of the identities.
    pub(crate) fn identity_keys(&self) -> Vec<ObjectKey> {
        self.identities.keys().cloned().collect()
    }

    /// The keys of the exceptions.
    pub(crate) fn exception_keys(&self) -> Vec<ObjectKey> {
        self.exceptions
            .values()
            .flat_map(|names| names.values().map(|exception| exception.key.clone()))
            .collect()
    }

    /// The keys of the AzureAssignedIdentities.
    pub(crate) fn assigned_keys(&self) -> Vec<ObjectKey> {
        self.assigned.keys().cloned().collect()
    }

    /// The pod with this name, if it is on this node.
    pub(crate) fn pod(&self, key: &ObjectKey) -> Option<Arc<PodFacts>> {
        self.pods.get(key).cloned()
    }

    /// The pods that can be callers.
    pub(crate) fn possible_callers(&self) -> Vec<Arc<PodFacts>> {
        let pods = self.pods.values();
        pods.filter(|pod| pod.is_live() && !pod.host_network)
            .cloned()
            .collect()
    }

    /// The possible caller with this uid; an annotation can give one uid to several, and then it is nobody's.
    pub(crate) fn pod_with_uid(&self, uid: &str) -> Option<Arc<PodFacts>> {
        let mut pods = self.possible_callers();
        pods.retain(|pod| &*pod.uid == uid);
        match pods.as_slice() {
            [pod] => Some(Arc::clone(pod)),
            _ => None,
        }
    }

    /// Which pod has this address.
    pub(crate) fn caller(&self, address: IpAddr) -> Caller {
        match self.addresses.get(&address).map(Vec::as_slice) {
            Some([pod]) => Caller::Pod(Arc::clone(pod)),
            Some([_, ..]) => Caller::Ambiguous,
            _ if self.awaits_address() => Caller::NotYet,
            _ => Caller::Unknown,
        }
    }

    /// Whether a live pod of this node has no address yet; an unknown caller may be that pod.
    fn awaits_address(&self) -> bool {
        let waits =
            |pod: &Arc<PodFacts>| pod.is_live() && !pod.host_network && pod.addresses.is_empty();
        self.pods.values().any(waits)
    }

    /// The exception that exempts the pod, if one does.
    pub(crate) fn exemption(&self, pod: &PodFacts) -> Option<ObjectKey> {
        self.exceptions_of(pod)
            .find(|exception| exempts(exception, pod))
            .map(|exception| exception.key.clone())
    }

    fn exceptions_of(&self, pod: &PodFacts) -> impl Iterator<Item = &ExceptionFacts> {
        let names = self.exceptions.get(&pod.key.namespace);
        names.into_iter().flat_map(BTreeMap::values)
    }

    /// What the rules grant the pod when it asks for `wanted`.
    pub(crate) fn decide(&self, pod: &PodFacts, wanted: &RequestedIdentity) -> Decision {
        let selector = pod.labels.get(BINDING_LABEL).map_or("", String::as_str);
        let bindings: Vec<&BindingFacts> = self
            .selectors
            .get(selector)
            .into_iter()
            .flatten()
            .filter_map(|key| self.bindings.get(key).map(|binding| &**binding))
            .collect();
        let identities: Vec<&IdentityFacts> = bindings
            .iter()
            .filter_map(|binding| self.identity_of(binding))
            .map(|identity| &**identity)
            .collect();
        let exceptions: Vec<&ExceptionFacts> = self.exceptions_of(pod).collect();
        let objects = PolicyObjects {
            scope: self.scope,
            bindings: &bindings,
            identities: &identities,
            exceptions: &exceptions,
            pick_first: self.pick_first,
        };
        match authorize(objects, pod, wanted) {
            Verdict::Exempt(exception) => Decision::Exempt(exception),
            Verdict::Refused(reason) => Decision::Refused(reason),
            Verdict::Grant(identity) => self.granted(pod, identity),
        }
    }

    fn granted(&self, pod: &PodFacts, identity: &IdentityFacts) -> Decision {
        let in_index = self
            .identities
            .get(&identity.key)
            .map_or_else(|| Arc::new(identity.clone()), Arc::clone);
        if self.is_usable(pod, identity) {
            Decision::Grant(in_index)
        } else {
            Decision::Pending {
                refusal: self.refusals.get(&in_index.key).cloned(),
                identity: in_index,
            }
        }
    }

    /// Whether tokens of a granted identity may be given: a user-assigned one must be on the pod's host.
    fn is_usable(&self, pod: &PodFacts, identity: &IdentityFacts) -> bool {
        let must_be_on_host =
            self.assigned_first && matches!(identity.source, IdentitySource::UserAssigned { .. });
        let pair = (pod.key.clone(), identity.key.clone());
        !must_be_on_host || self.ready.contains_key(&pair)
    }

    fn identity_of(&self, binding: &BindingFacts) -> Option<&Arc<IdentityFacts>> {
        self.identities.get(&ObjectKey {
            namespace: Arc::clone(&binding.key.namespace),
            name: Arc::clone(&binding.identity),
        })
    }

    /// The identities that some pod of this node is granted.
    pub(crate) fn granted_identities(&self) -> HashMap<ObjectKey, Arc<IdentityFacts>> {
        self.identities_of(|_, _| true)
    }

    /// The identities of which some pod of this node may have tokens now.
    pub(crate) fn usable_identities(&self) -> HashMap<ObjectKey, Arc<IdentityFacts>> {
        self.identities_of(|pod, identity| self.is_usable(pod, identity))
    }

    fn identities_of(
        &self,
        is_wanted: impl Fn(&PodFacts, &IdentityFacts) -> bool,
    ) -> HashMap<ObjectKey, Arc<IdentityFacts>> {
        let mut found = HashMap::new();
        for pod in self.pods.values().filter(|pod| pod.is_live()) {
            for identity in self.granted_to(pod) {
                if is_wanted(pod, identity) {
                    found.insert(identity.key.clone(), Arc::clone(identity));
                }
            }
        }
        found
    }

    /// The identities that bindings grant the pod.
    fn granted_to<'a>(
        &'a self,
        pod: &'a PodFacts,
    ) -> impl Iterator<Item = &'a Arc<IdentityFacts>> + 'a {
        let selector = pod.labels.get(BINDING_LABEL);
        let keys = selector.and_then(|selector| self.selectors.get(selector.as_str()));
        keys.into_iter().flatten().filter_map(move |key| {
            let binding = self.bindings.get(key)?;
            let identity = self.identity_of(binding)?;
            grants(self.scope, binding, identity, pod).then_some(identity)
        })
    }

    /// The live pods of this node that are granted the identity, by name.
    pub(crate) fn pods_granted(&self, identity: &ObjectKey) -> Vec<Arc<PodFacts>> {
        let is_granted = |pod: &&Arc<PodFacts>| {
            pod.is_live()
                && self.granted_to(pod).any(|granted| granted.key == *identity)
                && self.exemption(pod).is_none()
        };
        let mut pods: Vec<_> = self.pods.values().filter(is_granted).cloned().collect();
        pods.sort_by(|one, other| one.key.cmp(&other.key));
        pods
    }
}

#[cfg(test)]
mod tests;
