//! The node agent: answers the metadata token endpoint for the pods of its node.

pub mod answer;
pub mod attest;
pub mod cache;
pub mod config;
mod door;
mod fairness;
mod grant;
mod host;
pub mod index;
mod info;
mod lookup;
pub mod metrics;
mod pace;
mod pass;
mod pods;
mod principal;
mod probe;
mod quiet;
mod request;
mod secrets;
mod shared;
pub mod source;
pub mod target;
mod trace;
mod watches;
mod wire;

use std::net::TcpListener;
use std::sync::Arc;

use kube::Client;
use podid_cluster::watch::Health;
use tokio::sync::watch::Receiver;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub use config::Config;
use metrics::Metrics;
use shared::Shared;
pub use source::Upstream;

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

/// The node agent.
pub struct Nmi {
    shared: Arc<Shared>,
    client: Client,
    active: Receiver<bool>,
}

impl Nmi {
    /// A node agent that has not started yet. `active` says whether requests are intercepted, for the probe.
    pub fn new(config: Config, client: Client, upstream: Upstream, active: Receiver<bool>) -> Self {
        let metrics = Arc::new(Metrics::default());
        Self {
            shared: Arc::new(Shared::new(config, client.clone(), upstream, metrics)),
            client,
            active,
        }
    }

    /// Its metrics, for other parts of the process to add theirs.
    pub fn metrics(&self) -> Arc<Metrics> {
        Arc::clone(&self.shared.metrics)
    }

    /// Binds the ports of the probe and the metrics, next to doors that are already bound.
    ///
    /// # Errors
    /// [`NmiError::Socket`] when an address is in use or not this machine's.
    pub fn bind(&self, doors: Vec<TcpListener>) -> Result<Listeners, NmiError> {
        let bind = |what, address| {
            TcpListener::bind(address).map_err(|cause| NmiError::Socket { what, cause })
        };
        let config = &self.shared.config;
        Ok(Listeners {
            doors,
            probe: bind("the probe port (--http-probe-port)", config.probe)?,
            metrics: bind("the metrics port (--prometheus-port)", config.metrics)?,
        })
    }

    /// Serves until shutdown. An API server or Azure that cannot be reached, at the start or later, is logged, counted and
    /// waited for; what is known goes on being served.
    ///
    /// # Errors
    /// [`NmiError`] when a part ended by itself.
    pub async fn run(
        self,
        listeners: Listeners,
        shutdown: CancellationToken,
    ) -> Result<(), NmiError> {
        let stop = shutdown.child_token();
        let mut tasks = JoinSet::new();
        let healths = watches::start(&self.shared, &self.client, &mut tasks, &stop);
        let socket = |what, outcome: std::io::Result<()>| {
            outcome.map_err(|cause| NmiError::Socket { what, cause })
        };
        if let Some(path) = &self.shared.config.host_token_socket {
            let what = "the host's socket (--host-token-socket)";
            let listener = host::bind(path).map_err(|cause| NmiError::Socket { what, cause })?;
            let serve = host::serve(listener, Arc::clone(&self.shared), stop.clone());
            tasks.spawn(async move { ("host", socket(what, serve.await)) });
        }
        for door in listeners.doors {
            let serve = door::serve(door, Arc::clone(&self.shared), stop.clone());
            tasks.spawn(async move { ("door", socket("the front door", serve.await)) });
        }
        let probe = probe::health(
            listeners.probe,
            Arc::clone(&self.shared),
            self.active,
            stop.clone(),
        );
        tasks.spawn(async move { ("probe", socket("the probe port", probe.await)) });
        let metrics = probe::metrics(listeners.metrics, Arc::clone(&self.shared), stop.clone());
        tasks.spawn(async move { ("metrics", socket("the metrics port", metrics.await)) });
        let secrets = secrets::follow(Arc::clone(&self.shared), self.client.clone(), stop.clone());
        tasks.spawn(secrets);
        tasks.spawn(follow(Arc::clone(&self.shared), healths, stop.clone()));
        let outcome = tokio::select! {
            // The tasks end at shutdown too, which is then no fault of theirs.
            biased;
            () = shutdown.cancelled() => Ok(()),
            ended = tasks.join_next() => Err(fault(ended)),
        };
        stop.cancel();
        while tasks.join_next().await.is_some() {}
        outcome
    }
}

type Ended = Result<(&'static str, Result<(), NmiError>), tokio::task::JoinError>;

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

/// Turns the watches' health into readiness and metrics.
async fn follow(
    shared: Arc<Shared>,
    mut healths: Vec<(&'static str, Receiver<Health>)>,
    shutdown: CancellationToken,
) -> (&'static str, Result<(), NmiError>) {
    loop {
        for (kind, health) in &mut healths {
            shared.metrics.watch(kind, &health.borrow_and_update());
        }
        if healths.iter().all(|(_, health)| health.borrow().synced) {
            shared.set_synced();
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
