//! Service accounts, and exactly what each may do: nothing that its role does not need.

use podid_policy::federation;
use serde_json::{Value, json};

use super::{Install, Mode, NAME};

const CRDS: &str = "aadpodidentity.k8s.io";
const RBAC: &str = "rbac.authorization.k8s.io";
const RBAC_V1: &str = "rbac.authorization.k8s.io/v1";
/// Where the leader's Lease is unless mic is told otherwise, as with the original.
const LEASES: &str = "default";
/// Its name, unless mic is told otherwise.
const LEASE: &str = "aad-pod-identity-mic";

/// The accounts, roles and bindings of the mode.
pub(super) fn objects(install: &Install) -> Vec<Value> {
    let mut objects = Vec::new();
    if install.mode == Mode::Standard {
        objects.extend(account(install, "mic", &mic()));
        objects.extend(role(install, "mic", &install.namespace, &own_namespace()));
        objects.extend(role(install, "mic-leader", LEASES, &lease_namespace()));
        objects.extend(role(
            install,
            "mic-identities",
            federation::NAMESPACE,
            &identities_namespace(),
        ));
    }
    objects.extend(account(install, "nmi", &nmi(install.mode)));
    objects
}

fn rule(group: &str, resources: &[&str], verbs: &[&str]) -> Value {
    json!({ "apiGroups": [group], "resources": resources, "verbs": verbs })
}

/// What mic may do in every namespace.
fn mic() -> Vec<Value> {
    let spelt = [
        "azureidentities",
        "azureidentitybindings",
        "azurepodidentityexceptions",
    ];
    vec![
        rule("", &["pods", "nodes"], &["list", "watch"]),
        rule(CRDS, &spelt, &["list", "watch", "get", "patch"]),
        rule(CRDS, &["azureidentities/status"], &["patch"]),
        rule(
            CRDS,
            &["azureassignedidentities"],
            &["list", "watch", "create", "patch", "delete"],
        ),
        rule("events.k8s.io", &["events"], &["create", "patch"]),
    ]
}

/// What mic may do in its own namespace: keep its records of what it attached to each host.
fn own_namespace() -> Vec<Value> {
    let verbs = ["get", "list", "create", "patch", "delete"];
    vec![rule("", &["configmaps"], &verbs)]
}

/// What mic may do in the namespace of the leader's Lease: hold that one, and the lock of the original's controller. What is made
/// cannot be limited by name.
fn lease_namespace() -> Vec<Value> {
    let (group, leases) = ("coordination.k8s.io", ["leases"]);
    let named = |mut rule: Value| {
        rule["resourceNames"] = json!([LEASE]);
        rule
    };
    vec![
        rule(group, &leases, &["create"]),
        named(rule(group, &leases, &["get", "update"])),
        named(rule("", &["endpoints"], &["get", "patch"])),
    ]
}

/// What mic may do in the namespace of the service accounts that stand for identities: keep them, and have no token of them.
fn identities_namespace() -> Vec<Value> {
    let verbs = ["list", "watch", "create", "delete"];
    vec![rule("", &["serviceaccounts"], &verbs)]
}

/// What nmi may do in every namespace: look.
fn nmi(mode: Mode) -> Vec<Value> {
    let mut kinds = vec![
        "azureidentities",
        "azureidentitybindings",
        "azurepodidentityexceptions",
    ];
    if mode == Mode::Standard {
        kinds.push("azureassignedidentities");
    }
    vec![
        rule("", &["pods"], &["list", "watch"]),
        rule(CRDS, &kinds, &["list", "watch"]),
        // Its labels say whether packets of pods pass by the rules.
        rule("", &["nodes"], &["get"]),
    ]
}

fn account(install: &Install, name: &str, rules: &[Value]) -> [Value; 3] {
    let account = json!({
        "apiVersion": "v1", "kind": "ServiceAccount", "metadata": install.meta(name, Some(&install.namespace)),
    });
    let role = json!({
        "apiVersion": RBAC_V1, "kind": "ClusterRole", "metadata": install.meta(name, None), "rules": rules,
    });
    let binding = json!({
        "apiVersion": RBAC_V1, "kind": "ClusterRoleBinding", "metadata": install.meta(name, None),
        "roleRef": { "apiGroup": RBAC, "kind": "ClusterRole", "name": format!("{NAME}-{name}") },
        "subjects": [subject(install, name)],
    });
    [account, role, binding]
}

/// What mic may do in one namespace.
fn role(install: &Install, name: &str, namespace: &str, rules: &[Value]) -> [Value; 2] {
    let mut meta = install.meta("mic", Some(namespace));
    meta["name"] = json!(format!("{NAME}-{name}"));
    let role =
        json!({ "apiVersion": RBAC_V1, "kind": "Role", "metadata": meta.clone(), "rules": rules });
    let binding = json!({
        "apiVersion": RBAC_V1, "kind": "RoleBinding", "metadata": meta,
        "roleRef": { "apiGroup": RBAC, "kind": "Role", "name": format!("{NAME}-{name}") },
        "subjects": [subject(install, "mic")],
    });
    [role, binding]
}

fn subject(install: &Install, name: &str) -> Value {
    json!({ "kind": "ServiceAccount", "name": format!("{NAME}-{name}"), "namespace": install.namespace })
}
