//! Events on the objects that people look at.

use k8s_openapi::api::core::v1::ObjectReference;
use podid_cluster::events::EventRecorder;
use podid_policy::desired::Assignment;
use podid_policy::facts::ObjectKey;
use tokio::sync::mpsc::Receiver;
use tokio_util::sync::CancellationToken;

use crate::assigned::BindingEvent;
use crate::index::{Index, Meta};

/// An Event to be recorded.
#[derive(Debug, Clone)]
pub(crate) struct PendingEvent {
    pub(crate) regarding: ObjectReference,
    pub(crate) warning: bool,
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

/// Records Events until shutdown.
pub(crate) async fn record(
    events: EventRecorder,
    mut notes: Receiver<PendingEvent>,
    shutdown: CancellationToken,
) {
    loop {
        let note = tokio::select! {
            () = shutdown.cancelled() => return,
            note = notes.recv() => note,
        };
        let Some(note) = note else { return };
        let PendingEvent {
            regarding,
            warning,
            reason,
            message,
        } = note;
        events.record(&regarding, warning, reason, &message).await;
    }
}

/// Tells on the binding that it took effect for a pod, or no longer does.
pub(crate) fn of_binding(index: &Index, pod: &ObjectKey, news: BindingEvent) -> PendingEvent {
    let (binding, reason, what, node) = match news {
        BindingEvent::Applied { binding, node } => (binding, "BindingApplied", "applied to", node),
        BindingEvent::Removed { binding, node } => {
            (binding, "BindingRemoved", "removed from", node)
        }
    };
    PendingEvent {
        message: format!("binding {binding} {what} pod {pod} on node {node}"),
        regarding: custom(
            "AzureIdentityBinding",
            &binding,
            index.bindings.get(&binding),
        ),
        warning: false,
        reason,
    }
}

/// Tells on the identity what is wrong with it.
pub(crate) fn of_identity(
    index: &Index,
    identity: &ObjectKey,
    reason: &'static str,
    message: String,
) -> PendingEvent {
    PendingEvent {
        regarding: custom("AzureIdentity", identity, index.identities.get(identity)),
        warning: true,
        reason,
        message,
    }
}

/// Tells on the pod that one of its identities cannot be attached.
pub(crate) fn of_pod(assignment: &Assignment, message: String) -> PendingEvent {
    let regarding = ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        namespace: Some(assignment.pod.namespace.to_string()),
        name: Some(assignment.pod.name.to_string()),
        uid: Some(assignment.uid.to_string()),
        ..ObjectReference::default()
    };
    PendingEvent {
        regarding,
        warning: true,
        reason: "IdentityNotAttached",
        message,
    }
}

/// Tells on an object that it cannot be used as it is.
pub(crate) fn of_malformed(
    kind: &str,
    key: &ObjectKey,
    uid: &str,
    message: String,
) -> PendingEvent {
    let meta = Meta {
        uid: uid.into(),
        ..Meta::default()
    };
    PendingEvent {
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
