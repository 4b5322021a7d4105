//! The verb `delete`: grace periods, preconditions, finalizers, and the garbage collection of a namespace or a definition.

use std::sync::Arc;

use serde_json::{Value, json};

use super::{
    api::{Request, Server},
    catalog::Kind,
    failure::{Failure, Outcome},
    path::Target,
    store::{Key, State},
    view, write,
};

const NAMESPACES: &str = "/namespaces";

/// What a client says about a deletion.
#[derive(Debug, Default)]
struct Options {
    grace: Option<i64>,
    uid: Option<String>,
    version: Option<String>,
    dry: bool,
}

impl Options {
    fn read(request: &Request) -> Outcome<Self> {
        let body = if request.body.is_empty() {
            Value::Null
        } else {
            request.json()?
        };
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let grace = request.number("gracePeriodSeconds")?;
        Ok(Self {
            grace: grace
                .and_then(|g| i64::try_from(g).ok())
                .or_else(|| body["gracePeriodSeconds"].as_i64()),
            uid: text(&body["preconditions"]["uid"]),
            version: text(&body["preconditions"]["resourceVersion"]),
            dry: request.param("dryRun") == "All" || !body["dryRun"].is_null(),
        })
    }
}

impl Server {
    pub(super) fn delete(&self, request: &Request, kind: &Kind, target: &Target) -> Outcome<Value> {
        let options = Options::read(request)?;
        let key = (target.namespace.clone(), target.name.clone());
        let mut state = self.store().lock();
        let gone = self.delete_one(&mut state, kind, &key, &options)?;
        Ok(match gone {
            Gone::Later(object) => view::present(kind, &object),
            Gone::Now(object) if returns_object(kind) => view::present(kind, &object),
            Gone::Now(object) => json!({
                "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success",
                "details": details(kind, &object),
            }),
        })
    }

    pub(super) fn delete_all(
        &self,
        request: &Request,
        kind: &Kind,
        target: &Target,
    ) -> Outcome<Value> {
        let options = Options::read(request)?;
        let list = self.list(request, kind, target)?;
        let mut state = self.store().lock();
        for object in list["items"].as_array().into_iter().flatten() {
            let text = |field: &str| {
                object["metadata"][field]
                    .as_str()
                    .unwrap_or_default()
                    .to_owned()
            };
            let key = (text("namespace"), text("name"));
            match self.delete_one(&mut state, kind, &key, &options) {
                Err(failure) if failure.code != 404 => return Err(failure),
                _ => {}
            }
        }
        Ok(list)
    }

    fn delete_one(
        &self,
        state: &mut State,
        kind: &Kind,
        key: &Key,
        options: &Options,
    ) -> Outcome<Gone> {
        let (group, plural, name) = (&kind.group, &kind.plural, &key.1);
        let old = state
            .get(&kind.resource(), key)
            .cloned()
            .ok_or_else(|| Failure::not_found(group, plural, name))?;
        let metadata = &old["metadata"];
        for (what, field, wanted) in [
            ("UID", "uid", &options.uid),
            ("ResourceVersion", "resourceVersion", &options.version),
        ] {
            let found = metadata[field].as_str().unwrap_or_default();
            if let Some(wanted) = wanted.as_deref().filter(|wanted| *wanted != found) {
                let why = format!(
                    "Precondition failed: {what} in precondition: {wanted}, {what} in object meta: {found}"
                );
                return Err(Failure::conflict(group, plural, name, &why));
            }
        }
        if kind.is("", "Namespace") && name == "default" {
            return Err(Failure::forbidden(
                group,
                plural,
                name,
                "this namespace may not be deleted",
            ));
        }
        let object = self.marked(kind, &old, options.grace);
        if options.dry {
            return Ok(Gone::Later(Arc::new(object)));
        }
        if write::is_definition(kind) {
            remove_instances(state, &object);
        }
        if object == *old {
            return Ok(Gone::Later(old));
        }
        let stored = write::store(state, kind, key.clone(), object);
        if kind.is("", "Namespace") {
            self.empty_namespace(state, name);
        }
        let left = state.get(&kind.resource(), key).is_some() || kind.is("", "Namespace");
        Ok(if left {
            Gone::Later(stored)
        } else {
            Gone::Now(stored)
        })
    }

