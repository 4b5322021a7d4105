//! TokenRequest: has the API server mint an assertion, a token of the service account that stands for an AzureIdentity.
//!
//! `exchange.rs` calls it. It guards the right to mint: accounts of `podid-identities` alone are asked for. An assertion is kept for
//! half of its life, and no log or error has it.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::PostParams;
use kube::{Api, Client};
use podid_cluster::error_text::describe;
use podid_policy::facts::ObjectKey;
use podid_policy::federation;
use serde_json::Value;
use zeroize::Zeroizing;

use crate::flight_cache::FlightCache;

/// The life of an assertion in seconds; the API server may shorten it.
const LIFE_SECONDS: i64 = 3600;
/// How long the API server may take; it signs and stores nothing.
const MINT_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a failure is the answer, so that failing requests do not load the API server.
const FAILURE_TTL: Duration = Duration::from_secs(1);
/// Assertions that are kept at once: more than a cluster has identities.
const MAX_ASSERTIONS: u64 = 10_000;

/// A minted assertion.
pub(crate) struct Assertion {
    /// The signed token.
    pub(crate) token: Zeroizing<String>,
    /// The issuer that it names.
    pub(crate) issuer: String,
    /// The audience that it is for.
    pub(crate) audience: String,
}

/// Why there is no assertion.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AssertionError {
    /// The service account is not there.
    #[error(
        "service account {0} in namespace podid-identities does not exist yet; podid mic makes it for an AzureIdentity with spec.federation within seconds; check that mic runs and its log"
    )]
    NoAccount(String),
    /// The API server does not mint it.
    #[error(
        "the API server gave no token of service account {account} in namespace podid-identities: {reason}"
    )]
    Refused {
        /// The service account.
        account: String,
        /// The API server's text.
        reason: String,
    },
}

type Outcome = Result<Arc<Assertion>, AssertionError>;

/// Mints assertions.
pub(crate) struct Assertions {
    accounts: Api<ServiceAccount>,
    kept: FlightCache<(String, String), Outcome>,
}

impl Assertions {
    pub(crate) fn new(client: Client) -> Self {
        Self {
            accounts: Api::namespaced(client, federation::NAMESPACE),
            kept: FlightCache::new(MAX_ASSERTIONS),
        }
    }

    /// An assertion that says that its bearer is this AzureIdentity.
    pub(crate) async fn get(&self, identity: &ObjectKey, audience: &str) -> Outcome {
        let account = federation::service_account(identity);
        let key = (account.clone(), audience.to_owned());
        self.kept.get(key, self.mint(account, audience)).await
    }

    /// Forgets the assertion that is kept, so that the next one is fresh.
    pub(crate) async fn forget(&self, identity: &ObjectKey, audience: &str) {
        let account = federation::service_account(identity);
        self.kept.forget(&(account, audience.to_owned())).await;
    }

    async fn mint(&self, account: String, audience: &str) -> (Outcome, Duration) {
        let request = TokenRequest {
            spec: TokenRequestSpec {
                audiences: vec![audience.to_owned()],
                expiration_seconds: Some(LIFE_SECONDS),
                bound_object_ref: None,
            },
            ..TokenRequest::default()
        };
        let params = PostParams::default();
        let minting = self
            .accounts
            .create_token_request(&account, &params, &request);
        let refused = |reason: String| AssertionError::Refused {
            account: account.clone(),
            reason,
        };
        let answer = match tokio::time::timeout(MINT_TIMEOUT, minting).await {
            Err(_) => Err(refused("no answer in time".to_owned())),
            // No text of serde's: it may quote the token.
            Ok(Err(kube::Error::SerdeError(_))) => {
                Err(refused("the answer is no TokenRequest".to_owned()))
            }
            Ok(Err(kube::Error::Api(status))) if status.code == 404 => {
                Err(AssertionError::NoAccount(account.clone()))
            }
            Ok(Err(error)) => Err(refused(describe(&error))),
            Ok(Ok(answer)) => answer
                .status
                .ok_or_else(|| refused("it has no status".to_owned())),
        };
        let minted = answer.and_then(|status| {
            let token = Zeroizing::new(status.token);
            let issuer = issuer(&token).ok_or_else(|| refused("the token is no JWT".to_owned()))?;
            let life = status
                .expiration_timestamp
                .0
                .duration_since(Timestamp::now());
            let assertion = Assertion {
                token,
                issuer,
                audience: audience.to_owned(),
            };
            Ok((
                Arc::new(assertion),
                Duration::try_from(life).unwrap_or_default() / 2,
            ))
        });
        match minted {
            Ok((assertion, ttl)) => (Ok(assertion), ttl),
            Err(error) => (Err(error), FAILURE_TTL),
        }
    }
}

/// The issuer that a JWT names; its signature does not matter, because the API server has just made it.
fn issuer(token: &str) -> Option<String> {
    let payload = token.split('.').nth(1)?;
    let payload = URL_SAFE_NO_PAD.decode(payload).ok()?;
    let claims: Value = serde_json::from_slice(&payload).ok()?;
    claims["iss"].as_str().map(str::to_owned)
}
