//! A token source whose questions are counted and timed.

use std::sync::Arc;
use std::time::Instant;

use podid_azure::Token;
use podid_policy::facts::IdentityFacts;

use crate::metrics::Metrics;
use crate::token::source::{SourceError, TokenSource, Upstream};

/// The upstream, observed.
pub(crate) struct Measured {
    upstream: Arc<Upstream>,
    metrics: Arc<Metrics>,
}

impl Measured {
    pub(crate) fn new(upstream: Arc<Upstream>, metrics: Arc<Metrics>) -> Self {
        Self { upstream, metrics }
    }
}

impl TokenSource for Measured {
    async fn token(&self, identity: &IdentityFacts, resource: &str) -> Result<Token, SourceError> {
        let started = Instant::now();
        let outcome = self.upstream.token(identity, resource).await;
        let told = outcome.as_ref().map(|_| ());
        self.metrics.fetched(identity, started.elapsed(), told);
        outcome
    }
}