    /// The object, marked as being deleted.
    fn marked(&self, kind: &Kind, old: &Value, grace: Option<i64>) -> Value {
        let mut object = old.clone();
        let grace = if kind.is("", "Pod") {
            self.grace(old, grace)
        } else {
            0
        };
        let before = old["metadata"]["deletionGracePeriodSeconds"].as_i64();
        let marked = !old["metadata"]["deletionTimestamp"].is_null();
        if !marked || before.is_some_and(|before| grace < before) {
            let at = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(grace);
            let at = jiff::Timestamp::from_second(at.as_second()).unwrap_or(at);
            object["metadata"]["deletionTimestamp"] = at.to_string().into();
            object["metadata"]["deletionGracePeriodSeconds"] = grace.into();
            if kind.is("", "Namespace") {
                object["status"]["phase"] = "Terminating".into();
                if let Some(metadata) = object["metadata"].as_object_mut() {
                    metadata.remove("deletionGracePeriodSeconds");
                }
            }
            if let Some(generation) = object["metadata"]["generation"]
                .as_i64()
                .filter(|_| !marked)
            {
                object["metadata"]["generation"] = (generation + 1).into();
            }
        }
        object
    }

    /// How long, in seconds, a pod has to stop.
    fn grace(&self, pod: &Value, asked: Option<i64>) -> i64 {
        let phase = pod["status"]["phase"].as_str().unwrap_or_default();
        let on_node = pod["spec"]["nodeName"]
            .as_str()
            .is_some_and(|n| !n.is_empty());
        if self.config().stop_pods || !on_node || ["Succeeded", "Failed"].contains(&phase) {
            return 0;
        }
        let own = pod["spec"]["terminationGracePeriodSeconds"].as_i64();
        asked.or(own).unwrap_or(30).max(0)
    }

    /// Deletes what is in a namespace, as the namespace controller does.
    fn empty_namespace(&self, state: &mut State, namespace: &str) {
        let options = Options {
            grace: Some(0),
            ..Options::default()
        };
        for (resource, key) in state.in_namespace(namespace) {
            let Some(kind) = state.catalog.of_resource(&resource) else {
                continue;
            };
            if let Err(failure) = self.delete_one(state, &kind, &key, &options) {
                tracing::debug!(
                    namespace,
                    reason = failure.message,
                    "not deleted with its namespace"
                );
            }
        }
        finish_namespace(state, namespace);
    }
}

enum Gone {
    Now(Arc<Value>),
    Later(Arc<Value>),
}

fn returns_object(kind: &Kind) -> bool {
    kind.group.is_empty() && ["Pod", "Service", "ServiceAccount"].contains(&kind.kind.as_str())
}

fn details(kind: &Kind, object: &Value) -> Value {
    let mut details = json!({
        "name": object["metadata"]["name"], "kind": kind.plural, "uid": object["metadata"]["uid"],
    });
    if !kind.group.is_empty() {
        details["group"] = kind.group.clone().into();
    }
    details
}

/// Removes an object for good, and its namespace when that waited for it.
pub(super) fn remove(state: &mut State, kind: &Kind, key: Key, last: Value) -> Arc<Value> {
    let namespace = key.0.clone();
    let removed = state.remove(&kind.resource(), key, last);
    if write::is_definition(kind) {
        write::serve_definitions(state);
    }
    if !namespace.is_empty() {
        finish_namespace(state, &namespace);
    }
    removed
}

/// Removes a namespace that is being deleted once nothing is in it.
fn finish_namespace(state: &mut State, namespace: &str) {
    let key = (String::new(), namespace.to_owned());
    let Some(found) = state.get(NAMESPACES, &key).cloned() else {
        return;
    };
    let metadata = &found["metadata"];
    let held = metadata["finalizers"]
        .as_array()
        .is_some_and(|f| !f.is_empty());
    if metadata["deletionTimestamp"].is_null() || held || !state.in_namespace(namespace).is_empty()
    {
        return;
    }
    state.remove(NAMESPACES, key, (*found).clone());
}

/// Removes the objects of a definition's kind, finalizers or not: nothing could serve them any more.
fn remove_instances(state: &mut State, definition: &Value) {
    let spec = &definition["spec"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let resource = format!(
        "{}/{}",
        text(&spec["group"]),
        text(&spec["names"]["plural"])
    );
    let all: Vec<(Key, Value)> = state
        .list(&resource, "")
        .map(|(key, object)| (key.clone(), (**object).clone()))
        .collect();
    for (key, object) in all {
        state.remove(&resource, key, object);
    }
}
