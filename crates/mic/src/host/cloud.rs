//! The client of Azure as the controller needs it: reads and changes the identities of virtual machines and scale sets.
//!
//! A host's worker ([`super::worker`]) calls it. [`HostClient`] is a trait so that tests can take Azure's place; [`Arm`] is what runs in
//! production. Every failure is one [`Fault`], which says what to do next.

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
    /// The user-assigned identities, with their client ids where Azure tells them.
    pub user: BTreeMap<ResourceId, Option<ClientId>>,
    /// The host's version (etag) with which a change is fenced; `None` where Azure did not tell the one after a change.
    pub etag: Option<String>,
}

/// One change of a host's identities.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostChange {
    /// The identities to be attached.
    pub attach: Vec<ResourceId>,
    /// The identities to be detached.
    pub detach: Vec<ResourceId>,
}

/// The cause of a failed call, by what must be done next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fault {
    /// An identity of the change does not exist; the error may name it.
    IdentityNotFound,
    /// The controller may not attach an identity of the change; the error may name it.
    IdentityForbidden,
    /// Azure refuses the change for another reason; the error may name an identity, else the bisection tells whose fault it is.
    Refused,
    /// There were too many calls.
    Throttled,
    /// Another change of the host is under way.
    Conflict,
    /// The host does not exist.
    NoHost,
    /// The controller may not read or change the host at all.
    Forbidden,
    /// Azure refuses every change of the host, for the host's own sake.
    HostRefused,
    /// Azure refuses what is done in the host's subscription.
    Subscription,
    /// Azure refuses the controller's own credential.
    Credential,
    /// Azure cannot be reached, does not answer in time, or fails; whether the change was made is unknown.
    Unavailable,
}

impl Fault {
    /// All faults, in the order of the metrics.
    pub(crate) const ALL: [Self; 11] = [
        Self::IdentityNotFound,
        Self::IdentityForbidden,
        Self::Refused,
        Self::Throttled,
        Self::Conflict,
        Self::NoHost,
        Self::Forbidden,
        Self::HostRefused,
        Self::Subscription,
        Self::Credential,
        Self::Unavailable,
    ];

    /// The stable name in conditions, metrics and logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::IdentityNotFound => "IdentityNotFound",
            Self::IdentityForbidden => "IdentityRoleMissing",
            Self::Refused => "RefusedByAzure",
            Self::Throttled => "Throttled",
            Self::Conflict => "Conflict",
            Self::NoHost => "HostNotFound",
            Self::Forbidden => "HostRoleMissing",
            Self::HostRefused => "HostRefused",
            Self::Subscription => "SubscriptionRefused",
            Self::Credential => "CredentialRefused",
            Self::Unavailable => "AzureUnavailable",
        }
    }

    /// Whether the cause is an identity of the change, or may be.
    pub(crate) fn may_be_of_identity(self) -> bool {
        matches!(
            self,
            Self::IdentityNotFound | Self::IdentityForbidden | Self::Refused
        )
    }

    /// Whether it passes by itself, so that nobody must do anything.
    pub(crate) fn is_of_moment(self) -> bool {
        matches!(self, Self::Throttled | Self::Conflict | Self::Unavailable)
    }
}

/// A call that failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct HostError {
    /// The cause.
    pub fault: Fault,
    /// What Azure said, for people.
    pub text: String,
    /// The identities that Azure names as the cause.
    pub identities: Vec<ResourceId>,
    /// How long Azure asks to wait.
    pub retry_after: Option<Duration>,
    /// Whether the change, or a part of it, may have been made or may still be under way.
    pub outcome_unknown: bool,
}

/// Reads and changes the identities of virtual machines and scale sets. Every call ends within a bounded time.
pub trait HostClient: Send + Sync + 'static {
    /// The identities on the host, by one GET.
    fn identities<'a>(
        &'a self,
        host: &'a HostKey,
    ) -> BoxFuture<'a, Result<HostIdentities, HostError>>;

    /// Makes one change of at most [`MAX_CHANGE`] identities and waits until Azure has carried it out. `seen` is what the last read has
    /// shown, and fences the change. Returns the host's version afterwards, where Azure tells it.
    fn patch<'a>(
        &'a self,
        host: &'a HostKey,
        seen: &'a HostIdentities,
        change: &'a HostChange,
    ) -> BoxFuture<'a, Result<Option<String>, HostError>>;

    /// The client id that an identity has in Azure, by one GET; `None` when there is no such identity.
    fn client_id<'a>(
        &'a self,
        id: &'a ResourceId,
    ) -> BoxFuture<'a, Result<Option<ClientId>, HostError>>;
}

/// Azure takes at most 150 identities in one PATCH, attached and detached ones together.
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
            ErrorKind::HostRefused => Fault::HostRefused,
            ErrorKind::Subscription => Fault::Subscription,
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

#[cfg(test)]
mod tests {
    use super::*;
    use podid_api::identity::LASTING_REFUSALS;

    #[test]
    fn a_refusal_that_lasts_for_the_node_agent_is_one_of_these_and_passes_by_none() {
        for name in LASTING_REFUSALS {
            let fault = Fault::ALL.into_iter().find(|fault| fault.name() == name);
            assert!(fault.is_some_and(|fault| !fault.is_of_moment()), "{name}");
        }
    }
}
