//! Context: the state that the tasks of the node agent share. Watches write the index, requests read it.
//!
//! `lib.rs` makes one per process.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use kube::Client;
use parking_lot::RwLock;
use tokio::sync::{OnceCell, watch};

use crate::caller::index::{Caller, Index};
use crate::caller::lookup::Lookup;
use crate::config::Config;
use crate::http::drain::FinalDrain;
use crate::http::log_limit::LogLimit;
use crate::http::rate_limit::RateLimiter;
use crate::metrics::Metrics;
use crate::token::cache::Cache;
use crate::token::instrumented::Instrumented;
use crate::token::object_id_cache::ObjectIdCache;
use crate::token::requested_resources::RequestedResources;
use crate::token::source::Upstream;

/// The shared state.
pub(crate) struct Context {
    pub(crate) config: Config,
    /// The lock is held for microseconds, and never across an await.
    pub(crate) index: Arc<RwLock<Index>>,
    /// Counts the changes of the index, for those who wait for one.
    pub(crate) changes: watch::Sender<u64>,
    pub(crate) cache: Cache<Instrumented>,
    pub(crate) upstream: Arc<Upstream>,
    pub(crate) lookup: Lookup,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) rate_limiter: Arc<RateLimiter>,
    pub(crate) refusal_log: LogLimit,
    pub(crate) requested_resources: RequestedResources,
    pub(crate) object_id_cache: ObjectIdCache,
    /// The tenant of the user-assigned identities, once the metadata service has said it.
    pub(crate) tenant: OnceCell<String>,
    pub(crate) final_drain: FinalDrain,
    synced: AtomicBool,
}

impl Context {
    pub(crate) fn new(
        config: Config,
        client: Client,
        upstream: Upstream,
        metrics: Arc<Metrics>,
    ) -> Self {
        let upstream = Arc::new(upstream);
        let index = Index::new(config.scope, config.assigned_first);
        let index = Arc::new(RwLock::new(index.picking_first(config.pick_first)));
        Self {
            lookup: Lookup::new(client, &config.node, Arc::clone(&metrics)),
            changes: watch::Sender::new(0),
            cache: Cache::new(
                Arc::new(Instrumented::new(
                    Arc::clone(&upstream),
                    Arc::clone(&metrics),
                    Arc::clone(&index),
                )),
                config.token_floor,
                Arc::new(jiff::Timestamp::now),
            ),
            index,
            upstream,
            metrics,
            rate_limiter: Arc::new(RateLimiter::new(config.pod_requests)),
            refusal_log: LogLimit::default(),
            requested_resources: RequestedResources::default(),
            object_id_cache: ObjectIdCache::default(),
            tenant: OnceCell::new(),
            final_drain: FinalDrain::default(),
            synced: AtomicBool::new(false),
            config,
        }
    }

    /// Changes the index, drops cached tokens whose grant is gone, and wakes the requests that wait for a change.
    pub(crate) fn change(&self, change: impl FnOnce(&mut Index)) {
        let granted = {
            let mut index = self.index.write();
            change(&mut index);
            (!self.cache.is_empty()).then(|| index.granted_identities())
        };
        if let Some(granted) = granted {
            self.cache.retain(&granted);
        }
        self.changes.send_modify(|count| *count += 1);
    }

    /// Which pod has this address; `None` until the index is complete.
    pub(crate) fn caller(&self, address: IpAddr) -> Option<Caller> {
        self.is_synced().then(|| {
            let watched = self.index.read().caller(address);
            self.lookup.caller(address, watched)
        })
    }

    /// Whether every watch has listed its objects once, so that the index is complete.
    pub(crate) fn is_synced(&self) -> bool {
        self.synced.load(Ordering::Acquire)
    }

    /// Says that the index is complete.
    pub(crate) fn set_synced(&self) {
        if !self.synced.swap(true, Ordering::AcqRel) {
            tracing::info!("all objects are known; tokens are served");
            self.changes.send_modify(|count| *count += 1);
        }
    }
}
