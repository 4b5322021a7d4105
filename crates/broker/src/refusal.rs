//! Refusals: every reason why the broker answers with an error, with its kind, its status and its sentence.
//!
//! `http/request.rs` answers with them. No sentence has a token or an assertion.

use std::fmt::Display;
use std::time::Duration;

use http::StatusCode;
use podid_azure::{ErrorKind as AzureErrorKind, FederationFault};
use podid_policy::facts::ObjectKey;
use podid_policy::federation::BROKER_AUDIENCE;
use podid_policy::reason::DenialReason;

use crate::cluster::reviewer::ReviewError;
use crate::protocol::ErrorKind;
use crate::token::exchange::ExchangeError;

/// The wait that callers are asked for where nobody says another: what is missing is mostly there within a second.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// The wait for a service account that the controller makes, which takes it a second or some.
const ACCOUNT_WAIT: Duration = Duration::from_secs(5);

/// Why the broker answers with an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) kind: ErrorKind,
    pub(crate) status: StatusCode,
    pub(crate) message: String,
    pub(crate) retry_after: Option<Duration>,
}

impl Refusal {
    fn new(kind: ErrorKind, status: StatusCode, message: impl Display) -> Self {
        let message = message.to_string();
        Self {
            kind,
            status,
            message,
            retry_after: None,
        }
    }

    fn after(mut self, wait: Duration) -> Self {
        self.retry_after = Some(wait);
        self
    }

    pub(crate) fn malformed(status: StatusCode, what: impl Display) -> Self {
        Self::new(
            ErrorKind::Malformed,
            status,
            format!("{what}; the node agent and the broker must be of versions that fit"),
        )
    }

    pub(crate) fn no_token() -> Self {
        Self::unauthenticated("the request has no header Authorization: Bearer")
    }

    fn unauthenticated(what: impl Display) -> Self {
        Self::new(
            ErrorKind::Unauthenticated,
            StatusCode::UNAUTHORIZED,
            format!(
                "{what}; the caller must send the token of its own running pod for audience {BROKER_AUDIENCE} (a projected volume)"
            ),
        )
    }

    pub(crate) fn review(error: &ReviewError) -> Self {
        match error {
            ReviewError::Refused(text) => {
                Self::unauthenticated(format!("the API server does not accept the token: {text}"))
            }
            ReviewError::Unavailable(text) => Self::api_server(text),
        }
    }

    pub(crate) fn api_server(reason: &str) -> Self {
        Self::new(
            ErrorKind::Unavailable,
            StatusCode::SERVICE_UNAVAILABLE,
            format!("the broker could not ask the API server: {reason}; ask again"),
        )
        .after(RETRY_AFTER)
    }

    pub(crate) fn not_ready(what: &str) -> Self {
        Self::new(
            ErrorKind::Unavailable,
            StatusCode::SERVICE_UNAVAILABLE,
            format!("{what}; ask again"),
        )
        .after(RETRY_AFTER)
    }

    pub(crate) fn too_slow() -> Self {
        Self::new(
            ErrorKind::Unavailable,
            StatusCode::GATEWAY_TIMEOUT,
            "neither the API server nor Entra answered in time; ask again",
        )
        .after(RETRY_AFTER)
    }

    pub(crate) fn caller(account: &ObjectKey, allowed: &ObjectKey) -> Self {
        Self::new(
            ErrorKind::CallerRefused,
            StatusCode::FORBIDDEN,
            format!(
                "service account {account} may not ask for this, only {allowed}; correct --nmi-service-account or --mic-service-account of podid broker if that is wrong"
            ),
        )
    }

    pub(crate) fn no_node() -> Self {
        Self::new(
            ErrorKind::CallerRefused,
            StatusCode::FORBIDDEN,
            "the token names no node; it must be bound to a pod on a node, and the API server must be of Kubernetes 1.30 or later",
        )
    }

    pub(crate) fn unknown_pod(pod: &ObjectKey, uid: &str) -> Self {
        let uid: String = uid.chars().take(64).collect();
        Self::new(
            ErrorKind::UnknownPod,
            StatusCode::NOT_FOUND,
            format!("there is no pod {pod} with uid {uid:?}; it has been deleted or made anew, or it is a static pod, which has no federated identity"),
        )
        .after(RETRY_AFTER)
    }

    pub(crate) fn pod_finished(pod: &ObjectKey) -> Self {
        Self::new(
            ErrorKind::PodFinished,
            StatusCode::FORBIDDEN,
            format!("pod {pod} has finished, and none of its containers runs any more"),
        )
    }

