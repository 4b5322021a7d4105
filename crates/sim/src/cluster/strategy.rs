//! Create and update strategy of a kind: what the server does to an object between the request and the store (pruning, metadata,
//! defaulting, validation). `write` calls it.

use serde_json::{Value, json};

use super::{
    catalog::{Kind, Source},
    crd, defaults,
    failure::{Cause, Failure, Outcome},
};

/// What to do with fields that the kind does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unknown {
    Ignore,
    Warn,
    Refuse,
}

/// The present time as objects carry it.
pub(super) fn now() -> String {
    let now = jiff::Timestamp::now();
    jiff::Timestamp::from_second(now.as_second())
        .unwrap_or(now)
        .to_string()
}

/// Brings an object into the shape of its kind; returns warnings about dropped fields.
pub(super) fn shape(kind: &Kind, object: &mut Value, unknown: Unknown) -> Outcome<Vec<String>> {
    let cannot = |why: &str| {
        Failure::bad_request(format!(
            "{0} in version {1:?} cannot be handled as a {0}: {why}",
            kind.kind, kind.version
        ))
    };
    if !object.is_object() {
        return Err(cannot("the body is not an object"));
    }
    for (field, expected) in [
        ("apiVersion", kind.api_version()),
        ("kind", kind.kind.clone()),
    ] {
        match object[field].as_str() {
            None | Some("") => object[field] = expected.into(),
            Some(found) if found == expected => {}
            Some(found) if field == "apiVersion" => {
                return Err(Failure::bad_request(format!(
                    "the API version in the data ({found}) does not match the expected API version ({expected})"
                )));
            }
            Some(found) => return Err(cannot(&format!("its kind is {found:?}"))),
        }
    }
    let dropped = match &kind.source {
        Source::Custom(custom) => {
            custom.schema.drop_nulls(object);
            let dropped = custom.schema.prune(object);
            custom.schema.fill(object);
            dropped
        }
        Source::Builtin(read) => {
            let known = read(object.clone()).map_err(|why| cannot(&why))?;
            let mut dropped = Vec::new();
            missing(object, &known, "", &mut dropped);
            *object = known;
            dropped
        }
    };
    if let Some(metadata) = object["metadata"].as_object_mut() {
        metadata.remove("managedFields");
        metadata.remove("selfLink");
        metadata.retain(|_, v| !v.is_null());
    } else {
        object["metadata"] = json!({});
    }
    let warnings: Vec<String> = dropped
        .iter()
        .map(|path| format!("unknown field {path:?}"))
        .collect();
    match unknown {
        Unknown::Refuse if !warnings.is_empty() => Err(cannot(&format!(
            "strict decoding error: {}",
            warnings.join(", ")
        ))),
        Unknown::Ignore => Ok(Vec::new()),
        _ => Ok(warnings),
    }
}

/// The paths of `given` that `kept` does not have.
fn missing(given: &Value, kept: &Value, path: &str, found: &mut Vec<String>) {
    match (given, kept) {
        (Value::Object(given), Value::Object(kept)) => {
            for (name, value) in given.iter().filter(|(_, v)| !v.is_null()) {
                let below = super::schema::join(path, name);
                match kept.get(name) {
                    Some(kept) => missing(value, kept, &below, found),
                    None => found.push(below),
                }
            }
        }
        (Value::Array(given), Value::Array(kept)) => {
            for (n, (given, kept)) in given.iter().zip(kept).enumerate() {
                missing(given, kept, &format!("{path}[{n}]"), found);
            }
        }
        _ => {}
    }
}

/// Gives a new object its identity and its first state.
pub(super) fn create(kind: &Kind, object: &mut Value, namespace: &str) -> Outcome<()> {
    if object["metadata"]["resourceVersion"]
        .as_str()
        .is_some_and(|v| !v.is_empty())
    {
        return Err(Failure::new(
            500,
            "InternalError",
            "resourceVersion should not be set on objects to be created",
        ));
    }
    if kind.status {
        initial_status(kind, object);
    }
    if kind.namespaced {
        object["metadata"]["namespace"] = namespace.into();
    }
    let metadata = &mut object["metadata"];
    let prefix = metadata["generateName"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    if metadata["name"].as_str().is_none_or(str::is_empty) && !prefix.is_empty() {
        metadata["name"] = format!("{prefix}{}", random_suffix()).into();
    }
    metadata["uid"] = uuid::Uuid::new_v4().to_string().into();
    metadata["creationTimestamp"] = now().into();
    if let Some(metadata) = metadata.as_object_mut() {
        metadata.remove("deletionTimestamp");
        metadata.remove("deletionGracePeriodSeconds");
        metadata.remove("generation");
        metadata.remove("resourceVersion");
    }
    if kind.generation {
        metadata["generation"] = 1.into();
    }
    if let Some(fields) = metadata.as_object_mut() {
        fields.retain(|_, value| !value.is_null());
    }
    defaults::set(kind, object);
    check(kind, object, None)
}

/// Five letters and digits that make no words.
fn random_suffix() -> String {
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let random = uuid::Uuid::new_v4();
    let letters = random.as_bytes().iter().take(5);
    letters
        .map(|byte| char::from(ALPHABET[usize::from(*byte) % ALPHABET.len()]))
        .collect()
}

fn initial_status(kind: &Kind, object: &mut Value) {
    let status = match (kind.group.as_str(), kind.kind.as_str()) {
        ("", "Pod") => Some(json!({"phase": "Pending", "qosClass": "BestEffort"})),
        ("", "Namespace") => Some(json!({"phase": "Active"})),
        ("", "Node") => return,
        ("", "Service") => Some(json!({"loadBalancer": {}})),
        ("apiextensions.k8s.io", _) => None,
        _ if kind.custom().is_some() => None,
        _ => Some(json!({})),
    };
    if let Some(object) = object.as_object_mut() {
        match status {
            Some(status) => object.insert("status".to_owned(), status),
            None => object.remove("status"),
        };
    }
}

/// Brings a changed object in line with what may change: by the main resource, or by a subresource.
pub(super) fn update(kind: &Kind, old: &Value, new: &mut Value, status: bool) -> Outcome<()> {
    if status {
        let mut kept = old.clone();
        if kind.custom().is_none() {
            for field in ["labels", "annotations", "finalizers"] {
                copy(&new["metadata"], &mut kept["metadata"], field);
            }
        }
        copy(new, &mut kept, "status");
        *new = kept;
    } else if kind.status {
        copy(old, new, "status");
    }
    for field in [
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
        "generateName",
        "resourceVersion",
    ] {
        copy(&old["metadata"], &mut new["metadata"], field);
    }
    if let Some(metadata) = new["metadata"].as_object_mut() {
        metadata.retain(|_, value| !is_empty(value));
    }
    if !status {
        defaults::set(kind, new);
        defaults::keep_assigned(kind, old, new);
        if kind.generation && desired_state(kind, old) != desired_state(kind, new) {
            let generation = old["metadata"]["generation"].as_i64().unwrap_or_default();
            new["metadata"]["generation"] = (generation + 1).into();
        }
    }
    check(kind, new, Some(old))
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(fields) => fields.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => false,
    }
}

