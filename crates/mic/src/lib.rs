//! The assignment controller (`podid mic`): keeps the Azure identities that pods need attached to the virtual machines and scale sets
//! of their nodes, and keeps the AzureAssignedIdentity objects true, which tell the node agents what is attached.
//!
//! [`Mic`] is the whole of it: give it a [`Config`], a client of the API server and a [`HostClient`], bind its ports and run it.
//!
//! ```text
//!   API server ──watches──► index ──┬─► work queue ─► writers ───────► AzureAssignedIdentity objects
//!                             ▲     │
//!                             │     └─► one worker per host ─► ownership record ─► HostClient (Azure Resource Manager)
//!                             └── answers ──┘        │
//!                                                    └─► conditions and Events
//! ```
//!
//! Every event is one synchronous step of the index (`index`), and everything is decided from what is true now; so the next leader goes
//! on wherever the last one stopped.
//!
//! | where | what is in it |
//! | --- | --- |
//! | `watches` | informers: how objects enter the index |
//! | `index` | everything that the controller knows, one step per event |
//! | `host` | attach and detach: one state machine and one worker per host, ownership record, quarantine and bisection, debounce, drift |
//! | `assigned` | AzureAssignedIdentity objects: what to write, the work queue, the writers |
//! | `federation` | federated identities: their service accounts, and the broker's checks |
//! | `report` | conditions of AzureIdentities, and Events |
//! | `leadership` | leader election: when this replica may act |
//! | `limits` | limits of bindings to service accounts, kept where pruning does not reach them |
//! | `type_upgrade` | objects in the spelling of old versions |
//! | `health`, `metrics` | `/healthz` and `/metrics` |

mod assigned;
#[doc(hidden)]
pub mod bench;
mod config;
mod context;
mod federation;
mod health;
mod host;
mod index;
mod leadership;
mod limits;
mod meta;
mod metrics;
mod report;
mod type_upgrade;
mod watches;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use podid_cluster::events::EventRecorder;
use podid_cluster::lease::{Candidate, run_leader_election};
use podid_policy::ids::HostKey;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::assigned::writer;
use crate::context::Context;
use crate::host::worker;
use crate::report::{conditions, events};

pub use config::{Config, Immutable};
pub use federation::BrokerCheck;
pub use host::cloud::{Fault, HostChange, HostClient, HostError, HostIdentities, MAX_CHANGE};
pub use host::ownership::RECORDS;

/// Why the controller stopped before it was told to.
#[derive(Debug, thiserror::Error)]
pub enum MicError {
    /// A task ended or panicked before shutdown, which is a fault of podid.
    #[error(
        "the task {task} ended by itself: {cause}; this is a fault of podid, the process must be restarted"
    )]
    TaskEnded {
        /// The name of the task.
        task: &'static str,
        /// How it ended.
        cause: String,
    },
}

/// The bound sockets of the health probe and the metrics.
#[derive(Debug)]
pub struct Listeners {
    probe: TcpListener,
    metrics: TcpListener,
}

impl Listeners {
    /// The address of `/healthz`.
    ///
    /// # Errors
    /// When the operating system does not say it.
    pub fn probe(&self) -> io::Result<SocketAddr> {
        self.probe.local_addr()
    }

    /// The address of `/metrics`.
    ///
    /// # Errors
    /// When the operating system does not say it.
    pub fn metrics(&self) -> io::Result<SocketAddr> {
        self.metrics.local_addr()
    }
}

/// The controller: [`Mic::new`], [`Mic::bind`], [`Mic::run`].
pub struct Mic {
    config: Config,
    client: kube::Client,
    host_client: Arc<dyn HostClient>,
    broker: Option<BrokerCheck>,
}

impl Mic {
    /// Makes a controller that has not started yet.
    pub fn new(config: Config, client: kube::Client, host_client: Arc<dyn HostClient>) -> Self {
        Self {
            config,
            client,
            host_client,
            broker: None,
        }
    }

    /// The controller with a broker, without which no federated identity is ever ready.
    #[must_use]
    pub fn with_broker(self, broker: BrokerCheck) -> Self {
        Self {
            broker: Some(broker),
            ..self
        }
    }

    /// Binds the ports of the health probe and the metrics.
    ///
    /// # Errors
    /// When an address is in use, or is no address of this machine.
    pub async fn bind(&self) -> io::Result<Listeners> {
        Ok(Listeners {
            probe: TcpListener::bind(self.config.probe).await?,
            metrics: TcpListener::bind(self.config.metrics).await?,
        })
    }

