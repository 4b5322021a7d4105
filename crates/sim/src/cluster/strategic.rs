//! Strategic merge patch: lists of the built-in kinds merge by key instead of being replaced.

use serde_json::{Map, Value};

const DIRECTIVE: &str = "$patch";
const RETAIN: &str = "$retainKeys";
const DELETE_ITEMS: &str = "$deleteFromPrimitiveList/";
const ORDER: &str = "$setElementOrder/";

/// How the list of a field merges.
enum List {
    /// Items with the same value of this field are one.
    ByKey(&'static str),
    /// A set of plain values.
    Values,
    Replace,
}

/// The built-in kinds' patch strategies, by the field's name and its parent's.
fn strategy(parent: &str, field: &str) -> List {
    match (parent, field) {
        ("metadata", "ownerReferences") => List::ByKey("uid"),
        ("metadata", "finalizers") | ("spec", "finalizers" | "podCIDRs") => List::Values,
        (
            _,
            "containers"
            | "initContainers"
            | "ephemeralContainers"
            | "env"
            | "volumes"
            | "imagePullSecrets"
            | "secrets",
        ) => List::ByKey("name"),
        ("spec", "ports") => List::ByKey("port"),
        (_, "ports") => List::ByKey("containerPort"),
        (_, "volumeMounts") => List::ByKey("mountPath"),
        (_, "volumeDevices") => List::ByKey("devicePath"),
        (_, "hostAliases") => List::ByKey("ip"),
        (_, "topologySpreadConstraints") => List::ByKey("topologyKey"),
        ("status", "conditions" | "addresses") => List::ByKey("type"),
        ("status", "podIPs" | "hostIPs") => List::ByKey("ip"),
        _ => List::Replace,
    }
}

/// Applies `patch` to `target`, the value of the field `name`.
pub(super) fn merge(target: &mut Value, patch: &Value, name: &str) -> Result<(), String> {
    let Value::Object(changes) = patch else {
        *target = patch.clone();
        return Ok(());
    };
    match changes.get(DIRECTIVE).and_then(Value::as_str) {
        Some("replace") => {
            let kept = changes.iter().filter(|(key, _)| *key != DIRECTIVE);
            *target = Value::Object(kept.map(|(k, v)| (k.clone(), v.clone())).collect());
            return Ok(());
        }
        Some("delete") => {
            *target = Value::Null;
            return Ok(());
        }
        None | Some("merge") => {}
        Some(other) => return Err(format!("Unknown patch type found: {other}")),
    }
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Some(fields) = target.as_object_mut() else {
        return Ok(());
    };
    if let Some(retained) = changes.get(RETAIN).and_then(Value::as_array) {
        fields.retain(|key, _| retained.iter().any(|r| r == key));
    }
    for (key, change) in changes {
        if [DIRECTIVE, RETAIN].contains(&key.as_str()) || key.starts_with(ORDER) {
            continue;
        }
        if let Some(list) = key.strip_prefix(DELETE_ITEMS) {
            if let (Some(Value::Array(have)), Value::Array(gone)) = (fields.get_mut(list), change) {
                have.retain(|item| !gone.contains(item));
            }
            continue;
        }
        merge_field(fields, name, key, change)?;
    }
    for (key, order) in changes {
        if let (Some(list), Value::Array(order)) = (key.strip_prefix(ORDER), order)
            && let Some(Value::Array(items)) = fields.get_mut(list)
        {
            reorder(items, order, &strategy(name, list));
        }
    }
    Ok(())
}

fn merge_field(
    fields: &mut Map<String, Value>,
    parent: &str,
    key: &str,
    change: &Value,
) -> Result<(), String> {
    match (change, strategy(parent, key)) {
        (Value::Null, _) => {
            fields.remove(key);
        }
        (Value::Array(changes), List::ByKey(by)) => {
            let have = fields
                .entry(key)
                .or_insert_with(|| Value::Array(Vec::new()));
            merge_items(have, changes, key, by)?;
        }
        (Value::Array(changes), List::Values) => {
            let have = fields
                .entry(key)
                .or_insert_with(|| Value::Array(Vec::new()));
            if let Value::Array(have) = have {
                for change in changes {
                    if !have.contains(change) {
                        have.push(change.clone());
                    }
                }
            }
        }
        (Value::Object(_), _) => {
            let field = fields.entry(key).or_insert(Value::Null);
            merge(field, change, key)?;
            if field.is_null() {
                fields.remove(key);
            }
        }
        _ => {
            fields.insert(key.to_owned(), change.clone());
        }
    }
    Ok(())
}

fn merge_items(have: &mut Value, changes: &[Value], name: &str, by: &str) -> Result<(), String> {
    let Value::Array(items) = have else {
        *have = Value::Array(changes.to_vec());
        return Ok(());
    };
    if changes.iter().any(|c| c[DIRECTIVE] == "replace") {
        items.clear();
    }
    for change in changes {
        if change[DIRECTIVE] == "replace" {
            continue;
        }
        let id = change
            .get(by)
            .ok_or_else(|| format!("map: {change} does not contain declared merge key: {by}"))?;
        let place = items.iter().position(|item| item.get(by) == Some(id));
        match place {
            Some(at) if change[DIRECTIVE] == "delete" => {
                items.remove(at);
            }
            None if change[DIRECTIVE] == "delete" => {}
            Some(at) => merge(&mut items[at], change, name)?,
            None => {
                let mut item = Value::Null;
                merge(&mut item, change, name)?;
                items.push(item);
            }
        }
    }
    Ok(())
}

/// Puts the items that `order` names into its order; the others keep their place behind them.
fn reorder(items: &mut [Value], order: &[Value], strategy: &List) {
    let rank = |item: &Value| {
        let at = match strategy {
            List::ByKey(by) => order.iter().position(|o| o.get(by) == item.get(by)),
            _ => order.iter().position(|o| o == item),
        };
        at.unwrap_or(usize::MAX)
    };
    items.sort_by_key(rank);
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;
    use serde_json::json;

    #[rstest]
    #[case::containers_merge_by_name(
        json!({"spec": {"containers": [{"name": "a", "image": "1", "tty": true}, {"name": "b"}]}}),
        json!({"spec": {"containers": [{"name": "a", "image": "2"}, {"name": "b", "$patch": "delete"}]}}),
        json!({"spec": {"containers": [{"name": "a", "image": "2", "tty": true}]}}))]
    #[case::finalizers_are_a_set(
        json!({"metadata": {"finalizers": ["a", "b"]}}),
        json!({"metadata": {"finalizers": ["b", "c"], "$deleteFromPrimitiveList/finalizers": ["a"]}}),
        json!({"metadata": {"finalizers": ["b", "c"]}}))]
    #[case::conditions_keep_an_order(
        json!({"status": {"conditions": [{"type": "A"}, {"type": "B", "status": "x"}]}}),
        json!({"status": {"$setElementOrder/conditions": [{"type": "B"}, {"type": "A"}], "conditions": [{"type": "B", "status": "y"}]}}),
        json!({"status": {"conditions": [{"type": "B", "status": "y"}, {"type": "A"}]}}))]
    #[case::null_removes(json!({"data": {"a": "1", "b": "2"}}), json!({"data": {"a": null}}), json!({"data": {"b": "2"}}))]
    #[case::other_lists_are_replaced(json!({"args": [1, 2]}), json!({"args": [3]}), json!({"args": [3]}))]
    #[case::a_map_is_replaced_on_request(json!({"a": {"x": 1}}), json!({"a": {"$patch": "replace", "y": 2}}), json!({"a": {"y": 2}}))]
    fn it_merges(#[case] mut target: Value, #[case] patch: Value, #[case] expected: Value) {
        merge(&mut target, &patch, "").unwrap();
        assert_eq!(target, expected);
    }
}
