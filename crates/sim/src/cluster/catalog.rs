//! Catalog of the served kinds, built-in and custom. The API server finds the kind of a request in it; discovery lists it.

use std::sync::Arc;

use serde_json::Value;

use super::{
    builtin,
    crd::{self, Custom},
};

/// One served kind of one version.
#[derive(Debug, Clone)]
pub(super) struct Kind {
    pub group: String,
    pub version: String,
    pub kind: String,
    pub list_kind: String,
    pub plural: String,
    pub singular: String,
    pub short_names: Vec<String>,
    pub categories: Vec<String>,
    pub namespaced: bool,
    /// Has a `status` subresource.
    pub status: bool,
    /// `metadata.generation` counts the changes of its desired state.
    pub generation: bool,
    /// Fields that a field selector may name.
    pub fields: &'static [&'static str],
    pub source: Source,
}

/// Where the shape of a kind comes from.
#[derive(Debug, Clone)]
pub(super) enum Source {
    /// Reads an object into its Go-like type and back, or says what does not fit.
    Builtin(fn(Value) -> Result<Value, String>),
    Custom(Arc<Custom>),
}

impl Kind {
    pub(super) fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.clone()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// The store's name of the resource, the same for all versions of a kind.
    pub(super) fn resource(&self) -> String {
        if self.is_event() {
            return "events".to_owned();
        }
        format!("{}/{}", self.group, self.plural)
    }

    /// Both groups' Events are the same objects.
    pub(super) fn is_event(&self) -> bool {
        self.kind == "Event" && ["", "events.k8s.io"].contains(&self.group.as_str())
    }

    pub(super) fn is(&self, group: &str, kind: &str) -> bool {
        self.group == group && self.kind == kind
    }

    pub(super) fn custom(&self) -> Option<&Arc<Custom>> {
        match &self.source {
            Source::Custom(custom) => Some(custom),
            Source::Builtin(_) => None,
        }
    }
}

/// Every served kind.
#[derive(Debug, Clone)]
pub(super) struct Catalog {
    kinds: Vec<Arc<Kind>>,
}

impl Catalog {
    pub(super) fn builtin() -> Self {
        Self {
            kinds: builtin::kinds().into_iter().map(Arc::new).collect(),
        }
    }

    /// The built-in kinds and those that the definitions name.
    pub(super) fn with<'a>(definitions: impl Iterator<Item = &'a Value>) -> Self {
        let mut catalog = Self::builtin();
        for definition in definitions {
            match crd::kinds(definition) {
                Ok(kinds) => catalog.kinds.extend(kinds.into_iter().map(Arc::new)),
                Err(causes) => {
                    tracing::warn!(?causes, "stored CustomResourceDefinition not served")
                }
            }
        }
        catalog
    }

    pub(super) fn kinds(&self) -> impl Iterator<Item = &Arc<Kind>> {
        self.kinds.iter()
    }

    pub(super) fn find(&self, group: &str, version: &str, plural: &str) -> Option<Arc<Kind>> {
        self.kinds
            .iter()
            .find(|k| k.group == group && k.version == version && k.plural == plural)
            .cloned()
    }

    /// Any version of a stored resource.
    pub(super) fn of_resource(&self, resource: &str) -> Option<Arc<Kind>> {
        self.kinds
            .iter()
            .find(|k| k.resource() == resource)
            .cloned()
    }

    /// Whether the version of the group is served at all.
    pub(super) fn has_version(&self, group: &str, version: &str) -> bool {
        self.kinds
            .iter()
            .any(|k| k.group == group && k.version == version)
    }

    /// The groups but the core one, each with its versions, in discovery's order.
    pub(super) fn groups(&self) -> Vec<(String, Vec<String>)> {
        let mut groups: Vec<(String, Vec<String>)> = Vec::new();
        for kind in self.kinds.iter().filter(|k| !k.group.is_empty()) {
            match groups.iter_mut().find(|(group, _)| *group == kind.group) {
                Some((_, versions)) if versions.contains(&kind.version) => {}
                Some((_, versions)) => versions.push(kind.version.clone()),
                None => groups.push((kind.group.clone(), vec![kind.version.clone()])),
            }
        }
        groups
    }
}
