//! Token exchange: an assertion for an access token at Entra, with single flight and a token cache.
//!
//! `http/request.rs` calls it once a request is authorized. It guards Entra: a token is fetched once for all who wait, kept, and
//! fetched anew at half of its life; few resources of one identity are fetched at a time; `faults.rs` is the gate after an error.
//!
//! ```text
//!  token cache ──► fresh ──────────────────────────────────────────────► PodToken
//!      └── absent, or due for refresh ──► single flight ──► gate ──► assertion ──► Entra
//!                                             │                          ▲          │ AssertionExpired: once more
//!                                             │                          └──────────┘ with a fresh assertion
//!                                             └── late, or an error that may pass: the held token goes on, else the error
//! ```

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use kube::Client;
use moka::future::Cache;
use podid_azure::entra::{Credential, Entra};
use podid_azure::{Error, FederationFault, Healing, Token};
use podid_policy::facts::{IdentityFacts, IdentitySource, ObjectKey};
use podid_policy::federation;
use podid_policy::ids::ClientId;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use crate::config::Config;
use crate::flight_cache::FlightCache;
use crate::metrics::Metrics;
use crate::token::assertion::{Assertion, AssertionError, Assertions};
use crate::token::faults::Faults;

/// How long the outcome of an exchange is the answer to the same question: long enough for all who wait, and short for checks.
const OUTCOME_TTL: Duration = Duration::from_secs(2);
/// The longest time for which an error without a federation fault is the answer, whatever Entra asks for.
const MAX_ERROR_TTL: Duration = Duration::from_secs(60);
/// Tokens that are kept at once, a bound on memory: identities times the few resources that each is asked for.
const MAX_TOKENS: u64 = 20_000;
/// How long a request waits for a fresh token in place of one that is due for refresh: as long as an exchange mostly takes.
const REFRESH_WAIT: Duration = Duration::from_millis(500);
/// How long a token is kept in memory at most: as long as Entra makes them valid.
const MAX_TOKEN_AGE: Duration = Duration::from_secs(86_400);
/// Exchanges of one identity under way at a time, because pods choose the resources.
const MAX_CONCURRENT: usize = 8;

/// What Entra sees of an identity, and the AzureIdentity that is its subject. A token belongs to all of these.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Principal {
    identity: ObjectKey,
    client_id: ClientId,
    tenant: Arc<str>,
    audience: Arc<str>,
}

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExchangeError {
    /// Neither the AzureIdentity nor the broker names a tenant.
    #[error(
        "AzureIdentity {0} names no tenant; set spec.tenantID, or give podid broker --tenant-id"
    )]
    NoTenant(ObjectKey),
    /// There is no assertion.
    #[error("{0}")]
    Assertion(#[from] AssertionError),
    /// Entra refuses or does not answer.
    #[error("{error}{}", .help.as_deref().unwrap_or_default())]
    Entra {
        /// Its error.
        error: Error,
        /// The command that makes the credential, where one is missing or wrong.
        help: Option<String>,
        /// Whether the credential may be one that is new.
        may_be_new: bool,
    },
    /// The exchange ended without an outcome.
    #[error("the exchange was cut short; ask again")]
    CutShort,
    /// The token that came is about to expire.
    #[error("Entra gave a token that is about to expire; ask again")]
    ShortLived,
}

impl ExchangeError {
    /// Whether the cause may pass by itself, so that a token that is still valid is kept.
    fn may_pass(&self) -> bool {
        match self {
            Self::NoTenant(_) => false,
            Self::Assertion(_) | Self::CutShort | Self::ShortLived => true,
            Self::Entra { error, .. } => {
                let healing = error.federation_fault().map(FederationFault::healing);
                error.is_transient() || matches!(healing, Some(Healing::After(_)))
            }
        }
    }

    /// A stable name for metrics and logs.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::NoTenant(_) => "no_tenant",
            Self::Assertion(_) => "no_assertion",
            Self::Entra { error, .. } => error.kind().name(),
            Self::CutShort => "cut_short",
            Self::ShortLived => "short_lived",
        }
    }
}

/// A token in the cache.
pub(crate) struct HeldToken {
    pub(crate) token: Token,
    refresh_at: Timestamp,
}

