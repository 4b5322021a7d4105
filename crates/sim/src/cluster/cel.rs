//! CEL validation rules (`x-kubernetes-validations`) of custom resources: compiled with the schema that has them, evaluated for
//! each write.

use std::{collections::HashMap, sync::Arc};

use cel::{Context, Program, objects::Key};
use serde_json::Value;

use super::failure::Cause;

/// A compiled `x-kubernetes-validations` rule.
pub(super) struct Rule {
    program: Program,
    source: String,
    message: String,
    reason: &'static str,
    /// It reads the old value (a transition rule).
    pub(super) compares: bool,
}

impl std::fmt::Debug for Rule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Rule").field(&self.source).finish()
    }
}

impl Rule {
    /// Compiles one entry of `x-kubernetes-validations`.
    pub(super) fn compile(entry: &Value) -> Result<Self, String> {
        let source = entry["rule"].as_str().unwrap_or_default().to_owned();
        let program = Program::compile(&source).map_err(|e| e.to_string())?;
        let compares = program.references().has_variable("oldSelf");
        let message = match entry["message"].as_str() {
            Some(message) => message.to_owned(),
            None => format!("failed rule: {source}"),
        };
        let reason = match entry["reason"].as_str() {
            Some("FieldValueForbidden") => "FieldValueForbidden",
            Some("FieldValueRequired") => "FieldValueRequired",
            Some("FieldValueDuplicate") => "FieldValueDuplicate",
            _ => "FieldValueInvalid",
        };
        Ok(Self {
            program,
            source,
            message,
            reason,
            compares,
        })
    }

    /// Why `value` breaks the rule, if it does. A transition rule holds where there is no old value.
    pub(super) fn check(&self, path: &str, value: &Value, old: Option<&Value>) -> Option<Cause> {
        let mut context = Context::default();
        if self.compares {
            context.add_variable_from_value("oldSelf", convert(old?));
        }
        context.add_variable_from_value("self", convert(value));
        let why = match self.program.execute(&context) {
            Ok(cel::Value::Bool(true)) => return None,
            Ok(cel::Value::Bool(false)) => self.message.clone(),
            Ok(_) => format!("rule does not evaluate to a bool: {}", self.source),
            Err(error) => format!("rule evaluation error: {error}: {}", self.source),
        };
        // A failed rule shows the type and not the value.
        let shown = match value {
            Value::Object(_) => "\"object\"",
            Value::Array(_) => "\"array\"",
            Value::String(_) => "\"string\"",
            Value::Bool(_) => "\"boolean\"",
            Value::Number(number) if number.is_f64() => "\"number\"",
            _ => "\"integer\"",
        };
        let message = match self.reason {
            "FieldValueForbidden" => format!("Forbidden: {why}"),
            "FieldValueRequired" => format!("Required value: {why}"),
            "FieldValueDuplicate" => format!("Duplicate value: {shown}"),
            _ => format!("Invalid value: {shown}: {why}"),
        };
        Some(Cause::new(path, self.reason, message))
    }
}

/// JSON as CEL sees it: whole numbers are int, never uint.
fn convert(value: &Value) -> cel::Value {
    match value {
        Value::Null => cel::Value::Null,
        Value::Bool(b) => cel::Value::Bool(*b),
        Value::Number(n) => n.as_i64().map_or_else(
            || cel::Value::Float(n.as_f64().unwrap_or_default()),
            cel::Value::Int,
        ),
        Value::String(s) => cel::Value::String(Arc::new(s.clone())),
        Value::Array(items) => cel::Value::List(Arc::new(items.iter().map(convert).collect())),
        Value::Object(fields) => {
            let map: HashMap<Key, cel::Value> = fields
                .iter()
                .map(|(k, v)| (Key::String(Arc::new(k.clone())), convert(v)))
                .collect();
            cel::Value::from(map)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_rule_reads_fields_numbers_and_the_old_value() {
        let rule = Rule::compile(
            &json!({"rule": "!has(self.type) || self.type == 0 || has(self.tenantID)", "message": "tenant"}),
        )
        .unwrap();
        assert_eq!(rule.check("spec", &json!({"type": 0}), None), None);
        assert_eq!(rule.check("spec", &json!({}), None), None);
        let cause = rule.check("spec", &json!({"type": 1}), None).unwrap();
        assert!(cause.message.ends_with(": tenant"), "{}", cause.message);

        let fixed = Rule::compile(&json!({"rule": "self == oldSelf"})).unwrap();
        assert_eq!(fixed.check("a", &json!("x"), None), None);
        assert!(fixed.check("a", &json!("x"), Some(&json!("y"))).is_some());
        assert!(Rule::compile(&json!({"rule": "has("})).is_err());
    }
}
