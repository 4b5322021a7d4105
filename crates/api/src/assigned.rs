//! AzureAssignedIdentity: the state of the assignment of one identity to one pod. The controller writes such objects; node agents
//! and users read them.

use kube::CustomResource;
use kube::ResourceExt as _;
use podid_policy::facts::ObjectKey;
use podid_policy::ids::stable_hash;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{ObjectError, required};

/// The finalizer that keeps an AzureAssignedIdentity until its identity is detached from the host.
pub const FINALIZER: &str = "azureassignedidentity.finalizers.aadpodidentity.k8s.io";
/// The label with the name of the pod's node, by which a node agent selects the objects of its own pods.
pub const NODE_LABEL: &str = "nodename";
/// The namespace of AzureAssignedIdentities where bindings reach across namespaces.
pub const SHARED_NAMESPACE: &str = "default";

/// `spec` of an AzureAssignedIdentity.
#[derive(CustomResource, Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "aadpodidentity.k8s.io",
    version = "v1",
    kind = "AzureAssignedIdentity",
    plural = "azureassignedidentities",
    namespaced,
    status = "AzureAssignedIdentityStatus",
    schema = "disabled"
)]
#[serde(rename_all = "camelCase")]
pub struct AzureAssignedIdentitySpec {
    /// A copy of the AzureIdentity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub azure_identity_ref: Option<Value>,
    /// A copy of the AzureIdentityBinding.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub azure_binding_ref: Option<Value>,
    /// The pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// The pod's namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_namespace: Option<String>,
    /// The pod's node.
    #[serde(rename = "nodename", default, skip_serializing_if = "Option::is_none")]
    pub node_name: Option<String>,
    /// Kept for compatibility; not read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replicas: Option<i32>,
}

/// `status` of an AzureAssignedIdentity.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AzureAssignedIdentityStatus {
    /// How far the assignment is: one of [`AssignmentState`]'s names.
    #[serde(default)]
    pub status: String,
    /// Kept for compatibility; not read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub available_replicas: Option<i32>,
}

/// How far an assignment is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AssignmentState {
    /// The identity is not yet attached to the pod's host.
    Created,
    /// The identity is attached to the pod's host, so that tokens can be fetched.
    Assigned,
    /// The identity is detached; the object is about to be deleted.
    Unassigned,
}

impl AssignmentState {
    /// As written in `status.status`.
    pub fn name(self) -> &'static str {
        match self {
            AssignmentState::Created => "Created",
            AssignmentState::Assigned => "Assigned",
            AssignmentState::Unassigned => "Unassigned",
        }
    }

    /// Reads `status.status`; anything unknown, the empty text included, counts as not yet assigned.
    pub fn parse(text: &str) -> Self {
        match text {
            "Assigned" => AssignmentState::Assigned,
            "Unassigned" => AssignmentState::Unassigned,
            _ => AssignmentState::Created,
        }
    }
}

/// The few fields of an AzureAssignedIdentity that the rules need.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AssignedFacts {
    /// The object itself.
    pub key: ObjectKey,
    /// The pod.
    pub pod: ObjectKey,
    /// The AzureIdentity.
    pub identity: ObjectKey,
    /// The AzureIdentityBinding; `None` when the copy names none.
    pub binding: Option<ObjectKey>,
    /// The pod's node.
    pub node: String,
    /// How far the assignment is.
    pub state: AssignmentState,
    /// Whether it is being deleted, and exists only until its finalizer is removed.
    pub deleting: bool,
}

/// The longest name that Kubernetes allows an object, in bytes.
const MAX_NAME: usize = 253;

/// The object's name for a pod and an identity, as AAD Pod Identity computes it; [`hashed_name`] where that is too long.
pub fn name(pod: &ObjectKey, identity: &str) -> String {
    let plain = format!("{}-{}-{identity}", pod.name, pod.namespace);
    if plain.len() > MAX_NAME {
        return hashed_name(pod, identity);
    }
    plain
}

/// A name for a pod and an identity that is unique by a hash. The plain [`name`] is not: pod `a-b` in namespace `c` and pod `a` in
/// namespace `b-c` share it.
pub fn hashed_name(pod: &ObjectKey, identity: &str) -> String {
    let plain = format!("{}-{}-{identity}", pod.name, pod.namespace);
    // No name in Kubernetes has a slash, so that this text is unique.
    let hash = stable_hash(&format!("{}/{}/{identity}", pod.namespace, pod.name));
    let readable: String = plain.chars().take(MAX_NAME - 17).collect();
    format!("{}-{hash:016x}", readable.trim_end_matches(['-', '.']))
}

