//! The benchmark harness: the controller's index and decisions without an API server and without Azure, one event at a time.
//!
//! `benches/index.rs` measures with it what an event costs by the size of the cluster, and a test that the work of an event does not
//! grow with it.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use podid_policy::desired::AssignmentKey;
use podid_policy::facts::{BindingFacts, IdentityFacts, ObjectKey, PodFacts};
use podid_policy::ids::HostKey;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::assigned::object::{AssignedObject, WatchedAssignedIdentity};
use crate::assigned::reconcile::{ObjectWrite, decide};
use crate::config::Config;
use crate::host::Action;
use crate::host::cloud::HostIdentities;
use crate::index::{Effects, Index, client_id_of};
use crate::meta::Meta;

/// The work that an event has caused once everything that follows from it is done.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Work {
    /// How often an assignment was looked at.
    pub looked_at: usize,
    /// Writes of AzureAssignedIdentities.
    pub writes: usize,
    /// How often a host's worker woke.
    pub woken: usize,
    /// Changes of hosts.
    pub changes: usize,
}

/// A controller without a network: every write to the API server and to Azure succeeds at once.
pub struct OfflineController {
    index: Index,
    config: Config,
    azure: HashMap<Arc<HostKey>, HostIdentities>,
    leading: bool,
    version: u64,
}

impl Default for OfflineController {
    fn default() -> Self {
        let config = Config {
            settle: Duration::ZERO,
            linger: Duration::ZERO,
            ..Config::new("mic", "default")
        };
        Self {
            index: Index::new(config.scope),
            config,
            azure: HashMap::new(),
            leading: false,
            version: 0,
        }
    }
}

impl OfflineController {
    /// A node with this provider id was seen.
    pub fn node(&mut self, name: &str, provider_id: &str) -> Work {
        let host = HostKey::from_provider_id(provider_id).ok();
        self.step(|index| index.apply_node(name, host))
    }

    /// An AzureIdentity was seen.
    pub fn identity(&mut self, identity: IdentityFacts) -> Work {
        self.step(|index| index.apply_identity(identity, Meta::default()))
    }

    /// An AzureIdentityBinding was seen.
    pub fn binding(&mut self, binding: BindingFacts) -> Work {
        self.step(|index| index.apply_binding(binding, Meta::default()))
    }

    /// A pod was seen.
    pub fn pod(&mut self, pod: PodFacts) -> Work {
        self.step(|index| index.apply_pod(pod))
    }

    /// A pod is gone.
    pub fn delete_pod(&mut self, key: &ObjectKey) -> Work {
        self.step(|index| index.delete_pod(key))
    }

    /// Begins to lead: carries out everything that was decided so far.
    pub fn lead(&mut self) -> Work {
        self.leading = true;
        let mut work = Work::default();
        let hosts: Vec<_> = self.index.hosts.keys().cloned().collect();
        for host in hosts {
            self.wake(&host, &mut work);
        }
        let keys = self.index.all_keys();
        self.settle(keys, &mut work);
        work
    }

    /// Compares every host with Azure, as the controller does at every reconcile interval.
    pub fn compare(&mut self) -> Work {
        let mut work = Work::default();
        let keys: Vec<_> = self.index.hosts.keys().cloned().collect();
        for key in keys {
            let Index { desired, hosts, .. } = &mut self.index;
            let mut affected = BTreeSet::new();
            if let Some(host) = hosts.get_mut(&key) {
                let shown = self.azure.get(&key).cloned().unwrap_or_default();
                let client_id = |who: &AssignmentKey| client_id_of(desired, who);
                affected = host.on_read(Instant::now(), shown, client_id).affected;
                host.wake.notify_one();
            }
            affected.extend(self.wake(&key, &mut work));
            self.settle(affected, &mut work);
        }
        work
    }

    /// How many objects there are.
    pub fn objects(&self) -> usize {
        self.index.objects.len()
    }

