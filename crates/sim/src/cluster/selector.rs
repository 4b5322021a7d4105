//! Label selectors and field selectors of lists and watches.

use serde_json::Value;

use super::failure::{Failure, Outcome};

/// Which objects a list or watch wants.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Selector {
    labels: Vec<Requirement>,
    fields: Vec<FieldRequirement>,
}

#[derive(Debug, Clone, PartialEq)]
struct Requirement {
    key: String,
    test: Test,
}

#[derive(Debug, Clone, PartialEq)]
enum Test {
    Exists,
    Absent,
    In(Vec<String>),
    NotIn(Vec<String>),
}

#[derive(Debug, Clone, PartialEq)]
struct FieldRequirement {
    path: String,
    value: String,
    equal: bool,
}

impl Selector {
    /// Reads the `labelSelector` and `fieldSelector` of a request; `fields` are those the kind supports besides
    /// `metadata.name` and `metadata.namespace`.
    pub(super) fn parse(labels: &str, wanted: &str, kind_fields: &[&str]) -> Outcome<Self> {
        let labels = split_outside_parentheses(labels)
            .map(parse_label)
            .collect::<Outcome<_>>()?;
        let fields = wanted
            .split(',')
            .filter(|part| !part.trim().is_empty())
            .map(|part| parse_field(part.trim(), kind_fields))
            .collect::<Outcome<_>>()?;
        Ok(Self { labels, fields })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    pub(super) fn matches(&self, object: &Value) -> bool {
        let labels = &object["metadata"]["labels"];
        self.labels.iter().all(|requirement| {
            let value = labels[&requirement.key].as_str();
            match &requirement.test {
                Test::Exists => value.is_some(),
                Test::Absent => value.is_none(),
                Test::In(any) => value.is_some_and(|v| any.iter().any(|a| a == v)),
                Test::NotIn(none) => value.is_none_or(|v| none.iter().all(|a| a != v)),
            }
        }) && self.fields.iter().all(|requirement| {
            (field(object, &requirement.path) == requirement.value) == requirement.equal
        })
    }
}

/// The text of a selectable field; empty when it is not set.
fn field(object: &Value, path: &str) -> String {
    let found = path
        .split('.')
        .try_fold(object, |at, part| at.get(part))
        .unwrap_or(&Value::Null);
    match found {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn split_outside_parentheses(text: &str) -> impl Iterator<Item = &str> {
    let mut depth = 0_u32;
    text.split(move |c| {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        c == ',' && depth == 0
    })
    .map(str::trim)
    .filter(|part| !part.is_empty())
}

fn parse_label(part: &str) -> Outcome<Requirement> {
    let requirement = |key: &str, test| {
        let key = key.trim();
        if key.is_empty()
            || !key
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "-_./".contains(c))
        {
            return Err(Failure::bad_request(format!(
                "unable to parse requirement: <nil>: Invalid value: {key:?}: name part must consist of alphanumeric \
                 characters, '-', '_' or '.', and must start and end with an alphanumeric character"
            )));
        }
        Ok(Requirement {
            key: key.to_owned(),
            test,
        })
    };
    let one = |value: &str| vec![value.trim().to_owned()];
    if let Some(key) = part.strip_prefix('!') {
        return requirement(key, Test::Absent);
    }
    if let Some((key, value)) = part.split_once("!=") {
        return requirement(key, Test::NotIn(one(value)));
    }
    if let Some((key, value)) = part.split_once("==").or_else(|| part.split_once('=')) {
        return requirement(key, Test::In(one(value)));
    }
    if let Some((head, set)) = part.split_once('(') {
        let values = set
            .trim_end()
            .strip_suffix(')')
            .ok_or_else(|| {
                Failure::bad_request(format!(
                    "unable to parse requirement: found '{part}', expected: ')'"
                ))
            })?
            .split(',')
            .map(|v| v.trim().to_owned())
            .collect();
        let mut words = head.split_whitespace();
        return match (words.next(), words.next(), words.next()) {
            (Some(key), Some("in"), None) => requirement(key, Test::In(values)),
            (Some(key), Some("notin"), None) => requirement(key, Test::NotIn(values)),
            _ => Err(Failure::bad_request(format!(
                "unable to parse requirement: found '{head}', expected: in, notin, =, ==, !=, gt, lt"
            ))),
        };
    }
    requirement(part, Test::Exists)
}

fn parse_field(part: &str, kind_fields: &[&str]) -> Outcome<FieldRequirement> {
    let (path, value, equal) = if let Some((path, value)) = part.split_once("!=") {
        (path, value, false)
    } else if let Some((path, value)) = part.split_once("==").or_else(|| part.split_once('=')) {
        (path, value, true)
    } else {
        return Err(Failure::bad_request(format!(
            "invalid selector: '{part}'; can't understand '{part}'"
        )));
    };
    if !["metadata.name", "metadata.namespace"].contains(&path) && !kind_fields.contains(&path) {
        return Err(Failure::bad_request(format!(
            "field label not supported: {path}"
        )));
    }
    Ok(FieldRequirement {
        path: path.to_owned(),
        value: value.to_owned(),
        equal,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;
    use serde_json::json;

    #[rstest]
    #[case("app=web", true)]
    #[case("app==web", true)]
    #[case("app!=web", false)]
    #[case("other!=web", true)]
    #[case("app in (api, web),tier", true)]
    #[case("app notin (api,web)", false)]
    #[case("tier,!gone", true)]
    #[case("!tier", false)]
    fn labels_select(#[case] selector: &str, #[case] expected: bool) {
        let object = json!({"metadata": {"labels": {"app": "web", "tier": "front"}}});
        let selector = Selector::parse(selector, "", &[]).unwrap();
        assert_eq!(selector.matches(&object), expected);
    }

    #[test]
    fn fields_select_and_an_unknown_one_is_refused() {
        let object = json!({"metadata": {"name": "a"}, "spec": {"nodeName": "n1"}});
        let on = |s: &str| Selector::parse("", s, &["spec.nodeName"]);
        assert!(
            on("spec.nodeName=n1,metadata.name!=b")
                .unwrap()
                .matches(&object)
        );
        assert!(!on("spec.nodeName=").unwrap().matches(&object));
        assert!(
            on("spec.image=x")
                .unwrap_err()
                .message
                .contains("not supported")
        );
    }
}
