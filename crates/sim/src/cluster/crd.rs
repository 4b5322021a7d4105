//! CustomResourceDefinitions: the kinds that they define, and what is wrong with them. `strategy` validates a definition by
//! this file before it is stored; `catalog` serves what it defines.

use serde_json::{Value, json};

use super::{
    catalog::{Kind, Source},
    failure::Cause,
    schema::Schema,
};

/// One version of a custom kind.
#[derive(Debug)]
pub(super) struct Custom {
    pub schema: Schema,
    /// The schema as written, for OpenAPI.
    pub source: Value,
    pub columns: Vec<Value>,
    pub storage_version: String,
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn texts(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().map(text).collect()
}

fn versions(definition: &Value) -> impl Iterator<Item = &Value> {
    definition["spec"]["versions"]
        .as_array()
        .into_iter()
        .flatten()
}

/// The kinds that a definition serves.
pub(super) fn kinds(definition: &Value) -> Result<Vec<Kind>, Vec<Cause>> {
    let spec = &definition["spec"];
    let names = &spec["names"];
    let storage_version = versions(definition)
        .find(|v| v["storage"] == true)
        .map(|v| text(&v["name"]))
        .unwrap_or_default();
    let mut kinds = Vec::new();
    for (n, version) in versions(definition).enumerate() {
        if version["served"] != true {
            continue;
        }
        let source = version["schema"]["openAPIV3Schema"].clone();
        let path = format!("spec.versions[{n}].schema.openAPIV3Schema");
        let schema = Schema::compile(&source, &path)?;
        kinds.push(Kind {
            group: text(&spec["group"]),
            version: text(&version["name"]),
            kind: text(&names["kind"]),
            list_kind: text(&names["listKind"]),
            plural: text(&names["plural"]),
            singular: text(&names["singular"]),
            short_names: texts(&names["shortNames"]),
            categories: texts(&names["categories"]),
            namespaced: spec["scope"] == "Namespaced",
            status: version["subresources"]["status"].is_object(),
            generation: true,
            fields: &[],
            source: Source::Custom(std::sync::Arc::new(Custom {
                schema,
                source,
                columns: version["additionalPrinterColumns"]
                    .as_array()
                    .cloned()
                    .unwrap_or_default(),
                storage_version: storage_version.clone(),
            })),
        });
    }
    Ok(kinds)
}

/// Fills in what a definition may leave out.
pub(super) fn default(definition: &mut Value) {
    let kind = text(&definition["spec"]["names"]["kind"]);
    let names = &mut definition["spec"]["names"];
    if text(&names["singular"]).is_empty() {
        names["singular"] = kind.to_lowercase().into();
    }
    if text(&names["listKind"]).is_empty() {
        names["listKind"] = format!("{kind}List").into();
    }
    if definition["spec"]["conversion"].is_null() {
        definition["spec"]["conversion"] = json!({"strategy": "None"});
    }
}

/// What is wrong with a definition.
pub(super) fn validate(definition: &Value) -> Vec<Cause> {
    let spec = &definition["spec"];
    let mut causes = Vec::new();
    let expected = format!(
        "{}.{}",
        text(&spec["names"]["plural"]),
        text(&spec["group"])
    );
    if definition["metadata"]["name"] != expected.as_str() {
        let why = "must be spec.names.plural+\".\"+spec.group";
        causes.push(Cause::invalid(
            "metadata.name",
            &definition["metadata"]["name"],
            why,
        ));
    }
    if versions(definition)
        .filter(|v| v["storage"] == true)
        .count()
        != 1
    {
        let why = "must have exactly one version marked as storage version";
        causes.push(Cause::invalid("spec.versions", &Value::Null, why));
    }
    if !["Namespaced", "Cluster"].contains(&text(&spec["scope"]).as_str()) {
        let message = format!(
            "Unsupported value: {}: supported values: \"Cluster\", \"Namespaced\"",
            spec["scope"]
        );
        causes.push(Cause::new("spec.scope", "FieldValueNotSupported", message));
    }
    for (n, version) in versions(definition).enumerate() {
        if !version["schema"]["openAPIV3Schema"].is_object() {
            let field = format!("spec.versions[{n}].schema.openAPIV3Schema");
            causes.push(Cause::required(field, "schemas are required"));
        }
    }
    if causes.is_empty()
        && let Err(more) = kinds(definition)
    {
        causes.extend(more);
    }
    causes
}

/// The status that says a definition is served.
pub(super) fn established(definition: &Value, now: &str) -> Value {
    let stored: Vec<Value> = versions(definition)
        .filter(|v| v["storage"] == true)
        .map(|v| v["name"].clone())
        .collect();
    let condition = |kind: &str, reason: &str, message: &str| json!({"type": kind, "status": "True", "reason": reason, "message": message, "lastTransitionTime": now});
    json!({
        "acceptedNames": definition["spec"]["names"],
        "storedVersions": stored,
        "conditions": [
            condition("NamesAccepted", "NoConflicts", "no conflicts found"),
            condition("Established", "InitialNamesAccepted", "the initial names have been accepted"),
        ],
    })
}
