//! Structural schemas of custom resources: pruning of unknown fields, defaulting, validation. `crd` compiles them, `strategy`
//! applies them.

use std::collections::BTreeMap;

use regex::Regex;
use serde_json::{Map, Value};

use super::{cel::Rule, failure::Cause};

/// A compiled structural schema.
#[derive(Debug, Default)]
pub(super) struct Schema {
    kind: String,
    nullable: bool,
    properties: BTreeMap<String, Schema>,
    additional: Option<Box<Schema>>,
    items: Option<Box<Schema>>,
    required: Vec<String>,
    allowed: Vec<Value>,
    pattern: Option<Regex>,
    limits: Map<String, Value>,
    default: Option<Value>,
    preserve: bool,
    embedded: bool,
    int_or_string: bool,
    rules: Vec<Rule>,
}

/// Fields of every object that the schema need not name.
const OBJECT_FIELDS: [&str; 3] = ["apiVersion", "kind", "metadata"];

impl Schema {
    /// Compiles the schema at `path` of its definition; says what is wrong with it.
    pub(super) fn compile(source: &Value, path: &str) -> Result<Self, Vec<Cause>> {
        let flag = |name: &str| source[name] == true;
        let below = |name: &str| format!("{path}.{name}");
        let mut schema = Self {
            kind: source["type"].as_str().unwrap_or_default().to_owned(),
            nullable: flag("nullable"),
            preserve: flag("x-kubernetes-preserve-unknown-fields"),
            embedded: flag("x-kubernetes-embedded-resource"),
            int_or_string: flag("x-kubernetes-int-or-string"),
            default: source.get("default").cloned(),
            allowed: source["enum"].as_array().cloned().unwrap_or_default(),
            limits: source.as_object().cloned().unwrap_or_default(),
            ..Self::default()
        };
        schema.limits.retain(|key, _| {
            key.starts_with("min") || key.starts_with("max") || key.starts_with("exclusive")
        });
        if schema.kind.is_empty() && !schema.preserve && !schema.int_or_string {
            let why = "must not be empty for specified object fields";
            return Err(vec![Cause::required(below("type"), why)]);
        }
        let mut causes = Vec::new();
        let mut child = |source: &Value, path: String| {
            Self::compile(source, &path)
                .map_err(|more| causes.extend(more))
                .ok()
        };
        for (name, property) in source["properties"].as_object().into_iter().flatten() {
            if let Some(property) = child(property, below(&format!("properties[{name}]"))) {
                schema.properties.insert(name.clone(), property);
            }
        }
        if source["additionalProperties"].is_object() {
            let additional = &source["additionalProperties"];
            schema.additional = child(additional, below("additionalProperties")).map(Box::new);
        }
        schema.preserve |= flag("additionalProperties");
        if source["items"].is_object() {
            schema.items = child(&source["items"], below("items")).map(Box::new);
        }
        let required = source["required"].as_array().into_iter().flatten();
        schema.required = required
            .filter_map(Value::as_str)
            .map(str::to_owned)
            .collect();
        if let Some(pattern) = source["pattern"].as_str() {
            match Regex::new(pattern) {
                Ok(pattern) => schema.pattern = Some(pattern),
                Err(error) => causes.push(Cause::invalid(
                    below("pattern"),
                    &pattern.into(),
                    &format!("must be a valid regular expression, but isn't: {error}"),
                )),
            }
        }
        let rules = source["x-kubernetes-validations"].as_array();
        for (n, entry) in rules.into_iter().flatten().enumerate() {
            match Rule::compile(entry) {
                Ok(rule) => schema.rules.push(rule),
                Err(error) => causes.push(Cause::invalid(
                    below(&format!("x-kubernetes-validations[{n}].rule")),
                    &entry["rule"],
                    &format!("compilation failed: {error}"),
                )),
            }
        }
        if causes.is_empty() {
            Ok(schema)
        } else {
            Err(causes)
        }
    }

    /// Drops the fields of a whole object that the schema does not know and returns their paths.
    pub(super) fn prune(&self, object: &mut Value) -> Vec<String> {
        let mut dropped = Vec::new();
        self.prune_at(object, "", true, &mut dropped);
        dropped
    }

