//! The verbs `create`, `update` and `patch`: optimistic concurrency by resourceVersion, and the status subresource.

use std::sync::Arc;

use serde_json::Value;

use super::{
    api::{Request, Server},
    catalog::{Catalog, Kind},
    crd,
    failure::{Cause, Failure, Outcome},
    patch::Form,
    path::Target,
    store::{Key, State},
    strategy::{self, Unknown},
    view,
};

/// A write to one object, under way.
#[derive(Debug)]
pub(super) struct Write<'a> {
    pub server: &'a Server,
    pub request: &'a Request,
    pub kind: &'a Arc<Kind>,
    pub target: &'a Target,
    /// Through the status subresource.
    pub status: bool,
}

/// The object as written, and warnings.
type Written = Outcome<(Value, Vec<String>)>;

impl Write<'_> {
    pub(super) fn create(&self) -> Written {
        let mut object = self.request.json()?;
        let warnings = self.shape(&mut object)?;
        self.check_namespace(&object)?;
        strategy::create(self.kind, &mut object, &self.target.namespace)?;
        let name = object["metadata"]["name"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        let key = (self.target.namespace.clone(), name);
        let mut state = self.server.store().lock();
        self.check_namespace_lives(&state, &key.1)?;
        let resource = self.kind.resource();
        if state.get(&resource, &key).is_some() {
            return Err(Failure::already_exists(
                &self.kind.group,
                &self.kind.plural,
                &key.1,
            ));
        }
        if is_definition(self.kind) {
            object["status"] = crd::established(&object, &strategy::now());
        }
        let stored = self.commit(&mut state, key, object);
        Ok((view::present(self.kind, &stored), warnings))
    }

    pub(super) fn replace(&self) -> Written {
        let object = self.request.json()?;
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        if name != self.target.name {
            return Err(Failure::bad_request(format!(
                "the name of the object ({name}) does not match the name on the URL ({})",
                self.target.name
            )));
        }
        let version = object["metadata"]["resourceVersion"].as_str();
        if version.is_none_or(str::is_empty) && self.must_name_version() {
            let cause = Cause::invalid(
                "metadata.resourceVersion",
                &Value::from(0),
                "must be specified for an update",
            );
            let (group, kind) = (&self.kind.group, &self.kind.kind);
            self.server.get(self.kind, self.target)?;
            return Err(Failure::invalid(group, kind, name, &[cause]));
        }
        self.change(|_| Ok(object.clone()))
    }

    pub(super) fn patch(&self) -> Written {
        let form = Form::of(&self.request.content_type, self.kind.custom().is_some())?;
        let patch = self.request.json()?;
        self.change(|current| form.apply(current, &patch))
    }

    fn must_name_version(&self) -> bool {
        self.kind.custom().is_some()
            || ["Lease", "CustomResourceDefinition"].contains(&self.kind.kind.as_str())
    }

    /// Replaces the object by what `make` makes of it, unless the client knows an older one.
    fn change(&self, make: impl FnOnce(&Value) -> Outcome<Value>) -> Written {
        let (group, plural, name) = (&self.kind.group, &self.kind.plural, &self.target.name);
        let key = (self.target.namespace.clone(), name.clone());
        let mut state = self.server.store().lock();
        let old = state
            .get(&self.kind.resource(), &key)
            .cloned()
            .ok_or_else(|| Failure::not_found(group, plural, name))?;
        let mut new = make(&view::present(self.kind, &old))?;
        let warnings = self.shape(&mut new)?;
        self.check_namespace(&new)?;
        let given = |object: &Value, field: &str| {
            let text = object["metadata"][field].as_str().unwrap_or_default();
            text.to_owned()
        };
        let version = given(&new, "resourceVersion");
        if !version.is_empty() && version != given(&old, "resourceVersion") {
            return Err(Failure::modified(group, plural, name));
        }
        let (uid, expected) = (given(&new, "uid"), given(&old, "uid"));
        if !uid.is_empty() && uid != expected {
            let why = format!(
                "Precondition failed: UID in precondition: {uid}, UID in object meta: {expected}"
            );
            return Err(Failure::conflict(group, plural, name, &why));
        }
        if given(&new, "name") != *name {
            let cause = Cause::invalid(
                "metadata.name",
                &new["metadata"]["name"],
                "field is immutable",
            );
            return Err(Failure::invalid(group, &self.kind.kind, name, &[cause]));
        }
        strategy::update(self.kind, &old, &mut new, self.status)?;
        if is_definition(self.kind) && !self.status {
            let stored = old["status"]["storedVersions"].clone();
            new["status"] = crd::established(&new, &strategy::now());
            if stored.is_array() {
                new["status"]["storedVersions"] = stored;
                new["status"]["conditions"] = old["status"]["conditions"].clone();
            }
        }
        if new == *old {
            return Ok((view::present(self.kind, &old), warnings));
        }
        let stored = self.commit(&mut state, key, new);
        Ok((view::present(self.kind, &stored), warnings))
    }

    fn commit(&self, state: &mut State, key: Key, object: Value) -> Arc<Value> {
        if self.request.param("dryRun") == "All" {
            return Arc::new(object);
        }
        store(state, self.kind, key, object)
    }

    /// Brings the object into its kind's shape, and into the form in which it is stored.
    fn shape(&self, object: &mut Value) -> Outcome<Vec<String>> {
        let unknown = match self.request.param("fieldValidation") {
            "Strict" => Unknown::Refuse,
            "Ignore" => Unknown::Ignore,
            _ => Unknown::Warn,
        };
        if self.kind.is("events.k8s.io", "Event") {
            view::absorb(self.kind, object);
            let core = Kind {
                group: String::new(),
                ..Kind::clone(self.kind)
            };
            return strategy::shape(&core, object, unknown);
        }
        let warnings = strategy::shape(self.kind, object, unknown)?;
        view::absorb(self.kind, object);
        Ok(warnings)
    }

    fn check_namespace(&self, object: &Value) -> Outcome<()> {
        match object["metadata"]["namespace"].as_str() {
            Some(namespace) if !namespace.is_empty() && namespace != self.target.namespace => {
                Err(Failure::bad_request(
                    "the namespace of the provided object does not match the namespace sent on the request",
                ))
            }
            _ => Ok(()),
        }
    }

    fn check_namespace_lives(&self, state: &State, name: &str) -> Outcome<()> {
        if !self.kind.namespaced {
            return Ok(());
        }
        let namespace = &self.target.namespace;
        let key = (String::new(), namespace.clone());
        let found = state
            .get("/namespaces", &key)
            .ok_or_else(|| Failure::not_found("", "namespaces", namespace))?;
        if found["metadata"]["deletionTimestamp"].is_null() {
            return Ok(());
        }
        let why = format!(
            "unable to create new content in namespace {namespace} because it is being terminated"
        );
        Err(Failure::forbidden(
            &self.kind.group,
            &self.kind.plural,
            name,
            &why,
        ))
    }
}

pub(super) fn is_definition(kind: &Kind) -> bool {
    kind.is("apiextensions.k8s.io", "CustomResourceDefinition")
}

/// Stores an object, or removes it when that was all that its deletion waited for.
pub(super) fn store(state: &mut State, kind: &Kind, key: Key, object: Value) -> Arc<Value> {
    let metadata = &object["metadata"];
    let waits = metadata["finalizers"]
        .as_array()
        .is_some_and(|f| !f.is_empty())
        || metadata["deletionGracePeriodSeconds"].as_i64().unwrap_or(0) > 0
        || kind.is("", "Namespace");
    if !metadata["deletionTimestamp"].is_null() && !waits {
        return super::delete::remove(state, kind, key, object);
    }
    let stored = state.put(&kind.resource(), key, object);
    if is_definition(kind) {
        serve_definitions(state);
    }
    stored
}

/// Serves the kinds of the definitions that are stored now.
pub(super) fn serve_definitions(state: &mut State) {
    let definitions = state.list("apiextensions.k8s.io/customresourcedefinitions", "");
    let catalog = Catalog::with(definitions.map(|(_, definition)| &**definition));
    state.catalog = Arc::new(catalog);
}
