//! The shared state of the controller's tasks: configuration, clients, index, queues and channels.
//!
//! [`crate::Mic::run`] makes one [`Context`]; every task has it. Steps of the index go through [`Context::update`], so that no effect of
//! a step is lost.

use std::collections::BTreeSet;
use std::sync::Arc;

use parking_lot::Mutex;
use podid_policy::desired::AssignmentKey;
use podid_policy::facts::ObjectKey;
use podid_policy::ids::HostKey;
use tokio::sync::{Notify, mpsc, watch};

use crate::assigned::queue::WorkQueue;
use crate::config::Config;
use crate::federation::BrokerCheck;
use crate::host::cloud::HostClient;
use crate::host::ownership::OwnershipRecords;
use crate::index::{Effects, Index};
use crate::limits::Limits;
use crate::metrics::Metrics;
use crate::report::events::PendingEvent;
use crate::type_upgrade::TypeUpgrade;

/// How many Events may wait to be recorded; more than that are dropped, because Events are best effort.
const MAX_PENDING_EVENTS: usize = 256;

/// Shared by all tasks.
pub(crate) struct Context {
    pub(crate) config: Config,
    pub(crate) client: kube::Client,
    pub(crate) host_client: Arc<dyn HostClient>,
    /// Asks the broker about federated identities, where there is one.
    pub(crate) broker: Option<BrokerCheck>,
    pub(crate) index: Mutex<Index>,
    /// The assignments whose objects must be reconciled.
    pub(crate) queue: WorkQueue,
    pub(crate) records: OwnershipRecords,
    pub(crate) metrics: Metrics,
    /// Whether this replica leads, has complete lists and has read the ownership records.
    pub(crate) ready: watch::Sender<bool>,
    pub(crate) conditions: PendingConditions,
    pub(crate) type_upgrade: TypeUpgrade,
    pub(crate) limits: Limits,
    /// Wakes the keeper of federated identities.
    pub(crate) federation_changed: Notify,
    /// The error of a write that was logged last, so that an outage is logged once and not for every object.
    pub(crate) last_write_error: Mutex<String>,
    events: mpsc::Sender<PendingEvent>,
    new_hosts: mpsc::UnboundedSender<Arc<HostKey>>,
}

/// The AzureIdentities whose condition must be looked at.
#[derive(Default)]
pub(crate) struct PendingConditions {
    pub(crate) pending: Mutex<BTreeSet<ObjectKey>>,
    pub(crate) added: Notify,
}

/// The receiving ends of the channels of a [`Context`].
pub(crate) struct Receivers {
    /// Events to be recorded.
    pub(crate) events: mpsc::Receiver<PendingEvent>,
    /// Hosts that need a worker.
    pub(crate) new_hosts: mpsc::UnboundedReceiver<Arc<HostKey>>,
}

impl Context {
    pub(crate) fn new(
        config: Config,
        client: kube::Client,
        host_client: Arc<dyn HostClient>,
        broker: Option<BrokerCheck>,
    ) -> (Arc<Self>, Receivers) {
        let (events, pending_events) = mpsc::channel(MAX_PENDING_EVENTS);
        let (new_hosts, hosts_without_worker) = mpsc::unbounded_channel();
        let context = Self {
            index: Mutex::new(Index::new(config.scope)),
            queue: WorkQueue::new(config.retry_interval),
            records: OwnershipRecords::new(client.clone(), &config.namespace, &config.instance),
            metrics: Metrics::default(),
            ready: watch::Sender::new(false),
            conditions: PendingConditions::default(),
            type_upgrade: TypeUpgrade::default(),
            limits: Limits::default(),
            federation_changed: Notify::new(),
            last_write_error: Mutex::default(),
            config,
            client,
            host_client,
            broker,
            events,
            new_hosts,
        };
        let receivers = Receivers {
            events: pending_events,
            new_hosts: hosts_without_worker,
        };
        (Arc::new(context), receivers)
    }

    /// Takes one step of the index, and passes its effects to the workers and the queue.
    pub(crate) fn update(&self, step: impl FnOnce(&mut Index) -> Effects) {
        let effects = step(&mut self.index.lock());
        for host in effects.hosts {
            let _ = self.new_hosts.send(host);
        }
        if effects.federation {
            self.federation_changed.notify_one();
        }
        self.enqueue(effects.keys);
    }

    /// Puts assignments into the work queue while this replica leads; a new leader queues all of them anyway.
    pub(crate) fn enqueue(&self, keys: BTreeSet<AssignmentKey>) {
        if self.is_ready() && !keys.is_empty() {
            self.queue.add(keys);
        }
    }

    pub(crate) fn is_ready(&self) -> bool {
        *self.ready.borrow()
    }

    /// Records an Event soon; it is dropped when too many wait already.
    pub(crate) fn record_event(&self, event: PendingEvent) {
        let _ = self.events.try_send(event);
    }

    /// The conditions of these AzureIdentities may have to change.
    pub(crate) fn recheck_conditions(&self, identities: BTreeSet<ObjectKey>) {
        if self.is_ready() && !identities.is_empty() {
            self.conditions.pending.lock().extend(identities);
            self.conditions.added.notify_one();
        }
    }
}
