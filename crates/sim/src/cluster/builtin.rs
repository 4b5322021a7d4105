//! Built-in kinds: one table with the group, version, names and traits of each. `catalog` begins with it.

use k8s_openapi::{
    api::{
        apps::v1 as apps, coordination::v1 as coordination, core::v1 as core,
        discovery::v1 as discovery, rbac::v1 as rbac,
    },
    apiextensions_apiserver::pkg::apis::apiextensions::v1 as apiextensions,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use super::catalog::{Kind, Source};

fn typed<T: DeserializeOwned + Serialize>(object: Value) -> Result<Value, String> {
    let object: T = serde_json::from_value(object).map_err(|e| e.to_string())?;
    serde_json::to_value(object).map_err(|e| e.to_string())
}

const POD_FIELDS: &[&str] = &[
    "spec.nodeName",
    "spec.restartPolicy",
    "spec.schedulerName",
    "spec.serviceAccountName",
    "spec.hostNetwork",
    "status.phase",
    "status.podIP",
    "status.nominatedNodeName",
];
const EVENT_FIELDS: &[&str] = &[
    "involvedObject.kind",
    "involvedObject.namespace",
    "involvedObject.name",
    "involvedObject.uid",
    "involvedObject.apiVersion",
    "involvedObject.resourceVersion",
    "involvedObject.fieldPath",
    "reason",
    "reportingComponent",
    "source",
    "type",
];
const EVENT_V1_FIELDS: &[&str] = &[
    "regarding.kind",
    "regarding.namespace",
    "regarding.name",
    "regarding.uid",
    "regarding.apiVersion",
    "regarding.resourceVersion",
    "regarding.fieldPath",
    "reason",
    "reportingController",
    "type",
];

/// A short form of a row of the table below.
struct Row(
    &'static str,
    &'static str,
    &'static str,
    &'static str,
    &'static str,
);

impl Row {
    /// `traits` are letters: `n` namespaced, `s` status subresource, `g` generation.
    fn kind(self, traits: &str, read: fn(Value) -> Result<Value, String>) -> Kind {
        let Self(group_version, kind, plural, short, categories) = self;
        let (group, version) = group_version.split_once('/').unwrap_or(("", group_version));
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect();
        let fields = match (group, kind) {
            ("", "Pod") => POD_FIELDS,
            ("", "Event") => EVENT_FIELDS,
            ("events.k8s.io", "Event") => EVENT_V1_FIELDS,
            ("", "Namespace") => &["status.phase"],
            ("", "Node") => &["spec.unschedulable"],
            ("", "Secret") => &["type"],
            ("", "Service") => &["spec.clusterIP", "spec.type"],
            _ => &[],
        };
        Kind {
            group: group.to_owned(),
            version: version.to_owned(),
            kind: kind.to_owned(),
            list_kind: format!("{kind}List"),
            plural: plural.to_owned(),
            singular: kind.to_lowercase(),
            short_names: words(short),
            categories: words(categories),
            namespaced: traits.contains('n'),
            status: traits.contains('s'),
            generation: traits.contains('g'),
            fields,
            source: Source::Builtin(read),
        }
    }
}

/// The built-in kinds, in discovery's order.
pub(super) fn kinds() -> Vec<Kind> {
    const RBAC: &str = "rbac.authorization.k8s.io/v1";
    vec![
        Row("v1", "ConfigMap", "configmaps", "cm", "").kind("n", typed::<core::ConfigMap>),
        Row("v1", "Endpoints", "endpoints", "ep", "").kind("n", typed::<core::Endpoints>),
        Row("v1", "Event", "events", "ev", "").kind("n", typed::<core::Event>),
        Row("v1", "Namespace", "namespaces", "ns", "").kind("s", typed::<core::Namespace>),
        Row("v1", "Node", "nodes", "no", "").kind("s", typed::<core::Node>),
        Row("v1", "Pod", "pods", "po", "all").kind("nsg", typed::<core::Pod>),
        Row("v1", "Secret", "secrets", "", "").kind("n", typed::<core::Secret>),
        Row("v1", "ServiceAccount", "serviceaccounts", "sa", "")
            .kind("n", typed::<core::ServiceAccount>),
        Row("v1", "Service", "services", "svc", "all").kind("ns", typed::<core::Service>),
        Row("apps/v1", "DaemonSet", "daemonsets", "ds", "all")
            .kind("nsg", typed::<apps::DaemonSet>),
        Row("apps/v1", "Deployment", "deployments", "deploy", "all")
            .kind("nsg", typed::<apps::Deployment>),
        Row("apps/v1", "ReplicaSet", "replicasets", "rs", "all")
            .kind("nsg", typed::<apps::ReplicaSet>),
        Row("events.k8s.io/v1", "Event", "events", "ev", "").kind("n", typed::<core::Event>),
        Row(RBAC, "ClusterRoleBinding", "clusterrolebindings", "", "")
            .kind("", typed::<rbac::ClusterRoleBinding>),
        Row(RBAC, "ClusterRole", "clusterroles", "", "").kind("", typed::<rbac::ClusterRole>),
        Row(RBAC, "RoleBinding", "rolebindings", "", "").kind("n", typed::<rbac::RoleBinding>),
        Row(RBAC, "Role", "roles", "", "").kind("n", typed::<rbac::Role>),
        Row(
            "apiextensions.k8s.io/v1",
            "CustomResourceDefinition",
            "customresourcedefinitions",
            "crd crds",
            "api-extensions",
        )
        .kind("sg", typed::<apiextensions::CustomResourceDefinition>),
        Row("coordination.k8s.io/v1", "Lease", "leases", "", "")
            .kind("n", typed::<coordination::Lease>),
        Row(
            "discovery.k8s.io/v1",
            "EndpointSlice",
            "endpointslices",
            "",
            "",
        )
        .kind("ng", typed::<discovery::EndpointSlice>),
    ]
}
