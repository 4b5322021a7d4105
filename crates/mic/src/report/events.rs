//! Events on the objects that people look at.

use k8s_openapi::api::core::v1::ObjectReference;
use podid_cluster::events::EventRecorder;
use podid_policy::desired::Assignment;
use podid_policy::facts::ObjectKey;
use tokio::sync::mpsc::Receiver;
use tokio_util::sync::CancellationToken;

use crate::assigned::News;
use crate::index::{Meta, State};

/// An Event to be recorded.
#[derive(Debug, Clone)]
pub(crate) struct Note {
    pub(crate) regarding: ObjectReference,
    pub(crate) warning: bool,
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

/// Records Events until shutdown.
pub(crate) async fn record(
    events: EventRecorder,
    mut notes: Receiver<Note>,
    shutdown: CancellationToken,
) {
    loop {
        let note = tokio::select! {
            () = shutdown.cancelled() => return,
            note = notes.recv() => note,
        };
        let Some(note) = note else { return };
        let Note {
            regarding,
            warning,
            reason,
            message,
        } = note;
        events.record(&regarding, warning, reason, &message).await;
    }
}

/// Tells on the binding that it took effect for a pod, or no longer does.
pub(crate) fn of_binding(state: &State, pod: &ObjectKey, news: News) -> Note {
    let (binding, reason, what, node) = match news {
        News::Assigned { binding, node } => (binding, "BindingApplied", "applied to", node),
        News::Removed { binding, node } => (binding, "BindingRemoved", "removed from", node),
    };
    Note {
        message: format!("binding {binding} {what} pod {pod} on node {node}"),
        regarding: custom(
            "AzureIdentityBinding",
            &binding,
            state.bindings.get(&binding),
        ),
        warning: false,
        reason,
    }
}

/// Tells on the identity what is wrong with it.
pub(crate) fn of_identity(
    state: &State,
    identity: &ObjectKey,
    reason: &'static str,
    message: String,
) -> Note {
    Note {
        regarding: custom("AzureIdentity", identity, state.identities.get(identity)),
        warning: true,
        reason,
        message,
    }
}

/// Tells on the pod that one of its identities cannot be attached.
pub(crate) fn of_pod(assignment: &Assignment, message: String) -> Note {
    let regarding = ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        namespace: Some(assignment.pod.namespace.to_string()),
        name: Some(assignment.pod.name.to_string()),
        uid: Some(assignment.uid.to_string()),
        ..ObjectReference::default()
    };
    Note {
        regarding,
        warning: true,
        reason: "IdentityNotAttached",
        message,
    }
}

/// Tells on an object that it cannot be used as it is.
pub(crate) fn of_malformed(kind: &str, key: &ObjectKey, uid: &str, message: String) -> Note {
    let meta = Meta {
        uid: uid.into(),
        ..Meta::default()
    };
    Note {
        regarding: custom(kind, key, Some(&meta)),
        warning: true,
        reason: "Malformed",
        message,
    }
}

fn custom(kind: &str, key: &ObjectKey, meta: Option<&Meta>) -> ObjectReference {
    ObjectReference {
        api_version: Some("aadpodidentity.k8s.io/v1".to_owned()),
        kind: Some(kind.to_owned()),
        namespace: Some(key.namespace.to_string()),
        name: Some(key.name.to_string()),
        uid: meta.map(|meta| meta.uid.to_string()),
        ..ObjectReference::default()
    }
}