    fn prune_at(&self, value: &mut Value, path: &str, whole: bool, dropped: &mut Vec<String>) {
        match value {
            Value::Object(fields) => fields.retain(|name, field| {
                let below = join(path, name);
                if (whole || self.embedded) && OBJECT_FIELDS.contains(&name.as_str()) {
                    return true;
                }
                match self.properties.get(name).or(self.additional.as_deref()) {
                    Some(schema) => schema.prune_at(field, &below, false, dropped),
                    None if self.preserve => {}
                    None => {
                        dropped.push(below);
                        return false;
                    }
                }
                true
            }),
            Value::Array(items) => {
                for (n, item) in items.iter_mut().enumerate() {
                    if let Some(schema) = &self.items {
                        schema.prune_at(item, &format!("{path}[{n}]"), false, dropped);
                    }
                }
            }
            _ => {}
        }
    }

    /// Sets what is missing and has a default.
    pub(super) fn fill(&self, value: &mut Value) {
        match value {
            Value::Object(fields) => {
                for (name, schema) in &self.properties {
                    if let Some(default) = &schema.default
                        && fields
                            .get(name)
                            .is_none_or(|v| v.is_null() && !schema.nullable)
                    {
                        fields.insert(name.clone(), default.clone());
                    }
                }
                for (name, field) in fields {
                    if let Some(schema) = self.properties.get(name).or(self.additional.as_deref()) {
                        schema.fill(field);
                    }
                }
            }
            Value::Array(items) => {
                for item in items {
                    if let Some(schema) = &self.items {
                        schema.fill(item);
                    }
                }
            }
            _ => {}
        }
    }

    /// Drops nulls where the schema does not allow them, as the real server does.
    pub(super) fn drop_nulls(&self, value: &mut Value) {
        match value {
            Value::Object(fields) => fields.retain(|name, field| {
                let Some(schema) = self.properties.get(name) else {
                    return true;
                };
                schema.drop_nulls(field);
                !field.is_null() || schema.nullable || schema.default.is_none()
            }),
            Value::Array(items) => {
                for item in items {
                    if let Some(schema) = &self.items {
                        schema.drop_nulls(item);
                    }
                }
            }
            _ => {}
        }
    }

    /// Everything that is wrong with a whole object. Rules are evaluated only when the values have the right shape.
    pub(super) fn validate(&self, object: &Value, old: Option<&Value>) -> Vec<Cause> {
        let mut causes = Vec::new();
        self.values(object, "", &mut causes);
        let blocked = causes
            .iter()
            .any(|cause| cause.reason != "FieldValueInvalid");
        if !blocked {
            self.check_rules(object, old, "", &mut causes);
        } else if self.has_rules() {
            let why = "some validation rules were not checked because the object was invalid; correct the existing \
                       errors to complete validation";
            causes.push(Cause::invalid("<nil>", &Value::Null, why));
        }
        causes
    }

    fn has_rules(&self) -> bool {
        let inner = self
            .items
            .as_deref()
            .into_iter()
            .chain(self.additional.as_deref());
        !self.rules.is_empty() || inner.chain(self.properties.values()).any(Self::has_rules)
    }

    fn values(&self, value: &Value, path: &str, causes: &mut Vec<Cause>) {
        if value.is_null() && self.nullable {
            return;
        }
        if !self.fits(value) {
            causes.push(self.wrong_type(value, path));
            return;
        }
        if !self.allowed.is_empty() && !self.allowed.contains(value) {
            causes.push(self.not_allowed(value, path));
        }
        match value {
            Value::Object(fields) => {
                for name in self.required.iter().filter(|n| !fields.contains_key(*n)) {
                    causes.push(Cause::required(join(path, name), ""));
                }
                for (name, field) in fields {
                    if let Some(schema) = self.properties.get(name).or(self.additional.as_deref()) {
                        schema.values(field, &join(path, name), causes);
                    }
                }
                self.count(
                    fields.len(),
                    "minProperties",
                    "maxProperties",
                    value,
                    path,
                    causes,
                );
            }
            Value::Array(items) => {
                if let Some(schema) = &self.items {
                    for (n, item) in items.iter().enumerate() {
                        schema.values(item, &format!("{path}[{n}]"), causes);
                    }
                }
                self.count(items.len(), "minItems", "maxItems", value, path, causes);
            }
            Value::String(text) => {
                let length = text.chars().count();
                self.count(length, "minLength", "maxLength", value, path, causes);
                if let Some(pattern) = &self.pattern
                    && !pattern.is_match(text)
                {
                    let why = format!("{path} in body should match '{pattern}'");
                    causes.push(Cause::invalid(path, value, &why));
                }
            }
            Value::Number(_) => self.range(value, path, causes),
            _ => {}
        }
    }

    fn fits(&self, value: &Value) -> bool {
        if self.int_or_string {
            return value.is_i64() || value.is_string();
        }
        match self.kind.as_str() {
            "object" => value.is_object(),
            "array" => value.is_array(),
            "string" => value.is_string(),
            "boolean" => value.is_boolean(),
            "integer" => value.is_i64() || value.is_u64(),
            "number" => value.is_number(),
            _ => true,
        }
    }

