//! Token broker for federated identities, `podid broker`: the node agent asks it for a pod's token, the controller whether an
//! identity's federated credential works. It is the one holder of the right to mint assertions.
//!
//! ```text
//!  nmi, mic ──HTTPS──► http/server ──► http/request
//!                                        │ who asks?                    cluster/reviewer ──TokenReview──► API server
//!                                        │ live, on that node, granted? cluster/grant ◄── index ◄── watches ── API server
//!                                        │ a token                      token/exchange ──► Entra
//!                                        ▼                                  └── assertion ──TokenRequest──► API server
//!                                    http/audit
//!
//!  authority/keeper: the CA in a Secret, its certificates in a ConfigMap, and the server's certificate
//! ```
//!
//! | file | what is in it |
//! | --- | --- |
//! | [`protocol`] | the requests, responses and error kinds of the HTTPS protocol |
//! | [`client`] | the client of this protocol, for the node agent and the controller |
//! | `config` | the settings |
//! | `context` | the state that all tasks share |
//! | `refusal` | why a request gets an error: every reason, with its kind and status |
//! | `flight_cache` | single flight with a time to live |
//! | `metrics` | the metrics |
//! | `error` | errors that end the process |
//!
//! `podid broker` makes a [`Broker`], lets it [bind](Broker::bind) its ports and [runs](Broker::run) it until shutdown.

mod authority;
pub mod client;
mod cluster;
mod config;
mod context;
mod error;
mod flight_cache;
mod http;
mod metrics;
pub mod protocol;
mod refusal;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

mod token;

use std::net::TcpListener;
use std::sync::Arc;

use kube::Client;
use podid_azure::entra::Entra;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use authority::keeper::Keeper;
use cluster::watches::{self, WatchStatuses};
pub use config::Config;
use context::Context;
pub use error::BrokerError;
use error::{TaskResult, socket, task_ended};
use http::{health, server};
pub use metrics::Metrics;

const LISTEN: &str = "the HTTPS port (--listen)";
const PROBE: &str = "the probe port (--http-probe-port)";
const METRICS: &str = "the metrics port (--prometheus-port)";

/// The broker.
pub struct Broker {
    context: Arc<Context>,
    client: Client,
}

/// Its bound sockets.
#[derive(Debug)]
pub struct Listeners {
    /// The HTTPS endpoints.
    pub https: TcpListener,
    /// `/healthz` and `/readyz`.
    pub probe: TcpListener,
    /// `/metrics`.
    pub metrics: TcpListener,
}

impl Broker {
    /// A broker that has not started yet.
    pub fn new(config: Config, client: Client, entra: Entra) -> Self {
        let context = Arc::new(Context::new(config, &client, entra));
        Self { context, client }
    }

    /// Binds its ports.
    ///
    /// # Errors
    /// [`BrokerError::Socket`] when an address is in use or not this machine's.
    pub fn bind(&self) -> Result<Listeners, BrokerError> {
        let config = &self.context.config;
        Ok(Listeners {
            https: socket(LISTEN, TcpListener::bind(config.listen))?,
            probe: socket(PROBE, TcpListener::bind(config.probe))?,
            metrics: socket(METRICS, TcpListener::bind(config.metrics))?,
        })
    }

    /// Serves until shutdown, then finishes the requests under way. While the API server or Entra cannot be reached, at the start or
    /// later, it logs and counts that, retries, and serves what it has.
    ///
    /// # Errors
    /// [`BrokerError`] when a task ended by itself.
    pub async fn run(
        self,
        listeners: Listeners,
        shutdown: CancellationToken,
    ) -> Result<(), BrokerError> {
        let stop = CancellationToken::new();
        let context = || Arc::clone(&self.context);
        let mut tasks = JoinSet::new();
        let statuses = watches::start(&self.context, &self.client, &mut tasks, &stop);
        tasks.spawn(follow_watches(context(), statuses, stop.clone()));
        let keeper = Keeper::new(&self.client, &self.context.config);
        let keeping = keeper.run(context(), stop.clone());
        tasks.spawn(async move {
            keeping.await;
            ("authority", Ok(()))
        });
        let probing = health::probe(listeners.probe, context(), stop.clone());
        tasks.spawn(async move { ("probe", socket(PROBE, probing.await)) });
        let measuring = health::metrics(listeners.metrics, context(), stop.clone());
        tasks.spawn(async move { ("metrics", socket(METRICS, measuring.await)) });
        let serving = server::serve(listeners.https, context());
        tokio::pin!(serving);
        let outcome = tokio::select! {
            () = shutdown.cancelled() => {
                self.context.draining.cancel();
                socket(LISTEN, serving.await)
            }
            served = &mut serving => socket(LISTEN, served),
            ended = tasks.join_next() => Err(task_ended(ended)),
        };
        stop.cancel();
        while tasks.join_next().await.is_some() {}
        outcome
    }
}

/// Turns the status of the watches into metrics, and into readiness once each has listed its objects.
async fn follow_watches(
    context: Arc<Context>,
    mut statuses: WatchStatuses,
    shutdown: CancellationToken,
) -> TaskResult {
    loop {
        for (kind, status) in &mut statuses {
            context.metrics.watch(kind, &status.borrow_and_update());
        }
        if statuses.iter().all(|(_, status)| status.borrow().synced) {
            context.set_synced();
        }
        let changes = statuses
            .iter_mut()
            .map(|(_, status)| Box::pin(status.changed()));
        let any = futures::future::select_all(changes);
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
