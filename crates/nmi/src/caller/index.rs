//! What the node agent knows of the cluster: few fields of few objects, by what requests ask for.

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

/// Who has an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Caller {
    /// This pod and no other.
    Pod(Arc<PodFacts>),
    /// Several live pods.
    Ambiguous,
    /// No pod, and some pod of this node has no address yet.
    NotYet,
    /// No pod.
    Unknown,
}

/// What a caller gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// A token of this identity.
    Grant(Arc<IdentityFacts>),
    /// The identity, as soon as it is on the pod's host.
    NotYet(Arc<IdentityFacts>),
    /// What the metadata service itself answers.
    Exempt(ObjectKey),
    /// Nothing.
    Refused(DenialReason),
}

/// The objects that bear on this node. `apply` and `delete` are synchronous; a request reads.
#[derive(Debug)]
pub struct Index {
    scope: Scope,
    /// Whether identities must be assigned before tokens are given; not so where an operator attaches them by hand.
    assigned_first: bool,
    /// Whether a tie gives the first identity by name.
    pick_first: bool,
    pods: HashMap<ObjectKey, Arc<PodFacts>>,
    addresses: HashMap<IpAddr, Vec<Arc<PodFacts>>>,
    bindings: HashMap<ObjectKey, Arc<BindingFacts>>,
    selectors: HashMap<Arc<str>, BTreeSet<ObjectKey>>,
    identities: HashMap<ObjectKey, Arc<IdentityFacts>>,
    exceptions: HashMap<Arc<str>, BTreeMap<Arc<str>, ExceptionFacts>>,
    assigned: HashMap<ObjectKey, AssignedFacts>,
    ready: HashMap<(ObjectKey, ObjectKey), usize>,
}

impl Index {
    /// An empty index.
    pub fn new(scope: Scope, assigned_first: bool) -> Self {
        Self {
            scope,
            assigned_first,
            pick_first: false,
            pods: HashMap::new(),
            addresses: HashMap::new(),
            bindings: HashMap::new(),
            selectors: HashMap::new(),
            identities: HashMap::new(),
            exceptions: HashMap::new(),
            assigned: HashMap::new(),
            ready: HashMap::new(),
        }
    }

    /// Gives the first identity by name where several are granted with equal weight and none is named.
    pub fn picking_first(mut self, pick_first: bool) -> Self {
        self.pick_first = pick_first;
        self
    }

