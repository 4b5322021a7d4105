//! The controller's index: one synchronous step for every event, which tells whose objects must be looked at.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use podid_policy::desired::{Assignment, AssignmentKey, Delta, DesiredState};
use podid_policy::facts::{BindingFacts, IdentityFacts, ObjectKey, PodFacts};
use podid_policy::ids::{ClientId, HostKey, ResourceId};
use podid_policy::matching::Scope;
use tokio::time::Instant;

use crate::assigned::AssignedObject;
use crate::host::cloud::{Fault, HostError};
use crate::host::quarantine::Quarantine;
use crate::host::{Host, Owned};
use crate::report::conditions::Condition;

/// What a step leads to.
#[derive(Debug, Default)]
pub(crate) struct Effects {
    /// Assignments whose objects must be looked at.
    pub(crate) keys: BTreeSet<AssignmentKey>,
    /// Hosts that need a worker.
    pub(crate) hosts: Vec<Arc<HostKey>>,
}

impl Effects {
    fn extend(&mut self, other: Effects) {
        self.keys.extend(other.keys);
        self.hosts.extend(other.hosts);
    }
}

/// Everything the controller knows.
pub(crate) struct Index {
    pub(crate) desired: DesiredState,
    /// The AzureAssignedIdentity objects, a few fields of each.
    pub(crate) objects: HashMap<ObjectKey, AssignedObject>,
    by_key: HashMap<AssignmentKey, Vec<ObjectKey>>,
    pub(crate) hosts: HashMap<Arc<HostKey>, Host>,
    /// `metadata.uid` and `resourceVersion` of identities and bindings.
    pub(crate) identities: HashMap<ObjectKey, Meta>,
    pub(crate) bindings: HashMap<ObjectKey, Meta>,
    /// What Azure refuses to attach.
    pub(crate) quarantine: Quarantine,
    /// Whose identities are which, where the question came up.
    pub(crate) client_id_answers: HashMap<ResourceId, ClientIdAnswer>,
    /// Identities that were accepted by the API server and cannot be used, and why.
    pub(crate) malformed: HashMap<ObjectKey, (Meta, String)>,
    /// Nodes that were seen, whatever is behind them.
    pub(crate) node_names: HashSet<Arc<str>>,
}

/// What Azure told about an identity that is not what it seemed.
pub(crate) struct ClientIdAnswer {
    pub(crate) asked: Instant,
    /// Its client id; `None` when it does not exist.
    pub(crate) told: Result<Option<ClientId>, HostError>,
}

/// What else is kept of an identity or a binding.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Meta {
    pub(crate) uid: Arc<str>,
    pub(crate) generation: i64,
    /// What the condition of an identity says at present.
    pub(crate) condition: Option<Condition>,
}

impl Index {
    pub(crate) fn new(scope: Scope) -> Self {
        Self {
            desired: DesiredState::new(scope),
            objects: HashMap::new(),
            by_key: HashMap::new(),
            hosts: HashMap::new(),
            identities: HashMap::new(),
            bindings: HashMap::new(),
            quarantine: Quarantine::default(),
            client_id_answers: HashMap::new(),
            malformed: HashMap::new(),
            node_names: HashSet::new(),
        }
    }

    pub(crate) fn apply_pod(&mut self, pod: PodFacts) -> Effects {
        let deltas = self.desired.apply_pod(pod);
        self.step(deltas)
    }

    pub(crate) fn delete_pod(&mut self, key: &ObjectKey) -> Effects {
        let deltas = self.desired.delete_pod(key);
        self.step(deltas)
    }

    pub(crate) fn apply_binding(&mut self, binding: BindingFacts, meta: Meta) -> Effects {
        self.bindings.insert(binding.key.clone(), meta);
        let deltas = self.desired.apply_binding(binding);
        self.step(deltas)
    }