fn copy(from: &Value, to: &mut Value, field: &str) {
    match from.get(field) {
        Some(value) => to[field] = value.clone(),
        None => {
            if let Some(fields) = to.as_object_mut() {
                fields.remove(field);
            }
        }
    }
}

/// What `metadata.generation` counts.
fn desired_state(kind: &Kind, object: &Value) -> Value {
    let mut state = object.clone();
    if let Some(fields) = state.as_object_mut() {
        fields.remove("metadata");
        if kind.status || kind.custom().is_none() {
            fields.remove("status");
        }
    }
    state
}

fn check(kind: &Kind, object: &Value, old: Option<&Value>) -> Outcome<()> {
    let mut causes = Vec::new();
    check_metadata(kind, object, old, &mut causes);
    match &kind.source {
        Source::Custom(custom) => causes.extend(custom.schema.validate(object, old)),
        Source::Builtin(_) if kind.is("apiextensions.k8s.io", "CustomResourceDefinition") => {
            causes.extend(crd::validate(object));
        }
        Source::Builtin(_) => defaults::check(kind, object, old, &mut causes),
    }
    if causes.is_empty() {
        return Ok(());
    }
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    Err(Failure::invalid(&kind.group, &kind.kind, name, &causes))
}

const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', \
    and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is \
    '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start \
    and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is \
    '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const VALUE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and \
    must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for \
    validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";

fn check_metadata(kind: &Kind, object: &Value, old: Option<&Value>, causes: &mut Vec<Cause>) {
    let metadata = &object["metadata"];
    let name = metadata["name"].as_str().unwrap_or_default();
    let rbac = kind.group == "rbac.authorization.k8s.io";
    let label = ["Namespace", "Service"].contains(&kind.kind.as_str()) && kind.group.is_empty();
    if name.is_empty() {
        causes.push(Cause::required(
            "metadata.name",
            "name or generateName is required",
        ));
    } else if !rbac && !is_dns(name, if label { 63 } else { 253 }, !label) {
        let why = if label { LABEL } else { SUBDOMAIN };
        causes.push(Cause::invalid("metadata.name", &name.into(), why));
    }
    for (_, value) in metadata["labels"].as_object().into_iter().flatten() {
        let text = value.as_str().unwrap_or_default();
        if text.len() > 63 {
            let why = "must be no more than 63 bytes";
            causes.push(Cause::invalid("metadata.labels", value, why));
        } else if !is_label_value(text) {
            causes.push(Cause::invalid("metadata.labels", value, VALUE));
        }
    }
    if let Some(old) = old.filter(|o| o["metadata"]["deletionTimestamp"].is_string()) {
        let before = old["metadata"]["finalizers"].as_array();
        let added: Vec<String> = metadata["finalizers"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|f| before.is_none_or(|b| !b.contains(f)))
            .map(Value::to_string)
            .collect();
        if !added.is_empty() {
            let message = format!(
                "Forbidden: no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
                added.join(", ")
            );
            causes.push(Cause::new(
                "metadata.finalizers",
                "FieldValueForbidden",
                message,
            ));
        }
    }
}

fn is_dns(name: &str, most: usize, dots: bool) -> bool {
    let part_is_good = |part: &str| {
        !part.is_empty()
            && !part.starts_with('-')
            && !part.ends_with('-')
            && part
                .chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
    };
    name.len() <= most
        && if dots {
            name.split('.').all(part_is_good)
        } else {
            part_is_good(name)
        }
}

fn is_label_value(text: &str) -> bool {
    let ends = |c: Option<char>| c.is_none_or(|c| c.is_ascii_alphanumeric());
    ends(text.chars().next())
        && ends(text.chars().next_back())
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
}
