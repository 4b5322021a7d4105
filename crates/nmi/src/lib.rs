//! The node agent: answers the metadata token endpoint for the pods of its node.

mod caller;
mod config;
mod context;
mod http;
mod lifecycle;
mod metrics;
mod refusal;
mod token;

use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::Arc;

use kube::Client;
pub use podid_cluster::taint::StartupTaint;
use podid_cluster::watch::WatchStatus;
use podid_intercept::handover::{Inheritance, Predecessor};
use tokio::sync::watch::{self, Receiver};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub use caller::attest::Attestor;
pub use caller::processes::{Processes, Unseen};
use caller::watches;
pub use config::{Config, POD_REQUESTS};
use context::Context;
pub use http::drain::Parting;
use lifecycle::servers::Duty;
use lifecycle::takeover::Relay;
pub use metrics::Metrics;
pub use token::source::{SourceError, Upstream};
use token::{prefetch, secret_watch};

/// Why the node agent stopped before it was told to.
#[derive(Debug, thiserror::Error)]
pub enum NmiError {
    /// A socket failed.
    #[error("{what}: {cause}; the process must be restarted")]
    Socket {
        /// Which one.
        what: &'static str,
        /// The operating system's word.
        cause: std::io::Error,
    },
    /// A part of it ended or panicked, which none may.
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

/// The node agent's sockets.
#[derive(Debug)]
pub struct Listeners {
    /// The front doors: connections that were meant for the metadata service.
    pub doors: Vec<TcpListener>,
    /// `/healthz` and `/readyz`.
    pub probe: TcpListener,
    /// `/metrics`.
    pub metrics: TcpListener,
}

impl Listeners {
    /// Every one.
    pub(crate) fn all(&self) -> impl Iterator<Item = &TcpListener> {
        self.doors.iter().chain([&self.probe, &self.metrics])
    }
}

/// The node agent.
pub struct Nmi {
    context: Arc<Context>,
    client: Client,
    active: Receiver<bool>,
    relay: Relay,
    taint: Option<StartupTaint>,
}

impl Nmi {
    /// A node agent that has not started yet. `active` says whether requests are intercepted, for the probe.
    pub fn new(config: Config, client: Client, upstream: Upstream, active: Receiver<bool>) -> Self {
        let metrics = Arc::new(Metrics::default());
        let context = Arc::new(Context::new(config, client.clone(), upstream, metrics));
        Self {
            client,
            active,
            relay: Relay {
                path: None,
                predecessor: None,
                on_duty: watch::Sender::new(false),
                parting: context.parting.clone(),
            },
            context,
            taint: None,
        }
    }

    /// Serves only once `predecessor` is relieved, and hands over to whoever reports at `path`.
    #[must_use]
    pub fn in_relay(mut self, path: PathBuf, predecessor: Option<Predecessor>) -> Self {
        self.relay.path = Some(path);
        self.relay.predecessor = predecessor;
        self
    }

    /// Takes this taint off the node once tokens are served and requests are intercepted.
    #[must_use]
    pub fn lifting(mut self, taint: Option<StartupTaint>) -> Self {
        self.taint = taint;
        self
    }

    /// Its metrics, for other parts of the process to add theirs.
    pub fn metrics(&self) -> Arc<Metrics> {
        Arc::clone(&self.context.metrics)
    }

    /// Whether it is this node agent that serves, and not one before or after it.
    pub fn on_duty(&self) -> Receiver<bool> {
        self.relay.on_duty.subscribe()
    }

    /// Ends its serving, for good: also the node agent before it serves no more then, should this one end.
    pub fn parting(&self) -> Parting {
        self.context.parting.clone()
    }

    /// Binds the ports of the probe and the metrics, next to doors that are already bound.
    ///
    /// # Errors
    /// [`NmiError::Socket`] when an address is in use or not this machine's.
    pub fn bind(&self, doors: Vec<TcpListener>) -> Result<Listeners, NmiError> {
        let config = &self.context.config;
        Ok(Listeners {
            doors,
            probe: named(PROBE, TcpListener::bind(config.probe))?,
            metrics: named(METRICS, TcpListener::bind(config.metrics))?,
        })
    }

