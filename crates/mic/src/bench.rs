//! The controller's index, plans and decisions without an API server and without Azure, one event at a time: for benchmarks.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use podid_policy::desired::AssignmentKey;
use podid_policy::facts::{BindingFacts, IdentityFacts, ObjectKey, PodFacts};
use podid_policy::ids::HostKey;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::assigned::{AssignedObject, ObjectWrite, WatchedAssignedIdentity, decide};
use crate::config::Config;
use crate::host::Move;
use crate::host::cloud::HostIdentities;
use crate::index::{Effects, Index, Meta};

/// What an event led to, when all that follows from it has been done.
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

/// A controller for which the API server and Azure do at once whatever they are asked.
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

    /// Begins to lead: everything that was seen is brought about.
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

    /// Compares every host with Azure, as happens now and then.
    pub fn compare(&mut self) -> Work {
        let mut work = Work::default();
        let keys: Vec<_> = self.index.hosts.keys().cloned().collect();
        for key in keys {
            let Index { desired, hosts, .. } = &mut self.index;
            let mut touched = BTreeSet::new();
            if let Some(host) = hosts.get_mut(&key) {
                let shown = self.azure.get(&key).cloned().unwrap_or_default();
                let client =
                    |who: &AssignmentKey| Some(desired.get(who)?.identity.client_id.clone());
                touched = host.looked(Instant::now(), shown, client).touched;
                host.wake.notify_one();
            }
            touched.extend(self.wake(&key, &mut work));
            self.settle(touched, &mut work);
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
            let (steps, _) = decide(&mut self.index, &key, &self.config);
            for step in steps {
                work.writes += 1;
                keys.extend(self.write(step));
            }
        }
    }

    /// The hosts that an assignment is about: the one where it must be, and those where its objects show it.
    fn hosts_of(&self, key: &AssignmentKey) -> BTreeSet<Arc<HostKey>> {
        let wanted = self.index.desired.get(key).map(|found| &found.node);
        let shown = self.index.objects_of(key);
        let shown = shown.iter().map(|object| object.node());
        let nodes = shown.chain(wanted.map(|node| &**node));
        nodes
            .filter_map(|node| self.index.desired.host_of(node).cloned())
            .collect()
    }

    /// What a host's worker does once woken. Returns whose objects may have to change.
    fn wake(&mut self, key: &Arc<HostKey>, work: &mut Work) -> BTreeSet<AssignmentKey> {
        let mut touched = BTreeSet::new();
        let Index {
            desired,
            hosts,
            quarantine,
            ..
        } = &mut self.index;
        let Some(host) = hosts.get_mut(key) else {
            return touched;
        };
        if host.wake.notified().now_or_never().is_none() {
            return touched;
        }
        work.woken += 1;
        let shown = self.azure.entry(key.clone()).or_default();
        let client = |who: &AssignmentKey| Some(desired.get(who)?.identity.client_id.clone());
        loop {
            let now = Instant::now();
            match host.next_move(now, &self.config, quarantine, client) {
                Move::Wait(_) | Move::Verify(_) => return touched,
                Move::Look => touched.extend(host.looked(now, shown.clone(), client).touched),
                Move::Record(owned) => host.recorded(owned),
                Move::Change(_, change) => {
                    work.changes += 1;
                    let attached = change.attach.iter().map(|id| (id.clone(), None));
                    shown.user.extend(attached);
                    shown.user.retain(|id, _| !change.detach.contains(id));
                    touched.extend(host.changed(&change, None));
                }
                Move::Retire => {
                    hosts.remove(key);
                    return touched;
                }
            }
        }
    }

    /// Does as the API server would. Returns whose objects changed, as the watch tells it.
    fn write(&mut self, step: ObjectWrite) -> BTreeSet<AssignmentKey> {
        match step {
            ObjectWrite::Create(_, body) => self.store(body),
            // What an object is changed to is what would be made were it not there.
            ObjectWrite::Patch(key, _) => {
                let keys = self.index.delete_object(&key).keys;
                for assignment in &keys {
                    let (steps, _) = decide(&mut self.index, assignment, &self.config);
                    for step in steps {
                        if let ObjectWrite::Create(_, body) = step {
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
