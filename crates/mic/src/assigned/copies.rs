//! The embedded copies of AzureIdentity and AzureIdentityBinding inside an AzureAssignedIdentity.
//!
//! [`super::reconcile`] renders them and [`super::object`] parses them. The node agents of AAD Pod Identity read the copies, so that
//! they keep its format.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use podid_api::BEHAVIOR_ANNOTATION;
use podid_api::assigned::AzureAssignedIdentitySpec;
use podid_api::binding::AzureIdentityBinding;
use podid_api::identity::AzureIdentity;
use podid_policy::facts::{BindingFacts, IdentityFacts, IdentitySource};
use podid_policy::ids::ResourceId;
use serde_json::{Value, json};

/// Both copies as JSON.
pub(crate) struct Copies {
    pub(crate) identity: Value,
    pub(crate) binding: Value,
}

impl Copies {
    /// Renders both in today's spelling. A field that does not apply is `null`, so that a merge patch removes it.
    pub(crate) fn render(identity: &IdentityFacts, binding: &BindingFacts) -> Self {
        Self {
            identity: identity_copy(identity),
            binding: binding_copy(binding),
        }
    }

    /// A hash of both that is compared within this process only.
    pub(crate) fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.identity.to_string().hash(&mut hasher);
        self.binding.to_string().hash(&mut hasher);
        hasher.finish()
    }
}

fn identity_copy(identity: &IdentityFacts) -> Value {
    let behavior = identity.namespaced.then_some("namespaced");
    let mut spec = json!({
        "type": 0, "clientID": identity.client_id.as_str(),
        "resourceID": null, "tenantID": null, "clientPassword": null, "adEndpoint": null, "federation": null,
    });
    match &identity.source {
        IdentitySource::UserAssigned { resource_id } => {
            spec["resourceID"] = json!(resource_id.as_str());
        }
        IdentitySource::Federated {
            resource_id,
            tenant,
            audience,
        } => {
            spec["resourceID"] = json!(resource_id.as_ref().map(ResourceId::as_str));
            spec["tenantID"] = json!(tenant.as_deref());
            spec["federation"] = json!({ "audience": audience.as_deref() });
        }
        IdentitySource::ServicePrincipal {
            certificate,
            tenant,
            auxiliary_tenants,
            secret,
            authority,
        } => {
            spec["type"] = json!(if *certificate { 2 } else { 1 });
            spec["tenantID"] = json!(&**tenant);
            spec["clientPassword"] =
                json!({ "name": &*secret.name, "namespace": &*secret.namespace });
            spec["adEndpoint"] = json!(authority.as_deref());
            if !auxiliary_tenants.is_empty() {
                let tenants: Vec<&str> = auxiliary_tenants.iter().map(|tenant| &**tenant).collect();
                spec["auxiliaryTenantIDs"] = json!(tenants);
            }
        }
    }
    json!({
        "apiVersion": "aadpodidentity.k8s.io/v1",
        "kind": "AzureIdentity",
        "metadata": {
            "name": &*identity.key.name,
            "namespace": &*identity.key.namespace,
            "annotations": behavior.map(|value| json!({ BEHAVIOR_ANNOTATION: value })),
        },
        "spec": spec,
    })
}

fn binding_copy(binding: &BindingFacts) -> Value {
    let weight = Some(binding.weight).filter(|weight| *weight != 0);
    let accounts: Vec<&str> = binding.service_accounts.iter().map(|a| &**a).collect();
    json!({
        "apiVersion": "aadpodidentity.k8s.io/v1",
        "kind": "AzureIdentityBinding",
        "metadata": { "name": &*binding.key.name, "namespace": &*binding.key.namespace },
        "spec": {
            "azureIdentity": &*binding.identity,
            "selector": &*binding.selector,
            "weight": weight,
            "serviceAccounts": (!accounts.is_empty()).then_some(accounts),
        },
    })
}

/// Parses both copies; `None` when one of them cannot be read.
pub(crate) fn parse(spec: &AzureAssignedIdentitySpec) -> Option<(IdentityFacts, BindingFacts)> {
    let identity = spec.azure_identity_ref.clone().map(without_nulls)?;
    let binding = spec.azure_binding_ref.clone().map(without_nulls)?;
    let identity: AzureIdentity = serde_json::from_value(identity).ok()?;
    let binding: AzureIdentityBinding = serde_json::from_value(binding).ok()?;
    Some((identity.facts().ok()?, binding.facts().ok()?))
}

/// The value without the fields that are `null`.
pub(crate) fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(fields) => fields
            .into_iter()
            .filter(|(_, value)| !value.is_null())
            .map(|(name, value)| (name, without_nulls(value)))
            .collect(),
        other => other,
    }
}
