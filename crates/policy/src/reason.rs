//! Denial reasons: why a token request is refused, each with a stable name for code and a sentence with the next step for the
//! operator. `verdict.rs` gives them; the node agent puts them into its response, its metrics and its log.

use crate::facts::ObjectKey;
use crate::verdict::RequestedIdentity;

/// Why a request gets no token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DenialReason {
    /// The pod has no `aadpodidbinding` label.
    #[error("pod {pod} has no label aadpodidbinding; label it with the selector of an AzureIdentityBinding in namespace {ns}", ns = pod.namespace)]
    NoLabel {
        /// The pod.
        pod: ObjectKey,
    },
    /// No binding selects the pod.
    #[error("no AzureIdentityBinding in namespace {ns} selects pod {pod} (aadpodidbinding={selector}); check spec.selector, and spec.serviceAccounts where set", ns = pod.namespace)]
    NoBinding {
        /// The pod.
        pod: ObjectKey,
        /// Its label.
        selector: String,
    },
    /// Bindings select the pod, but the AzureIdentity that they name is missing, malformed, or kept to another namespace.
    #[error(
        "AzureIdentityBinding {binding} selects pod {pod}, but its AzureIdentity {identity} does not exist, is malformed, or is kept to its own namespace"
    )]
    NoIdentity {
        /// The pod.
        pod: ObjectKey,
        /// The first such binding.
        binding: ObjectKey,
        /// The identity it names.
        identity: ObjectKey,
    },
    /// The request names an identity that the pod is not granted.
    #[error(
        "pod {pod} asks for {asked}, which no AzureIdentityBinding grants it; it is granted {granted}"
    )]
    NotGranted {
        /// The pod.
        pod: ObjectKey,
        /// The identity as the request names it.
        asked: RequestedIdentity,
        /// The names of those it has.
        granted: String,
    },
    /// The request names none and several are granted with equal weight.
    #[error(
        "pod {pod} is granted {granted}; name one with client_id, object_id or msi_res_id, or give one AzureIdentityBinding a higher weight"
    )]
    Ambiguous {
        /// The pod.
        pod: ObjectKey,
        /// The names of the candidates.
        granted: String,
    },
    /// The request names a client id that several granted identities have, whose tokens are of different principals.
    #[error(
        "pod {pod} asks for {asked}, and is granted several with it: {granted}; bind one of them only, or give its AzureIdentityBinding a higher weight"
    )]
    AmbiguousClientId {
        /// The pod.
        pod: ObjectKey,
        /// The identity as the request names it.
        asked: RequestedIdentity,
        /// The candidates, each with its tenant or ARM id.
        granted: String,
    },
}

impl DenialReason {
    /// The stable name, for metrics, Events and `why`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::NoLabel { .. } => "NoLabel",
            Self::NoBinding { .. } => "NoBinding",
            Self::NoIdentity { .. } => "NoIdentity",
            Self::NotGranted { .. } => "NotGranted",
            Self::Ambiguous { .. } => "Ambiguous",
            Self::AmbiguousClientId { .. } => "AmbiguousClientId",
        }
    }
}
