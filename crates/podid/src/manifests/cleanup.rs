//! What takes nmi's rules off every node where nmi was removed without `--interception=withdraw`. They outlive it, so that nobody
//! gets through while it is away; this runs until every node had its turn.

use serde_json::{Value, json};

use super::{Install, boot_rules, labels, nmi};

const ROLE: &str = "cleanup";

pub(super) fn daemon_set(install: &Install) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": install.meta(ROLE, Some(&install.namespace)),
        "spec": {
            "selector": { "matchLabels": labels(ROLE) },
            "updateStrategy": { "type": "RollingUpdate", "rollingUpdate": { "maxUnavailable": "100%" } },
            "template": { "metadata": { "labels": labels(ROLE) }, "spec": pod(install) },
        },
    })
}

fn pod(install: &Install) -> Value {
    let image = install.image("nmi");
    let mut pod = json!({
        "automountServiceAccountToken": false,
        "hostNetwork": true,
        "nodeSelector": { "kubernetes.io/os": "linux" },
        "tolerations": [{ "operator": "Exists" }],
        "affinity": nmi::not_virtual(),
        "securityContext": { "seccompProfile": { "type": "RuntimeDefault" } },
        "initContainers": [{
            "name": ROLE,
            "image": image.clone(),
            "imagePullPolicy": "IfNotPresent",
            "args": ["--cleanup"],
            "securityContext": nmi::security(&["NET_ADMIN", "NET_RAW"]),
            "volumeMounts": [{ "name": "xtables-lock", "mountPath": "/run/xtables.lock" }],
        }],
        // A DaemonSet's pods stay; this one says by being ready that its node is done.
        "containers": [{
            "name": "done",
            "image": image,
            "imagePullPolicy": "IfNotPresent",
            "command": ["sleep", "infinity"],
            "securityContext": {
                "runAsUser": 65532,
                "runAsNonRoot": true,
                "allowPrivilegeEscalation": false,
                "readOnlyRootFilesystem": true,
                "capabilities": { "drop": ["ALL"] },
            },
        }],
        "volumes": [{ "name": "xtables-lock", "hostPath": { "path": "/run/xtables.lock", "type": "FileOrCreate" } }],
    });
    if install.boot_rules {
        boot_rules::add(install, &mut pod, "remove");
    }
    pod
}
