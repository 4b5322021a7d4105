//! Served schema: whether the API server's definition of AzureIdentityBindings has podid's own field, by OpenAPI v3, which every
//! account may read.
//!
//! mic and `podid status` ask. It guards bindings that are limited to service accounts: under AAD Pod Identity's definition the API
//! server prunes the limit.

use http::Request;
use kube::{Client, Error};
use serde_json::Value;

/// The schemas of podid's group and version.
const PATH: &str = "/openapi/v3/apis/aadpodidentity.k8s.io/v1";

/// Whether the API server prunes `spec.serviceAccounts`.
///
/// # Errors
/// The API server does not answer, or refuses.
pub async fn prunes_service_accounts(client: &Client) -> Result<bool, Error> {
    let request = Request::get(PATH).body(Vec::new());
    let request = request.map_err(|error| Error::Service(error.into()))?;
    let document: Value = client.request(request).await?;
    Ok(is_pruned_by(&document))
}

fn is_pruned_by(document: &Value) -> bool {
    let schemas = document.pointer("/components/schemas");
    let mut schemas = schemas.and_then(Value::as_object).into_iter().flatten();
    let binding = schemas.find(|(name, _)| name.ends_with(".AzureIdentityBinding"));
    let Some(spec) = binding.and_then(|(_, schema)| schema.pointer("/properties/spec")) else {
        return false;
    };
    let keeps_all = spec["x-kubernetes-preserve-unknown-fields"] == true;
    !keeps_all && spec.pointer("/properties/serviceAccounts").is_none()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn document(spec: Value) -> Value {
        let schema = json!({ "properties": { "spec": spec } });
        json!({ "components": { "schemas": { "io.k8s.aadpodidentity.v1.AzureIdentityBinding": schema } } })
    }

    #[test]
    fn a_definition_without_the_field_prunes_it() {
        let selector = json!({ "selector": { "type": "string" } });
        assert!(is_pruned_by(&document(json!({ "properties": selector }))));
        let ours = json!({ "properties": { "serviceAccounts": { "type": "array" } } });
        assert!(!is_pruned_by(&document(ours)));
        let keeps = json!({ "x-kubernetes-preserve-unknown-fields": true });
        assert!(!is_pruned_by(&document(keeps)));
        assert!(!is_pruned_by(&json!({})));
    }
}
