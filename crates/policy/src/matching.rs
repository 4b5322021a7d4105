//! Label matching: which AzureIdentityBindings select a pod and grant it an identity, and which AzurePodIdentityExceptions exempt
//! it. The one place of this rule; `verdict.rs` and `desired.rs` call it.

use crate::facts::{BindingFacts, ExceptionFacts, IdentityFacts, PodFacts};

/// The pod label that asks for an identity.
pub const BINDING_LABEL: &str = "aadpodidbinding";

/// How far a binding reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Scope {
    /// Pod, binding and identity share a namespace.
    #[default]
    Namespaced,
    /// A binding selects pods of any namespace, except for identities that are annotated as namespaced: the default of AAD Pod
    /// Identity.
    AcrossNamespaces,
}

/// The fields of a pod by which a binding selects it.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// The pod's namespace.
    pub namespace: &'a str,
    /// The value of its label [`BINDING_LABEL`].
    pub selector: Option<&'a str>,
    /// Its service account.
    pub service_account: &'a str,
    /// Whether it counts: scheduled to a node and not finished.
    pub live: bool,
}

impl<'a> From<&'a PodFacts> for Subject<'a> {
    fn from(pod: &'a PodFacts) -> Self {
        Self {
            namespace: &pod.key.namespace,
            selector: pod.labels.get(BINDING_LABEL).map(String::as_str),
            service_account: &pod.service_account,
            live: pod.is_live(),
        }
    }
}

/// Whether the binding selects the pod, by label, service account and namespace; [`grants`] checks the identity as well.
pub fn selects<'a>(scope: Scope, binding: &BindingFacts, pod: impl Into<Subject<'a>>) -> bool {
    let pod = pod.into();
    let labelled = pod
        .selector
        .is_some_and(|value| !value.is_empty() && *value == *binding.selector);
    let accounts = &binding.service_accounts;
    let account = accounts.is_empty() || accounts.iter().any(|a| **a == *pod.service_account);
    let reach = scope == Scope::AcrossNamespaces || *binding.key.namespace == *pod.namespace;
    pod.live && labelled && account && reach
}

/// Whether the binding grants the identity to the pod.
pub fn grants<'a>(
    scope: Scope,
    binding: &BindingFacts,
    identity: &IdentityFacts,
    pod: impl Into<Subject<'a>>,
) -> bool {
    let pod = pod.into();
    let named =
        binding.identity == identity.key.name && binding.key.namespace == identity.key.namespace;
    let home = !identity.namespaced || *identity.key.namespace == *pod.namespace;
    named && home && selects(scope, binding, pod)
}

/// Whether the exception exempts the pod: same namespace, and any one of its labels on the pod. Label values compare without
/// regard to case, so that the unquoted `noaad: true` matches however YAML spelt it.
pub fn exempts(exception: &ExceptionFacts, pod: &PodFacts) -> bool {
    exception.key.namespace == pod.key.namespace
        && exception.pod_labels.iter().any(|(key, value)| {
            pod.labels
                .get(key)
                .is_some_and(|have| have.eq_ignore_ascii_case(value))
        })
}
