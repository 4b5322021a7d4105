//! The assignment controller: keeps the identities that pods need attached to the virtual machines and scale sets of their
//! nodes, and AzureAssignedIdentity objects true.
//!
//! Watches feed the index one synchronous step at a time (`watches`, `controller`). What follows from a step goes two ways: each
//! host has a worker of its own that compares what pods need with what Azure shows and sends what differs (`host`, `worker`,
//! `quarantine`), after recording what will be podid's (`ownership`); and writers make the objects say what is so (`queue`,
//! `assigned`, `writer`). Everything is decided from what is so now, so that the next leader goes on wherever the last stopped
//! (`term`).

mod assigned;
#[doc(hidden)]
pub mod bench;
mod config;
mod context;
mod health;
mod host;
mod index;
mod leadership;
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

pub use config::Config;
pub use host::cloud::{Fault, HostChange, HostClient, HostError, HostIdentities, MAX_CHANGE};

/// Why the controller stopped before it was told to.
#[derive(Debug, thiserror::Error)]
pub enum MicError {
    /// A part of it ended or panicked, which none may: a fault of podid.
    #[error(
        "the task {task} ended by itself: {cause}; this is a fault of podid, the process must be restarted"
    )]
    TaskEnded {
        /// Which part.
        task: &'static str,
        /// How it ended.
        cause: String,
    },
}

/// The bound sockets of the probe and the metrics.
#[derive(Debug)]
pub struct Listeners {
    probe: TcpListener,
    metrics: TcpListener,
}

impl Listeners {
    /// The address of `/healthz`.
    ///
    /// # Errors
    /// When the operating system does not tell it.
    pub fn probe(&self) -> io::Result<SocketAddr> {
        self.probe.local_addr()
    }

    /// The address of `/metrics`.
    ///
    /// # Errors
    /// When the operating system does not tell it.
    pub fn metrics(&self) -> io::Result<SocketAddr> {
        self.metrics.local_addr()
    }
}

/// The controller.
pub struct Mic {
    config: Config,
    client: kube::Client,
    host_client: Arc<dyn HostClient>,
}

impl Mic {
    /// Makes a controller that has not started yet.
    pub fn new(config: Config, client: kube::Client, host_client: Arc<dyn HostClient>) -> Self {
        Self {
            config,
            client,
            host_client,
        }
    }

    /// Binds the ports of the probe and the metrics.
    ///
    /// # Errors
    /// When an address is in use or not this machine's.
    pub async fn bind(&self) -> io::Result<Listeners> {
        Ok(Listeners {
            probe: TcpListener::bind(self.config.probe).await?,
            metrics: TcpListener::bind(self.config.metrics).await?,
        })
    }

    /// Runs until shutdown. An API server or Azure that cannot be reached, at the start or later, is logged, counted and
    /// waited for.
    ///
    /// # Errors
    /// [`MicError`] when a part of the controller ended by itself.
    pub async fn run(
        self,
        listeners: Listeners,
        shutdown: CancellationToken,
    ) -> Result<(), MicError> {
        let (context, receivers) = Context::new(self.config, self.client, self.host_client);
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
    let racing = run_leader_election(context.client.clone(), candidate, sender, shutdown.clone());
    tasks.spawn(async move {
        racing.await;
        "leader lease"
    });
    let term = leadership::serve(context.clone(), leading, watch_statuses, shutdown.clone());
    tasks.spawn(async move {
        term.await;
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
        let writing = writer::write(context.clone(), shutdown.clone());
        tasks.spawn(async move {
            writing.await;
            "writer"
        });
    }
    let keeping = conditions::keep(context.clone(), shutdown.clone());
    tasks.spawn(async move {
        keeping.await;
        "conditions"
    });
    if context.config.type_upgrade {
        let upgrading = type_upgrade::keep(context.clone(), shutdown.clone());
        tasks.spawn(async move {
            upgrading.await;
            "type upgrade"
        });
    }
    let events = EventRecorder::new(
        context.client.clone(),
        "podid-mic",
        &context.config.instance,
    );
    let recording = events::record(events, pending_events, shutdown.clone());
    tasks.spawn(async move {
        recording.await;
        "Events"
    });
}

/// Starts a worker for every host that needs one, and sees to it that no part ends unseen.
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
