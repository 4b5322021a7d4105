//! The controller's Deployment.

use serde_json::{Value, json};

use super::{Install, NAME, broker, labels};

const AZURE_JSON: &str = "/etc/kubernetes/azure.json";
/// The taints of a node whose kubelet reports a fault, or nothing at all.
const NODE_FAILURES: [&str; 2] = [
    "node.kubernetes.io/not-ready",
    "node.kubernetes.io/unreachable",
];
/// A dead node's replica is replaced after this time; Kubernetes' own default is five minutes.
const REPLACED_AFTER_SECONDS: u32 = 30;

pub(super) fn deployment(install: &Install) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": install.meta("mic", Some(&install.namespace)),
        "spec": {
            "replicas": 2,
            "selector": { "matchLabels": labels("mic") },
            "template": { "metadata": { "labels": labels("mic") }, "spec": pod(install) },
        },
    })
}

fn pod(install: &Install) -> Value {
    let mut pod = json!({
        "serviceAccountName": format!("{NAME}-mic"),
        "priorityClassName": "system-cluster-critical",
        "nodeSelector": { "kubernetes.io/os": "linux" },
        "tolerations": tolerations(),
        "topologySpreadConstraints": spread("mic"),
        "securityContext": { "seccompProfile": { "type": "RuntimeDefault" } },
        "containers": [{
            "name": "mic",
            "image": install.image("mic"),
            "imagePullPolicy": "IfNotPresent",
            "args": [format!("--cloudconfig={AZURE_JSON}")],
            "env": [{
                "name": "MIC_POD_NAMESPACE",
                "valueFrom": { "fieldRef": { "apiVersion": "v1", "fieldPath": "metadata.namespace" } },
            }],
            "ports": [{ "name": "metrics", "containerPort": 8888, "protocol": "TCP" }],
            // Without a readiness probe the kubelet asks nothing of a pod that ends, and so warns of nothing in a rolling update.
            "startupProbe": { "httpGet": health(), "initialDelaySeconds": 1, "periodSeconds": 1, "failureThreshold": 30 },
            "livenessProbe": { "httpGet": health(), "periodSeconds": 5, "failureThreshold": 6 },
            "resources": {
                "requests": { "cpu": "100m", "memory": "64Mi" },
                "limits": { "memory": "512Mi" },
            },
            // The file belongs to root and only root may read it; without any capability root is its owner and nothing more.
            "securityContext": {
                "runAsUser": 0,
                "allowPrivilegeEscalation": false,
                "readOnlyRootFilesystem": true,
                "capabilities": { "drop": ["ALL"] },
            },
            "volumeMounts": [{ "name": "cloudconfig", "mountPath": AZURE_JSON, "readOnly": true }],
        }],
        "volumes": [{ "name": "cloudconfig", "hostPath": { "path": AZURE_JSON, "type": "File" } }],
    });
    broker::add_client(install, &mut pod);
    pod
}

/// A replica of a dead node is replaced soon.
pub(super) fn tolerations() -> Value {
    let tolerations = NODE_FAILURES.map(|taint| json!({
        "key": taint, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": REPLACED_AFTER_SECONDS,
    }));
    json!(tolerations)
}

/// The replicas of a role keep to different nodes where they can.
pub(super) fn spread(role: &str) -> Value {
    json!([{
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        // A node that is down must not keep a replica from starting beside the other one.
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": { "matchLabels": labels(role) },
        // In a rolling update the replicas of the former version do not count. Kubernetes 1.25 and 1.26 drop this field.
        "matchLabelKeys": ["pod-template-hash"],
    }])
}

fn health() -> Value {
    json!({ "path": "/healthz", "port": 8080 })
}