    pub(crate) fn delete_binding(&mut self, key: &ObjectKey) -> Effects {
        self.bindings.remove(key);
        let deltas = self.desired.delete_binding(key);
        self.step(deltas)
    }

    /// An edited identity that Azure refused is tried again at once.
    pub(crate) fn apply_identity(&mut self, identity: IdentityFacts, meta: Meta) -> Effects {
        self.malformed.remove(&identity.key);
        let before = self.identities.insert(identity.key.clone(), meta.clone());
        let edited = before.is_none_or(|before| before.generation != meta.generation);
        if let Some(id) = identity.resource_id().filter(|_| edited) {
            self.retry_now(id);
            for host in self.hosts.values_mut() {
                host.compare(id, &identity.client_id);
            }
        }
        let deltas = self.desired.apply_identity(identity);
        self.step(deltas)
    }

    pub(crate) fn delete_identity(&mut self, key: &ObjectKey) -> Effects {
        self.identities.remove(key);
        self.malformed.remove(key);
        let deltas = self.desired.delete_identity(key);
        self.step(deltas)
    }

    pub(crate) fn apply_node(&mut self, name: &str, host: Option<HostKey>) -> Effects {
        self.node_names.insert(name.into());
        let deltas = self.desired.apply_node(name, host);
        self.step(deltas)
    }

    pub(crate) fn delete_node(&mut self, name: &str) -> Effects {
        self.node_names.remove(name);
        let deltas = self.desired.delete_node(name);
        self.step(deltas)
    }

    /// An AzureAssignedIdentity exists and looks like this. What is older than what is known is ignored.
    pub(crate) fn apply_object(&mut self, mut object: AssignedObject) -> Effects {
        let key = object.key.clone();
        if self
            .objects
            .get(&key)
            .is_some_and(|known| known.is_newer_than(&object))
        {
            return Effects::default();
        }
        object.share(&mut self.desired);
        let key = object.key.clone();
        let mut effects = Effects::default();
        effects.keys.insert(object.assignment.clone());
        let listed = self.by_key.entry(object.assignment.clone());
        // There is hardly ever a second.
        let listed = listed.or_insert_with(|| Vec::with_capacity(1));
        if !listed.contains(&key) {
            listed.push(key.clone());
        }
        if let Some(old) = self.objects.insert(key.clone(), object)
            && !self.still_named(&old, &key)
        {
            effects.extend(self.unlist(&old.assignment, &key));
        }
        effects
    }

    /// An AzureAssignedIdentity is gone.
    pub(crate) fn delete_object(&mut self, key: &ObjectKey) -> Effects {
        match self.objects.remove(key) {
            Some(old) => self.unlist(&old.assignment, key),
            None => Effects::default(),
        }
    }

    /// The objects that show an assignment.
    pub(crate) fn objects_of(&self, key: &AssignmentKey) -> Vec<&AssignedObject> {
        let keys = self.by_key.get(key).into_iter().flatten();
        keys.filter_map(|key| self.objects.get(key)).collect()
    }

    /// Every assignment that must exist or is shown by an object.
    pub(crate) fn all_keys(&self) -> BTreeSet<AssignmentKey> {
        let wanted = self.desired.assignments().map(Assignment::key);
        wanted.chain(self.by_key.keys().cloned()).collect()
    }

    /// The identities whose condition does not say that they work.
    pub(crate) fn not_ready(&self) -> BTreeSet<ObjectKey> {
        let all = self.identities.keys().chain(self.malformed.keys());
        all.filter(|key| !self.is_ready(key)).cloned().collect()
    }

    /// Whether an identity's condition says that it works, as its object is now.
    pub(crate) fn is_ready(&self, identity: &ObjectKey) -> bool {
        let meta = self.identities.get(identity);
        meta.is_some_and(|meta| {
            let condition = meta.condition.as_ref();
            condition.is_some_and(|c| c.ready && c.generation == meta.generation)
        })
    }

