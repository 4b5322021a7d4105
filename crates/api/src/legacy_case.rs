//! Legacy field case: renames the capitalised fields (`ClientID`) of objects that were written for AAD Pod Identity before 1.6 to
//! today's spelling (`clientID`). The controller's `type_upgrade.rs` patches objects with it.

use serde_json::{Map, Value, json};

/// The fields of `spec` of all kinds: legacy spelling, today's spelling.
const FIELDS: [(&str, &str); 12] = [
    ("ResourceID", "resourceID"),
    ("ClientID", "clientID"),
    ("ClientPassword", "clientPassword"),
    ("TenantID", "tenantID"),
    ("ADResourceID", "adResourceID"),
    ("ADEndpoint", "adEndpoint"),
    ("Replicas", "replicas"),
    ("AzureIdentity", "azureIdentity"),
    ("Selector", "selector"),
    ("Weight", "weight"),
    ("PodLabels", "podLabels"),
    ("AuxiliaryTenantIDs", "auxiliaryTenantIDs"),
];
/// The fields of the reference to a Secret.
const REFERENCE: [(&str, &str); 2] = [("Name", "name"), ("Namespace", "namespace")];

/// The merge patch that renames the legacy fields of `spec`; `None` where there are none.
///
/// Where a field is set in both spellings the legacy one counts: somebody applied it after the object had been renamed.
pub fn patch(spec: &Value) -> Option<Value> {
    let mut patch = renamed(spec.as_object()?, &FIELDS);
    let reference = patch
        .get("clientPassword")
        .or_else(|| spec.get("clientPassword"));
    let inner = reference.and_then(Value::as_object).map(|reference| {
        let inner = renamed(reference, &REFERENCE);
        (reference.clone(), inner)
    });
    if let Some((reference, inner)) = inner
        && !inner.is_empty()
    {
        let mut all = reference;
        all.extend(inner);
        patch.insert("clientPassword".to_owned(), Value::Object(all));
    }
    (!patch.is_empty()).then(|| json!({ "spec": patch }))
}

fn renamed(object: &Map<String, Value>, fields: &[(&str, &str)]) -> Map<String, Value> {
    let mut patch = Map::new();
    for (was, is) in fields {
        let Some(value) = object.get(*was) else {
            continue;
        };
        patch.insert((*was).to_owned(), Value::Null);
        patch.insert((*is).to_owned(), value.clone());
    }
    patch
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_of_the_old_spelling_is_renamed() {
        let old = json!({ "type": 1, "ClientID": "c", "ClientPassword": { "Name": "s", "Namespace": "n" }, "tenantID": "t" });
        let expected = json!({ "spec": {
            "ClientID": null, "clientID": "c", "ClientPassword": null,
            "clientPassword": { "Name": null, "name": "s", "Namespace": null, "namespace": "n" },
        } });
        assert_eq!(patch(&old), Some(expected));
    }

    #[test]
    fn what_is_spelt_as_today_is_left_alone() {
        let today = json!({ "type": 0, "clientID": "c", "clientPassword": { "name": "s" }, "replicas": null });
        assert_eq!(patch(&today), None);
        assert_eq!(patch(&Value::Null), None);
    }

    #[test]
    fn the_older_spelling_was_applied_last() {
        let both = json!({ "selector": "a", "Selector": "b", "PodLabels": { "x": true } });
        let patch = patch(&both).unwrap();
        assert_eq!(patch["spec"]["selector"], "b");
        assert_eq!(patch["spec"]["podLabels"], json!({ "x": true }));
        assert_eq!(patch["spec"]["PodLabels"], Value::Null);
    }
}
