//! What the tasks of the controller share.

use std::collections::BTreeSet;
use std::sync::Arc;

use parking_lot::Mutex;
use podid_policy::desired::AssignmentKey;
use podid_policy::facts::ObjectKey;
use podid_policy::ids::HostKey;
use tokio::sync::{Notify, mpsc, watch};

use crate::assigned::queue::Queue;
use crate::config::Config;
use crate::host::cloud::Hosts;
use crate::host::ownership::Records;
use crate::index::{Effects, State};
use crate::metrics::Metrics;
use crate::report::events::Note;
use crate::type_upgrade::TypeUpgrade;

/// Shared by all tasks.
pub(crate) struct Context {
    pub(crate) config: Config,
    pub(crate) client: kube::Client,
    pub(crate) azure: Arc<dyn Hosts>,
    pub(crate) state: Mutex<State>,
    pub(crate) queue: Queue,
    pub(crate) records: Records,
    pub(crate) metrics: Metrics,
    /// Whether this replica leads and knows enough to act.
    pub(crate) ready: watch::Sender<bool>,
    pub(crate) conditions: Conditions,
    pub(crate) type_upgrade: TypeUpgrade,
    /// Why writing failed last, so that an outage is logged once and not for every object.
    pub(crate) write_trouble: Mutex<String>,
    notes: mpsc::Sender<Note>,
    workers: mpsc::UnboundedSender<Arc<HostKey>>,
}

/// Identities whose condition must be looked at.
#[derive(Default)]
pub(crate) struct Conditions {
    pub(crate) dirty: Mutex<BTreeSet<ObjectKey>>,
    pub(crate) news: Notify,
}

/// The other ends of a [`Context`].
pub(crate) struct Ends {
    pub(crate) notes: mpsc::Receiver<Note>,
    pub(crate) workers: mpsc::UnboundedReceiver<Arc<HostKey>>,
}

impl Context {
    pub(crate) fn new(
        config: Config,
        client: kube::Client,
        azure: Arc<dyn Hosts>,
    ) -> (Arc<Self>, Ends) {
        let (notes, notes_end) = mpsc::channel(256);
        let (workers, workers_end) = mpsc::unbounded_channel();
        let context = Self {
            state: Mutex::new(State::new(config.scope)),
            queue: Queue::new(config.retry_interval),
            records: Records::new(client.clone(), &config.namespace),
            metrics: Metrics::default(),
            ready: watch::Sender::new(false),
            conditions: Conditions::default(),
            type_upgrade: TypeUpgrade::default(),
            write_trouble: Mutex::default(),
            config,
            client,
            azure,
            notes,
            workers,
        };
        let ends = Ends {
            notes: notes_end,
            workers: workers_end,
        };
        (Arc::new(context), ends)
    }

    /// Takes one step of the index and passes on what follows from it.
    pub(crate) fn step(&self, step: impl FnOnce(&mut State) -> Effects) {
        let effects = step(&mut self.state.lock());
        for host in effects.hosts {
            let _ = self.workers.send(host);
        }
        self.look_at(effects.keys);
    }

    /// The objects of these assignments may have to change. Whoever begins to lead looks at all of them anyway.
    pub(crate) fn look_at(&self, keys: BTreeSet<AssignmentKey>) {
        if self.is_ready() && !keys.is_empty() {
            self.queue.add(keys);
        }
    }

    pub(crate) fn is_ready(&self) -> bool {
        *self.ready.borrow()
    }

    /// Records an Event soon, unless very many wait already: Events are best effort.
    pub(crate) fn note(&self, note: Note) {
        let _ = self.notes.try_send(note);
    }

    /// The conditions of these identities may have to change.
    pub(crate) fn doubt_conditions(&self, identities: BTreeSet<ObjectKey>) {
        if self.is_ready() && !identities.is_empty() {
            self.conditions.dirty.lock().extend(identities);
            self.conditions.news.notify_one();
        }
    }
}
