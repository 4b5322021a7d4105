//! Broker protocol: the JSON bodies and error kinds of `podid broker`'s HTTPS endpoints. The server and `client.rs` share them, so
//! that both sides agree.
//!
//! ```text
//!  POST /v1/token   nmi ──► { pod, identity, resource } ──► 200 PodToken, or an error
//!  POST /v1/check   mic ──► { identity }                ──► 204 when a first exchange has succeeded, or an error
//!
//!  Authorization: Bearer <projected token of the caller's pod, audience podid-broker>
//!  error: status, Retry-After where time heals it, { "error": { "kind", "message" } }
//! ```

use podid_policy::facts::ObjectKey;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

/// The path of token requests.
pub const TOKEN_PATH: &str = "/v1/token";
/// The path of checks of an identity's federated credential.
pub const CHECK_PATH: &str = "/v1/check";

/// The pod that a token is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodRef {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid, which tells it from a later pod of the same name.
    pub uid: String,
}

/// The AzureIdentity that a token is of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdentityRef {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl From<&ObjectKey> for IdentityRef {
    fn from(key: &ObjectKey) -> Self {
        Self {
            namespace: key.namespace.to_string(),
            name: key.name.to_string(),
        }
    }
}

/// The body of a token request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodTokenRequest {
    /// The pod that asks.
    pub pod: PodRef,
    /// The identity that the pod is granted.
    pub identity: IdentityRef,
    /// The resource, byte for byte as the pod names it.
    pub resource: String,
}

/// The body of a check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckRequest {
    /// The identity whose federated credential is tried.
    pub identity: IdentityRef,
}

/// The response to a token request. It has no `Debug`, so that no log prints the token.
#[derive(Serialize, Deserialize)]
pub struct PodToken {
    /// The access token.
    pub access_token: Zeroizing<String>,
    /// The authentication scheme: `Bearer`.
    pub token_type: String,
    /// When it expires, in seconds since 1970.
    pub expires_on: i64,
    /// When Entra asks for a refresh, in seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refresh_on: Option<i64>,
}

/// The body of an error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// The error.
    pub error: ErrorDetail,
}

/// What went wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorDetail {
    /// For code.
    pub kind: ErrorKind,
    /// For operators: the likely cause and the next step.
    pub message: String,
}

/// Why the broker refuses, as code matches on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ErrorKind {
    /// 400: the body is not what the protocol says.
    Malformed,
    /// 401: the bearer token is absent, expired, of another audience, or its pod is gone.
    Unauthenticated,
    /// 403: the caller is neither the node agent nor the controller, or not the one of the two that this endpoint is for.
    CallerRefused,
    /// 403: no binding grants the pod this identity.
    NotGranted,
    /// 404: there is no pod of this name and uid.
    UnknownPod,
    /// 403: the pod is on another node than the caller.
    WrongNode,
    /// 403: the pod has finished.
    PodFinished,
    /// 404: there is no AzureIdentity of this name.
    UnknownIdentity,
    /// 403: the AzureIdentity has no `spec.federation`.
    NotFederated,
    /// 403: the AzureIdentity names no tenant, and the broker was given none.
    NoTenant,
    /// 403: the identity has no federated credential for this cluster and AzureIdentity.
    CredentialMissing,
    /// 403: there is a federated credential, but its issuer, subject or audience is another.
    CredentialMismatch,
    /// 503: the federated credential is new, and Entra does not know it everywhere yet.
    Propagating,
    /// 503: Entra cannot read the cluster's issuer.
    IssuerUnreachable,
    /// 403: a policy of the tenant refuses.
    TenantRefused,
    /// 429: Entra or the broker throttles.
    Throttled,
    /// 503 or 504: the API server or Entra does not answer, or the broker is not ready.
    Unavailable,
    /// Any kind of a later version.
    #[serde(other)]
    Unknown,
}

impl ErrorKind {
    /// A stable name for metrics and logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Unauthenticated => "unauthenticated",
            Self::CallerRefused => "caller_refused",
            Self::NotGranted => "not_granted",
            Self::UnknownPod => "unknown_pod",
            Self::WrongNode => "wrong_node",
            Self::PodFinished => "pod_finished",
            Self::UnknownIdentity => "unknown_identity",
            Self::NotFederated => "not_federated",
            Self::NoTenant => "no_tenant",
            Self::CredentialMissing => "credential_missing",
            Self::CredentialMismatch => "credential_mismatch",
            Self::Propagating => "propagating",
            Self::IssuerUnreachable => "issuer_unreachable",
            Self::TenantRefused => "tenant_refused",
            Self::Throttled => "throttled",
            Self::Unavailable => "unavailable",
            Self::Unknown => "unknown",
        }
    }

    /// Whether the same request may succeed later without anybody changing anything.
    pub fn is_transient(self) -> bool {
        matches!(
            self,
            Self::UnknownPod
                | Self::Propagating
                | Self::IssuerUnreachable
                | Self::Throttled
                | Self::Unavailable
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_kind_of_a_later_version_is_no_error_of_the_protocol() {
        let body = json!({ "error": { "kind": "OfTomorrow", "message": "m" } });
        let body: ErrorBody = serde_json::from_value(body).unwrap();
        assert_eq!(body.error.kind, ErrorKind::Unknown);
        let body = json!({ "error": { "kind": "NotGranted", "message": "m" } });
        let body: ErrorBody = serde_json::from_value(body).unwrap();
        assert_eq!(body.error.kind, ErrorKind::NotGranted);
    }
}
