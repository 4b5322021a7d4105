//! Index: the pods with a binding label, and the identities, bindings and exceptions of the whole cluster.
//!
//! `watches.rs` writes it, one object at a time; `grant.rs` reads it. It guards the API server: a request about what is in it causes
//! no call.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use podid_policy::facts::{BindingFacts, ExceptionFacts, IdentityFacts, ObjectKey, PodFacts};
use podid_policy::matching::Scope;
use podid_policy::reason::DenialReason;
use podid_policy::verdict::{PolicyObjects, RequestedIdentity, Verdict, authorize};

/// Whether a pod is granted one identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Decision {
    /// It is.
    Granted(Arc<IdentityFacts>),
    /// An exception makes the pod none of podid's.
    Exempt(ObjectKey),
    /// It is not, for this reason.
    Refused(DenialReason),
    /// There is no such identity, or it cannot be used.
    UnknownIdentity,
}

/// The objects that matter.
#[derive(Debug)]
pub(crate) struct Index {
    scope: Scope,
    pods: HashMap<ObjectKey, Arc<PodFacts>>,
    bindings: HashMap<ObjectKey, Arc<BindingFacts>>,
    /// Bindings by the identity that they name.
    by_identity: HashMap<ObjectKey, BTreeSet<ObjectKey>>,
    identities: HashMap<ObjectKey, Arc<IdentityFacts>>,
    /// Exceptions by namespace and name.
    exceptions: HashMap<Arc<str>, BTreeMap<Arc<str>, ExceptionFacts>>,
}

impl Index {
    /// An empty index.
    pub(crate) fn new(scope: Scope) -> Self {
        Self {
            scope,
            pods: HashMap::new(),
            bindings: HashMap::new(),
            by_identity: HashMap::new(),
            identities: HashMap::new(),
            exceptions: HashMap::new(),
        }
    }

    /// Adds or replaces a pod.
    pub(crate) fn apply_pod(&mut self, pod: PodFacts) {
        self.pods.insert(pod.key.clone(), Arc::new(pod));
    }

    /// Removes a pod.
    pub(crate) fn delete_pod(&mut self, key: &ObjectKey) {
        self.pods.remove(key);
    }

    /// Adds or replaces a binding.
    pub(crate) fn apply_binding(&mut self, binding: BindingFacts) {
        self.delete_binding(&binding.key);
        let bindings = self.by_identity.entry(identity_of(&binding)).or_default();
        bindings.insert(binding.key.clone());
        self.bindings.insert(binding.key.clone(), Arc::new(binding));
    }

    /// Removes a binding that is deleted or cannot be read.
    pub(crate) fn delete_binding(&mut self, key: &ObjectKey) {
        let Some(binding) = self.bindings.remove(key) else {
            return;
        };
        let identity = identity_of(&binding);
        if let Some(bindings) = self.by_identity.get_mut(&identity) {
            bindings.remove(key);
            if bindings.is_empty() {
                self.by_identity.remove(&identity);
            }
        }
    }

    /// Adds or replaces an identity.
    pub(crate) fn apply_identity(&mut self, identity: IdentityFacts) {
        let key = identity.key.clone();
        self.identities.insert(key, Arc::new(identity));
    }

    /// Removes an identity that is deleted or cannot be read.
    pub(crate) fn delete_identity(&mut self, key: &ObjectKey) {
        self.identities.remove(key);
    }

    /// Adds or replaces an exception.
    pub(crate) fn apply_exception(&mut self, exception: ExceptionFacts) {
        let key = exception.key.clone();
        let names = self.exceptions.entry(key.namespace).or_default();
        names.insert(key.name, exception);
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
        let all = self.exceptions.values().flat_map(BTreeMap::values);
        all.map(|exception| exception.key.clone()).collect()
    }

    /// The pod with this name.
    pub(crate) fn pod(&self, key: &ObjectKey) -> Option<Arc<PodFacts>> {
        self.pods.get(key).cloned()
    }

    /// The identity with this name.
    pub(crate) fn identity(&self, key: &ObjectKey) -> Option<Arc<IdentityFacts>> {
        self.identities.get(key).cloned()
    }

    /// Whether the pod is granted this identity by the objects in the index.
    pub(crate) fn decide(&self, pod: &PodFacts, identity: &ObjectKey) -> Decision {
        let Some(identity) = self.identities.get(identity) else {
            return Decision::UnknownIdentity;
        };
        let keys = self.by_identity.get(&identity.key).into_iter().flatten();
        let bindings: Vec<_> = keys.filter_map(|key| self.bindings.get(key)).collect();
        let bindings: Vec<_> = bindings.iter().map(|binding| &***binding).collect();
        self.decide_by(pod, identity, &bindings)
    }

    /// Whether the pod is granted this identity by these bindings; exceptions are the index's.
    pub(crate) fn decide_by(
        &self,
        pod: &PodFacts,
        identity: &Arc<IdentityFacts>,
        bindings: &[&BindingFacts],
    ) -> Decision {
        let names = self.exceptions.get(&pod.key.namespace);
        let exceptions: Vec<_> = names.into_iter().flat_map(BTreeMap::values).collect();
        let objects = PolicyObjects {
            scope: self.scope,
            bindings,
            // The one candidate, so that weights do not matter: the node agent has chosen already.
            identities: &[identity],
            exceptions: &exceptions,
            pick_first: false,
        };
        match authorize(objects, pod, &RequestedIdentity::Any) {
            Verdict::Grant(_) => Decision::Granted(Arc::clone(identity)),
            Verdict::Exempt(exception) => Decision::Exempt(exception),
            Verdict::Refused(reason) => Decision::Refused(reason),
        }
    }
}

/// The identity that a binding names, which is in the binding's namespace.
fn identity_of(binding: &BindingFacts) -> ObjectKey {
    ObjectKey {
        namespace: Arc::clone(&binding.key.namespace),
        name: Arc::clone(&binding.identity),
    }
}