    /// Runs until shutdown. While the API server or Azure cannot be reached, at the start or later, it logs that and tries again.
    ///
    /// # Errors
    /// [`MicError`] when a task of the controller ended by itself.
    pub async fn run(
        self,
        listeners: Listeners,
        shutdown: CancellationToken,
    ) -> Result<(), MicError> {
        let (context, receivers) =
            Context::new(self.config, self.client, self.host_client, self.broker);
        let mut tasks = JoinSet::new();
        let watch_statuses = watches::start(&context, &mut tasks, &shutdown);
        start_leading(&context, &mut tasks, watch_statuses.clone(), &shutdown);
        start_writing(&context, &mut tasks, receivers.events, &shutdown);
        let probe = health::probe(context.clone());
        let metrics = health::metrics(context.clone(), watch_statuses);
        for (listener, router) in [(listeners.probe, probe), (listeners.metrics, metrics)] {
            let shutdown = shutdown.clone();
            tasks.spawn(async move {
                health::serve(listener, router, shutdown).await;
                "HTTP"
            });
        }
        oversee(&context, tasks, receivers.new_hosts, &shutdown).await
    }
}

fn start_leading(
    context: &Arc<Context>,
    tasks: &mut JoinSet<&'static str>,
    watch_statuses: watches::WatchStatuses,
    shutdown: &CancellationToken,
) {
    let config = &context.config;
    let candidate = Candidate {
        namespace: config.lease_namespace.clone(),
        name: config.lease_name.clone(),
        identity: config.instance.clone(),
        duration: config.lease_duration,
    };
    let (sender, leading) = watch::channel(false);
    let election = run_leader_election(context.client.clone(), candidate, sender, shutdown.clone());
    tasks.spawn(async move {
        election.await;
        "leader lease"
    });
    let leadership = leadership::serve(context.clone(), leading, watch_statuses, shutdown.clone());
    tasks.spawn(async move {
        leadership.await;
        "term"
    });
    let resync = leadership::resync(context.clone(), shutdown.clone());
    tasks.spawn(async move {
        resync.await;
        "resync"
    });
}

fn start_writing(
    context: &Arc<Context>,
    tasks: &mut JoinSet<&'static str>,
    pending_events: mpsc::Receiver<events::PendingEvent>,
    shutdown: &CancellationToken,
) {
    for _ in 0..context.config.parallel_writes.max(1) {
        let writer = writer::write(context.clone(), shutdown.clone());
        tasks.spawn(async move {
            writer.await;
            "writer"
        });
    }
    let conditions = conditions::keep(context.clone(), shutdown.clone());
    tasks.spawn(async move {
        conditions.await;
        "conditions"
    });
    if context.config.type_upgrade {
        let upgrade = type_upgrade::keep(context.clone(), shutdown.clone());
        tasks.spawn(async move {
            upgrade.await;
            "type upgrade"
        });
    }
    let limits = limits::keep(context.clone(), shutdown.clone());
    tasks.spawn(async move {
        limits.await;
        "limits"
    });
    if !context.config.detach_all {
        let federation = federation::keeper::keep(context.clone(), shutdown.clone());
        tasks.spawn(async move {
            federation.await;
            "federation"
        });
    }
    let recorder = EventRecorder::new(
        context.client.clone(),
        "podid-mic",
        &context.config.instance,
    );
    let recording = events::record(recorder, pending_events, shutdown.clone());
    tasks.spawn(async move {
        recording.await;
        "Events"
    });
}

/// Starts a worker for every host that needs one. A task that ends by itself ends the controller with an error.
async fn oversee(
    context: &Arc<Context>,
    mut tasks: JoinSet<&'static str>,
    mut new_hosts: mpsc::UnboundedReceiver<Arc<HostKey>>,
    shutdown: &CancellationToken,
) -> Result<(), MicError> {
    const WORKER: &str = "host worker";
    loop {
        let ended = tokio::select! {
            () = shutdown.cancelled() => break,
            Some(host) = new_hosts.recv() => {
                let working = worker::work(context.clone(), host, shutdown.clone());
                tasks.spawn(async move {
                    working.await;
                    WORKER
                });
                continue;
            }
            Some(ended) = tasks.join_next() => ended,
        };
        match ended {
            Ok(WORKER) => {}
            _ if shutdown.is_cancelled() => break,
            Ok(task) => {
                return Err(MicError::TaskEnded {
                    task,
                    cause: "it returned".to_owned(),
                });
            }
            Err(error) => {
                return Err(MicError::TaskEnded {
                    task: "controller",
                    cause: error.to_string(),
                });
            }
        }
    }
    while tasks.join_next().await.is_some() {}
    Ok(())
}
