//! AAD Pod Identity as a cluster has it: its definitions, a DaemonSet and a Deployment by its names, and its objects in an older spelling.
//! What runs in its pods is played: a server and a redirect in place of nmi, a holder of its lock in place of mic.

use serde_json::{Value, json};

use crate::load;
use crate::world::{NODES, World};

/// The client id that its tokens are of.
pub const ORIGINALS: &str = "the original";
const GROUP_VERSION: &str = "aadpodidentity.k8s.io/v1";
const KINDS: [(&str, &str); 4] = [
    ("azureidentities", "AzureIdentity"),
    ("azureidentitybindings", "AzureIdentityBinding"),
    ("azureassignedidentities", "AzureAssignedIdentity"),
    ("azurepodidentityexceptions", "AzurePodIdentityException"),
];
const FINALIZER: &str = "azureassignedidentity.finalizers.aadpodidentity.k8s.io";

/// Removed on drop, but for its definitions and objects.
pub struct Original<'a>(&'a World);

impl<'a> Original<'a> {
    /// A cluster that it serves: pods on both nodes ask, and their identity is attached and assigned.
    pub fn install(world: &'a World) -> Self {
        let original = Self(world);
        world
            .azure
            .control
            .attach(&world.azure.scale_set, &world.load);
        apply(
            world,
            "default",
            &KINDS.map(|(plural, kind)| definition(plural, kind)),
        );
        let definitions = KINDS.map(|(plural, _)| format!("crd/{plural}.aadpodidentity.k8s.io"));
        let established = ["wait", "--for=condition=Established"].into_iter();
        let words: Vec<&str> = established
            .chain(definitions.iter().map(String::as_str))
            .collect();
        world.kubectl_within(&words);
        apply(world, "default", &lock_role());
        apply(world, "kube-system", &programs(world));
        for what in [
            "daemonset/aad-pod-identity-nmi",
            "deployment/aad-pod-identity-mic",
        ] {
            world.kubectl_within(&["-n", "kube-system", "rollout", "status", what]);
        }
        load::namespace(world);
        load::apply(world, &identity(world));
        load::pods(world);
        apply(world, "default", &NODES.map(|node| assigned(world, node)));
        original
    }
}

impl Drop for Original<'_> {
    fn drop(&mut self) {
        let gone =
            "-n kube-system delete daemonset/aad-pod-identity-nmi deployment/aad-pod-identity-mic";
        let words: Vec<&str> = gone.split(' ').collect();
        let _ = self.0.cluster.run_kubectl(&words, "");
    }
}

fn apply(world: &World, namespace: &str, objects: &[Value]) {
    let list = json!({ "apiVersion": "v1", "kind": "List", "items": objects });
    world.apply_yaml(namespace, &list.to_string());
}

fn definition(plural: &str, kind: &str) -> Value {
    let schema = json!({ "openAPIV3Schema": { "type": "object", "x-kubernetes-preserve-unknown-fields": true } });
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {
            "name": format!("{plural}.aadpodidentity.k8s.io"), "annotations": { "api-approved.kubernetes.io": "unapproved" },
        },
        "spec": {
            "group": "aadpodidentity.k8s.io", "scope": "Namespaced",
            "names": { "kind": kind, "listKind": format!("{kind}List"), "plural": plural, "singular": kind.to_lowercase() },
            "versions": [{ "name": "v1", "served": true, "storage": true, "schema": schema }],
        },
    })
}

fn programs(world: &World) -> Vec<Value> {
    let files = json!({ "original.py": include_str!("original.py"), "original.sh": include_str!("original.sh") });
    let python = |role: &str| {
        json!({
            "name": role, "image": world.app, "command": ["python3", "/original/original.py", role],
            "volumeMounts": [{ "name": "original", "mountPath": "/original" }],
        })
    };
    let redirect = json!({
        "name": "redirect", "image": format!("localhost/podid/nmi:{}", world.tag), "command": ["sh", "/original/original.sh"],
        "volumeMounts": [{ "name": "original", "mountPath": "/original" }], "securityContext": { "privileged": true },
        "readinessProbe": { "exec": { "command": ["test", "-e", "/tmp/redirects"] }, "periodSeconds": 1 },
    });
    let volumes = json!([{ "name": "original", "configMap": { "name": "original" } }]);
    let selected = |app: &str| json!({ "matchLabels": { "app": app } });
    let labelled = |app: &str| json!({ "labels": { "app": app } });
    vec![
        json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "original" }, "data": files }),
        json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": "aad-pod-identity-mic" } }),
        json!({
            "apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": { "name": "aad-pod-identity-nmi" },
            "spec": { "selector": selected("nmi"), "template": { "metadata": labelled("nmi"), "spec": {
                "hostNetwork": true, "terminationGracePeriodSeconds": 10, "volumes": volumes,
                "containers": [python("nmi"), redirect],
            } } },
        }),
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": "aad-pod-identity-mic" },
            "spec": { "replicas": 2, "selector": selected("mic"), "template": { "metadata": labelled("mic"), "spec": {
                "serviceAccountName": "aad-pod-identity-mic", "terminationGracePeriodSeconds": 0, "volumes": volumes,
                "containers": [python("mic")],
            } } },
        }),
    ]
}

/// What lets its controller hold the lock.
fn lock_role() -> [Value; 2] {
    let name = "aad-pod-identity-mic";
    [
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": { "name": name },
            "rules": [{ "apiGroups": [""], "resources": ["endpoints"], "verbs": ["get", "create", "update"] }],
        }),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": { "name": name },
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name },
            "subjects": [{ "kind": "ServiceAccount", "name": name, "namespace": "kube-system" }],
        }),
    ]
}

/// In the spelling of versions before 1.6.
fn identity(world: &World) -> [Value; 2] {
    [
        json!({
            "apiVersion": GROUP_VERSION, "kind": "AzureIdentity", "metadata": { "name": "load" },
            "spec": { "type": 0, "ResourceID": world.load.id, "ClientID": world.load.client_id },
        }),
        json!({
            "apiVersion": GROUP_VERSION, "kind": "AzureIdentityBinding", "metadata": { "name": "load" },
            "spec": { "AzureIdentity": "load", "Selector": "myapp" },
        }),
    ]
}

/// What its controller has made for the pod on a node.
fn assigned(world: &World, node: &str) -> Value {
    let metadata = json!({ "name": "load", "namespace": "load" });
    json!({
        "apiVersion": GROUP_VERSION, "kind": "AzureAssignedIdentity",
        "metadata": { "name": format!("load-{node}-load-load"), "labels": { "nodename": node }, "finalizers": [FINALIZER] },
        "spec": {
            "pod": format!("load-{node}"), "podNamespace": "load", "nodename": node, "replicas": 1,
            "azureIdentityRef": {
                "apiVersion": GROUP_VERSION, "kind": "AzureIdentity", "metadata": metadata,
                "spec": { "type": 0, "resourceID": world.load.id, "clientID": world.load.client_id, "clientPassword": {} }, "status": {},
            },
            "azureBindingRef": {
                "apiVersion": GROUP_VERSION, "kind": "AzureIdentityBinding", "metadata": metadata,
                "spec": { "azureIdentity": "load", "selector": "myapp" }, "status": {},
            },
        },
        "status": { "status": "Assigned", "availableReplicas": 1 },
    })
}
