//! Metrics of token fetches: a decorator of the token source that counts and times each fetch. The token cache calls it in place
//! of the source itself.

use std::sync::Arc;
use std::time::Instant;

use podid_azure::Token;
use podid_policy::facts::IdentityFacts;

use crate::metrics::Metrics;
use crate::token::source::{SourceError, TokenSource, Upstream};

/// The token source with its metrics.
pub(crate) struct Instrumented {
    upstream: Arc<Upstream>,
    metrics: Arc<Metrics>,
}

impl Instrumented {
    pub(crate) fn new(upstream: Arc<Upstream>, metrics: Arc<Metrics>) -> Self {
        Self { upstream, metrics }
    }
}

impl TokenSource for Instrumented {
    async fn token(&self, identity: &IdentityFacts, resource: &str) -> Result<Token, SourceError> {
        let started = Instant::now();
        let outcome = self.upstream.token(identity, resource).await;
        let result = outcome.as_ref().map(|_| ());
        self.metrics.fetched(identity, started.elapsed(), result);
        outcome
    }
}
