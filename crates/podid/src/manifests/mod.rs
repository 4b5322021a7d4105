//! What an installation consists of: the objects that `podid manifests` prints, and that the chart renders by default.

mod boot_rules;
mod broker;
mod cleanup;
mod identities;
mod mic;
mod nmi;
mod rbac;

use serde_json::{Value, json};

/// The first part of every object's name, and the label by which they are found.
pub const NAME: &str = "podid";
/// The original's addons of AKS carry this label; some of them need the node's identity.
const AKS_ADDONS: &str = "kube-system";

/// Who attaches identities to nodes.
#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The controller: mic and nmi
    Standard,
    /// An operator: nmi alone
    Managed,
    /// Nobody any more: takes the rules of nmi off every node, after it was removed
    Cleanup,
}

/// An installation.
#[derive(Debug, Clone)]
pub struct Install {
    /// Who attaches identities.
    pub mode: Mode,
    /// The namespace of everything that has one.
    pub namespace: String,
    /// The registry, and the path in it, that holds the images `mic` and `nmi`.
    pub registry: String,
    /// The images' tag.
    pub tag: String,
    /// Whether each node gets rules that it loads at its boot; in [`Mode::Cleanup`] whether they are taken away.
    pub boot_rules: bool,
    /// Whether there is a broker, which [`Mode::Standard`] alone may have: the controller makes the service accounts that it needs.
    pub broker: bool,
}

impl Install {
    /// The objects, in the order in which they are to be made. The definitions of the custom resources are not among them: kubectl
    /// takes no objects of kinds that the same call introduces, and whoever removes the installation must not remove with the
    /// definitions every object that there is of them.
    pub fn objects(&self) -> Vec<Value> {
        let mut objects = self.namespace();
        if self.mode == Mode::Cleanup {
            objects.push(cleanup::daemon_set(self));
            return objects;
        }
        if self.mode == Mode::Standard {
            objects.extend(identities::objects());
        }
        objects.extend(rbac::objects(self));
        objects.extend(self.exceptions());
        if self.mode == Mode::Standard {
            objects.push(mic::deployment(self));
        }
        if self.broker {
            objects.extend(broker::objects(self));
        }
        objects.push(nmi::daemon_set(self));
        objects
    }

    /// A namespace of its own, in which pods may do what nmi must. Namespaces that every cluster has are left as they are.
    fn namespace(&self) -> Vec<Value> {
        if self.namespace == "default" || self.namespace.starts_with("kube-") {
            return Vec::new();
        }
        let level = "privileged";
        vec![json!({
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": { "name": self.namespace, "labels": {
                "app.kubernetes.io/name": NAME,
                "pod-security.kubernetes.io/enforce": level,
                "pod-security.kubernetes.io/audit": level,
                "pod-security.kubernetes.io/warn": level,
            } },
        })]
    }

    /// Whose requests reach the node's own metadata service: mic's, which works with the node's identity, and those of AKS's addons.
    fn exceptions(&self) -> Vec<Value> {
        let exception = |name: &str, namespace: &str, labels: Value| {
            json!({
                "apiVersion": "aadpodidentity.k8s.io/v1", "kind": "AzurePodIdentityException",
                "metadata": { "name": name, "namespace": namespace, "labels": { "app.kubernetes.io/name": NAME } },
                "spec": { "podLabels": labels },
            })
        };
        let addons = json!({ "kubernetes.azure.com/managedby": "aks" });
        let mut exceptions = vec![exception("aks-addon-exception", AKS_ADDONS, addons)];
        if self.mode == Mode::Standard {
            let mic = json!({ "app.kubernetes.io/component": "mic" });
            exceptions.push(exception("mic", &self.namespace, mic));
        }
        exceptions
    }

    fn image(&self, role: &str) -> String {
        format!("{}/{role}:{}", self.registry, self.tag)
    }

    /// The metadata of an object of a role; of the whole cluster without a namespace.
    fn meta(&self, role: &str, namespace: Option<&str>) -> Value {
        let mut meta = json!({ "name": format!("{NAME}-{role}"), "labels": labels(role) });
        if let Some(namespace) = namespace {
            meta["namespace"] = json!(namespace);
        }
        meta
    }
}

/// The labels of a role's objects, by which its pods are selected.
fn labels(role: &str) -> Value {
    json!({
        "app.kubernetes.io/name": NAME,
        "app.kubernetes.io/instance": NAME,
        "app.kubernetes.io/component": role,
    })
}

/// Objects as a YAML stream.
///
/// # Errors
/// When they cannot be written as YAML.
pub fn yaml(objects: &[Value]) -> anyhow::Result<String> {
    let mut stream = String::new();
    for object in objects {
        stream.push_str("---\n");
        stream.push_str(&serde_saphyr::to_string(object)?);
    }
    Ok(stream)
}

#[cfg(test)]
mod tests;
