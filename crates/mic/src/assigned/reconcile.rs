//! AzureAssignedIdentity objects: which must be made, changed or taken away, decided from the index.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt as _;
use podid_api::ObjectError;
use podid_api::assigned::{
    AssignmentState, AzureAssignedIdentity, AzureAssignedIdentitySpec, AzureAssignedIdentityStatus,
    FINALIZER, NODE_LABEL, SHARED_NAMESPACE, hashed_name, name,
};
use podid_policy::desired::{Assignment, AssignmentKey, DesiredState};
use podid_policy::facts::ObjectKey;
use podid_policy::ids::ResourceId;
use podid_policy::matching::Scope;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::assigned::copies;
use crate::config::Config;
use crate::index::Index;

/// A longer text in a status is cut.
const MAX_MESSAGE: usize = 1000;
/// The longest value of a label.
const MAX_LABEL: usize = 63;

/// An AzureAssignedIdentity as it is watched.
#[derive(kube::Resource, Debug, Clone, Deserialize)]
#[resource(inherit = "AzureAssignedIdentity")]
pub(crate) struct WatchedAssignedIdentity {
    metadata: ObjectMeta,
    #[serde(default)]
    spec: AzureAssignedIdentitySpec,
    #[serde(default)]
    status: Option<WatchedStatus>,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct WatchedStatus {
    #[serde(default)]
    status: String,
    #[serde(default)]
    message: String,
}

/// What is kept of an AzureAssignedIdentity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AssignedObject {
    pub(crate) key: ObjectKey,
    pub(crate) assignment: AssignmentKey,
    version: Box<str>,
    uid: Box<str>,
    node: Arc<str>,
    labelled: bool,
    finalizer: bool,
    other_finalizers: Box<[String]>,
    deleting: bool,
    state: AssignmentState,
    message: Box<str>,
    resource: Option<ResourceId>,
    binding: Option<ObjectKey>,
    fingerprint: u64,
}

impl AssignedObject {
    /// Keeps the few fields that matter.
    ///
    /// # Errors
    /// [`ObjectError`] names the field that is missing.
    pub(crate) fn read(seen: WatchedAssignedIdentity) -> Result<Self, ObjectError> {
        let status = seen.status.unwrap_or_default();
        let object = AzureAssignedIdentity {
            metadata: seen.metadata,
            spec: seen.spec,
            status: Some(AzureAssignedIdentityStatus {
                status: status.status,
                available_replicas: None,
            }),
        };
        let facts = object.facts()?;
        let copies = copies::parse(&object.spec);
        let labelled = object.labels().get(NODE_LABEL) == Some(&facts.node);
        let (ours, others): (Vec<_>, Vec<_>) = object
            .finalizers()
            .iter()
            .cloned()
            .partition(|name| name == FINALIZER);
        Ok(Self {
            assignment: AssignmentKey {
                pod: facts.pod,
                identity: facts.identity.name,
            },
            version: object.resource_version().unwrap_or_default().into(),
            uid: object.uid().unwrap_or_default().into(),
            labelled: labelled || facts.node.len() > MAX_LABEL,
            node: facts.node.into(),
            finalizer: !ours.is_empty(),
            other_finalizers: others.into(),
            deleting: facts.deleting,
            state: facts.state,
            message: status.message.into(),
            resource: copies
                .as_ref()
                .and_then(|(identity, _)| identity.resource_id().cloned()),
            binding: facts.binding,
            fingerprint: copies.map_or(0, |(i, b)| fingerprint(&copies::render(&i, &b))),
            key: facts.key,
        })
    }

    /// Shares what the index knows too, as there may be very many objects.
    pub(crate) fn share(&mut self, desired: &mut DesiredState) {
        self.node = desired.intern(&self.node);
        self.key.namespace = desired.intern(&self.key.namespace);
        if let Some(binding) = &mut self.binding {
            binding.namespace = desired.intern(&binding.namespace);
            binding.name = desired.intern(&binding.name);
        }
        let Some(known) = desired.get(&self.assignment) else {
            let pod = &mut self.assignment.pod;
            pod.namespace = desired.intern(&pod.namespace);
            self.assignment.identity = desired.intern(&self.assignment.identity);
            return;
        };
        self.assignment = known.key();
        let resource = known.identity.resource_id();
        if self.resource.as_ref() == resource {
            self.resource = resource.cloned();
        }
    }

    /// The node that it shows.
    pub(crate) fn node(&self) -> &str {
        &self.node
    }

