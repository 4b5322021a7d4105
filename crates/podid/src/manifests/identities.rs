//! The namespace of the service accounts that stand for federated identities. No pod may run there: whoever could start one would
//! have the tokens of its service account.

use podid_policy::federation::NAMESPACE;
use serde_json::{Value, json};

use super::NAME;

pub(super) fn objects() -> [Value; 2] {
    let labels = json!({ "app.kubernetes.io/name": NAME });
    let mut namespace_labels = labels.clone();
    for mode in ["enforce", "audit", "warn"] {
        namespace_labels[format!("pod-security.kubernetes.io/{mode}")] = json!("restricted");
    }
    [
        json!({
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": { "name": NAMESPACE, "labels": namespace_labels },
        }),
        json!({
            "apiVersion": "v1", "kind": "ResourceQuota",
            "metadata": { "name": "no-pods", "namespace": NAMESPACE, "labels": labels },
            "spec": { "hard": { "pods": "0" } },
        }),
    ]
}
