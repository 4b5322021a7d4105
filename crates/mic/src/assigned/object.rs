//! What the index keeps of an AzureAssignedIdentity: a few fields of each, because there may be very many.
//!
//! The watch ([`crate::watches`]) and the writers ([`super::writer`]) read objects with it; [`super::reconcile`] compares them with
//! what they must be.

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt as _;
use podid_api::ObjectError;
use podid_api::assigned::{
    AssignmentState, AzureAssignedIdentity, AzureAssignedIdentitySpec, AzureAssignedIdentityStatus,
    FINALIZER, NODE_LABEL,
};
use podid_policy::desired::{AssignmentKey, DesiredState};
use podid_policy::facts::ObjectKey;
use podid_policy::ids::ResourceId;
use serde::Deserialize;

use crate::assigned::copies::{self, Copies};

/// The longest value of a label in characters, by Kubernetes' rules; a node with a longer name gets no label.
pub(super) const MAX_LABEL: usize = 63;

/// The fields of an AzureAssignedIdentity that the watch reads.
#[derive(kube::Resource, Debug, Clone, Deserialize)]
#[resource(inherit = "AzureAssignedIdentity")]
pub(crate) struct WatchedAssignedIdentity {
    metadata: ObjectMeta,
    #[serde(default)]
    spec: AzureAssignedIdentitySpec,
    #[serde(default)]
    status: Option<WatchedStatus>,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct WatchedStatus {
    #[serde(default)]
    status: String,
    #[serde(default)]
    message: String,
}

/// What is kept of an AzureAssignedIdentity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AssignedObject {
    pub(crate) key: ObjectKey,
    pub(crate) assignment: AssignmentKey,
    pub(super) version: Box<str>,
    pub(super) uid: Box<str>,
    pub(super) node: Arc<str>,
    /// Whether the label names the node, or the node's name is too long for a label.
    pub(super) labelled: bool,
    /// Whether the finalizer of this kind is set, which AAD Pod Identity sets, too.
    pub(super) finalizer: bool,
    pub(super) other_finalizers: Box<[String]>,
    pub(super) deleting: bool,
    pub(super) state: AssignmentState,
    pub(super) message: Box<str>,
    /// The Azure identity in the copy of the AzureIdentity.
    pub(super) resource: Option<ResourceId>,
    pub(super) binding: Option<ObjectKey>,
    /// A hash of both copies, so that they need not be kept; 0 when they cannot be read.
    pub(super) fingerprint: u64,
}

impl AssignedObject {
    /// Reads the few fields that matter.
    ///
    /// # Errors
    /// [`ObjectError`] names the field that is missing.
    pub(crate) fn read(seen: WatchedAssignedIdentity) -> Result<Self, ObjectError> {
        let status = seen.status.unwrap_or_default();
        let object = AzureAssignedIdentity {
            metadata: seen.metadata,
            spec: seen.spec,
            status: Some(AzureAssignedIdentityStatus {
                status: status.status,
                available_replicas: None,
            }),
        };
        let facts = object.facts()?;
        let copies = copies::parse(&object.spec);
        let labelled = object.labels().get(NODE_LABEL) == Some(&facts.node);
        let (ours, others): (Vec<_>, Vec<_>) = object
            .finalizers()
            .iter()
            .cloned()
            .partition(|name| name == FINALIZER);
        Ok(Self {
            assignment: AssignmentKey {
                pod: facts.pod,
                identity: facts.identity.name,
            },
            version: object.resource_version().unwrap_or_default().into(),
            uid: object.uid().unwrap_or_default().into(),
            labelled: labelled || facts.node.len() > MAX_LABEL,
            node: facts.node.into(),
            finalizer: !ours.is_empty(),
            other_finalizers: others.into(),
            deleting: facts.deleting,
            state: facts.state,
            message: status.message.into(),
            resource: copies
                .as_ref()
                .and_then(|(identity, _)| identity.attached_id().cloned()),
            binding: facts.binding,
            fingerprint: copies.map_or(0, |(i, b)| Copies::render(&i, &b).fingerprint()),
            key: facts.key,
        })
    }

    /// Replaces texts that the index has already by shared ones (interning), which saves memory.
    pub(crate) fn intern(&mut self, desired: &mut DesiredState) {
        self.node = desired.intern(&self.node);
        self.key.namespace = desired.intern(&self.key.namespace);
        if let Some(binding) = &mut self.binding {
            binding.namespace = desired.intern(&binding.namespace);
            binding.name = desired.intern(&binding.name);
        }
        let Some(known) = desired.get(&self.assignment) else {
            let pod = &mut self.assignment.pod;
            pod.namespace = desired.intern(&pod.namespace);
            self.assignment.identity = desired.intern(&self.assignment.identity);
            return;
        };
        self.assignment = known.key();
        let resource = known.identity.attached_id();
        if self.resource.as_ref() == resource {
            self.resource = resource.cloned();
        }
    }

    /// The node in its spec.
    pub(crate) fn node(&self) -> &str {
        &self.node
    }

    /// Whether this is a later version of the object than `other`. Versions that are not numbers cannot be compared.
    pub(crate) fn is_newer_than(&self, other: &AssignedObject) -> bool {
        let number = |object: &AssignedObject| object.version.parse::<u64>().ok();
        self.uid == other.uid && number(self) > number(other) && number(other).is_some()
    }
}
