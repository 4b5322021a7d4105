//! Context: the state that the tasks of the broker share. Watches write the index, requests read it.
//!
//! `lib.rs` makes one per process.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use kube::Client;
use parking_lot::RwLock;
use podid_azure::entra::Entra;
use tokio_util::sync::CancellationToken;

use crate::authority::tls::ServerTls;
use crate::cluster::index::Index;
use crate::cluster::lookup::Lookup;
use crate::cluster::reviewer::Reviewer;
use crate::config::Config;
use crate::http::audit::Audit;
use crate::metrics::Metrics;
use crate::token::exchange::Exchange;

/// The shared state.
pub(crate) struct Context {
    pub(crate) config: Config,
    /// The lock is held for microseconds, and never across an await.
    pub(crate) index: RwLock<Index>,
    pub(crate) lookup: Lookup,
    pub(crate) reviewer: Reviewer,
    pub(crate) exchange: Arc<Exchange>,
    pub(crate) tls: ServerTls,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) audit: Audit,
    /// Cancelled when the broker begins to end: it is not ready any more, and closes connections after their answer.
    pub(crate) draining: CancellationToken,
    synced: AtomicBool,
}

impl Context {
    pub(crate) fn new(config: Config, client: &Client, entra: Entra) -> Self {
        let metrics = Arc::new(Metrics::default());
        let exchange = Exchange::new(&config, entra, client.clone(), Arc::clone(&metrics));
        Self {
            index: RwLock::new(Index::new(config.scope)),
            lookup: Lookup::new(client.clone()),
            reviewer: Reviewer::new(client.clone()),
            exchange: Arc::new(exchange),
            tls: ServerTls::default(),
            metrics,
            audit: Audit::default(),
            draining: CancellationToken::new(),
            synced: AtomicBool::new(false),
            config,
        }
    }

    /// Whether every watch has listed its objects once, so that the index is complete.
    pub(crate) fn is_synced(&self) -> bool {
        self.synced.load(Ordering::Acquire)
    }

    /// Says that the index is complete.
    pub(crate) fn set_synced(&self) {
        if !self.synced.swap(true, Ordering::AcqRel) {
            tracing::info!("all objects are known; tokens are served");
        }
    }
}
