//! Service accounts, and exactly what each may do: nothing that its role does not need.

use podid_policy::federation;
use serde_json::{Value, json};

use super::{Install, Mode, NAME, broker};

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
        let own = (&*install.namespace, own_namespace());
        let lease = (LEASES, lease_namespace());
        let identities = (federation::NAMESPACE, identities_namespace());
        for (name, (namespace, rules)) in [
            ("mic", own),
            ("mic-leader", lease),
            ("mic-identities", identities),
        ] {
            objects.extend(role(install, "mic", name, namespace, &rules));
        }
    }
    if install.broker {
        let account_name = broker::ROLE;
        objects.extend(account(install, account_name, &broker_everywhere()));
        let ca = (&*install.namespace, broker_ca());
        let identities = (federation::NAMESPACE, broker_identities());
        for (name, (namespace, rules)) in [("broker-ca", ca), ("broker-identities", identities)] {
            objects.extend(role(install, account_name, name, namespace, &rules));
        }
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
    let named = |rule| named(rule, LEASE);
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

/// What the broker may do in every namespace: look, and have tokens reviewed.
fn broker_everywhere() -> Vec<Value> {
    let kinds = ["azureidentitybindings", "azurepodidentityexceptions"];
    let verbs = ["get", "list", "watch"];
    vec![
        rule("", &["pods"], &verbs),
        rule(CRDS, &["azureidentities"], &verbs),
        rule(CRDS, &kinds, &["list", "watch"]),
        rule("authentication.k8s.io", &["tokenreviews"], &["create"]),
    ]
}

/// What the broker may do in its own namespace: fill the two objects of its CA.
fn broker_ca() -> Vec<Value> {
    let name = broker::ca_name();
    vec![
        named(rule("", &["secrets"], &["get", "update"]), &name),
        named(rule("", &["configmaps"], &["get", "patch"]), &name),
    ]
}

/// What the broker may do in the namespace of the service accounts that stand for identities: have tokens of them. It has them of
/// no account elsewhere, podid's own least of all.
fn broker_identities() -> Vec<Value> {
    vec![rule("", &["serviceaccounts/token"], &["create"])]
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

/// Limits a rule to the objects of this name.
fn named(mut rule: Value, name: &str) -> Value {
    rule["resourceNames"] = json!([name]);
    rule
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

/// What an account may do in one namespace.
fn role(
    install: &Install,
    account: &str,
    name: &str,
    namespace: &str,
    rules: &[Value],
) -> [Value; 2] {
    let mut meta = install.meta(account, Some(namespace));
    meta["name"] = json!(format!("{NAME}-{name}"));
    let role =
        json!({ "apiVersion": RBAC_V1, "kind": "Role", "metadata": meta.clone(), "rules": rules });
    let binding = json!({
        "apiVersion": RBAC_V1, "kind": "RoleBinding", "metadata": meta,
        "roleRef": { "apiGroup": RBAC, "kind": "Role", "name": format!("{NAME}-{name}") },
        "subjects": [subject(install, account)],
    });
    [role, binding]
}

fn subject(install: &Install, name: &str) -> Value {
    json!({ "kind": "ServiceAccount", "name": format!("{NAME}-{name}"), "namespace": install.namespace })
}
