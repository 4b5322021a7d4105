//! CustomResourceDefinitions (CRDs) of the four kinds, as YAML files of the source. `podid crds` prints or applies them.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray,
};

/// The definitions as they are kept in the source, one YAML document each.
const SOURCES: [&str; 4] = [
    include_str!("crds/azureidentities.yaml"),
    include_str!("crds/azureidentitybindings.yaml"),
    include_str!("crds/azureassignedidentities.yaml"),
    include_str!("crds/azurepodidentityexceptions.yaml"),
];

/// Why the definitions could not be read or printed: a fault of the build, not of its user.
#[derive(Debug, thiserror::Error)]
#[error("a CustomResourceDefinition of this build is malformed: {0}")]
pub struct CrdError(String);

/// The four CustomResourceDefinitions.
///
/// # Errors
/// [`CrdError`] when a definition does not parse.
pub fn all() -> Result<Vec<CustomResourceDefinition>, CrdError> {
    SOURCES
        .iter()
        .map(|source| serde_saphyr::from_str(source).map_err(|e| CrdError(e.to_string())))
        .collect()
}

/// The definition without the rules about values of single fields: for API servers before 1.30, which apply a rule also to a field
/// that an update leaves as it was, so that an object from before the rule could no longer be edited (no ratcheting).
pub fn without_value_rules(mut crd: CustomResourceDefinition) -> CustomResourceDefinition {
    for version in &mut crd.spec.versions {
        let schema = version.schema.iter_mut();
        let schema = schema.filter_map(|schema| schema.open_api_v3_schema.as_mut());
        for spec in schema.filter_map(|schema| schema.properties.as_mut()?.get_mut("spec")) {
            for field in spec
                .properties
                .iter_mut()
                .flat_map(|fields| fields.values_mut())
            {
                drop_rules(field);
            }
        }
    }
    crd
}

fn drop_rules(schema: &mut JSONSchemaProps) {
    schema.x_kubernetes_validations = None;
    for field in schema
        .properties
        .iter_mut()
        .flat_map(|fields| fields.values_mut())
    {
        drop_rules(field);
    }
    if let Some(JSONSchemaPropsOrArray::Schema(items)) = &mut schema.items {
        drop_rules(items);
    }
}

/// The four definitions as one YAML stream for `kubectl apply -f -`.
///
/// # Errors
/// [`CrdError`] when a definition does not parse.
pub fn yaml() -> Result<String, CrdError> {
    let mut stream = String::new();
    for crd in all()? {
        stream.push_str("---\n");
        stream.push_str(&serde_saphyr::to_string(&crd).map_err(|e| CrdError(e.to_string()))?);
    }
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `kubectl explain` has a text for each; those of the top level are the API server's.
    #[test]
    fn every_field_is_described() {
        fn undescribed(schema: &serde_json::Value, path: &str, found: &mut Vec<String>) {
            let properties = schema["properties"].as_object().into_iter().flatten();
            for (name, field) in properties {
                let path = format!("{path}.{name}");
                if field["description"].as_str().is_none_or(str::is_empty) {
                    found.push(path.clone());
                }
                undescribed(field, &path, found);
                undescribed(&field["items"], &path, found);
            }
        }
        let mut found = Vec::new();
        for crd in all().unwrap() {
            let crd = serde_json::to_value(crd).unwrap();
            let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
            let kind = crd["spec"]["names"]["kind"].as_str().unwrap();
            for part in ["spec", "status"] {
                let below = &schema["properties"][part];
                undescribed(below, &format!("{kind}.{part}"), &mut found);
            }
        }
        assert_eq!(found, Vec::<String>::new());
    }

    #[test]
    fn what_remains_for_old_api_servers_is_what_is_required() {
        for crd in all().unwrap() {
            let text = |crd: &CustomResourceDefinition| serde_json::to_string(crd).unwrap();
            let rules = |text: &str| text.matches("\"rule\":").count();
            let (whole, rest) = (text(&crd), text(&without_value_rules(crd)));
            assert_eq!(
                rules(&rest),
                rest.matches("check its spelling").count()
                    + rest.matches("is misspelt").count()
                    + rest.matches("leave out one of them").count()
            );
            let fewer = rules(&whole) - rules(&rest);
            assert!(fewer > 0 || !whole.contains(".matches("), "{whole}");
            assert!(!rest.contains(".matches("), "{rest}");
        }
    }

    #[test]
    fn the_printed_stream_reads_back_as_the_four_definitions() {
        let printed = yaml().unwrap();
        let read: Vec<CustomResourceDefinition> = serde_saphyr::from_multiple(&printed).unwrap();
        assert_eq!(read, all().unwrap());
        let names: Vec<_> = read
            .iter()
            .filter_map(|crd| crd.metadata.name.as_deref())
            .collect();
        assert_eq!(
            names,
            [
                "azureidentities.aadpodidentity.k8s.io",
                "azureidentitybindings.aadpodidentity.k8s.io",
                "azureassignedidentities.aadpodidentity.k8s.io",
                "azurepodidentityexceptions.aadpodidentity.k8s.io",
            ]
        );
    }
}
