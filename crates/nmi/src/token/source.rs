//! From an identity to where its tokens come from.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kube::Client;
use parking_lot::Mutex;
use podid_azure::entra::Entra;
use podid_azure::imds::{Identity, Imds};
use podid_azure::{Error, Token};
use podid_cluster::secrets::SecretError;
use podid_policy::facts::{IdentityFacts, IdentitySource, ObjectKey};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};

use crate::token::imds_limiter::Pace;
use crate::token::service_principal::Principals;

/// The metadata service allows five requests at a time.
const IMDS_PARALLEL: usize = 5;
/// Of which one identity's may take so many, so that a slow or poisoned one delays no other.
const IMDS_SHARE: usize = 2;
/// Requests that are passed on may take so many.
const IMDS_PASSED: usize = 2;
/// It answers 20 requests a second, and refuses the rest: so many steadily, and so many more at once.
const IMDS_RATE: (u32, u32) = (15, 5);
/// Of which so many may be passed on.
const IMDS_PASSED_RATE: (u32, u32) = (5, 5);
/// Whoever would wait longer for that is refused.
const IMDS_PASSED_WAIT: Duration = Duration::from_secs(2);

/// Why a token cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// Azure's answer.
    #[error("{0}")]
    Azure(#[from] Error),
    /// The service principal's Secret.
    #[error("{0}")]
    Secret(#[from] SecretError),
    /// The AzureIdentity or its Secret says something that cannot be used.
    #[error("{0}")]
    Unusable(String),
    /// A token came that is about to expire.
    #[error("the issuer gave a token that is about to expire; ask again")]
    ShortLived,
}

impl SourceError {
    /// A stable name, for metrics and logs.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Azure(error) => error.kind().name(),
            Self::Secret(error) if error.is_transient() => "secret_unavailable",
            Self::Secret(_) => "secret_missing",
            Self::Unusable(_) => "identity_unusable",
            Self::ShortLived => "short_lived",
        }
    }

    /// How long the issuer asks to wait.
    pub fn retry_after(&self) -> Option<std::time::Duration> {
        match self {
            Self::Azure(error) => error.retry_after(),
            Self::Secret(_) | Self::Unusable(_) | Self::ShortLived => None,
        }
    }

    /// Whether a token that is still valid should be kept in spite of this.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Azure(error) => error.is_transient(),
            Self::Secret(error) => error.is_transient(),
            Self::ShortLived => true,
            Self::Unusable(_) => false,
        }
    }
}

/// Why the metadata service's answer to a forwarded request cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ForwardError {
    /// podid's own limit of forwarded requests.
    #[error("more requests are forwarded than the metadata service answers beside tokens")]
    Throttled,
    /// The metadata service did not answer.
    #[error("{0}")]
    Azure(#[from] Error),
}

/// Gives tokens of identities.
pub trait TokenSource: Send + Sync + 'static {
    /// A new token of `identity` for `resource`.
    fn token(
        &self,
        identity: &IdentityFacts,
        resource: &str,
    ) -> impl Future<Output = Result<Token, SourceError>> + Send;
}

/// The node's metadata service for user-assigned identities, Entra for service principals.
pub struct Upstream {
    imds: Imds,
    principals: Principals,
    lanes: Lanes,
}

/// Turns at the metadata service.
struct Lanes {
    all: Semaphore,
    pace: Pace,
    passed: Semaphore,
    passed_pace: Pace,
    shares: Mutex<HashMap<ObjectKey, Arc<Semaphore>>>,
}

impl Default for Lanes {
    fn default() -> Self {
        Self {
            all: Semaphore::new(IMDS_PARALLEL),
            pace: Pace::new(IMDS_RATE.0, IMDS_RATE.1),
            passed: Semaphore::new(IMDS_PASSED),
            passed_pace: Pace::new(IMDS_PASSED_RATE.0, IMDS_PASSED_RATE.1),
            shares: Mutex::default(),
        }
    }
}

impl Lanes {
    /// Waits for a turn; it ends when this is dropped. The semaphores are never closed, so both permits are always there.
    async fn turn(
        &self,
        identity: &ObjectKey,
    ) -> (Option<OwnedSemaphorePermit>, Option<SemaphorePermit<'_>>) {
        let share = {
            let mut shares = self.shares.lock();
            // Shares that nobody holds or waits for.
            shares.retain(|_, share| Arc::strong_count(share) > 1);
            let share = shares
                .entry(identity.clone())
                .or_insert_with(|| Arc::new(Semaphore::new(IMDS_SHARE)));
            Arc::clone(share)
        };
        // One's own share first: whoever waits for it must not hold a turn that another could use.
        let share = share.acquire_owned().await.ok();
        let turn = self.all.acquire().await.ok();
        self.pace.wait().await;
        (share, turn)
    }
}

impl Upstream {
    /// `client` reads service principals' Secrets: those of an AzureIdentity's own namespace, or of any with `any_namespace`.
    pub fn new(imds: Imds, entra: Entra, client: Client, any_namespace: bool) -> Self {
        Self {
            imds,
            principals: Principals::new(entra, client, any_namespace),
            lanes: Lanes::default(),
        }
    }

    /// Passes a request on to the metadata service. Tokens take precedence: more than a few a second are refused.
    ///
    /// # Errors
    /// [`ForwardError`].
    pub(crate) async fn forward(
        &self,
        request: http::Request<Bytes>,
    ) -> Result<http::Response<Bytes>, ForwardError> {
        if !self.lanes.passed_pace.wait_at_most(IMDS_PASSED_WAIT).await {
            return Err(ForwardError::Throttled);
        }
        let _passed = self.lanes.passed.acquire().await.ok();
        let _turn = self.lanes.all.acquire().await.ok();
        self.lanes.pace.wait().await;
        Ok(self.imds.forward(request).await?)
    }

    /// The Secret of `identity`, if it is a service principal and its Secret may be read.
    pub(crate) fn secret<'a>(&self, identity: &'a IdentityFacts) -> Option<&'a ObjectKey> {
        self.principals.secret(identity)
    }
}

impl TokenSource for Upstream {
    async fn token(&self, identity: &IdentityFacts, resource: &str) -> Result<Token, SourceError> {
        match &identity.source {
            IdentitySource::UserAssigned { resource_id } => {
                let _turn = self.lanes.turn(&identity.key).await;
                let by_id = Identity::Resource(resource_id.clone());
                Ok(self.imds.token(&by_id, resource).await?)
            }
            IdentitySource::ServicePrincipal { .. } => {
                self.principals.token(identity, resource).await
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt as _;

    #[test]
    fn an_identity_that_hangs_leaves_turns_to_the_others() {
        let lanes = Lanes::default();
        let enter = |name: &str| {
            let key = ObjectKey::new("shop", name);
            async { lanes.turn(&key).await }.now_or_never().is_some()
        };
        let stuck = ObjectKey::new("shop", "stuck");
        let held: Vec<_> = (0..IMDS_SHARE)
            .map(|_| lanes.turn(&stuck).now_or_never().unwrap())
            .collect();
        assert!(!enter("stuck"), "beyond its share");
        assert!(enter("other"));
        drop(held);
        assert!(enter("stuck"));
        assert!(enter("other"));
        assert_eq!(lanes.shares.lock().len(), 1, "idle shares are forgotten");
    }
}
