//! The controller's Deployment.

use podid_policy::federation::{BROKER_AUDIENCE, BROKER_PORT};
use serde_json::{Value, json};

use super::{Install, NAME, labels};

const AZURE_JSON: &str = "/etc/kubernetes/azure.json";
/// Where clients of the broker have their token and the broker's CA.
const BROKER_FILES: &str = "/var/run/secrets/podid-broker";
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
    json!({
        "serviceAccountName": format!("{NAME}-mic"),
        "priorityClassName": "system-cluster-critical",
        "nodeSelector": { "kubernetes.io/os": "linux" },
        "tolerations": NODE_FAILURES.map(|taint| json!({
            "key": taint, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": REPLACED_AFTER_SECONDS,
        })),
        "topologySpreadConstraints": [{
            "maxSkew": 1,
            "topologyKey": "kubernetes.io/hostname",
            // A node that is down must not keep a replica from starting beside the other one.
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": { "matchLabels": labels("mic") },
            // In a rolling update the replicas of the former version do not count. Kubernetes 1.25 and 1.26 drop this field.
            "matchLabelKeys": ["pod-template-hash"],
        }],
        "securityContext": { "seccompProfile": { "type": "RuntimeDefault" } },
        "containers": [{
            "name": "mic",
            "image": install.image("mic"),
            "imagePullPolicy": "IfNotPresent",
            "args": [
                format!("--cloudconfig={AZURE_JSON}"),
                format!("--broker-url=https://{NAME}-broker.{}.svc:{BROKER_PORT}", install.namespace),
            ],
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
            "volumeMounts": [
                { "name": "broker", "mountPath": BROKER_FILES, "readOnly": true },
                { "name": "cloudconfig", "mountPath": AZURE_JSON, "readOnly": true },
            ],
        }],
        "volumes": [
            broker_files(),
            { "name": "cloudconfig", "hostPath": { "path": AZURE_JSON, "type": "File" } },
        ],
    })
}

/// What a client of the broker needs: the token by which it proves itself, and the CA of the broker, which may come later.
fn broker_files() -> Value {
    json!({ "name": "broker", "projected": { "sources": [
        { "serviceAccountToken": { "audience": BROKER_AUDIENCE, "expirationSeconds": 3600, "path": "token" } },
        { "configMap": {
            "name": format!("{NAME}-broker-ca"), "optional": true,
            "items": [{ "key": "ca.crt", "path": "ca.crt" }],
        } },
    ] } })
}

fn health() -> Value {
    json!({ "path": "/healthz", "port": 8080 })
}
