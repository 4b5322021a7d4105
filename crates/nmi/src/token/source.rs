//! Token source: gets an identity's tokens from its issuer, which is the metadata service for user-assigned identities, Entra for
//! service principals, and `podid broker` for federated identities.
//!
//! `cache.rs` asks it for tokens; `http/passthrough.rs` forwards requests with it. Errors are this file's own: `refusal.rs` says how
//! they are answered.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kube::Client;
use podid_azure::entra::Entra;
use podid_azure::imds::{Identity, Imds};
use podid_azure::{Error, ErrorKind, Token};
use podid_broker::client::{BrokerClient, ClientError};
use podid_broker::protocol::ErrorKind as BrokerErrorKind;
use podid_cluster::secrets::SecretError;
use podid_policy::facts::{IdentityFacts, IdentitySource, ObjectKey, PodFacts};
use podid_policy::ids::ResourceId;

use crate::token::federated::FederatedIdentities;
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
    /// The AzureIdentity is federated, and this node agent has no broker.
    #[error(
        "AzureIdentity {0} has spec.federation, and this node agent was given no broker to get its tokens from; deploy podid broker (broker.enabled=true of the chart) and give podid nmi --broker-url, or take spec.federation away"
    )]
    NoBroker(ObjectKey),
    /// No live pod of this node is granted the AzureIdentity any more.
    #[error("no live pod of this node is granted AzureIdentity {0} any more; ask again")]
    NoPod(ObjectKey),
    /// The broker refuses or does not answer.
    #[error("{0}")]
    Broker(#[from] ClientError),
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
            Self::NoBroker(_) => "no_broker",
            Self::NoPod(_) => "no_pod",
            Self::Broker(ClientError::Refused { kind, .. }) => kind.name(),
            Self::Broker(ClientError::Unreachable { .. }) => "broker_unreachable",
            Self::Broker(ClientError::File { .. }) => "broker_file_unusable",
            Self::Broker(ClientError::NotABroker { .. }) => "not_a_broker",
            Self::ShortLived => "short_lived",
        }
    }

    /// How long the issuer says to wait.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Azure(error) => error.retry_after(),
            Self::Broker(error) => error.retry_after(),
            Self::Secret(_)
            | Self::Unusable(_)
            | Self::NoBroker(_)
            | Self::NoPod(_)
            | Self::ShortLived => None,
        }
    }

    /// Whether the metadata service says that it does not have the identity, as it does for a while after the identity was attached.
    pub fn is_identity_not_found(&self) -> bool {
        matches!(self, Self::Azure(error) if error.kind() == ErrorKind::IdentityNotFound)
    }

    /// Whether Entra does not know a new federated credential yet, or the broker sees the cluster's objects otherwise than this node
    /// agent, as happens for a moment after one has changed.
    pub fn is_broker_behind(&self) -> bool {
        use BrokerErrorKind as Kind;
        matches!(
            self,
            Self::Broker(ClientError::Refused {
                kind: Kind::Propagating
                    | Kind::UnknownPod
                    | Kind::PodFinished
                    | Kind::NotGranted
                    | Kind::UnknownIdentity
                    | Kind::NotFederated,
                ..
            })
        )
    }

    /// Whether federation may not work at all yet. The controller leaves an identity attached until it has, so that an identity in use
    /// can be given `spec.federation` and loses no token.
    pub(crate) fn is_federation_unproven(&self) -> bool {
        use BrokerErrorKind as Kind;
        match self {
            Self::NoBroker(_) => true,
            Self::Broker(ClientError::Refused { kind, .. }) => matches!(
                kind,
                Kind::NoTenant
                    | Kind::CredentialMissing
                    | Kind::CredentialMismatch
                    | Kind::Propagating
                    | Kind::IssuerUnreachable
                    | Kind::TenantRefused
                    | Kind::Unavailable
            ),
            Self::Broker(ClientError::Unreachable { .. } | ClientError::File { .. }) => true,
            _ => false,
        }
    }

    /// Whether the cause may pass by itself, so that a token that is still valid is kept.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Azure(error) => error.is_transient(),
            Self::Secret(error) => error.is_transient(),
            Self::ShortLived => true,
            Self::Broker(error) => !ends_the_grant(error),
            Self::Unusable(_) | Self::NoBroker(_) | Self::NoPod(_) => false,
        }
    }
}

/// Whether the broker says that no pod of this node has the grant. Its other refusals are about new tokens only: Entra's answers on a
/// credential differ from one of its servers to the next, and a valid token outlives a repair of the broker.
fn ends_the_grant(error: &ClientError) -> bool {
    use BrokerErrorKind as Kind;
    matches!(
        error,
        ClientError::Refused {
            kind: Kind::NotGranted | Kind::PodFinished | Kind::UnknownIdentity | Kind::NotFederated,
            ..
        }
    )
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

/// The issuers: the metadata service for user-assigned identities, Entra for service principals, the broker for federated identities.
pub struct Upstream {
    imds: Imds,
    imds_limiter: ImdsLimiter,
    service_principals: ServicePrincipals,
    federated: FederatedIdentities,
}

impl Upstream {
    /// `client` reads service principals' Secrets: those of an AzureIdentity's own namespace, or of any with `any_namespace`.
    pub fn new(imds: Imds, entra: Entra, client: Client, any_namespace: bool) -> Self {
        Self {
            imds,
            imds_limiter: ImdsLimiter::default(),
            service_principals: ServicePrincipals::new(entra, client, any_namespace),
            federated: FederatedIdentities::default(),
        }
    }

    /// Gets tokens of federated identities from this broker; without one they have none.
    #[must_use]
    pub fn with_broker(mut self, broker: Option<BrokerClient>) -> Self {
        self.federated = FederatedIdentities::new(broker);
        self
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

    /// A new token of `identity` for `resource`. `pods` gives the pods of this node that are granted the identity.
    ///
    /// # Errors
    /// [`SourceError`].
    pub(crate) async fn token(
        &self,
        identity: &IdentityFacts,
        resource: &str,
        pods: impl FnOnce() -> Vec<Arc<PodFacts>>,
    ) -> Result<Token, SourceError> {
        match &identity.source {
            IdentitySource::UserAssigned { resource_id } => {
                Ok(self.attached(identity, resource_id, resource).await?)
            }
            IdentitySource::ServicePrincipal { .. } => {
                self.service_principals.token(identity, resource).await
            }
            IdentitySource::Federated { resource_id, .. } => {
                let by_broker = self.federated.token(identity, resource, &pods()).await;
                match (by_broker, resource_id) {
                    (Err(error), Some(id)) if error.is_federation_unproven() => {
                        let attached = self.attached(identity, id, resource).await;
                        attached.map_err(|_| error)
                    }
                    (outcome, _) => outcome,
                }
            }
        }
    }

    /// A token of a managed identity that is attached to this node.
    async fn attached(
        &self,
        identity: &IdentityFacts,
        id: &ResourceId,
        resource: &str,
    ) -> Result<Token, Error> {
        let _permit = self.imds_limiter.acquire(&identity.key).await;
        let by_id = Identity::Resource(id.clone());
        self.imds.token(&by_id, resource).await
    }
}
