//! The index: everything that the controller knows of the cluster and of Azure, kept up to date event by event.
//!
//! The watches ([`crate::watches`]) apply one event at a time, and each step returns its [`Effects`]: the assignments whose objects
//! must be looked at and the hosts that need a worker. Hosts' workers and writers read and update it. It is guarded by one lock that is
//! held for a synchronous step and never across an await. An event costs the same however big the cluster is
//! (`benches/index.rs`).

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use podid_policy::desired::{Assignment, AssignmentKey, Delta, DesiredState};
use podid_policy::facts::{BindingFacts, IdentityFacts, ObjectKey, PodFacts};
use podid_policy::ids::{ClientId, HostKey, ResourceId};
use podid_policy::matching::Scope;
use tokio::time::Instant;

use crate::assigned::object::AssignedObject;
use crate::config::Config;
use crate::federation::accounts::Accounts;
use crate::federation::checks::Checks;
use crate::host::cloud::{Fault, HostError};
use crate::host::quarantine::Quarantine;
use crate::host::{Action, Host, Owned, Surroundings};
use crate::meta::Meta;

/// What must be done after a step of the index.
#[derive(Debug, Default)]
pub(crate) struct Effects {
    /// Assignments whose objects must be reconciled.
    pub(crate) keys: BTreeSet<AssignmentKey>,
    /// Hosts that need a worker.
    pub(crate) hosts: Vec<Arc<HostKey>>,
    /// Whether a federated identity came, changed or went.
    pub(crate) federation: bool,
}

impl Effects {
    fn extend(&mut self, other: Effects) {
        self.keys.extend(other.keys);
        self.hosts.extend(other.hosts);
        self.federation |= other.federation;
    }
}

/// Everything that the controller knows.
pub(crate) struct Index {
    /// Which assignments must exist, by the pods, bindings, identities and nodes.
    pub(crate) desired: DesiredState,
    /// The AzureAssignedIdentity objects that exist.
    pub(crate) objects: HashMap<ObjectKey, AssignedObject>,
    /// The objects that show each assignment.
    objects_by_assignment: HashMap<AssignmentKey, Vec<ObjectKey>>,
    /// The virtual machines and scale sets that podid looks after.
    pub(crate) hosts: HashMap<Arc<HostKey>, Host>,
    /// Metadata of AzureIdentities.
    pub(crate) identities: HashMap<ObjectKey, Meta>,
    /// Metadata of AzureIdentityBindings.
    pub(crate) bindings: HashMap<ObjectKey, Meta>,
    /// What Azure refuses to attach.
    pub(crate) quarantine: Quarantine,
    /// Azure's answers about identities that are attached under another client id than their AzureIdentity says.
    pub(crate) client_id_answers: HashMap<ResourceId, ClientIdAnswer>,
    /// AzureIdentities that the API server has accepted and podid cannot use, and why.
    pub(crate) malformed: HashMap<ObjectKey, (Meta, String)>,
    /// The nodes that exist, also those without a known host.
    pub(crate) node_names: HashSet<Arc<str>>,
    /// The federated identities, and whether their tokens can be had.
    pub(crate) checks: Checks,
    /// The service accounts that stand for federated identities.
    pub(crate) accounts: Accounts,
}

/// Azure's answer when it was asked for the client id of an identity.
pub(crate) struct ClientIdAnswer {
    pub(crate) asked_at: Instant,
    /// The client id; `None` when the identity does not exist.
    pub(crate) answer: Result<Option<ClientId>, HostError>,
}

/// The client id that the AzureIdentity of an assignment says.
pub(crate) fn client_id_of(desired: &DesiredState, who: &AssignmentKey) -> Option<ClientId> {
    Some(desired.get(who)?.identity.client_id.clone())
}

