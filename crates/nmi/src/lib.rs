//! The node agent, `podid nmi`: serves the token endpoint of the metadata service (IMDS) to the pods of its node, each with the
//! identities that it is granted.
//!
//! # A request
//!
//! ```text
//!  a pod's packet to 169.254.169.254, intercepted (crate podid-intercept)
//!    │
//!    ▼
//!  http      server ──► request ──► target (what is asked) ────────────┐
//!              │           │                                           │
//!              │           └──► passthrough, info (no token)           │
//!              ▼                                                       ▼
//!  caller    connection, attest (is it that pod?) ◄──── token    grant (what is it granted?) ──► cache ──► source ──► Azure
//!              │                                                       │
//!              ▼                                                       ▼
//!            index (which pod has the address, which identity it may have) ◄── watches ◄── API server
//! ```
//!
//! # Rooms
//!
//! Each uses only those below it, and the files of this folder.
//!
//! | room | what is in it |
//! | --- | --- |
//! | `lifecycle` | which node agent serves, and its listeners: takeover, servers, health |
//! | `http` | HTTP: server, requests, responses, rate limit, passthrough, drain |
//! | `token` | tokens: grant, cache, prefetch, the issuers |
//! | `caller` | callers: the index of the cluster's objects, its watches, attestation |
//!
//! | file | what is in it |
//! | --- | --- |
//! | `context` | the state that all tasks share |
//! | `config` | the settings |
//! | `hold` | how long a request waits for what is not there yet |
//! | `refusal` | why a request gets no token: every reason, with its name and status |
//! | `token_bucket` | the token bucket of both rate limits |
//! | `metrics` | the metrics |
//! | `error` | errors that end the process |
//!
//! # Use
//!
//! `podid nmi` makes an [`Nmi`], lets it [bind](Nmi::bind) its ports or [inherit](Nmi::inherit) them from the node agent that runs,
//! and [runs](Nmi::run) it until shutdown.

mod caller;
mod config;
mod context;
mod error;
mod hold;
mod http;
mod lifecycle;
mod metrics;
mod refusal;
mod token;
mod token_bucket;

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;

use kube::Client;
use parking_lot::Mutex;
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
pub use error::NmiError;
use error::{TaskResult, socket, task_ended};
pub use http::drain::FinalDrain;
pub use lifecycle::servers::Listeners;
use lifecycle::servers::Servers;
use lifecycle::takeover::Takeover;
pub use metrics::Metrics;
pub use token::source::{SourceError, Upstream};
use token::{prefetch, secret_watch};

const PROBE: &str = "the probe port (--http-probe-port)";
const METRICS: &str = "the metrics port (--prometheus-port)";

/// The node agent.
pub struct Nmi {
    context: Arc<Context>,
    client: Client,
    active: Receiver<bool>,
    takeover: Takeover,
    taint: Option<StartupTaint>,
}

impl Nmi {
    /// A node agent that has not started yet. `active` says whether requests are intercepted, for the probes.
    pub fn new(config: Config, client: Client, upstream: Upstream, active: Receiver<bool>) -> Self {
        let metrics = Arc::new(Metrics::default());
        let context = Arc::new(Context::new(config, client.clone(), upstream, metrics));
        Self {
            client,
            active,
            takeover: Takeover {
                path: None,
                predecessor: None,
                serving: watch::Sender::new(false),
                final_drain: context.final_drain.clone(),
            },
            context,
            taint: None,
        }
    }

    /// Serves only once it has taken over from `predecessor`, and lets successors take over at the Unix socket `path`.
    #[must_use]
    pub fn with_takeover(mut self, path: PathBuf, predecessor: Option<Predecessor>) -> Self {
        self.takeover.path = Some(path);
        self.takeover.predecessor = predecessor;
        self
    }

    /// Removes this taint from the node once tokens are served and requests are intercepted.
    #[must_use]
    pub fn with_startup_taint(mut self, taint: Option<StartupTaint>) -> Self {
        self.taint = taint;
        self
    }

    /// Its metrics, for other parts of the process to add theirs.
    pub fn metrics(&self) -> Arc<Metrics> {
        Arc::clone(&self.context.metrics)
    }

    /// Whether this node agent serves, and not its predecessor or its successor.
    pub fn serving(&self) -> Receiver<bool> {
        self.takeover.serving.subscribe()
    }

    /// The drain for when no node agent is to serve any more.
    pub fn final_drain(&self) -> FinalDrain {
        self.context.final_drain.clone()
    }