    /// Why an identity is not on a host yet.
    pub(crate) fn reason<'a>(
        &'a self,
        host: &'a Host,
        id: &ResourceId,
    ) -> Option<(Fault, &'a str)> {
        let trouble = host.trouble.as_ref();
        let refused = self.quarantine.reason(id);
        refused.or_else(|| trouble.map(|trouble| (trouble.fault, trouble.text.as_str())))
    }

    /// The identity is refused no more: whoever waits for it goes on.
    pub(crate) fn wake_hosts_of(&self, id: &ResourceId) {
        let hosts = self.hosts.values();
        hosts
            .filter(|host| host.wanted.contains_key(id))
            .for_each(|host| host.wake.notify_one());
    }

    /// What was recorded of a host by whoever led before.
    pub(crate) fn recall(&mut self, host: HostKey, owned: Owned) -> Effects {
        let mut effects = Effects::default();
        let host = self.host(Arc::new(host), &mut effects);
        host.owned = owned.clone();
        host.recorded = owned;
        effects
    }

    /// What is known of Azure may be outdated: another led meanwhile.
    pub(crate) fn invalidate(&mut self) {
        self.quarantine = Quarantine::default();
        self.client_id_answers.clear();
        for host in self.hosts.values_mut() {
            host.owned.clear();
            host.recorded.clear();
            host.invalidate();
        }
    }

    /// Names that were seen and are not in a complete list.
    pub(crate) fn missing_nodes(&self, listed: &BTreeSet<ObjectKey>) -> Vec<Arc<str>> {
        let listed: HashSet<&str> = listed.iter().map(|key| &*key.name).collect();
        let gone = self.node_names.iter().filter(|n| !listed.contains(&***n));
        gone.cloned().collect()
    }

    fn retry_now(&mut self, id: &ResourceId) {
        self.client_id_answers.remove(id);
        if self.quarantine.retry_now(id, Instant::now()) {
            self.wake_hosts_of(id);
        }
    }

    fn still_named(&self, old: &AssignedObject, key: &ObjectKey) -> bool {
        self.objects
            .get(key)
            .is_some_and(|new| new.assignment == old.assignment)
    }

    fn unlist(&mut self, assignment: &AssignmentKey, key: &ObjectKey) -> Effects {
        if let Some(keys) = self.by_key.get_mut(assignment) {
            keys.retain(|known| known != key);
            if keys.is_empty() {
                self.by_key.remove(assignment);
            }
        }
        Effects {
            keys: BTreeSet::from([assignment.clone()]),
            hosts: Vec::new(),
        }
    }

    fn step(&mut self, deltas: Vec<Delta>) -> Effects {
        let now = Instant::now();
        let mut effects = Effects::default();
        for Delta { before, after } in deltas {
            let (old, new) = (
                before.as_ref().and_then(place),
                after.as_ref().and_then(place),
            );
            for assignment in before.iter().chain(after.iter()) {
                effects.keys.insert(assignment.key());
            }
            if old == new {
                continue;
            }
            // The new one first, so that an identity that stays on the host is never seen as unwanted.
            if let (Some((host, id)), Some(after)) = (new, &after) {
                let host = self.host(host.clone(), &mut effects);
                host.want(id, after.key(), now);
            }
            if let (Some((host, id)), Some(before)) = (old, &before)
                && let Some(host) = self.hosts.get_mut(host)
            {
                host.unwant(id, &before.key(), now);
            }
        }
        effects
    }

    fn host(&mut self, key: Arc<HostKey>, effects: &mut Effects) -> &mut Host {
        self.hosts.entry(key).or_insert_with_key(|key| {
            effects.hosts.push(key.clone());
            Host::new(key.clone())
        })
    }
}

/// The host and the identity that an assignment needs there.
fn place(assignment: &Assignment) -> Option<(&Arc<HostKey>, &ResourceId)> {
    Some((
        assignment.host.as_ref()?,
        assignment.identity.resource_id()?,
    ))
}
