//! Watches (informers, reflectors): the objects of the API server that the controller follows, and how each event enters the index.
//!
//! [`crate::Mic::run`] starts them before this replica leads, so that a new leader knows the cluster already. Only a few fields of each
//! object are read, to save memory. An object that cannot be read counts as absent, and stops no watch.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::runtime::watcher;
use kube::{Api, Resource, ResourceExt as _};
use podid_api::binding::AzureIdentityBinding;
use podid_api::exception::AzurePodIdentityException;
use podid_api::identity::{AzureIdentity, AzureIdentitySpec};
use podid_cluster::lenient::Lenient;
use podid_cluster::watch::{Change, WatchStatus, watch};
use podid_policy::facts::{ObjectKey, PodFacts, PodPhase};
use podid_policy::ids::HostKey;
use podid_policy::matching::BINDING_LABEL;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::assigned::object::{AssignedObject, WatchedAssignedIdentity};
use crate::context::Context;
use crate::index::{Effects, Index};
use crate::meta::{Condition, Meta};
use crate::report::events;

/// The fields of a Pod that are needed.
#[derive(kube::Resource, Debug, Clone, Deserialize)]
#[resource(inherit = "Pod")]
struct WatchedPod {
    metadata: ObjectMeta,
    #[serde(default)]
    spec: WatchedPodSpec,
    #[serde(default)]
    status: WatchedPodStatus,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct WatchedPodSpec {
    node_name: Option<String>,
    service_account_name: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct WatchedPodStatus {
    phase: Option<String>,
}

/// The fields of a Node that are needed.
#[derive(kube::Resource, Debug, Clone, Deserialize)]
#[resource(inherit = "Node")]
struct WatchedNode {
    metadata: ObjectMeta,
    #[serde(default)]
    spec: WatchedNodeSpec,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct WatchedNodeSpec {
    #[serde(rename = "providerID", default)]
    provider_id: Option<String>,
}

/// An AzureIdentity with its conditions.
#[derive(kube::Resource, Debug, Clone, Deserialize)]
#[resource(inherit = "AzureIdentity")]
struct WatchedIdentity {
    metadata: ObjectMeta,
    #[serde(default)]
    spec: AzureIdentitySpec,
    #[serde(default)]
    status: serde_json::Value,
}

/// The state of each watch, by kind.
pub(crate) type WatchStatuses = Vec<(&'static str, tokio::sync::watch::Receiver<WatchStatus>)>;

/// Starts all watches.
pub(crate) fn start(
    context: &Arc<Context>,
    tasks: &mut JoinSet<&'static str>,
    shutdown: &CancellationToken,
) -> WatchStatuses {
    let mut start = Start {
        context,
        tasks,
        shutdown,
        watch_statuses: Vec::new(),
    };
    let labelled = watcher::Config::default().labels(BINDING_LABEL);
    start.watch::<WatchedPod>("Pod", labelled, pods);
    let all = watcher::Config::default;
    start.watch::<WatchedNode>("Node", all(), nodes);
    start.watch::<WatchedIdentity>("AzureIdentity", all(), identities);
    start.watch::<AzureIdentityBinding>("AzureIdentityBinding", all(), bindings);
    start.watch::<AzurePodIdentityException>("AzurePodIdentityException", all(), exceptions);
    start.watch::<WatchedAssignedIdentity>("AzureAssignedIdentity", all(), objects);
    start.watch_statuses
}

struct Start<'a> {
    context: &'a Arc<Context>,
    tasks: &'a mut JoinSet<&'static str>,
    shutdown: &'a CancellationToken,
    watch_statuses: WatchStatuses,
}

impl Start<'_> {
    fn watch<K>(
        &mut self,
        kind: &'static str,
        config: watcher::Config,
        apply: fn(&Context, Change<K>),
    ) where
        K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static,
    {
        let (sender, status) = tokio::sync::watch::channel(WatchStatus::default());
        self.watch_statuses.push((kind, status));
        let api: Api<Lenient<K>> = Api::all(self.context.client.clone());
        let (context, shutdown) = (self.context.clone(), self.shutdown.clone());
        self.tasks.spawn(async move {
            let sink = move |change| apply(&context, change);
            watch(api, config, sink, sender, shutdown).await;
            "watch"
        });
    }
}

fn pods(context: &Context, change: Change<WatchedPod>) {
    match change {
        Change::Applied(pod) => context.update(|index| index.apply_pod(pod_facts(pod))),
        Change::Deleted(key) => context.update(|index| index.delete_pod(&key)),
        Change::Listed(listed) => {
            let gone = context.index.lock().desired.pods().not_in(&listed);
            for key in gone {
                context.update(|index| index.delete_pod(&key));
            }
        }
    }
}

fn pod_facts(pod: WatchedPod) -> PodFacts {
    let finished = matches!(pod.status.phase.as_deref(), Some("Succeeded" | "Failed"));
    let mut labels = pod.metadata.labels.clone().unwrap_or_default();
    labels.retain(|name, _| name == BINDING_LABEL);
    PodFacts {
        key: key(&pod),
        uid: pod.uid().unwrap_or_default().into(),
        labels,
        service_account: pod
            .spec
            .service_account_name
            .as_deref()
            .unwrap_or("default")
            .into(),
        node: pod.spec.node_name.filter(|n| !n.is_empty()).map(Into::into),
        addresses: Vec::new(),
        host_network: false,
        phase: if finished {
            PodPhase::Finished
        } else {
            PodPhase::Live
        },
    }
}

fn nodes(context: &Context, change: Change<WatchedNode>) {
    match change {
        Change::Applied(node) => {
            let name = node.name_any();
            let host = host_of(&name, node.spec.provider_id.as_deref());
            context.update(|index| index.apply_node(&name, host));
        }
        Change::Deleted(key) => context.update(|index| index.delete_node(&key.name)),
        Change::Listed(listed) => {
            let gone = context.index.lock().missing_nodes(&listed);
            for name in gone {
                context.update(|index| index.delete_node(&name));
            }
        }
    }
}

fn host_of(node: &str, provider_id: Option<&str>) -> Option<HostKey> {
    match HostKey::from_provider_id(provider_id.filter(|id| !id.is_empty())?) {
        Ok(host) => Some(host),
        Err(error) => {
            tracing::debug!(node, reason = %error, "identities cannot be attached to the node");
            None
        }
    }
}

fn identities(context: &Context, change: Change<WatchedIdentity>) {
    match change {
        Change::Applied(seen) => {
            let mut identity = AzureIdentity::new("", seen.spec);
            identity.metadata = seen.metadata;
            let key = key(&identity);
            let is_legacy = identity.spec.is_legacy();
            context
                .type_upgrade
                .on_seen("AzureIdentity", "azureidentities", &key, is_legacy);
            let meta = Meta {
                condition: Condition::read(&seen.status),
                ..meta(&identity)
            };
            match identity.facts() {
                Ok(facts) => context.update(|index| index.apply_identity(facts, meta)),
                Err(error) => {
                    malformed(context, &identity, &error, Index::delete_identity);
                    let entry = (meta, error.to_string());
                    let mut index = context.index.lock();
                    index.malformed.insert(key.clone(), entry);
                }
            }
            if !context.index.lock().is_ready(&key) {
                context.recheck_conditions(BTreeSet::from([key]));
            }
        }
        Change::Deleted(key) => context.update(|index| index.delete_identity(&key)),
        Change::Listed(listed) => {
            let gone = context.index.lock().desired.identities().not_in(&listed);
            for key in gone {
                context.update(|index| index.delete_identity(&key));
            }
        }
    }
}

fn bindings(context: &Context, change: Change<AzureIdentityBinding>) {
    // Without a binding no pod needs anything.
    if context.config.detach_all {
        return;
    }
    match change {
        Change::Applied(binding) => {
            let (kind, plural) = ("AzureIdentityBinding", "azureidentitybindings");
            let is_legacy = binding.spec.is_legacy();
            context
                .type_upgrade
                .on_seen(kind, plural, &key(&binding), is_legacy);
            context.limits.on_seen(&key(&binding), &binding);
            match binding.facts() {
                Ok(facts) => {
                    let meta = meta(&binding);
                    context.update(|index| index.apply_binding(facts, meta));
                }
                Err(error) => malformed(context, &binding, &error, Index::delete_binding),
            }
        }
        Change::Deleted(key) => {
            context.limits.on_deleted(&key);
            context.update(|index| index.delete_binding(&key));
        }
        Change::Listed(listed) => {
            let gone = context.index.lock().desired.bindings().not_in(&listed);
            for key in gone {
                context.limits.on_deleted(&key);
                context.update(|index| index.delete_binding(&key));
            }
        }
    }
}

/// The controller needs AzurePodIdentityExceptions for the type upgrade only.
fn exceptions(context: &Context, change: Change<AzurePodIdentityException>) {
    if let Change::Applied(seen) = change {
        let (kind, plural) = ("AzurePodIdentityException", "azurepodidentityexceptions");
        let is_legacy = !seen.spec.legacy_pod_labels.is_empty();
        context
            .type_upgrade
            .on_seen(kind, plural, &key(&seen), is_legacy);
    }
}

fn objects(context: &Context, change: Change<WatchedAssignedIdentity>) {
    match change {
        Change::Applied(seen) => {
            let name = key(&seen);
            match AssignedObject::read(seen) {
                Ok(object) => context.update(|index| index.apply_object(object)),
                Err(error) => {
                    tracing::warn!(object = %name, reason = %error, "an AzureAssignedIdentity cannot be read and is left alone");
                }
            }
        }
        Change::Deleted(key) => context.update(|index| index.delete_object(&key)),
        Change::Listed(listed) => {
            let gone = context.index.lock().objects.keys().not_in(&listed);
            for key in gone {
                context.update(|index| index.delete_object(&key));
            }
        }
    }
}

/// An object that the API server has accepted and podid cannot use counts as absent.
fn malformed<K: Resource<DynamicType = ()>>(
    context: &Context,
    object: &K,
    error: &podid_api::ObjectError,
    delete: fn(&mut Index, &ObjectKey) -> Effects,
) {
    let (kind, name) = (K::kind(&()), key(object));
    tracing::warn!(%kind, object = %name, reason = %error, "object is malformed and counts as absent");
    if context.is_ready() {
        let uid = object.uid().unwrap_or_default();
        let event = events::of_malformed(&kind, &name, &uid, error.to_string());
        context.record_event(event);
    }
    context.update(|index| delete(index, &name));
}

fn meta(object: &impl kube::ResourceExt) -> Meta {
    Meta {
        uid: object.uid().unwrap_or_default().into(),
        generation: object.meta().generation.unwrap_or_default(),
        condition: None,
    }
}

fn key(object: &impl kube::ResourceExt) -> ObjectKey {
    ObjectKey::new(&object.namespace().unwrap_or_default(), &object.name_any())
}

trait NotIn {
    fn not_in(self, listed: &BTreeSet<ObjectKey>) -> Vec<ObjectKey>;
}

impl<'a, I: Iterator<Item = &'a ObjectKey>> NotIn for I {
    fn not_in(self, listed: &BTreeSet<ObjectKey>) -> Vec<ObjectKey> {
        self.filter(|key| !listed.contains(key)).cloned().collect()
    }
}