    /// A pod exists and looks like this.
    pub fn apply_pod(&mut self, pod: PodFacts) {
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

    /// A pod is gone.
    pub fn delete_pod(&mut self, key: &ObjectKey) {
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

    /// A binding exists and looks like this.
    pub fn apply_binding(&mut self, binding: BindingFacts) {
        self.delete_binding(&binding.key);
        self.selectors
            .entry(Arc::clone(&binding.selector))
            .or_default()
            .insert(binding.key.clone());
        self.bindings.insert(binding.key.clone(), Arc::new(binding));
    }

    /// A binding is gone, or cannot be read.
    pub fn delete_binding(&mut self, key: &ObjectKey) {
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

    /// An identity exists and looks like this.
    pub fn apply_identity(&mut self, identity: IdentityFacts) {
        match self.identities.get(&identity.key) {
            Some(known) if **known == identity => {}
            _ => {
                self.identities
                    .insert(identity.key.clone(), Arc::new(identity));
            }
        }
    }

    /// An identity is gone, or cannot be read.
    pub fn delete_identity(&mut self, key: &ObjectKey) {
        self.identities.remove(key);
    }

    /// An exception exists and looks like this.
    pub fn apply_exception(&mut self, exception: ExceptionFacts) {
        let key = exception.key.clone();
        self.exceptions
            .entry(key.namespace)
            .or_default()
            .insert(key.name, exception);
    }

    /// An exception is gone, or cannot be read.
    pub fn delete_exception(&mut self, key: &ObjectKey) {
        if let Some(names) = self.exceptions.get_mut(&key.namespace) {
            names.remove(&key.name);
            if names.is_empty() {
                self.exceptions.remove(&key.namespace);
            }
        }
    }

    /// An AzureAssignedIdentity exists and looks like this.
    pub fn apply_assigned(&mut self, assigned: AssignedFacts) {
        self.delete_assigned(&assigned.key);
        if assigned.state == AssignmentState::Assigned && !assigned.deleting {
            let pair = (assigned.pod.clone(), assigned.identity.clone());
            *self.ready.entry(pair).or_default() += 1;
        }
        self.assigned.insert(assigned.key.clone(), assigned);
    }

    /// An AzureAssignedIdentity is gone, or cannot be read.
    pub fn delete_assigned(&mut self, key: &ObjectKey) {
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
    pub fn pod_keys(&self) -> Vec<ObjectKey> {
        self.pods.keys().cloned().collect()
    }

    /// The keys of the bindings.
    pub fn binding_keys(&self) -> Vec<ObjectKey> {
        self.bindings.keys().cloned().collect()
    }

    /// The keys of the identities.
    pub fn identity_keys(&self) -> Vec<ObjectKey> {
        self.identities.keys().cloned().collect()
    }

    /// The keys of the exceptions.
    pub fn exception_keys(&self) -> Vec<ObjectKey> {
        self.exceptions
            .values()
            .flat_map(|names| names.values().map(|exception| exception.key.clone()))
            .collect()
    }

    /// The keys of the AzureAssignedIdentities.
    pub fn assigned_keys(&self) -> Vec<ObjectKey> {
        self.assigned.keys().cloned().collect()
    }

    /// The pod of this name, if it is on this node.
    pub fn pod(&self, key: &ObjectKey) -> Option<Arc<PodFacts>> {
        self.pods.get(key).cloned()
    }

    /// Who has this address.
    pub fn caller(&self, address: IpAddr) -> Caller {
        match self.addresses.get(&address).map(Vec::as_slice) {
            Some([pod]) => Caller::Pod(Arc::clone(pod)),
            Some([_, ..]) => Caller::Ambiguous,
            _ if self.awaits_address() => Caller::NotYet,
            _ => Caller::Unknown,
        }
    }

    /// Whether a live pod of this node has no address so far: an unknown caller may be it.
    fn awaits_address(&self) -> bool {
        let waits =
            |pod: &Arc<PodFacts>| pod.is_live() && !pod.host_network && pod.addresses.is_empty();
        self.pods.values().any(waits)
    }

    /// The exception that exempts the pod, if one does.
    pub fn exemption(&self, pod: &PodFacts) -> Option<ObjectKey> {
        self.exceptions_of(pod)
            .find(|exception| exempts(exception, pod))
            .map(|exception| exception.key.clone())
    }

    fn exceptions_of(&self, pod: &PodFacts) -> impl Iterator<Item = &ExceptionFacts> {
        let names = self.exceptions.get(&pod.key.namespace);
        names.into_iter().flat_map(BTreeMap::values)
    }

    /// What the pod gets that asks for `wanted`.
    pub fn decide(&self, pod: &PodFacts, wanted: &RequestedIdentity) -> Decision {
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
            .filter_map(|binding| self.named_by(binding))
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
        let shared = self
            .identities
            .get(&identity.key)
            .map_or_else(|| Arc::new(identity.clone()), Arc::clone);
        if self.is_usable(pod, identity) {
            Decision::Grant(shared)
        } else {
            Decision::NotYet(shared)
        }
    }

    /// Whether a granted identity is where it must be.
    fn is_usable(&self, pod: &PodFacts, identity: &IdentityFacts) -> bool {
        let must_be_on_host =
            self.assigned_first && matches!(identity.source, IdentitySource::UserAssigned { .. });
        let pair = (pod.key.clone(), identity.key.clone());
        !must_be_on_host || self.ready.contains_key(&pair)
    }

    fn named_by(&self, binding: &BindingFacts) -> Option<&Arc<IdentityFacts>> {
        self.identities.get(&ObjectKey {
            namespace: Arc::clone(&binding.key.namespace),
            name: Arc::clone(&binding.identity),
        })
    }

    /// Every identity that some pod of this node is granted.
    pub fn granted_identities(&self) -> HashMap<ObjectKey, Arc<IdentityFacts>> {
        self.identities_of(|_, _| true)
    }

    /// Every identity of which some pod of this node would be given a token now.
    pub fn usable_identities(&self) -> HashMap<ObjectKey, Arc<IdentityFacts>> {
        self.identities_of(|pod, identity| self.is_usable(pod, identity))
    }

    fn identities_of(
        &self,
        counts: impl Fn(&PodFacts, &IdentityFacts) -> bool,
    ) -> HashMap<ObjectKey, Arc<IdentityFacts>> {
        let mut found = HashMap::new();
        for pod in self.pods.values().filter(|pod| pod.is_live()) {
            let Some(selector) = pod.labels.get(BINDING_LABEL) else {
                continue;
            };
            for key in self.selectors.get(selector.as_str()).into_iter().flatten() {
                let Some(binding) = self.bindings.get(key) else {
                    continue;
                };
                if let Some(identity) = self.named_by(binding)
                    && grants(self.scope, binding, identity, &**pod)
                    && counts(pod, identity)
                {
                    found.insert(identity.key.clone(), Arc::clone(identity));
                }
            }
        }
        found
    }
}

#[cfg(test)]
mod tests;