type Outcome = Result<Arc<HeldToken>, Arc<ExchangeError>>;
type Key = (Principal, Arc<str>);

/// Where a token came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// From memory.
    Cache,
    /// From Entra, by an exchange that this request began or joined.
    Entra,
}

/// Exchanges assertions, and keeps the tokens.
pub(crate) struct Exchange {
    entra: Entra,
    assertions: Assertions,
    metrics: Arc<Metrics>,
    tenant: Option<Arc<str>>,
    audience: Arc<str>,
    check_resource: Arc<str>,
    floor: Duration,
    tokens: Cache<Key, Arc<HeldToken>>,
    flights: FlightCache<Key, Outcome>,
    faults: Faults,
    turns: Cache<ObjectKey, Arc<Semaphore>>,
}

impl Exchange {
    pub(crate) fn new(
        config: &Config,
        entra: Entra,
        client: Client,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            entra,
            assertions: Assertions::new(client),
            metrics,
            tenant: config.tenant.as_deref().map(Into::into),
            audience: config.assertion_audience.as_str().into(),
            check_resource: config.check_resource.as_str().into(),
            floor: config.token_floor,
            tokens: Cache::builder()
                .max_capacity(MAX_TOKENS)
                .time_to_live(MAX_TOKEN_AGE)
                .build(),
            flights: FlightCache::new(MAX_TOKENS),
            faults: Faults::default(),
            turns: Cache::new(MAX_TOKENS),
        }
    }

    /// A token of the identity for `resource`, and where it came from.
    pub(crate) async fn token(
        self: &Arc<Self>,
        identity: &Arc<IdentityFacts>,
        resource: &str,
    ) -> Result<(Arc<HeldToken>, Source), Arc<ExchangeError>> {
        let key: Key = (self.principal(identity)?, resource.into());
        let now = Timestamp::now();
        let held = self.tokens.get(&key).await;
        let held = held.filter(|held| held.token.remaining(now) >= self.floor);
        if let Some(held) = held.as_ref().filter(|held| now < held.refresh_at) {
            return Ok((Arc::clone(held), Source::Cache));
        }
        let fetch = self.begin_fetch(&key, identity);
        let Some(held) = held else {
            let outcome = fetch
                .await
                .unwrap_or_else(|_| Err(Arc::new(ExchangeError::CutShort)));
            return outcome.map(|token| (token, Source::Entra));
        };
        match tokio::time::timeout(REFRESH_WAIT, fetch).await {
            Ok(Ok(Ok(token))) => Ok((token, Source::Entra)),
            Ok(Ok(Err(error))) if !error.may_pass() => {
                self.tokens.invalidate(&key).await;
                Err(error)
            }
            late_or_failed => {
                if let Ok(Ok(Err(error))) = late_or_failed {
                    tracing::warn!(identity = %identity.key, reason = %error, "a token could not be renewed; the one that is held goes on");
                }
                Ok((held, Source::Cache))
            }
        }
    }

    /// Fetches in a task of its own, which outlives the request: others may wait for the same token.
    fn begin_fetch(
        self: &Arc<Self>,
        key: &Key,
        identity: &Arc<IdentityFacts>,
    ) -> JoinHandle<Outcome> {
        let (this, key, identity) = (Arc::clone(self), key.clone(), Arc::clone(identity));
        tokio::spawn(async move { this.fetch(&key, &identity).await })
    }

    /// Succeeds when Entra exchanges an assertion of the identity now, or did so seconds ago.
    pub(crate) async fn check(&self, identity: &IdentityFacts) -> Result<(), Arc<ExchangeError>> {
        let key = (self.principal(identity)?, Arc::clone(&self.check_resource));
        self.fetch(&key, identity).await.map(drop)
    }

    /// The number of tokens that are held.
    pub(crate) fn held(&self) -> u64 {
        self.tokens.entry_count()
    }

    #[cfg(test)]
    pub(crate) async fn forget_flights(&self) {
        self.flights.clear().await;
    }

    fn principal(&self, identity: &IdentityFacts) -> Result<Principal, Arc<ExchangeError>> {
        let (tenant, audience) = match &identity.source {
            IdentitySource::Federated {
                tenant, audience, ..
            } => (tenant.as_ref(), audience.as_ref()),
            _ => (None, None),
        };
        let no_tenant = || ExchangeError::NoTenant(identity.key.clone());
        let tenant = tenant.or(self.tenant.as_ref()).ok_or_else(no_tenant)?;
        Ok(Principal {
            identity: identity.key.clone(),
            client_id: identity.client_id.clone(),
            tenant: Arc::clone(tenant),
            audience: Arc::clone(audience.unwrap_or(&self.audience)),
        })
    }

    async fn fetch(&self, key: &Key, identity: &IdentityFacts) -> Outcome {
        let ask = async {
            let outcome = self.fetch_in_turn(key, identity).await;
            let ttl = match outcome.as_ref().map_err(|error| &**error) {
                Err(ExchangeError::Entra { error, .. }) => {
                    let wait = error.retry_after().unwrap_or(OUTCOME_TTL);
                    wait.clamp(OUTCOME_TTL, MAX_ERROR_TTL)
                }
                _ => OUTCOME_TTL,
            };
            (outcome, ttl)
        };
        self.flights.get(key.clone(), ask).await
    }

    async fn fetch_in_turn(&self, key: &Key, identity: &IdentityFacts) -> Outcome {
        let (principal, resource) = key;
        let turns = async { Arc::new(Semaphore::new(MAX_CONCURRENT)) };
        let turns = self.turns.get_with_by_ref(&identity.key, turns).await;
        // The semaphore is never closed.
        let _turn = turns.acquire().await;
        if let Some(error) = self.faults.standing(principal) {
            return Err(error);
        }
        let begun = tokio::time::Instant::now();
        let outcome = self.exchange(principal, resource, identity).await;
        let name = outcome.as_ref().map_or_else(|error| error.name(), |_| "ok");
        self.metrics.exchanged(name, begun.elapsed());
        let token = outcome?;
        self.faults.succeeded(principal);
        let now = Timestamp::now();
        let remaining = token.remaining(now);
        if remaining < self.floor {
            return Err(Arc::new(ExchangeError::ShortLived));
        }
        let half = now.checked_add(remaining / 2).unwrap_or(now);
        let refresh_at = token.refresh_on.map_or(half, |asked| asked.min(half));
        let held = Arc::new(HeldToken { token, refresh_at });
        self.tokens.insert(key.clone(), Arc::clone(&held)).await;
        Ok(held)
    }

    async fn exchange(
        &self,
        principal: &Principal,
        resource: &str,
        identity: &IdentityFacts,
    ) -> Result<Token, Arc<ExchangeError>> {
        let (name, audience) = (&identity.key, &principal.audience);
        let wrap = |error: AssertionError| Arc::new(ExchangeError::from(error));
        let mut assertion = self.assertions.get(name, audience).await.map_err(wrap)?;
        let mut outcome = self.ask_entra(principal, &assertion, resource).await;
        if let Err(error) = &outcome
            && error.federation_fault().map(FederationFault::healing)
                == Some(Healing::FreshAssertion)
        {
            self.assertions.forget(name, audience).await;
            assertion = self.assertions.get(name, audience).await.map_err(wrap)?;
            outcome = self.ask_entra(principal, &assertion, resource).await;
        }
        outcome.map_err(|cause| {
            let error = Arc::new(ExchangeError::Entra {
                help: help(&cause, identity, &assertion),
                may_be_new: self.faults.may_be_new(principal),
                error: cause.clone(),
            });
            self.faults.refused(principal, &error, &cause);
            error
        })
    }

    async fn ask_entra(
        &self,
        principal: &Principal,
        assertion: &Assertion,
        resource: &str,
    ) -> Result<Token, Error> {
        let credential = Credential::Federated(&assertion.token);
        let (tenant, client_id) = (&principal.tenant, &principal.client_id);
        self.entra
            .client_credentials(tenant, client_id, credential, resource, None)
            .await
    }
}

/// The command that makes the federated credential that Entra misses.
fn help(error: &Error, identity: &IdentityFacts, assertion: &Assertion) -> Option<String> {
    let is_credential = matches!(
        error.federation_fault()?,
        FederationFault::CredentialMissing | FederationFault::CredentialMismatch
    );
    let command = || federation::create_command(identity, &assertion.issuer, &assertion.audience);
    is_credential.then(|| format!(": {}", command()))
}
