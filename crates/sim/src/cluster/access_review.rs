//! Access reviews: what RBAC's roles and bindings allow somebody. The simulated server itself lets everybody do everything, so
//! who asks about himself is told that; `api` routes here.

use std::sync::Arc;

use serde_json::{Value, json};

use super::{
    api::Server,
    failure::{Cause, Failure, Outcome},
    store::State,
};

const GROUP: &str = "authorization.k8s.io";

/// SelfSubjectAccessReview.
pub(super) fn of_self(_: &Server, review: &Value) -> Outcome<Value> {
    let status = json!({ "allowed": true, "reason": "the simulated cluster allows everything" });
    Ok(answered("SelfSubjectAccessReview", review, status))
}

/// SubjectAccessReview.
pub(super) fn of_subject(server: &Server, review: &Value) -> Outcome<Value> {
    of(server, "SubjectAccessReview", review)
}

/// LocalSubjectAccessReview.
pub(super) fn of_local(server: &Server, review: &Value) -> Outcome<Value> {
    of(server, "LocalSubjectAccessReview", review)
}

fn of(server: &Server, kind: &str, review: &Value) -> Outcome<Value> {
    let spec = &review["spec"];
    check(kind, spec)?;
    let status = match (Asked { spec }).reason(&server.store().lock()) {
        Some(reason) if reason.is_empty() => json!({ "allowed": true }),
        Some(reason) => json!({ "allowed": true, "reason": reason }),
        None => json!({ "allowed": false }),
    };
    Ok(answered(kind, review, status))
}

fn answered(kind: &str, review: &Value, status: Value) -> Value {
    let mut answer = match review {
        Value::Object(_) => review.clone(),
        _ => json!({}),
    };
    answer["apiVersion"] = format!("{GROUP}/v1").into();
    answer["kind"] = kind.into();
    answer["status"] = status;
    answer
}

fn check(kind: &str, spec: &Value) -> Outcome<()> {
    let mut causes = Vec::new();
    if spec["resourceAttributes"].is_object() == spec["nonResourceAttributes"].is_object() {
        let why = "exactly one of nonResourceAttributes or resourceAttributes must be specified";
        causes.push(Cause::invalid(
            "spec.resourceAttributes",
            &spec["resourceAttributes"],
            why,
        ));
    }
    let nobody = spec["user"].as_str().unwrap_or_default().is_empty()
        && spec["groups"].as_array().is_none_or(Vec::is_empty);
    if nobody {
        let why = "at least one of user or group must be specified";
        causes.push(Cause::invalid("spec.user", &spec["user"], why));
    }
    match causes.is_empty() {
        true => Ok(()),
        false => Err(Failure::invalid(GROUP, kind, "", &causes)),
    }
}

/// Who wants to do what.
struct Asked<'a> {
    spec: &'a Value,
}

/// The members of a list of texts.
fn texts(list: &Value) -> impl Iterator<Item = &str> {
    list.as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
}

/// Whether a list of a rule has this text, or all.
fn lists(list: &Value, text: &str) -> bool {
    texts(list).any(|one| one == "*" || one == text)
}

impl Asked<'_> {
    fn user(&self) -> &str {
        self.spec["user"].as_str().unwrap_or_default()
    }

    fn resource(&self, name: &str) -> &str {
        self.spec["resourceAttributes"][name]
            .as_str()
            .unwrap_or_default()
    }

    /// Why it is allowed; nothing when it is not.
    fn reason(&self, state: &State) -> Option<String> {
        if texts(&self.spec["groups"]).any(|group| group == "system:masters") {
            return Some(String::new());
        }
        const RBAC: &str = "rbac.authorization.k8s.io";
        let everywhere = state.list("rbac.authorization.k8s.io/clusterrolebindings", "");
        let namespace = self.resource("namespace");
        let here = state.list("rbac.authorization.k8s.io/rolebindings", namespace);
        let here = here.filter(|_| !namespace.is_empty());
        everywhere
            .chain(here)
            .find_map(|((namespace, name), binding)| {
                let subject = self.subject(binding, namespace)?;
                let (kind, role) = (&binding["roleRef"]["kind"], &binding["roleRef"]["name"]);
                let (kind, role) = (kind.as_str()?, role.as_str()?);
                let (plural, of) = match kind {
                    "Role" => ("roles", namespace.clone()),
                    _ => ("clusterroles", String::new()),
                };
                let found = state.get(&format!("{RBAC}/{plural}"), &(of, role.to_owned()))?;
                self.is_allowed_by(found).then(|| {
                    let (what, name) = match namespace.as_str() {
                        "" => ("ClusterRoleBinding", name.clone()),
                        namespace => ("RoleBinding", format!("{name}/{namespace}")),
                    };
                    format!("RBAC: allowed by {what} {name:?} of {kind} {role:?} to {subject}")
                })
            })
    }

    /// The subject of a binding that is the one who asks.
    fn subject(&self, binding: &Arc<Value>, namespace: &str) -> Option<String> {
        let subjects = binding["subjects"].as_array()?;
        subjects.iter().find_map(|subject| {
            let (kind, name) = (subject["kind"].as_str()?, subject["name"].as_str()?);
            let of = subject["namespace"].as_str().unwrap_or(namespace);
            let (is_it, shown) = match kind {
                "ServiceAccount" => (
                    self.user() == format!("system:serviceaccount:{of}:{name}"),
                    format!("{name}/{of}"),
                ),
                "Group" => (
                    texts(&self.spec["groups"]).any(|group| group == name),
                    name.to_owned(),
                ),
                _ => (self.user() == name, name.to_owned()),
            };
            is_it.then(|| format!("{kind} {shown:?}"))
        })
    }

    fn is_allowed_by(&self, role: &Arc<Value>) -> bool {
        let rules = role["rules"].as_array().into_iter().flatten();
        let is_path = self.spec["nonResourceAttributes"].is_object();
        let allows = |rule: &Value| match is_path {
            true => self.is_path_in(rule),
            false => self.is_resource_in(rule),
        };
        rules.into_iter().any(allows)
    }

    fn is_path_in(&self, rule: &Value) -> bool {
        let asked = &self.spec["nonResourceAttributes"];
        let text = |name: &str| asked[name].as_str().unwrap_or_default();
        let fits = |one: &str| match one.strip_suffix('*') {
            Some(start) => text("path").starts_with(start),
            None => text("path") == one,
        };
        lists(&rule["verbs"], text("verb")) && texts(&rule["nonResourceURLs"]).any(fits)
    }

    fn is_resource_in(&self, rule: &Value) -> bool {
        let (resource, subresource) = (self.resource("resource"), self.resource("subresource"));
        let is_it = |one: &str| match subresource {
            "" => one == resource || one == "*",
            // `pods/*` is no wildcard, but `*/log` is one.
            sub => one == "*" || one == format!("{resource}/{sub}") || one == format!("*/{sub}"),
        };
        let names = &rule["resourceNames"];
        let any = names.as_array().is_none_or(Vec::is_empty);
        lists(&rule["verbs"], self.resource("verb"))
            && lists(&rule["apiGroups"], self.resource("group"))
            && texts(&rule["resources"]).any(is_it)
            && (any || texts(names).any(|name| name == self.resource("name")))
    }
}
