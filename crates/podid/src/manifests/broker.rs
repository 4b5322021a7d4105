//! The broker's Deployment, its Service, its disruption budget, and the two objects of its CA; and what its clients, mic and nmi, need
//! of it.

use podid_policy::federation::{BROKER_AUDIENCE, BROKER_PORT};
use serde_json::{Value, json};

use super::{Install, NAME, labels, mic};

/// The part of the names.
pub(super) const ROLE: &str = "broker";
/// Where clients of the broker have their token and the broker's CA.
const CLIENT_FILES: &str = "/var/run/secrets/podid-broker";

pub(super) fn objects(install: &Install) -> [Value; 5] {
    let meta = || install.meta(ROLE, Some(&install.namespace));
    let mut ca = meta();
    ca["name"] = json!(ca_name());
    [
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": meta(),
            "spec": {
                "selector": labels(ROLE),
                "ports": [{ "name": "https", "port": BROKER_PORT, "targetPort": "https", "protocol": "TCP" }],
            },
        }),
        // The broker fills both: it may change them and make none.
        json!({ "apiVersion": "v1", "kind": "Secret", "metadata": ca.clone(), "type": "Opaque" }),
        json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": ca }),
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": meta(),
            "spec": {
                "replicas": 2,
                "strategy": { "type": "RollingUpdate", "rollingUpdate": { "maxSurge": 1, "maxUnavailable": 0 } },
                "selector": { "matchLabels": labels(ROLE) },
                "template": { "metadata": { "labels": labels(ROLE) }, "spec": pod(install) },
            },
        }),
        json!({
            "apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": meta(),
            "spec": { "minAvailable": 1, "selector": { "matchLabels": labels(ROLE) } },
        }),
    ]
}

/// The name of the Secret and of the ConfigMap of the broker's CA.
pub(super) fn ca_name() -> String {
    format!("{NAME}-{ROLE}-ca")
}

/// Adds to a client's pod, where there is a broker, its address, the token by which the client proves itself, and the CA.
pub(super) fn add_client(install: &Install, pod: &mut Value) {
    if !install.broker {
        return;
    }
    let url = format!(
        "--broker-url=https://{NAME}-{ROLE}.{}.svc:{BROKER_PORT}",
        install.namespace
    );
    let mount = json!({ "name": ROLE, "mountPath": CLIENT_FILES, "readOnly": true });
    let files = json!({ "name": ROLE, "projected": { "sources": [
        { "serviceAccountToken": { "audience": BROKER_AUDIENCE, "expirationSeconds": 3600, "path": "token" } },
        // The broker fills it later.
        { "configMap": {
            "name": ca_name(), "optional": true, "items": [{ "key": "ca.crt", "path": "ca.crt" }],
        } },
    ] } });
    let container = &mut pod["containers"][0];
    push(&mut container["args"], json!(url));
    push(&mut container["volumeMounts"], mount);
    push(&mut pod["volumes"], files);
}

fn push(list: &mut Value, more: Value) {
    if let Value::Array(list) = list {
        list.push(more);
    }
}

fn pod(install: &Install) -> Value {
    json!({
        "serviceAccountName": format!("{NAME}-{ROLE}"),
        "priorityClassName": "system-cluster-critical",
        "nodeSelector": { "kubernetes.io/os": "linux" },
        "tolerations": mic::tolerations(),
        "topologySpreadConstraints": mic::spread(ROLE),
        "securityContext": { "seccompProfile": { "type": "RuntimeDefault" } },
        "containers": [{
            "name": ROLE,
            "image": install.image("mic"),
            "imagePullPolicy": "IfNotPresent",
            "command": ["/podid"],
            "args": [ROLE],
            "env": [{
                "name": "BROKER_POD_NAMESPACE",
                "valueFrom": { "fieldRef": { "apiVersion": "v1", "fieldPath": "metadata.namespace" } },
            }],
            "ports": [
                { "name": "https", "containerPort": BROKER_PORT, "protocol": "TCP" },
                { "name": "metrics", "containerPort": 8888, "protocol": "TCP" },
            ],
            "livenessProbe": {
                "httpGet": { "path": "/healthz", "port": 8080 }, "periodSeconds": 5, "failureThreshold": 6,
            },
            "readinessProbe": {
                "httpGet": { "path": "/readyz", "port": 8080 }, "periodSeconds": 2, "failureThreshold": 2,
            },
            "resources": {
                "requests": { "cpu": "100m", "memory": "64Mi" },
                "limits": { "memory": "512Mi" },
            },
            "securityContext": {
                "runAsUser": 65532,
                "runAsNonRoot": true,
                "allowPrivilegeEscalation": false,
                "readOnlyRootFilesystem": true,
                "capabilities": { "drop": ["ALL"] },
            },
        }],
    })
}