    /// Binds the ports of the probes and the metrics, next to metadata listeners that are already bound.
    ///
    /// # Errors
    /// [`NmiError::Socket`] when an address is in use or not this machine's.
    pub fn bind(&self, metadata: Vec<TcpListener>) -> Result<Listeners, NmiError> {
        let config = &self.context.config;
        Ok(Listeners {
            metadata,
            retiring: Mutex::default(),
            probe: socket(PROBE, TcpListener::bind(config.probe))?,
            metrics: socket(METRICS, TcpListener::bind(config.metrics))?,
        })
    }

    /// Takes the ports of the probes and the metrics from the node agent that runs, and binds those that it does not have. Connections
    /// that come to its listener at `retiring` are served for a while, as another version's rules lead there.
    ///
    /// # Errors
    /// As [`Nmi::bind`].
    pub async fn inherit(
        &self,
        metadata: Vec<TcpListener>,
        retiring: SocketAddr,
        inheritance: &mut Inheritance,
    ) -> Result<Listeners, NmiError> {
        let config = &self.context.config;
        Ok(Listeners {
            metadata,
            retiring: Mutex::new(inheritance.inherited(retiring)),
            probe: socket(PROBE, inheritance.listen(config.probe, false).await)?,
            metrics: socket(METRICS, inheritance.listen(config.metrics, false).await)?,
        })
    }

    /// Serves until shutdown, then finishes the requests under way and waits for a successor that is about to take over. While the
    /// API server or Azure cannot be reached, at the start or later, it logs and counts that, retries, and serves what it has.
    ///
    /// # Errors
    /// [`NmiError`] when a task ended by itself.
    pub async fn run(
        self,
        listeners: Listeners,
        shutdown: CancellationToken,
    ) -> Result<(), NmiError> {
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        let ready = watch::Sender::new(false);
        let is_ready = ready.subscribe();
        let statuses = watches::start(&self.context, &self.client, &mut tasks, &stop);
        let secrets =
            secret_watch::run(Arc::clone(&self.context), self.client.clone(), stop.clone());
        tasks.spawn(secrets);
        tasks.spawn(prefetch::run(Arc::clone(&self.context), stop.clone()));
        tasks.spawn(follow_watches(
            Arc::clone(&self.context),
            statuses,
            ready,
            stop.clone(),
        ));
        if let Some(taint) = self.taint {
            tasks.spawn(remove_taint(
                self.client.clone(),
                self.context.config.node.clone(),
                taint,
                [is_ready.clone(), self.active.clone()],
                stop.clone(),
            ));
        }
        let start = |listeners: &Listeners| Servers::start(listeners, &self.context, &self.active);
        let outcome = tokio::select! {
            outcome = self.takeover.run(listeners, start, is_ready, &shutdown) => outcome,
            ended = tasks.join_next() => Err(task_ended(ended)),
        };
        stop.cancel();
        while tasks.join_next().await.is_some() {}
        outcome
    }
}

/// Keeps the startup taint off the node while every condition is true.
async fn remove_taint(
    client: Client,
    node: String,
    taint: StartupTaint,
    mut conditions: [Receiver<bool>; 2],
    stop: CancellationToken,
) -> TaskResult {
    podid_cluster::taint::keep_removed(&client, &node, &taint, &mut conditions, &stop).await;
    stop.cancelled().await;
    ("startup taint", Ok(()))
}

/// Turns the status of the watches into metrics, and into readiness once each has listed its objects.
async fn follow_watches(
    context: Arc<Context>,
    mut statuses: Vec<(&'static str, Receiver<WatchStatus>)>,
    ready: watch::Sender<bool>,
    shutdown: CancellationToken,
) -> TaskResult {
    loop {
        for (kind, status) in &mut statuses {
            context.metrics.watch(kind, &status.borrow_and_update());
        }
        if statuses.iter().all(|(_, status)| status.borrow().synced) {
            context.set_synced();
            ready.send_replace(true);
        }
        let any = futures::future::select_all(
            statuses
                .iter_mut()
                .map(|(_, status)| Box::pin(status.changed())),
        );
        tokio::select! {
            () = shutdown.cancelled() => return ("health", Ok(())),
            (changed, ..) = any => if changed.is_err() {
                // The watch's task has ended, which `run` sees and reports.
                shutdown.cancelled().await;
                return ("health", Ok(()));
            },
        }
    }
}