    fn step(&mut self, step: impl FnOnce(&mut Index) -> Effects) -> Work {
        let effects = step(&mut self.index);
        let mut work = Work::default();
        if self.leading {
            self.settle(effects.keys, &mut work);
        }
        work
    }

    fn settle(&mut self, mut keys: BTreeSet<AssignmentKey>, work: &mut Work) {
        while let Some(key) = keys.pop_first() {
            for host in self.hosts_of(&key) {
                keys.extend(self.wake(&host, work));
            }
            work.looked_at += 1;
            let (writes, _) = decide(&mut self.index, &key, &self.config);
            for write in writes {
                work.writes += 1;
                keys.extend(self.write(write));
            }
        }
    }

    /// The hosts of an assignment: the one where its identity must be, and those that its objects show.
    fn hosts_of(&self, key: &AssignmentKey) -> BTreeSet<Arc<HostKey>> {
        let wanted = self.index.desired.get(key).map(|found| &found.node);
        let shown = self.index.objects_of(key);
        let shown = shown.iter().map(|object| object.node());
        let nodes = shown.chain(wanted.map(|node| &**node));
        nodes
            .filter_map(|node| self.index.desired.host_of(node).cloned())
            .collect()
    }

    /// Does what the host's worker does when it is woken. Returns the assignments whose objects may have to change.
    fn wake(&mut self, key: &Arc<HostKey>, work: &mut Work) -> BTreeSet<AssignmentKey> {
        let mut affected = BTreeSet::new();
        let Some(host) = self.index.hosts.get(key) else {
            return affected;
        };
        if host.wake.notified().now_or_never().is_none() {
            return affected;
        }
        work.woken += 1;
        loop {
            let now = Instant::now();
            let Some(action) = self.index.next_action(key, now, &self.config) else {
                return affected;
            };
            let Index { desired, hosts, .. } = &mut self.index;
            let Some(host) = hosts.get_mut(key) else {
                return affected;
            };
            let shown = self.azure.entry(key.clone()).or_default();
            match action {
                Action::Wait(_) | Action::Verify(_) | Action::Retire => return affected,
                Action::Read => {
                    let client_id = |who: &AssignmentKey| client_id_of(desired, who);
                    affected.extend(host.on_read(now, shown.clone(), client_id).affected);
                }
                Action::Record(owned) => host.on_recorded(owned),
                Action::Patch(_, change) => {
                    work.changes += 1;
                    let attached = change.attach.iter().map(|id| (id.clone(), None));
                    shown.user.extend(attached);
                    shown.user.retain(|id, _| !change.detach.contains(id));
                    affected.extend(host.on_patched(&change, None));
                }
            }
        }
    }

    /// Does what the API server does. Returns the assignments whose objects have changed, as the watch reports them.
    fn write(&mut self, write: ObjectWrite) -> BTreeSet<AssignmentKey> {
        match write {
            ObjectWrite::Create(_, body) => self.store(body),
            // A patched object is the one that would be created if there were none.
            ObjectWrite::Patch(key, _) => {
                let keys = self.index.delete_object(&key).keys;
                for assignment in &keys {
                    let (writes, _) = decide(&mut self.index, assignment, &self.config);
                    for write in writes {
                        if let ObjectWrite::Create(_, body) = write {
                            self.store(body);
                        }
                    }
                }
                keys
            }
            ObjectWrite::Remove { key, .. } => self.index.delete_object(&key).keys,
        }
    }

    fn store(&mut self, mut body: Value) -> BTreeSet<AssignmentKey> {
        self.version += 1;
        let version = self.version;
        body["metadata"]["resourceVersion"] = json!(version.to_string());
        body["metadata"]["uid"] = json!(format!("7d4b9c00-0000-4000-8000-{version:012}"));
        let seen = serde_json::from_value::<WatchedAssignedIdentity>(body).ok();
        let object = seen.and_then(|seen| AssignedObject::read(seen).ok());
        let effects = object.map(|object| self.index.apply_object(object));
        effects.unwrap_or_default().keys
    }
}
