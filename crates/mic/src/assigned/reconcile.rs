//! Reconcile the objects of one assignment: which AzureAssignedIdentity to create, patch or remove, decided from the index.
//!
//! The writers ([`super::writer`]) call [`decide`] for every key of the work queue. It guards two rules: an object stays until its
//! identity has left the host, and nothing is written that is already so.

use podid_api::assigned::{
    AssignmentState, FINALIZER, NODE_LABEL, SHARED_NAMESPACE, hashed_name, name,
};
use podid_policy::desired::{Assignment, AssignmentKey};
use podid_policy::facts::ObjectKey;
use podid_policy::matching::Scope;
use serde_json::{Map, Value, json};

use crate::assigned::copies::{Copies, without_nulls};
use crate::assigned::object::{AssignedObject, MAX_LABEL};
use crate::config::Config;
use crate::index::Index;

/// A message in a status is cut after 1,000 characters, so that Azure's long errors do not swell thousands of objects.
const MAX_MESSAGE: usize = 1000;

/// A write to an AzureAssignedIdentity.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum ObjectWrite {
    /// Create the object with this body.
    Create(ObjectKey, Value),
    /// Send this merge patch, which has what differs.
    Patch(ObjectKey, Value),
    /// Send the patch that removes the finalizer, then delete the object unless that is under way.
    Remove {
        key: ObjectKey,
        uid: String,
        patch: Option<Value>,
        delete: bool,
    },
}

/// What the Event on a binding says once the writes are done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum BindingEvent {
    /// The pod can use the identity from now on.
    Applied { binding: ObjectKey, node: String },
    /// The pod cannot use the identity any more.
    Removed { binding: ObjectKey, node: String },
}

/// Decides what to write for one assignment, and which Event follows.
pub(crate) fn decide(
    index: &mut Index,
    key: &AssignmentKey,
    config: &Config,
) -> (Vec<ObjectWrite>, Option<BindingEvent>) {
    let objects: Vec<AssignedObject> = index.objects_of(key).into_iter().cloned().collect();
    match index.desired.get(key).cloned() {
        Some(assignment) => keep_one(index, &assignment, &objects, config.scope),
        None => {
            let mut event = None;
            let mut writes = Vec::new();
            for object in objects.iter().filter(|object| !hold(index, object, config)) {
                writes.push(remove(object));
                let binding = object.binding.clone();
                event = event.or(binding.map(|binding| BindingEvent::Removed {
                    binding,
                    node: object.node.to_string(),
                }));
            }
            (writes, event)
        }
    }
}

fn keep_one(
    index: &Index,
    assignment: &Assignment,
    objects: &[AssignedObject],
    scope: Scope,
) -> (Vec<ObjectWrite>, Option<BindingEvent>) {
    let home = object_key(index, assignment, scope);
    let kept = objects
        .iter()
        .filter(|object| !object.deleting)
        .min_by_key(|object| (object.key != home, &object.key));
    let mut writes: Vec<ObjectWrite> = objects
        .iter()
        .filter(|object| kept.is_none_or(|kept| kept.key != object.key))
        .map(remove)
        .collect();
    let (state, message) = state_of(index, assignment, kept);
    let is_assigned_now = state == AssignmentState::Assigned
        && kept.is_none_or(|o| o.state != AssignmentState::Assigned);
    let write = match kept {
        Some(object) => change(assignment, object, state, &message),
        // An object of this name is still being deleted; the watch tells when it is gone, which leads here again.
        None if objects.iter().any(|object| object.key == home) => None,
        None => Some(create(assignment, home, state, &message)),
    };
    let is_news = write.is_some() && is_assigned_now;
    writes.extend(write);
    let event = is_news.then(|| BindingEvent::Applied {
        binding: assignment.binding.key.clone(),
        node: assignment.node.to_string(),
    });
    (writes, event)
}

/// The namespace and name of the object: in the namespace of its identity where matching is namespaced, else in one for all.
fn object_key(index: &Index, assignment: &Assignment, scope: Scope) -> ObjectKey {
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

/// The state that the object must show, and the reason while the identity is not on the host.
fn state_of(
    index: &Index,
    assignment: &Assignment,
    object: Option<&AssignedObject>,
) -> (AssignmentState, String) {
    let Some(id) = assignment.identity.attached_id() else {
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
        // Not known yet: what the object says stays, unless it shows another identity or another node.
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
    let copies = Copies::render(&assignment.identity, &assignment.binding);
    let mut status = json!({ "status": state.name(), "availableReplicas": 1 });
    if !message.is_empty() {
        status["message"] = json!(message);
    }
    let mut body = json!({
        "apiVersion": "aadpodidentity.k8s.io/v1",
        "kind": "AzureAssignedIdentity",
        "metadata": { "namespace": &*home.namespace, "name": &*home.name, "finalizers": [FINALIZER] },
        "spec": {
            "azureIdentityRef": without_nulls(copies.identity),
            "azureBindingRef": without_nulls(copies.binding),
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

/// A merge patch with what differs; `None` when nothing does.
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
    let copies = Copies::render(&assignment.identity, &assignment.binding);
    if copies.fingerprint() != object.fingerprint {
        spec.insert("azureIdentityRef".to_owned(), copies.identity);
        spec.insert("azureBindingRef".to_owned(), copies.binding);
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

/// Whether an object of an assignment of the past must stay because its identity is still to leave the host. The host's worker puts
/// the assignment into the queue again once it has. An object that somebody deletes may go: the ownership record is kept apart.
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
    // The identity may stay on the host for long while federation does not work, and nothing waits for it.
    if index.checks.keeps_attached(id, &host, &index.desired) {
        return false;
    }
    let Some(host) = index.hosts.get_mut(&host) else {
        return false;
    };
    let must_stay = host.will_detach(id, &config.immutable);
    if must_stay {
        host.hold_until_detached(id, object.assignment.clone());
    }
    must_stay
}
