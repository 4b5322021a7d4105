//! Metrics of token fetches: the token source that counts and times each fetch. The token cache calls it, and it asks the index for
//! which pods a token of a federated identity is fetched.

use std::sync::Arc;
use std::time::Instant;

use parking_lot::RwLock;
use podid_azure::Token;
use podid_policy::facts::IdentityFacts;

use crate::caller::index::Index;
use crate::metrics::Metrics;
use crate::token::source::{SourceError, TokenSource, Upstream};

/// The token source with its metrics.
pub(crate) struct Instrumented {
    upstream: Arc<Upstream>,
    metrics: Arc<Metrics>,
    index: Arc<RwLock<Index>>,
}

impl Instrumented {
    pub(crate) fn new(
        upstream: Arc<Upstream>,
        metrics: Arc<Metrics>,
        index: Arc<RwLock<Index>>,
    ) -> Self {
        Self {
            upstream,
            metrics,
            index,
        }
    }
}

impl TokenSource for Instrumented {
    async fn token(&self, identity: &IdentityFacts, resource: &str) -> Result<Token, SourceError> {
        let started = Instant::now();
        let pods = || self.index.read().pods_granted(&identity.key);
        let outcome = self.upstream.token(identity, resource, pods).await;
        let result = outcome.as_ref().map(|_| ());
        self.metrics.fetched(identity, started.elapsed(), result);
        outcome
    }
}