    /// Whether this is a later state of the object than `other`. Versions that are not numbers tell nothing.
    pub(crate) fn is_newer_than(&self, other: &AssignedObject) -> bool {
        let number = |object: &AssignedObject| object.version.parse::<u64>().ok();
        self.uid == other.uid && number(self) > number(other) && number(other).is_some()
    }
}

/// A write to an object.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum ObjectWrite {
    /// Make it.
    Create(ObjectKey, Value),
    /// Change what differs.
    Patch(ObjectKey, Value),
    /// Drop the finalizer where it is set, then delete it unless that is under way.
    Remove {
        key: ObjectKey,
        uid: String,
        patch: Option<Value>,
        delete: bool,
    },
}

/// What the writes amount to, for Events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum BindingEvent {
    /// The pod can use the identity from now on.
    Applied { binding: ObjectKey, node: String },
    /// The pod can use it no longer.
    Removed { binding: ObjectKey, node: String },
}

/// Decides what to write for one assignment.
pub(crate) fn decide(
    index: &mut Index,
    key: &AssignmentKey,
    config: &Config,
) -> (Vec<ObjectWrite>, Option<BindingEvent>) {
    let objects: Vec<AssignedObject> = index.objects_of(key).into_iter().cloned().collect();
    match index.desired.get(key).cloned() {
        Some(assignment) => keep(index, &assignment, &objects, config.scope),
        None => {
            let mut news = None;
            let mut steps = Vec::new();
            for object in objects.iter().filter(|object| !hold(index, object, config)) {
                steps.push(remove(object));
                let binding = object.binding.clone();
                news = news.or(binding.map(|binding| BindingEvent::Removed {
                    binding,
                    node: object.node.to_string(),
                }));
            }
            (steps, news)
        }
    }
}

fn keep(
    index: &Index,
    assignment: &Assignment,
    objects: &[AssignedObject],
    scope: Scope,
) -> (Vec<ObjectWrite>, Option<BindingEvent>) {
    let home = home(index, assignment, scope);
    let kept = objects
        .iter()
        .filter(|object| !object.deleting)
        .min_by_key(|object| (object.key != home, &object.key));
    let mut steps: Vec<ObjectWrite> = objects
        .iter()
        .filter(|object| kept.is_none_or(|kept| kept.key != object.key))
        .map(remove)
        .collect();
    let (state, message) = state(index, assignment, kept);
    let assigned = state == AssignmentState::Assigned
        && kept.is_none_or(|o| o.state != AssignmentState::Assigned);
    let step = match kept {
        Some(object) => change(assignment, object, state, &message),
        // An object of this name is still going away: its end brings us back here.
        None if objects.iter().any(|object| object.key == home) => None,
        None => Some(create(assignment, home, state, &message)),
    };
    let news = step.is_some() && assigned;
    steps.extend(step);
    let news = news.then(|| BindingEvent::Applied {
        binding: assignment.binding.key.clone(),
        node: assignment.node.to_string(),
    });
    (steps, news)
}

/// Where the object lives: beside its identity where matching is namespaced, else in one namespace for all.
fn home(index: &Index, assignment: &Assignment, scope: Scope) -> ObjectKey {
    let identity = &assignment.identity;
    let namespace = if scope == Scope::Namespaced || identity.namespaced {
        &identity.key.namespace
    } else {
        SHARED_NAMESPACE
    };
    let usual = ObjectKey::new(namespace, &name(&assignment.pod, &identity.key.name));
    let holder = index.objects.get(&usual);
    if holder.is_some_and(|object| object.assignment != assignment.key()) {
        let other = hashed_name(&assignment.pod, &identity.key.name);
        return ObjectKey::new(namespace, &other);
    }
    usual
}

/// How far the assignment is, and why not further.
fn state(
    index: &Index,
    assignment: &Assignment,
    object: Option<&AssignedObject>,
) -> (AssignmentState, String) {
    let Some(id) = assignment.identity.resource_id() else {
        return (AssignmentState::Assigned, String::new());
    };
    let Some(key) = &assignment.host else {
        let node = &assignment.node;
        let text = format!(
            "the Azure resource behind node {node} is not known: its spec.providerID is empty or not Azure's"
        );
        return (AssignmentState::Created, text);
    };
    let host = index.hosts.get(key);
    match host.and_then(|host| host.has(id)) {
        Some(true) => (AssignmentState::Assigned, String::new()),
        Some(false) => {
            let reason = host.and_then(|host| index.reason(host, id));
            let text = reason.map_or("", |(_, text)| text);
            (
                AssignmentState::Created,
                text.chars().take(MAX_MESSAGE).collect(),
            )
        }
        // Not known: what the object says stands, unless it shows another identity or another host.
        None => {
            match object.filter(|o| o.resource.as_ref() == Some(id) && o.node == assignment.node) {
                Some(object) if object.state == AssignmentState::Assigned => {
                    (AssignmentState::Assigned, String::new())
                }
                Some(object) => (AssignmentState::Created, object.message.to_string()),
                None => (AssignmentState::Created, String::new()),
            }
        }
    }
}

