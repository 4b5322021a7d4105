//! The cluster that the tests are about: one node, whose pods have loopback addresses.

use std::collections::BTreeMap;

use serde_json::{Value, json};

/// Granted and assigned `reader`.
pub const WEB: &str = "127.0.0.1";
/// Granted nothing.
pub const BARE: &str = "127.0.0.2";
/// Granted and assigned `reader` and `writer`.
pub const BOTH: &str = "127.0.0.3";
/// Granted `late`, which is not assigned.
pub const SOON: &str = "127.0.0.4";
/// Granted the service principal `robot`.
pub const ROBOT: &str = "127.0.0.5";
/// Exempted.
pub const EXEMPT: &str = "127.0.0.6";
/// Granted and assigned `reader`, like WEB.
pub const NEIGHBOUR: &str = "127.0.0.7";
/// Granted `federated`, which has `spec.federation`.
pub const FEDERATED: &str = "127.0.0.8";
/// Granted `moving`, which has `spec.federation` and is attached still.
pub const MOVING: &str = "127.0.0.9";
/// No pod.
pub const NOBODY: &str = "127.0.0.99";

/// Client ids.
pub const READER: &str = "6f1c0000-0000-0000-0000-0000000022ab";
pub const WRITER: &str = "6f1c0000-0000-0000-0000-0000000033cd";
pub const LATE: &str = "6f1c0000-0000-0000-0000-0000000044de";
pub const ROBOTS: &str = "6f1c0000-0000-0000-0000-0000000055ef";
pub const FEDERATEDS: &str = "6f1c0000-0000-0000-0000-0000000066f0";
pub const MOVINGS: &str = "6f1c0000-0000-0000-0000-0000000077a1";
/// Of an identity that nobody is granted.
pub const VICTIM: &str = "6f1c0000-0000-0000-0000-00000000dead";
/// The service principal's.
pub const TENANT: &str = "72f90000-0000-0000-0000-0000000000bf";

/// The object id of the identity with this name, as in its tokens.
pub fn object(name: &str) -> String {
    let hex: String = name.bytes().map(|b| format!("{b:02x}")).collect();
    format!("0b1ec700-0000-0000-0000-{hex:0>12.12}")
}

/// The ARM id of the user-assigned identity with this name.
pub fn arm(name: &str) -> String {
    format!(
        "/subscriptions/s/resourceGroups/r/providers/Microsoft.ManagedIdentity/userAssignedIdentities/{name}"
    )
}

fn named(name: &str) -> Value {
    json!({ "namespace": "shop", "name": name })
}

pub fn pod(name: &str, address: &str, label: &str) -> Value {
    let mut metadata = named(name);
    metadata["uid"] = format!("uid-{name}").into();
    metadata["labels"] = json!({ "aadpodidbinding": label });
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": metadata,
        "spec": { "nodeName": "node", "containers": [] },
        "status": { "phase": "Running", "podIP": address },
    })
}

fn custom(kind: &str, name: &str, spec: Value) -> Value {
    json!({ "apiVersion": "aadpodidentity.k8s.io/v1", "kind": kind, "metadata": named(name), "spec": spec })
}

fn identity(name: &str, client: &str) -> Value {
    let spec = json!({ "type": 0, "clientID": client, "resourceID": arm(name) });
    custom("AzureIdentity", name, spec)
}

fn binding(name: &str, identity: &str, selector: &str) -> Value {
    let spec = json!({ "azureIdentity": identity, "selector": selector });
    custom("AzureIdentityBinding", name, spec)
}

fn assigned(pod: &str, identity: &str) -> Value {
    let spec = json!({
        "pod": pod, "podNamespace": "shop", "nodename": "node",
        "azureIdentityRef": { "metadata": named(identity) },
    });
    let mut object = custom("AzureAssignedIdentity", &format!("{pod}-{identity}"), spec);
    object["status"] = json!({ "status": "Assigned" });
    object
}

/// Every object, by its kind's name in paths.
pub fn all() -> BTreeMap<&'static str, Vec<Value>> {
    let robot = json!({
        "type": 1, "clientID": ROBOTS, "tenantID": TENANT,
        "clientPassword": { "namespace": "shop", "name": "robot" },
    });
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": named("robot"), "data": { "clientSecret": "aHVzaA==" },
    });
    let federated =
        json!({ "type": 1, "clientID": FEDERATEDS, "tenantID": TENANT, "federation": {} });
    let mut moving = identity("moving", MOVINGS);
    moving["spec"]["federation"] = json!({});
    let exception = json!({ "podLabels": { "aadpodidbinding": "exempt" } });
    BTreeMap::from([
        (
            "pods",
            vec![
                pod("web", WEB, "app"),
                pod("bare", BARE, ""),
                pod("both", BOTH, "both"),
                pod("soon", SOON, "soon"),
                pod("robot", ROBOT, "robot"),
                pod("exempt", EXEMPT, "exempt"),
                pod("neighbour", NEIGHBOUR, "app"),
                pod("federated", FEDERATED, "federated"),
                pod("moving", MOVING, "moving"),
            ],
        ),
        (
            "azureidentities",
            vec![
                identity("reader", READER),
                identity("writer", WRITER),
                identity("late", LATE),
                identity("victim", VICTIM),
                custom("AzureIdentity", "robot", robot),
                custom("AzureIdentity", "federated", federated),
                moving,
            ],
        ),
        (
            "azureidentitybindings",
            vec![
                binding("app", "reader", "app"),
                binding("both-reader", "reader", "both"),
                binding("both-writer", "writer", "both"),
                binding("soon", "late", "soon"),
                binding("robot", "robot", "robot"),
                binding("federated", "federated", "federated"),
                binding("moving", "moving", "moving"),
            ],
        ),
        (
            "azureassignedidentities",
            vec![
                assigned("web", "reader"),
                assigned("neighbour", "reader"),
                assigned("both", "reader"),
                assigned("both", "writer"),
            ],
        ),
        (
            "azurepodidentityexceptions",
            vec![custom("AzurePodIdentityException", "exempt", exception)],
        ),
        ("secrets", vec![secret]),
    ])
}
