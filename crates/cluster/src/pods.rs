//! Pod facts: the few fields of a Pod that the rules and the index need.
//!
//! The watches and look-ups of the node agent and of the broker call it, so that a pod is read the same way everywhere. It guards
//! their memory: the rest of the object is dropped.

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use podid_policy::facts::{ObjectKey, PodFacts, PodPhase};

/// The API server takes no pod from a kubelet but with this annotation (NodeRestriction), and lets nobody add or change it later.
pub const MIRROR_ANNOTATION: &str = "kubernetes.io/config.mirror";

/// The facts of a pod. Text that is not an IP address is left out of its addresses.
pub fn facts(pod: &Pod) -> PodFacts {
    let spec = pod.spec.as_ref();
    let status = pod.status.as_ref();
    let phase = status.and_then(|status| status.phase.as_deref());
    let first = status.and_then(|status| status.pod_ip.as_deref());
    let all = status.and_then(|status| status.pod_ips.as_ref());
    let mut addresses: Vec<_> = first
        .into_iter()
        .chain(all.into_iter().flatten().map(|ip| &*ip.ip))
        .filter_map(|text| text.parse().ok())
        .collect();
    addresses.sort();
    addresses.dedup();
    PodFacts {
        key: ObjectKey::new(&pod.namespace().unwrap_or_default(), &pod.name_any()),
        uid: uid(pod).into(),
        labels: pod.labels().clone(),
        service_account: spec
            .and_then(|spec| spec.service_account_name.as_deref())
            .unwrap_or("default")
            .into(),
        node: spec
            .and_then(|spec| spec.node_name.as_deref())
            .filter(|node| !node.is_empty())
            .map(Into::into),
        addresses,
        host_network: spec.and_then(|spec| spec.host_network).unwrap_or(false),
        phase: match phase {
            Some("Succeeded" | "Failed") => PodPhase::Finished,
            _ => PodPhase::Live,
        },
    }
}

/// The uid by which the node knows the pod. The kubelet gives a static pod a uid of its own, which an annotation of its mirror pod
/// at the API server has.
fn uid(pod: &Pod) -> String {
    let mirrored = pod.annotations().get(MIRROR_ANNOTATION);
    mirrored.cloned().or_else(|| pod.uid()).unwrap_or_default()
}

/// Whether the pod is a mirror pod: the kubelet made it, for a static pod that its node says it runs, with labels of its choice.
pub fn is_mirror(pod: &Pod) -> bool {
    pod.annotations().contains_key(MIRROR_ANNOTATION)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn few_fields_are_kept() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": { "namespace": "shop", "name": "web", "uid": "u", "labels": { "aadpodidbinding": "app" } },
            "spec": { "nodeName": "node-1", "serviceAccountName": "sa", "containers": [] },
            "status": { "phase": "Running", "podIP": "10.0.0.7", "podIPs": [{ "ip": "10.0.0.7" }, { "ip": "fd00::7" }, { "ip": "x" }] },
        }))
        .unwrap();
        let facts = facts(&pod);
        assert_eq!(facts.key, ObjectKey::new("shop", "web"));
        assert_eq!(facts.addresses.len(), 2);
        assert_eq!(facts.node.as_deref(), Some("node-1"));
        assert!(facts.is_live() && !facts.host_network);
    }

    #[test]
    fn a_static_pod_has_the_uid_that_the_node_gave_it() {
        let pod = serde_json::from_value(json!({
            "metadata": { "uid": "mirror", "annotations": { "kubernetes.io/config.mirror": "0f34" } },
        }));
        let pod = pod.unwrap();
        assert_eq!(&*facts(&pod).uid, "0f34");
        assert!(is_mirror(&pod) && !is_mirror(&Pod::default()));
    }

    #[test]
    fn a_finished_or_unscheduled_pod_is_not_live() {
        let live = |value| facts(&serde_json::from_value(value).unwrap()).is_live();
        assert!(!live(json!({ "spec": { "containers": [] } })));
        assert!(!live(
            json!({ "spec": { "nodeName": "n", "containers": [] }, "status": { "phase": "Succeeded" } })
        ));
        assert!(live(
            json!({ "spec": { "nodeName": "n", "containers": [] }, "status": { "phase": "Pending" } })
        ));
    }
}
