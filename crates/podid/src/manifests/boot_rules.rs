//! The init container that installs or removes a node's boot rules, by `podid boot-rules`. The DaemonSets of nmi and of the cleanup
//! have it with `--boot-rules`.

use serde_json::{Value, json};

use super::Install;

/// Adds the container and its volumes to a pod.
pub(super) fn add(install: &Install, pod: &mut Value, action: &str) {
    let container = json!({
        "name": "boot-rules",
        "image": install.image("nmi"),
        "imagePullPolicy": "IfNotPresent",
        "command": ["/podid", "boot-rules", format!("--{action}=/host/etc")],
        "resources": {
            "requests": { "cpu": "10m", "memory": "16Mi" },
            "limits": { "memory": "128Mi" },
        },
        // The folders belong to root; without any capability root is their owner and nothing more.
        "securityContext": {
            "runAsUser": 0,
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": { "drop": ["ALL"] },
        },
        "volumeMounts": [
            { "name": "boot-rules", "mountPath": "/host/etc/podid" },
            { "name": "systemd-units", "mountPath": "/host/etc/systemd/system" },
        ],
    });
    let volumes = [
        json!({ "name": "boot-rules", "hostPath": { "path": "/etc/podid", "type": "DirectoryOrCreate" } }),
        json!({ "name": "systemd-units", "hostPath": { "path": "/etc/systemd/system", "type": "Directory" } }),
    ];
    append(&mut pod["initContainers"], [container]);
    append(&mut pod["volumes"], volumes);
}

fn append(list: &mut Value, more: impl IntoIterator<Item = Value>) {
    match list {
        Value::Array(list) => list.extend(more),
        missing => *missing = more.into_iter().collect(),
    }
}
