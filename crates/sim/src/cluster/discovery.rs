//! Discovery (`/api`, `/apis`, `/version`): groups, versions and resources, by which `kubectl` and clients find a kind.

use serde_json::{Value, json};

use super::{
    api::Answer,
    catalog::{Catalog, Kind},
};

const VERBS: [&str; 8] = [
    "create",
    "delete",
    "deletecollection",
    "get",
    "list",
    "patch",
    "update",
    "watch",
];
const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

/// Answers `/version` and the discovery paths.
pub(super) fn answer(catalog: &Catalog, path: &str, accept: &str) -> Option<Answer> {
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let aggregated = accept.contains("as=APIGroupDiscoveryList") && accept.contains("v=v2;")
        || accept.contains("as=APIGroupDiscoveryList;v=v2")
            && !accept.starts_with("application/json,");
    let body = match parts.as_slice() {
        ["version"] => version(),
        ["api"] if aggregated => return Some(aggregate(catalog, true)),
        ["apis"] if aggregated => return Some(aggregate(catalog, false)),
        ["api"] => json!({
            "kind": "APIVersions", "versions": ["v1"],
            "serverAddressByClientCIDRs": [],
        }),
        ["api", "v1"] => resources(catalog, "", "v1"),
        ["apis"] => json!({
            "kind": "APIGroupList", "apiVersion": "v1",
            "groups": groups(catalog).iter().map(|(g, v)| group(g, v)).collect::<Vec<_>>(),
        }),
        ["apis", name] => {
            let groups = groups(catalog);
            let (name, versions) = groups.iter().find(|(group, _)| group == name)?;
            let mut found = group(name, versions);
            found["kind"] = "APIGroup".into();
            found["apiVersion"] = "v1".into();
            found
        }
        ["apis", group, "v1"] if !reviews(group).is_empty() => {
            resource_list(&format!("{group}/v1"), reviews(group))
        }
        ["apis", group, version] if catalog.has_version(group, version) => {
            resources(catalog, group, version)
        }
        _ => return None,
    };
    Some(Answer::json(200, body))
}

fn version() -> Value {
    json!({
        "major": "1", "minor": "34", "gitVersion": "v1.34.0+podid-sim", "gitCommit": "", "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z", "goVersion": "", "compiler": "", "platform": "linux/amd64",
    })
}

fn groups(catalog: &Catalog) -> Vec<(String, Vec<String>)> {
    let mut groups = catalog.groups();
    for group in ["authentication.k8s.io", "authorization.k8s.io"] {
        groups.push((group.to_owned(), vec!["v1".to_owned()]));
    }
    groups
}

fn group(name: &str, versions: &[String]) -> Value {
    let version =
        |version: &String| json!({"groupVersion": format!("{name}/{version}"), "version": version});
    json!({
        "name": name,
        "versions": versions.iter().map(version).collect::<Vec<_>>(),
        "preferredVersion": versions.first().map(version),
    })
}

/// The reviews of a group, which are no stored kinds.
fn reviews(group: &str) -> Vec<Value> {
    let kinds: &[&str] = match group {
        "authentication.k8s.io" => &["TokenReview"],
        "authorization.k8s.io" => &["SelfSubjectAccessReview", "SubjectAccessReview"],
        _ => &[],
    };
    let resource = |kind: &&str| {
        json!({
            "name": format!("{}s", kind.to_lowercase()), "singularName": kind.to_lowercase(), "namespaced": false,
            "kind": kind, "verbs": ["create"],
        })
    };
    kinds.iter().map(resource).collect()
}

fn resource_list(group_version: &str, resources: Vec<Value>) -> Value {
    json!({
        "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": resources,
    })
}

fn resources(catalog: &Catalog, group: &str, version: &str) -> Value {
    let mut all = Vec::new();
    for kind in of_version(catalog, group, version) {
        let mut resource = json!({
            "name": kind.plural, "singularName": kind.singular, "namespaced": kind.namespaced, "kind": kind.kind,
            "verbs": VERBS,
        });
        if !kind.short_names.is_empty() {
            resource["shortNames"] = json!(kind.short_names);
        }
        if !kind.categories.is_empty() {
            resource["categories"] = json!(kind.categories);
        }
        all.push(resource);
        for (name, responds, verbs) in subresources(kind) {
            all.push(json!({
                "name": format!("{}/{name}", kind.plural), "singularName": "", "namespaced": kind.namespaced,
                "kind": responds, "verbs": verbs,
            }));
        }
    }
    let group_version = if group.is_empty() {
        version.to_owned()
    } else {
        format!("{group}/{version}")
    };
    resource_list(&group_version, all)
}

fn of_version<'a>(
    catalog: &'a Catalog,
    group: &'a str,
    version: &'a str,
) -> impl Iterator<Item = &'a Kind> {
    let kinds = catalog.kinds().map(|kind| &**kind);
    kinds.filter(move |kind| kind.group == group && kind.version == version)
}

fn subresources(kind: &Kind) -> Vec<(&'static str, &str, &'static [&'static str])> {
    let mut all: Vec<(&'static str, &str, &'static [&'static str])> = Vec::new();
    if kind.status {
        all.push(("status", &kind.kind, &["get", "patch", "update"]));
    }
    if kind.is("", "ServiceAccount") {
        all.push(("token", "TokenRequest", &["create"]));
    }
    all
}

/// All of `/api` or `/apis` in one answer.
fn aggregate(catalog: &Catalog, core: bool) -> Answer {
    let groups = if core {
        vec![(String::new(), vec!["v1".to_owned()])]
    } else {
        groups(catalog)
    };
    let items: Vec<Value> = groups
        .iter()
        .map(|(group, versions)| {
            let versions: Vec<Value> = versions
                .iter()
                .map(|version| {
                    json!({
                        "version": version, "freshness": "Current",
                        "resources": aggregated_resources(catalog, group, version),
                    })
                })
                .collect();
            json!({"metadata": {"name": group, "creationTimestamp": null}, "versions": versions})
        })
        .collect();
    Answer::Json {
        code: 200,
        body: json!({
            "kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items,
        }),
        content_type: AGGREGATED,
        warnings: Vec::new(),
    }
}

fn aggregated_resources(catalog: &Catalog, group: &str, version: &str) -> Vec<Value> {
    let scope = |namespaced: bool| if namespaced { "Namespaced" } else { "Cluster" };
    let reviews = reviews(group);
    if !reviews.is_empty() {
        let review = |r: &Value| {
            json!({
                "resource": r["name"], "responseKind": {"group": group, "version": version, "kind": r["kind"]},
                "scope": "Cluster", "singularResource": r["singularName"], "verbs": r["verbs"],
            })
        };
        return reviews.iter().map(review).collect();
    }
    of_version(catalog, group, version)
        .map(|kind| {
            let subresources: Vec<Value> = subresources(kind)
                .into_iter()
                .map(|(name, responds, verbs)| {
                    json!({
                        "subresource": name, "verbs": verbs,
                        "responseKind": {"group": group, "version": version, "kind": responds},
                    })
                })
                .collect();
            json!({
                "resource": kind.plural, "scope": scope(kind.namespaced), "singularResource": kind.singular,
                "responseKind": {"group": group, "version": version, "kind": kind.kind},
                "verbs": VERBS, "shortNames": kind.short_names, "categories": kind.categories,
                "subresources": subresources,
            })
        })
        .collect()
}