fn create(
    assignment: &Assignment,
    home: ObjectKey,
    state: AssignmentState,
    message: &str,
) -> ObjectWrite {
    let (identity, binding) = copies::render(&assignment.identity, &assignment.binding);
    let mut status = json!({ "status": state.name(), "availableReplicas": 1 });
    if !message.is_empty() {
        status["message"] = json!(message);
    }
    let mut body = json!({
        "apiVersion": "aadpodidentity.k8s.io/v1",
        "kind": "AzureAssignedIdentity",
        "metadata": { "namespace": &*home.namespace, "name": &*home.name, "finalizers": [FINALIZER] },
        "spec": {
            "azureIdentityRef": copies::without_nulls(identity),
            "azureBindingRef": copies::without_nulls(binding),
            "pod": &*assignment.pod.name,
            "podNamespace": &*assignment.pod.namespace,
            "nodename": &*assignment.node,
            "replicas": 1,
        },
        "status": status,
    });
    if assignment.node.len() <= MAX_LABEL {
        body["metadata"]["labels"] = json!({ NODE_LABEL: &*assignment.node });
    }
    ObjectWrite::Create(home, body)
}

/// A merge patch of what differs, if anything does.
fn change(
    assignment: &Assignment,
    object: &AssignedObject,
    state: AssignmentState,
    message: &str,
) -> Option<ObjectWrite> {
    let mut body = Map::new();
    let mut metadata = Map::new();
    let mut spec = Map::new();
    if !object.finalizer {
        let mut finalizers = object.other_finalizers.to_vec();
        finalizers.push(FINALIZER.to_owned());
        metadata.insert("finalizers".to_owned(), json!(finalizers));
    }
    let moved = object.node != assignment.node;
    if moved {
        spec.insert("nodename".to_owned(), json!(&*assignment.node));
    }
    if (moved || !object.labelled) && assignment.node.len() <= MAX_LABEL {
        let label = json!({ NODE_LABEL: &*assignment.node });
        metadata.insert("labels".to_owned(), label);
    }
    let copies = copies::render(&assignment.identity, &assignment.binding);
    if fingerprint(&copies) != object.fingerprint {
        spec.insert("azureIdentityRef".to_owned(), copies.0);
        spec.insert("azureBindingRef".to_owned(), copies.1);
    }
    if !spec.is_empty() {
        body.insert("spec".to_owned(), Value::Object(spec));
    }
    if object.state != state || *object.message != *message {
        let message = Some(message).filter(|text| !text.is_empty());
        let status = json!({ "status": state.name(), "message": message });
        body.insert("status".to_owned(), status);
    }
    if body.is_empty() && metadata.is_empty() {
        return None;
    }
    metadata.insert("resourceVersion".to_owned(), json!(object.version));
    body.insert("metadata".to_owned(), Value::Object(metadata));
    Some(ObjectWrite::Patch(object.key.clone(), Value::Object(body)))
}

fn remove(object: &AssignedObject) -> ObjectWrite {
    let patch = object.finalizer.then(|| {
        json!({
            "metadata": { "resourceVersion": object.version, "finalizers": object.other_finalizers },
            "status": { "status": AssignmentState::Unassigned.name() },
        })
    });
    ObjectWrite::Remove {
        key: object.key.clone(),
        uid: object.uid.to_string(),
        patch,
        delete: !object.deleting,
    }
}

/// Whether an object that shows an assignment of the past must stay because its identity is still to leave the host. Then the
/// host's worker asks again once it has. An object that somebody deletes is let go: what podid attached is recorded apart.
fn hold(index: &mut Index, object: &AssignedObject, config: &Config) -> bool {
    if object.deleting {
        return false;
    }
    let Some(id) = &object.resource else {
        return false;
    };
    let Some(host) = index.desired.host_of(&object.node).cloned() else {
        return false;
    };
    let Some(host) = index.hosts.get_mut(&host) else {
        return false;
    };
    let held = host.will_detach(id, &config.immutable);
    if held {
        let waiting = host.held.entry(id.clone()).or_default();
        waiting.insert(object.assignment.clone());
    }
    held
}

fn fingerprint(copies: &(Value, Value)) -> u64 {
    let mut hasher = DefaultHasher::new();
    copies.0.to_string().hash(&mut hasher);
    copies.1.to_string().hash(&mut hasher);
    hasher.finish()
}
