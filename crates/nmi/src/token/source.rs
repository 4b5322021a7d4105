//! Token source: gets an identity's tokens from its issuer, which is the metadata service for user-assigned identities and Entra for
//! service principals.
//!
//! `cache.rs` asks it for tokens; `http/passthrough.rs` forwards requests with it. Errors are this file's own: `refusal.rs` says how
//! they are answered.

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use kube::Client;
use podid_azure::entra::Entra;
use podid_azure::imds::{Identity, Imds};
use podid_azure::{Error, ErrorKind, Token};
use podid_cluster::secrets::SecretError;
use podid_policy::facts::{IdentityFacts, IdentitySource, ObjectKey};

use crate::token::imds_limiter::ImdsLimiter;
use crate::token::service_principal::ServicePrincipals;

/// Why the issuer gives no token.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// Azure refuses or does not answer.
    #[error("{0}")]
    Azure(#[from] Error),
    /// The service principal's Secret cannot be read.
    #[error("{0}")]
    Secret(#[from] SecretError),
    /// A field of the AzureIdentity or of its Secret is invalid.
    #[error("{0}")]
    Unusable(String),
    /// The token that came is about to expire.
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

    /// How long the issuer says to wait.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Azure(error) => error.retry_after(),
            Self::Secret(_) | Self::Unusable(_) | Self::ShortLived => None,
        }
    }

    /// Whether the metadata service says that it does not have the identity, as it does for a while after the identity was attached.
    pub fn is_identity_not_found(&self) -> bool {
        matches!(self, Self::Azure(error) if error.kind() == ErrorKind::IdentityNotFound)
    }

    /// Whether the cause may pass by itself, so that a token that is still valid is kept.
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

/// Where the cache gets tokens from.
pub trait TokenSource: Send + Sync + 'static {
    /// A new token of `identity` for `resource`.
    fn token(
        &self,
        identity: &IdentityFacts,
        resource: &str,
    ) -> impl Future<Output = Result<Token, SourceError>> + Send;
}

/// The issuers: the metadata service for user-assigned identities, Entra for service principals.
pub struct Upstream {
    imds: Imds,
    imds_limiter: ImdsLimiter,
    service_principals: ServicePrincipals,
}

impl Upstream {
    /// `client` reads service principals' Secrets: those of an AzureIdentity's own namespace, or of any with `any_namespace`.
    pub fn new(imds: Imds, entra: Entra, client: Client, any_namespace: bool) -> Self {
        Self {
            imds,
            imds_limiter: ImdsLimiter::default(),
            service_principals: ServicePrincipals::new(entra, client, any_namespace),
        }
    }

    /// Forwards a request to the metadata service. Only a few are forwarded in a second, because tokens take precedence.
    ///
    /// # Errors
    /// Too many are forwarded, or the metadata service does not answer.
    pub(crate) async fn forward(
        &self,
        request: http::Request<Bytes>,
    ) -> Result<http::Response<Bytes>, ForwardError> {
        let permit = self.imds_limiter.acquire_forwarded().await;
        let _permit = permit.ok_or(ForwardError::Throttled)?;
        Ok(self.imds.forward(request).await?)
    }

    /// The Secret of `identity`, if it is a service principal and its Secret may be read.
    pub(crate) fn secret<'a>(&self, identity: &'a IdentityFacts) -> Option<&'a ObjectKey> {
        self.service_principals.secret(identity)
    }
}

impl TokenSource for Upstream {
    async fn token(&self, identity: &IdentityFacts, resource: &str) -> Result<Token, SourceError> {
        match &identity.source {
            IdentitySource::UserAssigned { resource_id } => {
                let _permit = self.imds_limiter.acquire(&identity.key).await;
                let by_id = Identity::Resource(resource_id.clone());
                Ok(self.imds.token(&by_id, resource).await?)
            }
            IdentitySource::ServicePrincipal { .. } => {
                self.service_principals.token(identity, resource).await
            }
            IdentitySource::Federated { .. } => Err(SourceError::Unusable(format!(
                "AzureIdentity {} has spec.federation, which this node agent cannot use yet",
                identity.key
            ))),
        }
    }
}