    fn wrong_type(&self, value: &Value, path: &str) -> Cause {
        let found = match value {
            Value::Null => "null",
            Value::Bool(_) => "boolean",
            Value::Number(n) if n.is_f64() => "number",
            Value::Number(_) => "integer",
            Value::String(_) => "string",
            Value::Array(_) => "array",
            Value::Object(_) => "object",
        };
        let expected = if self.int_or_string {
            "integer,string"
        } else {
            &self.kind
        };
        Cause::new(
            path,
            "FieldValueTypeInvalid",
            format!(
                "Invalid value: \"{found}\": {path} in body must be of type {expected}: \"{found}\""
            ),
        )
    }

    fn not_allowed(&self, value: &Value, path: &str) -> Cause {
        let supported: Vec<String> = self
            .allowed
            .iter()
            .map(|v| {
                v.as_str()
                    .map_or_else(|| format!("\"{v}\""), |s| format!("{s:?}"))
            })
            .collect();
        let message = format!(
            "Unsupported value: {value}: supported values: {}",
            supported.join(", ")
        );
        Cause::new(path, "FieldValueNotSupported", message)
    }

    /// Checks a length or count against two of the limits.
    fn count(
        &self,
        n: usize,
        least: &str,
        most: &str,
        value: &Value,
        path: &str,
        causes: &mut Vec<Cause>,
    ) {
        let limit = |name: &str| {
            let limit = self.limits.get(name).and_then(Value::as_u64)?;
            usize::try_from(limit).ok()
        };
        if let Some(limit) = limit(least).filter(|limit| n < *limit) {
            let noun = match least {
                "minLength" => "chars long",
                "minItems" => "items",
                _ => "properties",
            };
            let verb = if noun == "chars long" { "be" } else { "have" };
            let why = format!("{path} in body should {verb} at least {limit} {noun}");
            causes.push(Cause::invalid(path, value, &why));
        }
        if let Some(limit) = limit(most).filter(|limit| n > *limit) {
            let cause = if most == "maxLength" {
                let message = format!("Too long: may not be more than {limit} bytes");
                Cause::new(path, "FieldValueTooLong", message)
            } else {
                let message = format!("Too many: {n}: must have at most {limit} items");
                Cause::new(path, "FieldValueTooMany", message)
            };
            causes.push(cause);
        }
    }

    fn range(&self, value: &Value, path: &str, causes: &mut Vec<Cause>) {
        let number = value.as_f64().unwrap_or_default();
        let limit = |name: &str| self.limits.get(name).and_then(Value::as_f64);
        let exclusive = |name: &str| self.limits.get(name) == Some(&Value::Bool(true));
        if let Some(least) = limit("minimum") {
            let open = exclusive("exclusiveMinimum");
            if number < least || (open && number <= least) {
                let or = if open { "" } else { " or equal to" };
                let why = format!("{path} in body should be greater than{or} {least}");
                causes.push(Cause::invalid(path, value, &why));
            }
        }
        if let Some(most) = limit("maximum") {
            let open = exclusive("exclusiveMaximum");
            if number > most || (open && number >= most) {
                let or = if open { "" } else { " or equal to" };
                let why = format!("{path} in body should be less than{or} {most}");
                causes.push(Cause::invalid(path, value, &why));
            }
        }
    }

    fn check_rules(&self, value: &Value, old: Option<&Value>, path: &str, causes: &mut Vec<Cause>) {
        if value.is_null() {
            return;
        }
        // Ratcheting: what was so before stays allowed.
        let unchanged = old == Some(value);
        let rules = self.rules.iter();
        let rules = rules.filter(|rule| rule.compares || !unchanged);
        causes.extend(rules.filter_map(|rule| rule.check(path, value, old)));
        match value {
            Value::Object(fields) => {
                for (name, field) in fields {
                    if let Some(schema) = self.properties.get(name).or(self.additional.as_deref()) {
                        let old = old.and_then(|old| old.get(name));
                        schema.check_rules(field, old, &join(path, name), causes);
                    }
                }
            }
            Value::Array(items) => {
                if let Some(schema) = &self.items {
                    for (n, item) in items.iter().enumerate() {
                        schema.check_rules(item, None, &format!("{path}[{n}]"), causes);
                    }
                }
            }
            _ => {}
        }
    }
}

/// The path of a field.
pub(super) fn join(path: &str, name: &str) -> String {
    if path.is_empty() {
        name.to_owned()
    } else {
        format!("{path}.{name}")
    }
}
