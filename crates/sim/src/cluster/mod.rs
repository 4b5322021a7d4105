//! A simulated Kubernetes API server, from memory.
//!
//! It serves what the controller, the node agent, kube-rs and a person with `kubectl` need: discovery, the common
//! built-in kinds, custom resources with their schemas enforced, list and watch, patches, printer columns, and tokens of service
//! accounts with their reviews and their issuer. Everybody may do everything. There is no
//! admission, no controller and no kubelet behind it; a namespace that is deleted takes its objects with it.
//! One conformance list holds it to the real server.

mod access_review;
mod api;
mod builtin;
mod catalog;
mod cel;
mod columns;
mod crd;
mod defaults;
mod delete;
mod discovery;
mod failure;
mod faults;
mod http;
mod issuer;
mod jsonpath;
mod openapi;
mod patch;
mod path;
mod protobuf;
mod read;
mod schema;
mod selector;
mod store;
mod strategic;
mod strategy;
mod token_request;
mod token_review;
mod view;
mod watch;
mod write;

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub use faults::FaultInjector;

/// How a simulated cluster behaves.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Permits a `listen` address that other machines can reach.
    pub allow_remote: bool,
    /// When set, every request must carry it as a bearer token.
    pub token: Option<Secret>,
    /// How many changes are remembered for watches that resume; older ones are answered 410 Gone.
    pub history: usize,
    /// How often a quiet watch that asked for bookmarks gets one.
    pub bookmark_interval: Duration,
    /// Plays the kubelets' part in a deletion: a pod on a node is gone at once, not after its grace period.
    pub stop_pods: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            allow_remote: false,
            token: None,
            history: 10_000,
            bookmark_interval: Duration::from_secs(60),
            stop_pods: false,
        }
    }
}

/// A bearer token that no log shows.
#[derive(Clone)]
pub struct Secret(String);

impl Secret {
    /// Wraps `token`.
    pub fn new(token: impl Into<String>) -> Self {
        Self(token.into())
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(***)")
    }
}

/// A simulated cluster whose port is open; [`Cluster::run`] serves it.
#[derive(Debug)]
pub struct Cluster {
    listener: TcpListener,
    addr: SocketAddr,
    server: Arc<api::Server>,
}

impl Cluster {
    /// Opens the port and fills the store with what every cluster has.
    ///
    /// # Errors
    /// The address cannot be bound, or is not a loopback address and [`Config::allow_remote`] is off.
    pub async fn bind(config: Config) -> io::Result<Self> {
        if !config.listen.ip().is_loopback() && !config.allow_remote {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                format!(
                    "the simulated cluster has no access control and listens on loopback only, not on {}; \
                     set allow_remote to serve other machines",
                    config.listen
                ),
            ));
        }
        let listener = TcpListener::bind(config.listen).await?;
        let addr = listener.local_addr()?;
        let server = Arc::new(api::Server::new(config, format!("http://{addr}")));
        Ok(Self {
            listener,
            addr,
            server,
        })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// A kubeconfig (YAML) for it, with the namespace `default`.
    pub fn kubeconfig(&self) -> String {
        let token = self.server.config().token.as_ref();
        let user = token.map_or_else(
            || "{}".to_owned(),
            |token| format!("{{ token: {:?} }}", token.0),
        );
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: podid-sim\nclusters:\n- name: podid-sim\n  cluster: {{ server: \
             \"http://{}\" }}\nusers:\n- name: podid-sim\n  user: {user}\ncontexts:\n- name: podid-sim\n  context: {{ \
             cluster: podid-sim, user: podid-sim, namespace: default }}\n",
            self.addr
        )
    }

    /// What injects faults, also while it runs.
    pub fn faults(&self) -> FaultInjector {
        FaultInjector::new(&self.server)
    }

    /// Serves until `shutdown`; open watches end then.
    ///
    /// # Errors
    /// The listener fails.
    pub async fn run(self, shutdown: CancellationToken) -> io::Result<()> {
        self::http::serve(self.listener, self.server, shutdown).await
    }
}
