//! Events: what `kubectl describe` shows on pods, bindings and identities.
//!
//! The writers, the hosts' workers and the watches make [`PendingEvent`]s and pass them to
//! [`Context::record_event`](crate::context::Context::record_event); one task records them. So a slow API server delays no
//! decision.

use k8s_openapi::api::core::v1::ObjectReference;
use podid_cluster::events::EventRecorder;
use podid_policy::desired::Assignment;
use podid_policy::facts::ObjectKey;
use tokio::sync::mpsc::Receiver;
use tokio_util::sync::CancellationToken;

use crate::assigned::reconcile::BindingEvent;
use crate::index::Index;
use crate::meta::Meta;

/// An Event that is to be recorded.
#[derive(Debug, Clone)]
pub(crate) struct PendingEvent {
    pub(crate) regarding: ObjectReference,
    pub(crate) warning: bool,
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

/// Records Events until shutdown.
pub(crate) async fn record(
    recorder: EventRecorder,
    mut pending: Receiver<PendingEvent>,
    shutdown: CancellationToken,
) {
    loop {
        let event = tokio::select! {
            () = shutdown.cancelled() => return,
            event = pending.recv() => event,
        };
        let Some(PendingEvent {
            regarding,
            warning,
            reason,
            message,
        }) = event
        else {
            return;
        };
        let recorded = recorder.record(&regarding, warning, reason, &message);
        recorded.await;
    }
}

/// An Event on a binding: it has taken effect for a pod, or has ended.
pub(crate) fn of_binding(index: &Index, pod: &ObjectKey, event: BindingEvent) -> PendingEvent {
    let (binding, reason, what, node) = match event {
        BindingEvent::Applied { binding, node } => (binding, "BindingApplied", "applied to", node),
        BindingEvent::Removed { binding, node } => {
            (binding, "BindingRemoved", "removed from", node)
        }
    };
    PendingEvent {
        message: format!("binding {binding} {what} pod {pod} on node {node}"),
        regarding: reference(
            "AzureIdentityBinding",
            &binding,
            index.bindings.get(&binding),
        ),
        warning: false,
        reason,
    }
}

/// A warning on an AzureIdentity.
pub(crate) fn of_identity(
    index: &Index,
    identity: &ObjectKey,
    reason: &'static str,
    message: String,
) -> PendingEvent {
    PendingEvent {
        regarding: reference("AzureIdentity", identity, index.identities.get(identity)),
        warning: true,
        reason,
        message,
    }
}

/// A warning on a pod: one of its identities is not attached.
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

/// A warning on an object that podid cannot use as it is.
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
        regarding: reference(kind, key, Some(&meta)),
        warning: true,
        reason: "Malformed",
        message,
    }
}

/// A warning on a binding whose limit the API server has pruned.
pub(crate) fn of_pruned(binding: &ObjectKey, uid: &str, message: String) -> PendingEvent {
    PendingEvent {
        reason: "ServiceAccountsPruned",
        ..of_malformed("AzureIdentityBinding", binding, uid, message)
    }
}

fn reference(kind: &str, key: &ObjectKey, meta: Option<&Meta>) -> ObjectReference {
    ObjectReference {
        api_version: Some("aadpodidentity.k8s.io/v1".to_owned()),
        kind: Some(kind.to_owned()),
        namespace: Some(key.namespace.to_string()),
        name: Some(key.name.to_string()),
        uid: meta.map(|meta| meta.uid.to_string()),
        ..ObjectReference::default()
    }
}
