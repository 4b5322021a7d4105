//! Event recorder: records Kubernetes Events on objects, where `kubectl describe` shows them. The controller calls it for what
//! it did or could not do for a pod or an identity.

use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use tokio::time::timeout;

/// The longest note in bytes, without the ellipsis: the API server refuses an Event whose note has more than 1024
/// (`NoteLengthLimit` of its validation).
const MAX_NOTE: usize = 1000;

/// An Event that the API server has not taken after five seconds is given up, so that the next ones are not held up.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(5);

/// Records Events of one component. An Event that is repeated within minutes is counted up, not recorded anew.
#[derive(Clone)]
pub struct EventRecorder {
    recorder: Recorder,
}

impl EventRecorder {
    /// `component` is shown as the source, `instance` (the pod's name) tells its replicas apart.
    pub fn new(client: Client, component: &str, instance: &str) -> Self {
        let reporter = Reporter {
            controller: component.to_owned(),
            instance: Some(instance.to_owned()),
        };
        Self {
            recorder: Recorder::new(client, reporter),
        }
    }

    /// Records that `reason` (one word in PascalCase) happened to an object. Events are best effort: a failure is logged only.
    pub async fn record(
        &self,
        regarding: &ObjectReference,
        warning: bool,
        reason: &str,
        message: &str,
    ) {
        let event = Event {
            type_: if warning {
                EventType::Warning
            } else {
                EventType::Normal
            },
            reason: reason.to_owned(),
            note: Some(clip(message)),
            action: reason.to_owned(),
            secondary: None,
        };
        let published = self.recorder.publish(&event, regarding);
        let trouble = match timeout(PUBLISH_TIMEOUT, published).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(_) => "the API server does not answer".to_owned(),
        };
        tracing::info!(event = reason, reason = %trouble, "an Event was not recorded");
    }
}

fn clip(message: &str) -> String {
    if message.len() <= MAX_NOTE {
        return message.to_owned();
    }
    format!("{}…", &message[..message.floor_char_boundary(MAX_NOTE)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::Store;

    #[tokio::test]
    async fn an_event_names_its_object_and_its_source() {
        let store = Store::default();
        let events = EventRecorder::new(store.client("me"), "podid-mic", "mic-0");
        let pod = ObjectReference {
            kind: Some("Pod".into()),
            name: Some("web".into()),
            namespace: Some("shop".into()),
            ..ObjectReference::default()
        };
        let long = "é".repeat(2000);
        events.record(&pod, true, "IdentityNotFound", &long).await;
        let event = store.object();
        assert_eq!(event["type"], "Warning");
        assert_eq!(event["reason"], "IdentityNotFound");
        assert_eq!(event["regarding"]["name"], "web");
        assert_eq!(event["reportingController"], "podid-mic");
        let note = event["note"].as_str().unwrap();
        assert!((MAX_NOTE..=1024).contains(&note.len()), "{}", note.len());
        store.cut("me");
        events.record(&pod, true, "Other", "not delivered").await;
        assert_eq!(store.object()["reason"], "IdentityNotFound");
    }
}