impl Index {
    pub(crate) fn new(scope: Scope) -> Self {
        Self {
            desired: DesiredState::new(scope),
            objects: HashMap::new(),
            objects_by_assignment: HashMap::new(),
            hosts: HashMap::new(),
            identities: HashMap::new(),
            bindings: HashMap::new(),
            quarantine: Quarantine::default(),
            client_id_answers: HashMap::new(),
            malformed: HashMap::new(),
            node_names: HashSet::new(),
            checks: Checks::default(),
            accounts: Accounts::default(),
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

    /// An identity that Azure refused is tried again at once when its object is edited.
    pub(crate) fn apply_identity(&mut self, identity: IdentityFacts, meta: Meta) -> Effects {
        self.malformed.remove(&identity.key);
        let before = self.identities.insert(identity.key.clone(), meta.clone());
        let edited = before.is_none_or(|before| before.generation != meta.generation);
        if let Some(id) = identity.attached_id().filter(|_| edited) {
            self.retry_now(id);
            for host in self.hosts.values_mut() {
                host.compare_client_id(id, &identity.client_id);
            }
        }
        let works = meta.says_federated();
        let federation = self
            .checks
            .on_seen(&identity, works, edited, Instant::now());
        let deltas = self.desired.apply_identity(identity);
        Effects {
            federation,
            ..self.step(deltas)
        }
    }

    pub(crate) fn delete_identity(&mut self, key: &ObjectKey) -> Effects {
        self.identities.remove(key);
        self.malformed.remove(key);
        let federation = self.checks.on_deleted(key);
        let deltas = self.desired.delete_identity(key);
        Effects {
            federation,
            ..self.step(deltas)
        }
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

    /// An AzureAssignedIdentity exists and looks like this. A version that is older than the known one is ignored.
    pub(crate) fn apply_object(&mut self, mut object: AssignedObject) -> Effects {
        let key = object.key.clone();
        if self
            .objects
            .get(&key)
            .is_some_and(|known| known.is_newer_than(&object))
        {
            return Effects::default();
        }
        object.intern(&mut self.desired);
        let key = object.key.clone();
        let mut effects = Effects::default();
        effects.keys.insert(object.assignment.clone());
        let known = self.objects_by_assignment.entry(object.assignment.clone());
        // A second object is very rare.
        let known = known.or_insert_with(|| Vec::with_capacity(1));
        if !known.contains(&key) {
            known.push(key.clone());
        }
        if let Some(old) = self.objects.insert(key.clone(), object)
            && !self.is_same_assignment(&old, &key)
        {
            effects.extend(self.remove_from_assignment(&old.assignment, &key));
        }
        effects
    }

    /// An AzureAssignedIdentity is gone.
    pub(crate) fn delete_object(&mut self, key: &ObjectKey) -> Effects {
        match self.objects.remove(key) {
            Some(old) => self.remove_from_assignment(&old.assignment, key),
            None => Effects::default(),
        }
    }

    /// The objects that show an assignment.
    pub(crate) fn objects_of(&self, key: &AssignmentKey) -> Vec<&AssignedObject> {
        let keys = self.objects_by_assignment.get(key).into_iter().flatten();
        keys.filter_map(|key| self.objects.get(key)).collect()
    }

    /// Every assignment that must exist or that an object shows.
    pub(crate) fn all_keys(&self) -> BTreeSet<AssignmentKey> {
        let wanted = self.desired.assignments().map(Assignment::key);
        wanted
            .chain(self.objects_by_assignment.keys().cloned())
            .collect()
    }

    /// The AzureIdentities whose condition is not `True`.
    pub(crate) fn not_ready(&self) -> BTreeSet<ObjectKey> {
        let all = self.identities.keys().chain(self.malformed.keys());
        all.filter(|key| !self.is_ready(key)).cloned().collect()
    }

    /// Whether an AzureIdentity's condition is `True` for its present generation.
    pub(crate) fn is_ready(&self, identity: &ObjectKey) -> bool {
        let meta = self.identities.get(identity);
        meta.is_some_and(|meta| {
            let condition = meta.condition.as_ref();
            condition.is_some_and(|c| c.ready && c.generation == meta.generation)
        })
    }

    /// Why an identity is not on a host yet, where there is a reason.
    pub(crate) fn reason<'a>(
        &'a self,
        host: &'a Host,
        id: &ResourceId,
    ) -> Option<(Fault, &'a str)> {
        let trouble = host.trouble.as_ref();
        let refused = self.quarantine.reason(id, &host.key);
        refused.or_else(|| trouble.map(|trouble| (trouble.fault, trouble.text.as_str())))
    }

    /// Wakes the workers of all hosts that need the identity, because it is not refused any more.
    pub(crate) fn wake_hosts_of(&self, id: &ResourceId) {
        let hosts = self.hosts.values();
        hosts
            .filter(|host| host.is_wanted(id))
            .for_each(|host| host.wake.notify_one());
    }

    /// The ownership record of a host that the last leader left.
    pub(crate) fn recall(&mut self, host: HostKey, owned: Owned) -> Effects {
        let mut effects = Effects::default();
        let host = self.host(Arc::new(host), &mut effects);
        host.recall(owned);
        effects
    }

    /// Forgets what is known of Azure, because another replica may have led meanwhile.
    pub(crate) fn invalidate(&mut self) {
        self.quarantine = Quarantine::default();
        self.client_id_answers.clear();
        let works = |key: &ObjectKey| self.identities.get(key).is_some_and(Meta::says_federated);
        self.checks.restart(works, Instant::now());
        for host in self.hosts.values_mut() {
            host.invalidate();
        }
    }

    /// Nodes that are known and not in a complete list.
    pub(crate) fn missing_nodes(&self, listed: &BTreeSet<ObjectKey>) -> Vec<Arc<str>> {
        let listed: HashSet<&str> = listed.iter().map(|key| &*key.name).collect();
        let gone = self.node_names.iter().filter(|n| !listed.contains(&***n));
        gone.cloned().collect()
    }

    /// Decides what to do next on a host and commits the decision; `None` when the host is retired with it.
    pub(crate) fn next_action(
        &mut self,
        key: &HostKey,
        now: Instant,
        config: &Config,
    ) -> Option<Action> {
        let Self {
            desired,
            hosts,
            quarantine,
            node_names,
            checks,
            ..
        } = self;
        let host = hosts.get_mut(key)?;
        let decision = host.decide(&Surroundings {
            now,
            config,
            quarantine,
            client_id: &|who| client_id_of(desired, who),
            // A node's object may be deleted while its pods run on; the node may be on this host.
            may_be_needed: &|id| {
                let mut unplaced = desired.unplaced();
                checks.keeps_attached(id, key, desired)
                    || unplaced.any(|assignment| {
                        !node_names.contains(&assignment.node)
                            && assignment.identity.attached_id() == Some(id)
                    })
            },
        });
        let action = host.commit(decision, now, quarantine);
        if action == Action::Retire {
            hosts.remove(key);
            return None;
        }
        Some(action)
    }

    fn retry_now(&mut self, id: &ResourceId) {
        self.client_id_answers.remove(id);
        if self.quarantine.retry_now(id, Instant::now()) {
            self.wake_hosts_of(id);
        }
    }

    fn is_same_assignment(&self, old: &AssignedObject, key: &ObjectKey) -> bool {
        self.objects
            .get(key)
            .is_some_and(|new| new.assignment == old.assignment)
    }

    fn remove_from_assignment(&mut self, assignment: &AssignmentKey, key: &ObjectKey) -> Effects {
        if let Some(keys) = self.objects_by_assignment.get_mut(assignment) {
            keys.retain(|known| known != key);
            if keys.is_empty() {
                self.objects_by_assignment.remove(assignment);
            }
        }
        Effects {
            keys: BTreeSet::from([assignment.clone()]),
            ..Effects::default()
        }
    }

    fn step(&mut self, deltas: Vec<Delta>) -> Effects {
        let now = Instant::now();
        let mut effects = Effects::default();
        for Delta { before, after } in deltas {
            let (old, new) = (
                before.as_ref().and_then(placement),
                after.as_ref().and_then(placement),
            );
            for assignment in before.iter().chain(after.iter()) {
                effects.keys.insert(assignment.key());
            }
            if old == new {
                continue;
            }
            // The new assignment comes first, so that an identity that stays on the host is never unwanted between.
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

/// The host of an assignment and the identity that it needs there.
fn placement(assignment: &Assignment) -> Option<(&Arc<HostKey>, &ResourceId)> {
    Some((
        assignment.host.as_ref()?,
        assignment.identity.attached_id()?,
    ))
}
