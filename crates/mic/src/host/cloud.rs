//! What the controller asks of Azure, as a trait so that tests can stand in for it.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::future::BoxFuture;
use podid_azure::arm::{Arm, HostIdentity};
use podid_azure::error::{Error, ErrorKind};
use podid_policy::ids::{ClientId, HostKey, ResourceId};

/// The identities that Azure shows on a host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostIdentities {
    /// Whether the host has a system-assigned identity.
    pub system: bool,
    /// The user-assigned ones, with their client ids where Azure tells them.
    pub user: BTreeMap<ResourceId, Option<ClientId>>,
    /// The version of the host that is known; `None` once it has been changed since.
    pub etag: Option<String>,
}

/// One change of a host's identities.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostChange {
    /// To be attached.
    pub attach: Vec<ResourceId>,
    /// To be detached.
    pub detach: Vec<ResourceId>,
}

/// What a failed call means for what to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fault {
    /// Some identity of the change does not exist; the text may name it.
    IdentityNotFound,
    /// The controller may not attach some identity of the change; the text may name it.
    IdentityForbidden,
    /// Azure refuses the change as it stands.
    Refused,
    /// Too many calls.
    Throttled,
    /// Somebody else changes the host at this moment.
    Conflict,
    /// The host does not exist.
    NoHost,
    /// The controller may not read or change the host at all.
    Forbidden,
    /// Azure refuses the controller's own credential.
    Credential,
    /// Azure cannot be reached, does not answer in time, or fails; it is not known whether the change was made.
    Unavailable,
}

impl Fault {
    /// All of them.
    pub(crate) const ALL: [Self; 9] = [
        Self::IdentityNotFound,
        Self::IdentityForbidden,
        Self::Refused,
        Self::Throttled,
        Self::Conflict,
        Self::NoHost,
        Self::Forbidden,
        Self::Credential,
        Self::Unavailable,
    ];

    /// The stable name, for conditions, metrics and logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::IdentityNotFound => "IdentityNotFound",
            Self::IdentityForbidden => "IdentityRoleMissing",
            Self::Refused => "RefusedByAzure",
            Self::Throttled => "Throttled",
            Self::Conflict => "Conflict",
            Self::NoHost => "HostNotFound",
            Self::Forbidden => "HostRoleMissing",
            Self::Credential => "CredentialRefused",
            Self::Unavailable => "AzureUnavailable",
        }
    }

    /// Whether an identity of the change is to blame, rather than the host or Azure.
    pub fn is_of_identity(self) -> bool {
        matches!(
            self,
            Self::IdentityNotFound | Self::IdentityForbidden | Self::Refused
        )
    }
}

/// A call that failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct HostError {
    /// What to do about it.
    pub fault: Fault,
    /// What Azure said, for a person.
    pub text: String,
    /// The identities that Azure blames, where it names them.
    pub identities: Vec<ResourceId>,
    /// How long Azure asked to wait.
    pub retry_after: Option<Duration>,
    /// Whether the change may have been made, or a part of it.
    pub outcome_unknown: bool,
}

/// Reads and changes the identities of virtual machines and scale sets. Calls end by themselves within a bounded time.
pub trait HostClient: Send + Sync + 'static {
    /// What is on the host: one GET.
    fn identities<'a>(
        &'a self,
        host: &'a HostKey,
    ) -> BoxFuture<'a, Result<HostIdentities, HostError>>;

    /// Makes one change and waits until Azure has carried it out. `seen` is what the caller last saw on the host, of which the
    /// change must still be true; it has at most [`MAX_CHANGE`] entries. Gives the host's version afterwards, where Azure tells it.
    fn patch<'a>(
        &'a self,
        host: &'a HostKey,
        seen: &'a HostIdentities,
        change: &'a HostChange,
    ) -> BoxFuture<'a, Result<Option<String>, HostError>>;

    /// The client id of an identity as it is in Azure; `None` when there is none of this name. One GET.
    fn client_id<'a>(
        &'a self,
        id: &'a ResourceId,
    ) -> BoxFuture<'a, Result<Option<ClientId>, HostError>>;
}

/// The most identities that Azure takes in one PATCH, attached and detached together.
pub const MAX_CHANGE: usize = 150;

impl HostClient for Arm {
    fn identities<'a>(
        &'a self,
        host: &'a HostKey,
    ) -> BoxFuture<'a, Result<HostIdentities, HostError>> {
        Box::pin(async move {
            let shown = Arm::identities(self, host).await?;
            Ok(HostIdentities {
                system: shown.system,
                user: shown.user,
                etag: shown.etag,
            })
        })
    }

    fn patch<'a>(
        &'a self,
        host: &'a HostKey,
        seen: &'a HostIdentities,
        change: &'a HostChange,
    ) -> BoxFuture<'a, Result<Option<String>, HostError>> {
        Box::pin(async move {
            let seen = HostIdentity {
                system: seen.system,
                user: seen.user.clone(),
                etag: seen.etag.clone(),
            };
            Ok(self
                .update(host, &seen, &change.attach, &change.detach)
                .await?)
        })
    }

    fn client_id<'a>(
        &'a self,
        id: &'a ResourceId,
    ) -> BoxFuture<'a, Result<Option<ClientId>, HostError>> {
        Box::pin(async move { Ok(Arm::client_id(self, id).await?) })
    }
}

impl From<Error> for HostError {
    fn from(error: Error) -> Self {
        let fault = match error.kind() {
            ErrorKind::Throttled => Fault::Throttled,
            ErrorKind::Conflict => Fault::Conflict,
            ErrorKind::NotFound => Fault::NoHost,
            ErrorKind::Forbidden => Fault::Forbidden,
            ErrorKind::IdentityNotFound => Fault::IdentityNotFound,
            ErrorKind::IdentityForbidden => Fault::IdentityForbidden,
            ErrorKind::BadRequest => Fault::Refused,
            ErrorKind::InvalidCredential => Fault::Credential,
            ErrorKind::Unavailable | ErrorKind::Timeout | ErrorKind::Malformed => {
                Fault::Unavailable
            }
        };
        Self {
            fault,
            text: error.to_string(),
            identities: error.identities().to_vec(),
            retry_after: error.retry_after(),
            outcome_unknown: error.may_be_partial() || fault == Fault::Unavailable,
        }
    }
}