    /// As [`Nmi::bind`], with the sockets of the node agent before this one where there are any.
    ///
    /// # Errors
    /// As [`Nmi::bind`].
    pub async fn inherit(
        &self,
        doors: Vec<TcpListener>,
        inheritance: &mut Inheritance,
    ) -> Result<Listeners, NmiError> {
        let config = &self.context.config;
        Ok(Listeners {
            doors,
            probe: named(PROBE, inheritance.listen(config.probe, false).await)?,
            metrics: named(METRICS, inheritance.listen(config.metrics, false).await)?,
        })
    }

    /// Serves until shutdown. An API server or Azure that cannot be reached, at the start or later, is logged, counted and
    /// waited for; what is known goes on being served. At shutdown requests under way are finished, and a successor that is
    /// about to take over is waited for.
    ///
    /// # Errors
    /// [`NmiError`] when a part ended by itself.
    pub async fn run(
        self,
        listeners: Listeners,
        shutdown: CancellationToken,
    ) -> Result<(), NmiError> {
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        let ready = watch::Sender::new(false);
        let is_ready = ready.subscribe();
        let healths = watches::start(&self.context, &self.client, &mut tasks, &stop);
        let secrets =
            secret_watch::run(Arc::clone(&self.context), self.client.clone(), stop.clone());
        tasks.spawn(secrets);
        tasks.spawn(prefetch::run(Arc::clone(&self.context), stop.clone()));
        tasks.spawn(follow(
            Arc::clone(&self.context),
            healths,
            ready,
            stop.clone(),
        ));
        if let Some(taint) = self.taint {
            tasks.spawn(lift(
                self.client.clone(),
                self.context.config.node.clone(),
                taint,
                [is_ready.clone(), self.active.clone()],
                stop.clone(),
            ));
        }
        let begin = |listeners: &Listeners| Duty::begin(listeners, &self.context, &self.active);
        let outcome = tokio::select! {
            outcome = self.relay.run(listeners, begin, is_ready, &shutdown) => outcome,
            ended = tasks.join_next() => Err(fault(ended)),
        };
        stop.cancel();
        while tasks.join_next().await.is_some() {}
        outcome
    }
}

const PROBE: &str = "the probe port (--http-probe-port)";
const METRICS: &str = "the metrics port (--prometheus-port)";

fn named<T>(what: &'static str, outcome: std::io::Result<T>) -> Result<T, NmiError> {
    outcome.map_err(|cause| NmiError::Socket { what, cause })
}

/// A part of the node agent, and how it ended.
pub(crate) type Part = (&'static str, Result<(), NmiError>);
type Ended = Result<Part, tokio::task::JoinError>;

fn fault(ended: Option<Ended>) -> NmiError {
    match ended {
        Some(Ok((_, Err(error)))) => error,
        Some(Ok((task, Ok(())))) => NmiError::TaskEnded {
            task,
            cause: "it returned".to_owned(),
        },
        Some(Err(error)) => NmiError::TaskEnded {
            task: "a task",
            cause: error.to_string(),
        },
        None => NmiError::TaskEnded {
            task: "every task",
            cause: "none was started".to_owned(),
        },
    }
}

/// Lifts the startup taint when both hold.
async fn lift(
    client: Client,
    node: String,
    taint: StartupTaint,
    ready: [Receiver<bool>; 2],
    stop: CancellationToken,
) -> Part {
    let lifted = async {
        for mut ready in ready {
            if ready.wait_for(|ready| *ready).await.is_err() {
                return;
            }
        }
        podid_cluster::taint::remove(&client, &node, &taint, &stop).await;
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = lifted => stop.cancelled().await,
    }
    ("startup taint", Ok(()))
}

/// Turns the watches' health into readiness and metrics.
async fn follow(
    context: Arc<Context>,
    mut healths: Vec<(&'static str, Receiver<WatchStatus>)>,
    ready: watch::Sender<bool>,
    shutdown: CancellationToken,
) -> Part {
    loop {
        for (kind, health) in &mut healths {
            context.metrics.watch(kind, &health.borrow_and_update());
        }
        if healths.iter().all(|(_, health)| health.borrow().synced) {
            context.set_synced();
            ready.send_replace(true);
        }
        let any = futures::future::select_all(
            healths
                .iter_mut()
                .map(|(_, health)| Box::pin(health.changed())),
        );
        tokio::select! {
            () = shutdown.cancelled() => return ("health", Ok(())),
            (changed, ..) = any => if changed.is_err() {
                // A watch ended, which its own task reports.
                shutdown.cancelled().await;
                return ("health", Ok(()));
            },
        }
    }
}
