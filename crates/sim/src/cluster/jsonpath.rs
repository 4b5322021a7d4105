//! JSONPath, as much of it as printer columns use. `columns` evaluates it.

use serde_json::Value;

/// All values that `path` (such as `.status.conditions[?(@.type=="Ready")].status`) finds.
pub(super) fn find<'a>(root: &'a Value, path: &str) -> Vec<&'a Value> {
    let mut found = vec![root];
    let mut rest = path
        .trim()
        .trim_start_matches('{')
        .trim_end_matches('}')
        .trim_start_matches('$');
    while !rest.is_empty() {
        if let Some(after) = rest.strip_prefix('[') {
            let Some(end) = closing(after) else {
                return Vec::new();
            };
            found = found
                .into_iter()
                .flat_map(|v| bracket(v, &after[..end]))
                .collect();
            rest = &after[end + 1..];
        } else {
            let text = rest.strip_prefix('.').unwrap_or(rest);
            let (name, after) = name(text);
            if name.is_empty() {
                return Vec::new();
            }
            found = found.into_iter().flat_map(|v| children(v, &name)).collect();
            rest = after;
        }
    }
    found
}

/// The first name in `text`, in which a backslash escapes a dot, and what follows it.
fn name(text: &str) -> (String, &str) {
    let mut name = String::new();
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match c {
            '\\' if !escaped => escaped = true,
            '.' | '[' if !escaped => return (name, &text[at..]),
            c => {
                escaped = false;
                name.push(c);
            }
        }
    }
    (name, "")
}

/// Where the bracket that is open at the start of `text` closes.
fn closing(text: &str) -> Option<usize> {
    let mut quote = None;
    for (at, c) in text.char_indices() {
        match (quote, c) {
            (None, ']') => return Some(at),
            (None, '\'' | '"') => quote = Some(c),
            (Some(q), c) if q == c => quote = None,
            _ => {}
        }
    }
    None
}

fn children<'a>(value: &'a Value, name: &str) -> Vec<&'a Value> {
    match (name, value) {
        ("*", Value::Array(items)) => items.iter().collect(),
        ("*", Value::Object(fields)) => fields.values().collect(),
        _ => value.get(name).into_iter().collect(),
    }
}

fn unquote(text: &str) -> &str {
    text.trim().trim_matches(['\'', '"'])
}

fn bracket<'a>(value: &'a Value, inside: &str) -> Vec<&'a Value> {
    let items = value.as_array().map_or(&[][..], Vec::as_slice);
    if let Some(filter) = inside.strip_prefix("?(").and_then(|f| f.strip_suffix(')')) {
        let Some((path, wanted)) = filter.split_once("==") else {
            let path = filter.trim().trim_start_matches('@');
            return items
                .iter()
                .filter(|item| !find(item, path).is_empty())
                .collect();
        };
        let (path, wanted) = (path.trim().trim_start_matches('@'), unquote(wanted));
        let fits = |v: &Value| {
            let shown = v.as_str().map_or_else(|| v.to_string(), str::to_owned);
            shown == wanted
        };
        return items
            .iter()
            .filter(|item| find(item, path).into_iter().any(fits))
            .collect();
    }
    if inside == "*" {
        return children(value, "*");
    }
    match inside.parse::<i64>() {
        Ok(index) => {
            let at = if index < 0 {
                i64::try_from(items.len()).unwrap_or(0) + index
            } else {
                index
            };
            usize::try_from(at)
                .ok()
                .and_then(|at| items.get(at))
                .into_iter()
                .collect()
        }
        Err(_) => children(value, unquote(inside)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;
    use serde_json::json;

    #[rstest]
    #[case(".spec.type", json!([0]))]
    #[case(".spec.absent", json!([]))]
    #[case(".status.conditions[?(@.type==\"Ready\")].status", json!(["True"]))]
    #[case(".status.conditions[*].type", json!(["Other", "Ready"]))]
    #[case(".status.conditions[-1].type", json!(["Ready"]))]
    #[case(".metadata.labels.a\\.b/c", json!(["x"]))]
    #[case(".metadata.labels['a.b/c']", json!(["x"]))]
    fn it_finds(#[case] path: &str, #[case] expected: Value) {
        let object = json!({
            "metadata": {"labels": {"a.b/c": "x"}}, "spec": {"type": 0},
            "status": {"conditions": [{"type": "Other", "status": "False"}, {"type": "Ready", "status": "True"}]},
        });
        assert_eq!(json!(find(&object, path)), expected);
    }
}
