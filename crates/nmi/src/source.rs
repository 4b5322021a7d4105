//! From an identity to where its tokens come from.

use std::future::Future;
use std::sync::Arc;

use kube::Client;
use podid_azure::entra::Entra;
use podid_azure::imds::{Identity, Imds};
use podid_azure::{Error, Token, clouds};
use podid_cluster::secrets::{self, SecretError};
use podid_policy::facts::{IdentityFacts, IdentitySource, ObjectKey};
use tokio::sync::Semaphore;

/// The metadata service allows five requests at a time.
const IMDS_PARALLEL: usize = 5;

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
    entra: Entra,
    client: Client,
    lane: Arc<Semaphore>,
}

impl Upstream {
    /// `client` reads service principals' Secrets.
    pub fn new(imds: Imds, entra: Entra, client: Client) -> Self {
        Self {
            imds,
            entra,
            client,
            lane: Arc::new(Semaphore::new(IMDS_PARALLEL)),
        }
    }

    /// The metadata service, for exempted pods.
    pub fn imds(&self) -> &Imds {
        &self.imds
    }

    async fn secret(&self, key: &ObjectKey) -> Result<zeroize::Zeroizing<String>, SourceError> {
        let mut data = secrets::read(&self.client, key).await?;
        let value = match data.len() {
            1 => data.pop_first().map(|(_, value)| value),
            _ => data
                .remove("clientSecret")
                .or_else(|| data.remove("clientsecret")),
        };
        let value = value.ok_or_else(|| {
            SourceError::Unusable(format!(
                "Secret {key} must have one key, or the secret under clientSecret"
            ))
        })?;
        std::str::from_utf8(&value)
            .map(|text| zeroize::Zeroizing::new(text.trim_end_matches(['\n', '\r']).to_owned()))
            .map_err(|_| SourceError::Unusable(format!("Secret {key} does not hold text")))
    }
}

impl TokenSource for Upstream {
    async fn token(&self, identity: &IdentityFacts, resource: &str) -> Result<Token, SourceError> {
        match &identity.source {
            IdentitySource::UserAssigned { resource_id } => {
                // Never closed: the semaphore lives as long as this.
                let _turn = self.lane.acquire().await;
                let by_id = Identity::Resource(resource_id.clone());
                Ok(self.imds.token(&by_id, resource).await?)
            }
            IdentitySource::ServicePrincipal {
                certificate: true, ..
            } => Err(SourceError::Unusable(format!(
                "AzureIdentity {} is of type 2 (certificate), which is not supported yet; use type 0 or 1",
                identity.key
            ))),
            IdentitySource::ServicePrincipal {
                tenant,
                secret,
                authority,
                ..
            } => {
                let authority = authority
                    .as_deref()
                    .map(|url| clouds::url("spec.adEndpoint", url))
                    .transpose()
                    .map_err(|error| SourceError::Unusable(error.to_string()))?;
                let secret = self.secret(secret).await?;
                let id = &identity.client_id;
                Ok(self
                    .entra
                    .client_secret(tenant, id, &secret, resource, authority.as_ref())
                    .await?)
            }
        }
    }
}
