//! Which bindings and exceptions match a pod.

use crate::facts::{BindingFacts, ExceptionFacts, IdentityFacts, PodFacts};

/// The pod label that asks for an identity.
pub const BINDING_LABEL: &str = "aadpodidbinding";

/// How far a binding reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Scope {
    /// Pod, binding and identity share a namespace.
    #[default]
    Namespaced,
    /// Any namespace, except for identities that are annotated as namespaced. The original's default.
    AcrossNamespaces,
}

/// Whether the binding selects the pod, by label, service account and namespace. The identity's own restriction is
/// [`grants`]'s business.
pub fn selects(scope: Scope, binding: &BindingFacts, pod: &PodFacts) -> bool {
    let labelled = pod
        .labels
        .get(BINDING_LABEL)
        .is_some_and(|value| !value.is_empty() && **value == *binding.selector);
    let account = binding.service_accounts.is_empty()
        || binding.service_accounts.contains(&pod.service_account);
    let reach = scope == Scope::AcrossNamespaces || binding.key.namespace == pod.key.namespace;
    pod.is_live() && labelled && account && reach
}

/// Whether the binding grants the identity to the pod.
pub fn grants(
    scope: Scope,
    binding: &BindingFacts,
    identity: &IdentityFacts,
    pod: &PodFacts,
) -> bool {
    let named =
        binding.identity == identity.key.name && binding.key.namespace == identity.key.namespace;
    let home = !identity.namespaced || identity.key.namespace == pod.key.namespace;
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
