//! Simulated Azure: the metadata service of every node, Entra's token endpoint, and Azure Resource Manager.
//!
//! Useful on its own for development against managed identities: point `AZURE_POD_IDENTITY_AUTHORITY_HOST` at a node's
//! metadata service, and verify tokens by the key set that Entra's discovery document names.

mod arm;
mod assertion;
mod compute;
mod control;
mod directory;
mod entra;
mod entra_error;
mod faults;
mod federated_credentials;
mod federation;
mod imds;
mod issuers;
mod journal;
mod propagation;
mod tokens;

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::http::{HeaderMap, header};
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub use control::Control;
pub use directory::{HostKind, Identity, Role};
pub use faults::{Action, Fault};
pub use federated_credentials::FederatedCredential;
pub use journal::{Entry, Service};

use directory::Directory;
use faults::Faults;
use issuers::Issuers;
use journal::Journal;
use propagation::Pace;
use tokens::Signer;

/// What the simulated Azure is like.
#[derive(Debug, Clone)]
pub struct Config {
    /// The address that everything listens on; loopback unless there is a reason.
    pub address: IpAddr,
    /// The port of Entra; 0 for any.
    pub entra_port: u16,
    /// The port of Azure Resource Manager; 0 for any.
    pub arm_port: u16,
    /// The tenant of everyone.
    pub tenant: String,
    /// The subscription of everything.
    pub subscription: String,
    /// How long tokens live.
    pub token_life: Duration,
    /// How long a change of a host's identities takes.
    pub patch_latency: Duration,
    /// How long after that until the metadata service knows.
    pub imds_delay: Duration,
    /// How long a write of a federated credential takes; another write to the same identity conflicts meanwhile.
    pub credential_latency: Duration,
    /// How long after a write until all of Entra knows a federated credential; exchanges succeed and fail by turns before.
    pub credential_propagation: Duration,
    /// For how long a part of Entra that found no federated credential goes on without those that came since.
    pub negative_cache: Duration,
    /// For how long Entra keeps the keys of an issuer.
    pub issuer_cache: Duration,
    /// Whether callers of Resource Manager need roles.
    pub roles: bool,
    /// Whether writes are throttled as Azure does: 12 at once per host, then 4 a minute.
    pub throttle: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            address: Ipv4Addr::LOCALHOST.into(),
            entra_port: 0,
            arm_port: 0,
            tenant: "72f988bf-0000-4000-8000-2d7cd011db47".to_owned(),
            subscription: "5d1a0000-0000-4000-8000-00000000aaaa".to_owned(),
            token_life: Duration::from_secs(86_399),
            patch_latency: Duration::from_millis(800),
            imds_delay: Duration::ZERO,
            credential_latency: Duration::from_millis(200),
            credential_propagation: Duration::ZERO,
            negative_cache: Duration::ZERO,
            issuer_cache: Duration::ZERO,
            roles: true,
            throttle: true,
        }
    }
}

impl Config {
    fn pace(&self) -> Pace {
        Pace {
            delay: self.credential_propagation,
            negative_cache: self.negative_cache,
        }
    }
}

/// What every part of the simulated Azure shares.
struct World {
    config: Config,
    directory: Mutex<Directory>,
    signer: Signer,
    issuers: Issuers,
    faults: Faults,
    journal: Journal,
    /// In seconds.
    token_life: AtomicU64,
    /// Metadata services are added while it runs.
    nodes: Mutex<JoinSet<()>>,
    stop: CancellationToken,
    entra: SocketAddr,
    arm: SocketAddr,
}

impl World {
    /// How long managed identities' tokens live, in seconds.
    fn token_life(&self) -> i64 {
        let life = self.token_life.load(Ordering::Relaxed);
        i64::try_from(life).unwrap_or(i64::MAX / 2)
    }
}

/// A simulated Azure that is bound and not yet running.
pub struct Azure {
    world: Arc<World>,
    entra: TcpListener,
    arm: TcpListener,
}

impl Azure {
    /// Binds Entra and Resource Manager. Metadata services are added with [`Control::serve_imds`].
    ///
    /// # Errors
    /// When an address is in use or not this machine's, or no key can be made.
    pub async fn bind(config: Config) -> io::Result<Self> {
        let entra = TcpListener::bind((config.address, config.entra_port)).await?;
        let arm = TcpListener::bind((config.address, config.arm_port)).await?;
        let world = World {
            directory: Mutex::new(Directory::default()),
            signer: Signer::generate().map_err(io::Error::other)?,
            issuers: Issuers::default(),
            faults: Faults::default(),
            journal: Journal::default(),
            token_life: AtomicU64::new(config.token_life.as_secs()),
            nodes: Mutex::new(JoinSet::new()),
            stop: CancellationToken::new(),
            entra: entra.local_addr()?,
            arm: arm.local_addr()?,
            config,
        };
        Ok(Self {
            world: Arc::new(world),
            entra,
            arm,
        })
    }

    /// Where Entra is.
    pub fn entra(&self) -> SocketAddr {
        self.world.entra
    }

    /// Where Azure Resource Manager is.
    pub fn arm(&self) -> SocketAddr {
        self.world.arm
    }

    /// What sets it up, injects faults and reads its journal, also while it runs.
    pub fn control(&self) -> Control {
        Control::new(Arc::clone(&self.world))
    }

    /// Serves until shutdown.
    ///
    /// # Errors
    /// When a listener fails.
    pub async fn run(self, shutdown: CancellationToken) -> io::Result<()> {
        let stop = self.world.stop.clone();
        let entra = serve(self.entra, entra::router(&self.world), stop.clone());
        let arm = serve(self.arm, arm::router(&self.world), stop.clone());
        let served = async { tokio::try_join!(entra, arm).map(|_| ()) };
        let outcome = tokio::select! {
            served = served => served,
            () = shutdown.cancelled() => Ok(()),
        };
        stop.cancel();
        let mut nodes = std::mem::take(&mut *self.world.nodes.lock());
        while nodes.join_next().await.is_some() {}
        outcome
    }
}

/// The host and port at which the client reached this server, for the addresses in its answer: the one that is listened on may
/// be unspecified (`0.0.0.0`).
fn reached_at(headers: &HeaderMap, listening: SocketAddr) -> String {
    let host = headers.get(header::HOST);
    let host = host.and_then(|host| host.to_str().ok());
    host.map_or_else(|| listening.to_string(), str::to_owned)
}

/// Serves a router until stopped; open connections do not delay the end.
async fn serve(listener: TcpListener, router: Router, stop: CancellationToken) -> io::Result<()> {
    tokio::select! {
        served = async { axum::serve(listener, router).await } => served,
        () = stop.cancelled() => Ok(()),
    }
}

#[cfg(test)]
mod tests;
