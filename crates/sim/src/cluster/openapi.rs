//! OpenAPI v3: as much as `kubectl` needs to leave validation to the server, and the schemas of custom resources.

use serde_json::{Map, json};

use super::{
    api::Answer,
    catalog::{Catalog, Kind},
};

/// Answers the paths below `/openapi/v3`.
pub(super) fn answer(catalog: &Catalog, path: &str) -> Option<Answer> {
    let below = path.strip_prefix("/openapi/v3")?;
    if below.is_empty() {
        let mut paths = Map::new();
        for kind in catalog.kinds() {
            let root = root(kind);
            let url = format!("/openapi/v3/{root}");
            paths.insert(root, json!({"serverRelativeURL": url}));
        }
        return Some(Answer::json(200, json!({"paths": paths})));
    }
    let wanted = below.trim_start_matches('/');
    let kinds: Vec<&Kind> = catalog
        .kinds()
        .map(|kind| &**kind)
        .filter(|kind| root(kind) == wanted)
        .collect();
    if kinds.is_empty() {
        return None;
    }
    let mut paths = Map::new();
    let mut schemas = Map::new();
    for kind in kinds {
        let scope = if kind.namespaced {
            "/namespaces/{namespace}"
        } else {
            ""
        };
        let path = format!("/{wanted}{scope}/{}/{{name}}", kind.plural);
        let gvk = json!({"group": kind.group, "version": kind.version, "kind": kind.kind});
        let operation = |verb: &str| {
            json!({
                "x-kubernetes-action": verb, "x-kubernetes-group-version-kind": gvk,
                "parameters": [{"name": "fieldValidation", "in": "query", "schema": {"type": "string"}}],
                "responses": {"200": {"description": "OK"}},
            })
        };
        let operations =
            json!({"get": operation("get"), "put": operation("put"), "patch": operation("patch")});
        paths.insert(path, operations);
        let mut schema = match kind.custom() {
            Some(custom) => custom.source.clone(),
            None => json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true}),
        };
        schema["x-kubernetes-group-version-kind"] = json!([gvk]);
        let reversed: Vec<&str> = kind.group.split('.').rev().collect();
        schemas.insert(
            format!("{}.{}.{}", reversed.join("."), kind.version, kind.kind),
            schema,
        );
    }
    Some(Answer::json(
        200,
        json!({
            "openapi": "3.0.0", "info": {"title": "podid-sim", "version": "v1.34.0"}, "paths": paths,
            "components": {"schemas": schemas},
        }),
    ))
}

fn root(kind: &Kind) -> String {
    if kind.group.is_empty() {
        format!("api/{}", kind.version)
    } else {
        format!("apis/{}/{}", kind.group, kind.version)
    }
}
