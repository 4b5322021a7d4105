//! Status subresource: writes an object's status by a merge patch, and only when the patch would change something. The
//! controller calls this for the conditions of AzureIdentities.

use kube::Api;
use kube::api::{Patch, PatchParams};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// Patches the object's `status` with `wanted` (a merge patch: `null` removes a field, others stay) unless `current` already
/// agrees; says whether it wrote. With a resource version, a change that somebody else made meanwhile is not overwritten.
///
/// # Errors
/// What the API server answers; 409 when the resource version is no longer current, 404 when the object is gone.
pub async fn write<K>(
    api: &Api<K>,
    name: &str,
    resource_version: Option<&str>,
    wanted: &Value,
    current: &Value,
) -> Result<bool, kube::Error>
where
    K: Clone + std::fmt::Debug + DeserializeOwned,
{
    if holds(current, wanted) {
        return Ok(false);
    }
    let mut patch = json!({ "status": wanted });
    if let Some(version) = resource_version {
        patch["metadata"] = json!({ "resourceVersion": version });
    }
    api.patch_status(name, &PatchParams::default(), &Patch::Merge(&patch))
        .await?;
    Ok(true)
}

/// Whether a merge patch with `wanted` changes nothing of `current`.
fn holds(current: &Value, wanted: &Value) -> bool {
    match wanted {
        Value::Object(fields) => fields.iter().all(|(name, value)| {
            let now = current.get(name).unwrap_or(&Value::Null);
            holds(now, value)
        }),
        _ => current == wanted,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::Store;
    use k8s_openapi::api::core::v1::Pod;

    #[tokio::test]
    async fn what_is_already_so_is_not_written() {
        let store = Store::default();
        store.put(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": "p", "namespace": "default", "resourceVersion": "0" },
            "status": { "phase": "Running", "message": "old" },
        }));
        let api: Api<Pod> = Api::default_namespaced(store.client("me"));
        let current = store.object()["status"].clone();
        let same = json!({ "phase": "Running", "reason": null });
        assert!(!write(&api, "p", Some("0"), &same, &current).await.unwrap());
        assert_eq!(store.writes(), 0);
        let other = json!({ "phase": "Failed", "message": null });
        assert!(write(&api, "p", Some("0"), &other, &current).await.unwrap());
        assert_eq!(store.object()["status"], json!({ "phase": "Failed" }));
        let Err(kube::Error::Api(status)) = write(&api, "p", Some("0"), &same, &other).await else {
            panic!("a stale resourceVersion must be refused");
        };
        assert_eq!(status.code, 409);
    }
}
