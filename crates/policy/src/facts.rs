//! Input values of the policy: the few fields of pods, AzureIdentities, bindings and exceptions that it needs. `podid-api` and the
//! watches of pods make them; a malformed object never becomes one.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use crate::ids::{ClientId, ResourceId};

/// A namespaced name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectKey {
    /// The namespace.
    pub namespace: Arc<str>,
    /// The name in it.
    pub name: Arc<str>,
}

impl ObjectKey {
    /// Joins a namespace and a name.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }
}

impl std::fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Whether a pod may still use identities.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PodPhase {
    /// Pending or Running: its containers, init containers included, may request tokens.
    Live,
    /// Succeeded or Failed: none of its containers runs any more.
    Finished,
}

/// What the rules know of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodFacts {
    /// Namespace and name.
    pub key: ObjectKey,
    /// `metadata.uid`, which tells a pod from a later one of the same name.
    pub uid: Arc<str>,
    /// All labels: `aadpodidbinding` and whatever exceptions select by.
    pub labels: BTreeMap<String, String>,
    /// `spec.serviceAccountName`.
    pub service_account: Arc<str>,
    /// `spec.nodeName`; `None` until the pod is scheduled.
    pub node: Option<Arc<str>>,
    /// `status.podIPs`.
    pub addresses: Vec<IpAddr>,
    /// Whether the pod uses the host network, so that its address is the node's and does not identify it.
    pub host_network: bool,
    /// Whether containers of it may still run.
    pub phase: PodPhase,
}

impl PodFacts {
    /// Whether the pod counts: scheduled to a node and not finished.
    pub fn is_live(&self) -> bool {
        self.phase == PodPhase::Live && self.node.is_some()
    }
}

/// Where an identity's tokens come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IdentitySource {
    /// `type: 0`: a user-assigned identity on the node, through IMDS.
    UserAssigned {
        /// Its ARM id.
        resource_id: ResourceId,
    },
    /// `type: 1` (secret) or `type: 2` (certificate): a service principal, through Entra.
    ServicePrincipal {
        /// Whether the credential is a certificate.
        certificate: bool,
        /// The tenant to ask.
        tenant: Arc<str>,
        /// Further tenants; a response has one more token for each.
        auxiliary_tenants: Vec<Arc<str>>,
        /// The Secret that holds the credential.
        secret: ObjectKey,
        /// The authority's base URL where it is not the cloud's own.
        authority: Option<Arc<str>>,
    },
    /// `spec.federation`: a Kubernetes token is exchanged at Entra. Nothing is attached to a machine, and no Secret is read.
    Federated {
        /// The ARM id of a managed identity, where the object says it.
        resource_id: Option<ResourceId>,
        /// The tenant to ask; the broker's own where the object says none.
        tenant: Option<Arc<str>>,
        /// The audience of the Kubernetes token where it is not the cloud's own.
        audience: Option<Arc<str>>,
    },
}

/// What the rules know of an AzureIdentity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdentityFacts {
    /// Namespace and name.
    pub key: ObjectKey,
    /// Its application id.
    pub client_id: ClientId,
    /// Where its tokens come from.
    pub source: IdentitySource,
    /// Whether the annotation `aadpodidentity.k8s.io/Behavior: namespaced` keeps it in its namespace.
    pub namespaced: bool,
}

impl IdentityFacts {
    /// The ARM id of a managed identity, where the object says it: requests name the identity by it.
    pub fn resource_id(&self) -> Option<&ResourceId> {
        match &self.source {
            IdentitySource::UserAssigned { resource_id } => Some(resource_id),
            IdentitySource::ServicePrincipal { .. } => None,
            IdentitySource::Federated { resource_id, .. } => resource_id.as_ref(),
        }
    }

    /// The ARM id of what the hosts of its pods must have; `None` where nothing is attached to them.
    pub fn attached_id(&self) -> Option<&ResourceId> {
        match &self.source {
            IdentitySource::UserAssigned { resource_id } => Some(resource_id),
            IdentitySource::ServicePrincipal { .. } | IdentitySource::Federated { .. } => None,
        }
    }

    /// Whether tokens come by federation.
    pub fn is_federated(&self) -> bool {
        matches!(self.source, IdentitySource::Federated { .. })
    }

    /// The tenant that the object says.
    pub fn tenant(&self) -> Option<&str> {
        match &self.source {
            IdentitySource::UserAssigned { .. } => None,
            IdentitySource::ServicePrincipal { tenant, .. } => Some(tenant),
            IdentitySource::Federated { tenant, .. } => tenant.as_deref(),
        }
    }
}

/// What the rules know of an AzureIdentityBinding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BindingFacts {
    /// Namespace and name.
    pub key: ObjectKey,
    /// The AzureIdentity it names, in the binding's own namespace.
    pub identity: Arc<str>,
    /// The value of the pod label `aadpodidbinding` that it selects.
    pub selector: Arc<str>,
    /// The one with the highest weight wins when a request names no identity.
    pub weight: i32,
    /// Service accounts it is limited to; empty means any.
    pub service_accounts: Vec<Arc<str>>,
}

/// What the rules know of an AzurePodIdentityException.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExceptionFacts {
    /// Namespace and name.
    pub key: ObjectKey,
    /// Any one of these on a pod of the namespace exempts it.
    pub pod_labels: BTreeMap<String, String>,
}
