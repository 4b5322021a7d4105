//! The node agent's DaemonSet.

use serde_json::{Value, json};

use super::{Install, Mode, NAME, boot_rules, broker, labels};

const PROBES: u16 = 8085;

/// What nmi may do to the node, beyond what any process of root's without capabilities may:
/// `NET_ADMIN` for rules, routes, transparent listeners, the mark on its own packets, and questions about links.
/// `NET_RAW` because `iptables-legacy` speaks to the kernel through a raw socket.
const CAPABILITIES: [&str; 2] = ["NET_ADMIN", "NET_RAW"];

pub(super) fn daemon_set(install: &Install) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": install.meta("nmi", Some(&install.namespace)),
        "spec": {
            "selector": { "matchLabels": labels("nmi") },
            // The new one takes the old one's sockets over, and no request fails.
            "updateStrategy": { "type": "RollingUpdate", "rollingUpdate": { "maxSurge": 1, "maxUnavailable": 0 } },
            "template": { "metadata": { "labels": labels("nmi") }, "spec": pod(install) },
        },
    })
}

fn pod(install: &Install) -> Value {
    let mut pod = json!({
        "serviceAccountName": format!("{NAME}-nmi"),
        "priorityClassName": "system-node-critical",
        "hostNetwork": true,
        // By the pods' processes nmi tells who is behind an address.
        "hostPID": true,
        "dnsPolicy": "ClusterFirstWithHostNet",
        "nodeSelector": { "kubernetes.io/os": "linux" },
        "tolerations": [{ "operator": "Exists" }],
        "affinity": not_virtual(),
        "securityContext": { "seccompProfile": { "type": "RuntimeDefault" } },
        "containers": [container(install)],
        "volumes": [
            { "name": "handover", "hostPath": { "path": "/run/podid", "type": "DirectoryOrCreate" } },
            { "name": "xtables-lock", "hostPath": { "path": "/run/xtables.lock", "type": "FileOrCreate" } },
        ],
    });
    broker::add_client(install, &mut pod);
    if install.boot_rules {
        boot_rules::add(install, &mut pod, "install");
    }
    pod
}

// Ports are not named: on the host's network the scheduler would keep a second one, to which the first hands over, off the node.
fn container(install: &Install) -> Value {
    let mode = match install.mode {
        Mode::Managed => "managed",
        Mode::Standard | Mode::Cleanup => "standard",
    };
    json!({
        "name": "nmi",
        "image": install.image("nmi"),
        "imagePullPolicy": "IfNotPresent",
        "args": [
            "--node=$(NODE_NAME)",
            format!("--operation-mode={mode}"),
            format!("--http-probe-port={PROBES}"),
        ],
        "env": [{
            "name": "NODE_NAME",
            "valueFrom": { "fieldRef": { "apiVersion": "v1", "fieldPath": "spec.nodeName" } },
        }],
        "livenessProbe": probe("/healthz"),
        "readinessProbe": probe("/readyz"),
        "resources": {
            "requests": { "cpu": "50m", "memory": "32Mi" },
            "limits": { "memory": "256Mi" },
        },
        "securityContext": security(&CAPABILITIES),
        "volumeMounts": [
            { "name": "handover", "mountPath": "/run/podid" },
            { "name": "xtables-lock", "mountPath": "/run/xtables.lock" },
        ],
    })
}

/// Leaves virtual kubelets out, which run no DaemonSet.
pub(super) fn not_virtual() -> Value {
    json!({ "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": { "nodeSelectorTerms": [
        { "matchExpressions": [{ "key": "type", "operator": "NotIn", "values": ["virtual-kubelet"] }] },
    ] } } })
}

pub(super) fn security(capabilities: &[&str]) -> Value {
    json!({
        "runAsUser": 0,
        "allowPrivilegeEscalation": false,
        "readOnlyRootFilesystem": true,
        "capabilities": { "drop": ["ALL"], "add": capabilities },
    })
}

fn probe(path: &str) -> Value {
    json!({
        "httpGet": { "path": path, "port": PROBES },
        // nmi waits up to 2 s itself for what a takeover changes.
        "periodSeconds": 5, "timeoutSeconds": 3, "failureThreshold": 6,
    })
}
