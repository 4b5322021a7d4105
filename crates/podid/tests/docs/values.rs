//! The page of the chart's values lists those that there are, with their defaults.

use std::collections::BTreeMap;

use podid_testkit::tools;
use serde_json::Value;

use crate::pages::folder;

/// The rows of the page: value and default.
fn listed() -> BTreeMap<String, String> {
    let page = std::fs::read_to_string(folder().join("values.md")).unwrap();
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `"));
    rows.map(|row| {
        let (name, rest) = row.split_once("` |").unwrap();
        let default = rest.split(" | ").next().unwrap();
        let default = default.trim().trim_matches(['`', '|', ' ']);
        (name.to_owned(), default.to_owned())
    })
    .collect()
}

fn compare(
    path: &str,
    value: &Value,
    rows: &mut BTreeMap<String, String>,
    wrong: &mut Vec<String>,
) {
    match (rows.remove(path), value) {
        (Some(said), value) => {
            let is = match value {
                Value::String(text) => text == &said,
                other => serde_json::from_str(&said).ok().as_ref() == Some(other),
            };
            if !is {
                wrong.push(format!("{path} is {value} by default"));
            }
        }
        (None, Value::Object(parts)) if !parts.is_empty() => {
            for (name, part) in parts {
                let path = match path {
                    "" => name.clone(),
                    path => format!("{path}.{name}"),
                };
                compare(&path, part, rows, wrong);
            }
        }
        (None, _) => wrong.push(format!("{path} is not on the page")),
    }
}

#[test]
fn every_value_of_the_chart_is_listed_with_its_default() {
    let file = tools::repository().join("charts/podid/values.yaml");
    let values: Value = serde_saphyr::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    let (mut rows, mut wrong) = (listed(), Vec::new());
    assert!(rows.len() > 50, "{rows:?}");
    compare("", &values, &mut rows, &mut wrong);
    wrong.extend(rows.into_keys().map(|name| format!("{name} is no value")));
    assert!(wrong.is_empty(), "docs/values.md: {wrong:#?}");
}
