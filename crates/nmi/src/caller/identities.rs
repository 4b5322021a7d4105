//! AzureIdentity as the node agent watches it: what the rules need, and why Azure refuses to attach it, where it does.
//!
//! `watches.rs` reads objects with it. It spares a pod the wait for an identity that does not come until somebody repairs it.

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use podid_api::ObjectError;
use podid_api::identity::{AzureIdentity, AzureIdentitySpec, LASTING_REFUSALS};
use podid_policy::facts::IdentityFacts;
use serde::Deserialize;

/// A message is cut after so many characters, because SDKs repeat it in their errors; Azure's sentence and the next step are shorter.
const MAX_MESSAGE: usize = 600;

/// An AzureIdentity with its conditions.
#[derive(kube::Resource, Debug, Clone, Deserialize)]
#[resource(inherit = "AzureIdentity")]
pub(crate) struct WatchedIdentity {
    metadata: ObjectMeta,
    #[serde(default)]
    spec: AzureIdentitySpec,
    #[serde(default)]
    status: serde_json::Value,
}

/// An AzureIdentity, and why Azure refuses to attach it.
pub(crate) type Identity = (IdentityFacts, Option<Arc<str>>);

/// Reads what is needed of an object.
///
/// # Errors
/// [`ObjectError`] names the field that is missing or malformed.
pub(crate) fn facts(seen: &WatchedIdentity) -> Result<Identity, ObjectError> {
    let mut identity = AzureIdentity::new("", seen.spec.clone());
    identity.metadata = seen.metadata.clone();
    Ok((identity.facts()?, refusal(seen)))
}

fn refusal(seen: &WatchedIdentity) -> Option<Arc<str>> {
    let conditions = seen.status.get("conditions")?.as_array()?;
    let ready = conditions.iter().find(|c| c["type"] == "Ready")?;
    // What an operator has edited since is not judged yet.
    let is_current = ready["observedGeneration"].as_i64() == seen.metadata.generation;
    let reason = ready["reason"].as_str()?;
    if ready["status"] != "False" || !is_current || !LASTING_REFUSALS.contains(&reason) {
        return None;
    }
    let message = ready["message"].as_str().unwrap_or_default();
    let message: String = message.chars().take(MAX_MESSAGE).collect();
    Some(format!("{reason}: {message}").into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn read(generation: i64, condition: &Value) -> Option<Arc<str>> {
        let object = json!({
            "metadata": { "namespace": "shop", "name": "reader", "generation": generation },
            "spec": {
                "type": 0, "clientID": "6f1c0000-0000-0000-0000-0000000022ab",
                "resourceID": "/subscriptions/s/resourceGroups/r/providers/Microsoft.ManagedIdentity/userAssignedIdentities/reader",
            },
            "status": { "conditions": [condition] },
        });
        facts(&serde_json::from_value(object).unwrap()).unwrap().1
    }

    #[test]
    fn only_what_somebody_must_repair_is_a_refusal() {
        let condition = |status: &str, reason: &str| json!({ "type": "Ready", "status": status, "reason": reason, "message": "m", "observedGeneration": 2 });
        let refused = condition("False", "IdentityRoleMissing");
        assert_eq!(read(2, &refused).as_deref(), Some("IdentityRoleMissing: m"));
        assert_eq!(read(3, &refused), None, "it was edited since");
        assert_eq!(read(2, &condition("False", "Throttled")), None);
        assert_eq!(read(2, &condition("True", "Attached")), None);
        assert_eq!(read(2, &json!({})), None);
    }
}
