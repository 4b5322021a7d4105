//! The controller's Deployment.

use serde_json::{Value, json};

use super::{Install, NAME, labels};

const AZURE_JSON: &str = "/etc/kubernetes/azure.json";

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
        "affinity": { "podAntiAffinity": { "preferredDuringSchedulingIgnoredDuringExecution": [{
            "weight": 1,
            "podAffinityTerm": {
                "labelSelector": { "matchLabels": labels("mic") },
                "topologyKey": "kubernetes.io/hostname",
            },
        }] } },
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
            "livenessProbe": probe("/healthz"),
            "readinessProbe": probe("/healthz"),
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
    })
}

fn probe(path: &str) -> Value {
    json!({
        "httpGet": { "path": path, "port": 8080 },
        "periodSeconds": 5, "failureThreshold": 6,
    })
}
