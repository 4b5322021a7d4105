//! Object store, as etcd is to the real server: all objects under one resourceVersion, with the recent changes that watches and
//! snapshots need.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use parking_lot::{Mutex, MutexGuard};
use serde_json::Value;
use tokio::sync::watch;

use super::catalog::Catalog;

/// Namespace (empty for cluster-scoped objects) and name.
pub(super) type Key = (String, String);
type Objects = BTreeMap<Key, Arc<Value>>;

/// One write.
#[derive(Debug, Clone)]
pub(super) struct Change {
    pub version: u64,
    pub resource: String,
    pub key: Key,
    pub before: Option<Arc<Value>>,
    /// The object as written; for a deletion, as it was last, with the deletion's resourceVersion.
    pub object: Arc<Value>,
    pub deleted: bool,
}

/// Everything the server knows, changed under one lock.
#[derive(Debug)]
pub(super) struct State {
    version: u64,
    compacted: u64,
    history: usize,
    objects: BTreeMap<String, Objects>,
    log: VecDeque<Change>,
    changed: watch::Sender<u64>,
    pub catalog: Arc<Catalog>,
}

/// The shared store.
#[derive(Debug)]
pub(super) struct Store {
    state: Mutex<State>,
    changed: watch::Sender<u64>,
}

impl Store {
    pub(super) fn new(history: usize) -> Self {
        let changed = watch::Sender::new(1);
        Self {
            state: Mutex::new(State {
                version: 1,
                compacted: 0,
                history: history.max(1),
                objects: BTreeMap::new(),
                log: VecDeque::new(),
                changed: changed.clone(),
                catalog: Arc::new(Catalog::builtin()),
            }),
            changed,
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Told the newest resourceVersion after each write.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}

impl State {
    pub(super) fn version(&self) -> u64 {
        self.version
    }

    pub(super) fn get(&self, resource: &str, key: &Key) -> Option<&Arc<Value>> {
        self.objects.get(resource)?.get(key)
    }

    /// The objects of a resource, of one namespace when `namespace` is not empty, in the order of lists.
    pub(super) fn list<'a>(
        &'a self,
        resource: &str,
        namespace: &'a str,
    ) -> impl Iterator<Item = (&'a Key, &'a Arc<Value>)> {
        self.objects
            .get(resource)
            .into_iter()
            .flatten()
            .filter(move |(key, _)| namespace.is_empty() || key.0 == namespace)
    }

    /// The objects of a resource as they were at `version`; `None` when that is forgotten.
    pub(super) fn at(&self, resource: &str, version: u64) -> Option<Objects> {
        if version < self.compacted {
            return None;
        }
        let mut objects = self.objects.get(resource).cloned().unwrap_or_default();
        for change in self.log.iter().rev().take_while(|c| c.version > version) {
            if change.resource != resource {
                continue;
            }
            match &change.before {
                Some(before) => objects.insert(change.key.clone(), Arc::clone(before)),
                None => objects.remove(&change.key),
            };
        }
        Some(objects)
    }

    /// The keys of every object in a namespace.
    pub(super) fn in_namespace(&self, namespace: &str) -> Vec<(String, Key)> {
        let all = self.objects.iter().flat_map(|(resource, objects)| {
            objects
                .keys()
                .map(move |key| (resource.clone(), key.clone()))
        });
        all.filter(|(_, key)| key.0 == namespace).collect()
    }

    /// Writes an object and gives it the next resourceVersion.
    pub(super) fn put(&mut self, resource: &str, key: Key, mut object: Value) -> Arc<Value> {
        self.version += 1;
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        let object = Arc::new(object);
        let before = self
            .objects
            .entry(resource.to_owned())
            .or_default()
            .insert(key.clone(), Arc::clone(&object));
        self.record(resource, key, before, &object, false);
        object
    }

    /// Removes an object; `last` is what watches see of it.
    pub(super) fn remove(&mut self, resource: &str, key: Key, mut last: Value) -> Arc<Value> {
        self.version += 1;
        last["metadata"]["resourceVersion"] = self.version.to_string().into();
        let last = Arc::new(last);
        let before = self
            .objects
            .get_mut(resource)
            .and_then(|all| all.remove(&key));
        self.record(resource, key, before, &last, true);
        last
    }

    fn record(
        &mut self,
        resource: &str,
        key: Key,
        before: Option<Arc<Value>>,
        object: &Arc<Value>,
        deleted: bool,
    ) {
        self.log.push_back(Change {
            version: self.version,
            resource: resource.to_owned(),
            key,
            before,
            object: Arc::clone(object),
            deleted,
        });
        while self.log.len() > self.history {
            if let Some(forgotten) = self.log.pop_front() {
                self.compacted = forgotten.version;
            }
        }
        self.changed.send_replace(self.version);
    }

    /// The changes after `version`; `None` when some of them are forgotten.
    pub(super) fn since(&self, version: u64) -> Option<impl Iterator<Item = &Change>> {
        if version < self.compacted {
            return None;
        }
        let first = self.log.partition_point(|change| change.version <= version);
        Some(self.log.range(first..))
    }

    /// The oldest resourceVersion from which a watch can resume.
    pub(super) fn compacted(&self) -> u64 {
        self.compacted
    }

    /// Forgets all changes so far.
    pub(super) fn compact(&mut self) {
        self.log.clear();
        self.compacted = self.version;
        self.changed.send_replace(self.version);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn key(name: &str) -> Key {
        ("ns".to_owned(), name.to_owned())
    }

    #[test]
    fn the_past_can_be_listed_until_it_is_forgotten() {
        let store = Store::new(10);
        let mut state = store.lock();
        state.put("pods", key("a"), json!({"n": 1}));
        let then = state.version();
        state.put("pods", key("a"), json!({"n": 2}));
        state.put("pods", key("b"), json!({"n": 3}));
        state.remove("pods", key("a"), json!({"n": 2}));
        let past = state.at("pods", then).unwrap();
        assert_eq!(past.len(), 1);
        assert_eq!(past[&key("a")]["n"], 1);
        assert_eq!(state.since(then).unwrap().count(), 3);
        state.compact();
        assert!(state.at("pods", then).is_none());
        assert!(state.since(then).is_none());
        assert_eq!(state.since(state.version()).unwrap().count(), 0);
    }

    #[test]
    fn history_is_bounded() {
        let store = Store::new(2);
        let mut state = store.lock();
        for n in 0..5 {
            state.put("pods", key("a"), json!({"n": n}));
        }
        assert!(state.since(state.version() - 2).is_some());
        assert!(state.since(state.version() - 3).is_none());
    }
}
