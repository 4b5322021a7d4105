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

use crate::assigned::{Object, Step, Watched, decide};
use crate::config::Config;
use crate::host::Move;
use crate::host::cloud::OnHost;
use crate::index::{Effects, Meta, State};

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
pub struct Machine {
    state: State,
    config: Config,
    azure: HashMap<Arc<HostKey>, OnHost>,
    leading: bool,
    version: u64,
}

impl Default for Machine {
    fn default() -> Self {
        let config = Config {
            settle: Duration::ZERO,
            linger: Duration::ZERO,
            ..Config::new("mic", "default")
        };
        Self {
            state: State::new(config.scope),
            config,
            azure: HashMap::new(),
            leading: false,
            version: 0,
        }
    }
}

impl Machine {
    /// A node with this provider id was seen.
    pub fn node(&mut self, name: &str, provider_id: &str) -> Work {
        let host = HostKey::from_provider_id(provider_id).ok();
        self.step(|state| state.apply_node(name, host))
    }

    /// An AzureIdentity was seen.
    pub fn identity(&mut self, identity: IdentityFacts) -> Work {
        self.step(|state| state.apply_identity(identity, Meta::default()))
    }

    /// An AzureIdentityBinding was seen.
    pub fn binding(&mut self, binding: BindingFacts) -> Work {
        self.step(|state| state.apply_binding(binding, Meta::default()))
    }

    /// A pod was seen.
    pub fn pod(&mut self, pod: PodFacts) -> Work {
        self.step(|state| state.apply_pod(pod))
    }

    /// A pod is gone.
    pub fn delete_pod(&mut self, key: &ObjectKey) -> Work {
        self.step(|state| state.delete_pod(key))
    }

    /// Begins to lead: everything that was seen is brought about.
    pub fn lead(&mut self) -> Work {
        self.leading = true;
        let mut work = Work::default();
        let hosts: Vec<_> = self.state.hosts.keys().cloned().collect();
        for host in hosts {
            self.wake(&host, &mut work);
        }
        let keys = self.state.all_keys();
        self.settle(keys, &mut work);
        work
    }

    /// Compares every host with Azure, as happens now and then.
    pub fn compare(&mut self) -> Work {
        let mut work = Work::default();
        let keys: Vec<_> = self.state.hosts.keys().cloned().collect();
        for key in keys {
            let State { desired, hosts, .. } = &mut self.state;
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
        self.state.objects.len()
    }

    fn step(&mut self, step: impl FnOnce(&mut State) -> Effects) -> Work {
        let effects = step(&mut self.state);
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
            let (steps, _) = decide(&mut self.state, &key, &self.config);
            for step in steps {
                work.writes += 1;
                keys.extend(self.write(step));
            }
        }
    }

    /// The hosts that an assignment is about: the one where it must be, and those where its objects show it.
    fn hosts_of(&self, key: &AssignmentKey) -> BTreeSet<Arc<HostKey>> {
        let wanted = self.state.desired.get(key).map(|found| &found.node);
        let shown = self.state.objects_of(key);
        let shown = shown.iter().map(|object| object.node());
        let nodes = shown.chain(wanted.map(|node| &**node));
        nodes
            .filter_map(|node| self.state.desired.host_of(node).cloned())
            .collect()
    }

    /// What a host's worker does once woken. Returns whose objects may have to change.
    fn wake(&mut self, key: &Arc<HostKey>, work: &mut Work) -> BTreeSet<AssignmentKey> {
        let mut touched = BTreeSet::new();
        let State {
            desired,
            hosts,
            quarantine,
            ..
        } = &mut self.state;
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
    fn write(&mut self, step: Step) -> BTreeSet<AssignmentKey> {
        match step {
            Step::Create(_, body) => self.store(body),
            // What an object is changed to is what would be made were it not there.
            Step::Patch(key, _) => {
                let keys = self.state.delete_object(&key).keys;
                for assignment in &keys {
                    let (steps, _) = decide(&mut self.state, assignment, &self.config);
                    for step in steps {
                        if let Step::Create(_, body) = step {
                            self.store(body);
                        }
                    }
                }
                keys
            }
            Step::Remove { key, .. } => self.state.delete_object(&key).keys,
        }
    }

    fn store(&mut self, mut body: Value) -> BTreeSet<AssignmentKey> {
        self.version += 1;
        let version = self.version;
        body["metadata"]["resourceVersion"] = json!(version.to_string());
        body["metadata"]["uid"] = json!(format!("7d4b9c00-0000-4000-8000-{version:012}"));
        let seen = serde_json::from_value::<Watched>(body).ok();
        let object = seen.and_then(|seen| Object::read(seen).ok());
        let effects = object.map(|object| self.state.apply_object(object));
        effects.unwrap_or_default().keys
    }
}