impl AzureAssignedIdentity {
    /// The few fields that the rules need.
    ///
    /// # Errors
    /// [`ObjectError`] names the field that is missing.
    pub fn facts(&self) -> Result<AssignedFacts, ObjectError> {
        let spec = &self.spec;
        let namespace = self.namespace().unwrap_or_default();
        let pod = required("spec.pod", &spec.pod, &None)?;
        let pod_namespace = required("spec.podNamespace", &spec.pod_namespace, &None)?;
        let identity =
            embedded_key(spec.azure_identity_ref.as_ref()).ok_or(ObjectError::Missing {
                field: "spec.azureIdentityRef.metadata.name",
            })?;
        let state = self.status.as_ref().map_or("", |status| &status.status);
        Ok(AssignedFacts {
            key: ObjectKey::new(&namespace, &self.name_any()),
            pod: ObjectKey::new(pod_namespace, pod),
            identity,
            binding: embedded_key(spec.azure_binding_ref.as_ref()),
            node: spec.node_name.clone().unwrap_or_default(),
            state: AssignmentState::parse(state),
            deleting: self.metadata.deletion_timestamp.is_some(),
        })
    }
}

fn embedded_key(object: Option<&Value>) -> Option<ObjectKey> {
    let metadata = object?.get("metadata")?;
    let name = metadata.get("name")?.as_str().filter(|n| !n.is_empty())?;
    let namespace = metadata.get("namespace").and_then(Value::as_str);
    Some(ObjectKey::new(namespace.unwrap_or_default(), name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn object() -> Value {
        json!({
            "apiVersion": "aadpodidentity.k8s.io/v1", "kind": "AzureAssignedIdentity",
            "metadata": { "namespace": "default", "name": "web-shop-reader-id" },
            "spec": {
                "pod": "web", "podNamespace": "shop", "nodename": "node-1", "replicas": null,
                "azureIdentityRef": { "metadata": { "namespace": "shop", "name": "reader-id" }, "spec": { "type": 0 } },
                "azureBindingRef": { "metadata": { "namespace": "shop", "name": "binding" } },
            },
            "status": { "status": "Assigned", "availableReplicas": 1 },
        })
    }

    fn read(value: Value) -> Result<AssignedFacts, ObjectError> {
        serde_json::from_value::<AzureAssignedIdentity>(value)
            .unwrap()
            .facts()
    }

    #[test]
    fn an_object_of_any_version_is_read() {
        let facts = read(object()).unwrap();
        assert_eq!(facts.pod, ObjectKey::new("shop", "web"));
        assert_eq!(facts.identity, ObjectKey::new("shop", "reader-id"));
        assert_eq!(facts.binding, Some(ObjectKey::new("shop", "binding")));
        assert_eq!(
            (facts.state, facts.deleting),
            (AssignmentState::Assigned, false)
        );
        assert_eq!(&*facts.key.name, name(&facts.pod, "reader-id"));
    }

    #[test]
    fn names_are_valid_and_can_be_told_apart() {
        let pods = [ObjectKey::new("c", "a-b"), ObjectKey::new("b-c", "a")];
        assert_eq!(name(&pods[0], "id"), "a-b-c-id");
        let [one, other] = pods.each_ref().map(|pod| hashed_name(pod, "id"));
        assert!(
            one != other && one.starts_with("a-b-c-id-"),
            "{one} {other}"
        );
        let long = ObjectKey::new("ns", &"x.".repeat(126));
        assert_eq!(name(&long, "id"), hashed_name(&long, "id"));
        assert!(name(&long, "id").len() <= MAX_NAME);
        assert!(!name(&long, "id").contains(".-"));
    }

    #[test]
    fn without_a_status_it_is_not_yet_assigned() {
        let mut value = object();
        value.as_object_mut().unwrap().remove("status");
        assert_eq!(read(value).unwrap().state, AssignmentState::Created);
        for state in [
            AssignmentState::Created,
            AssignmentState::Assigned,
            AssignmentState::Unassigned,
        ] {
            assert_eq!(AssignmentState::parse(state.name()), state);
        }
    }

    #[test]
    fn errors_name_the_field() {
        let mut value = object();
        value["spec"]["azureIdentityRef"] = json!({ "metadata": {} });
        let error = read(value).unwrap_err().to_string();
        assert!(error.starts_with("spec.azureIdentityRef.metadata.name is required"));
    }
}