    pub(crate) fn wrong_node(pod: &ObjectKey, node: &str) -> Self {
        Self::new(
            ErrorKind::WrongNode,
            StatusCode::FORBIDDEN,
            format!(
                "pod {pod} is not on node {node}, whose node agent asks; if nobody tries this out, node {node} may be taken over"
            ),
        )
    }

    pub(crate) fn unknown_identity(identity: &ObjectKey) -> Self {
        Self::new(
            ErrorKind::UnknownIdentity,
            StatusCode::NOT_FOUND,
            format!(
                "AzureIdentity {identity} does not exist, or one of its fields cannot be used (`podid status`)"
            ),
        )
    }

    pub(crate) fn not_federated(identity: &ObjectKey) -> Self {
        Self::new(
            ErrorKind::NotFederated,
            StatusCode::FORBIDDEN,
            format!(
                "AzureIdentity {identity} has no spec.federation, so that its tokens do not come from the broker"
            ),
        )
    }

    pub(crate) fn not_granted(reason: &DenialReason) -> Self {
        Self::new(ErrorKind::NotGranted, StatusCode::FORBIDDEN, reason)
    }

    pub(crate) fn exempt(pod: &ObjectKey, exception: &ObjectKey) -> Self {
        Self::new(
            ErrorKind::NotGranted,
            StatusCode::FORBIDDEN,
            format!(
                "AzurePodIdentityException {exception} exempts pod {pod}, so that it gets no identity"
            ),
        )
    }

    pub(crate) fn exchange(error: &ExchangeError) -> Self {
        match error {
            ExchangeError::NoTenant(_) => {
                Self::new(ErrorKind::NoTenant, StatusCode::FORBIDDEN, error)
            }
            ExchangeError::Assertion(_) => Self::unavailable(error).after(ACCOUNT_WAIT),
            ExchangeError::CutShort | ExchangeError::ShortLived => {
                Self::unavailable(error).after(RETRY_AFTER)
            }
            ExchangeError::Entra {
                error: cause,
                may_be_new,
                ..
            } => {
                let wait = cause.retry_after();
                let refusal = match cause.federation_fault() {
                    Some(fault) => Self::fault(fault, *may_be_new, error),
                    None => Self::entra(cause.kind(), error),
                };
                match refusal.kind.is_transient() {
                    true => refusal.after(wait.unwrap_or(RETRY_AFTER)),
                    false => refusal,
                }
            }
        }
    }

    fn fault(fault: FederationFault, may_be_new: bool, error: &ExchangeError) -> Self {
        let (kind, status) = match fault {
            FederationFault::CredentialMissing | FederationFault::UnknownClient if may_be_new => {
                (ErrorKind::Propagating, StatusCode::SERVICE_UNAVAILABLE)
            }
            FederationFault::CredentialMissing | FederationFault::UnknownClient => {
                (ErrorKind::CredentialMissing, StatusCode::FORBIDDEN)
            }
            FederationFault::CredentialMismatch
            | FederationFault::UnknownTenant
            | FederationFault::IssuerRefused => {
                (ErrorKind::CredentialMismatch, StatusCode::FORBIDDEN)
            }
            FederationFault::TenantRefused => (ErrorKind::TenantRefused, StatusCode::FORBIDDEN),
            FederationFault::IssuerUnreachable
            | FederationFault::AssertionExpired
            | FederationFault::AssertionUnverified => (
                ErrorKind::IssuerUnreachable,
                StatusCode::SERVICE_UNAVAILABLE,
            ),
        };
        Self::new(kind, status, error)
    }

    fn entra(kind: AzureErrorKind, error: &ExchangeError) -> Self {
        match kind {
            AzureErrorKind::Throttled => Self::throttled(error),
            AzureErrorKind::Timeout => {
                Self::new(ErrorKind::Unavailable, StatusCode::GATEWAY_TIMEOUT, error)
            }
            AzureErrorKind::InvalidCredential | AzureErrorKind::Forbidden => {
                Self::new(ErrorKind::CredentialMismatch, StatusCode::FORBIDDEN, error)
            }
            AzureErrorKind::BadRequest => {
                Self::new(ErrorKind::Malformed, StatusCode::BAD_REQUEST, error)
            }
            _ => Self::unavailable(error),
        }
    }

    fn unavailable(error: &ExchangeError) -> Self {
        Self::new(
            ErrorKind::Unavailable,
            StatusCode::SERVICE_UNAVAILABLE,
            error,
        )
    }

    fn throttled(error: &ExchangeError) -> Self {
        Self::new(ErrorKind::Throttled, StatusCode::TOO_MANY_REQUESTS, error)
    }
}
