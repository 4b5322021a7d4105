//! Watches (informers, reflectors): keep the index equal to the cluster's objects.
//!
//! `lib.rs` starts one per kind; `podid_cluster::watch` is the reflector beneath. Of pods and AzureAssignedIdentities only this node's
//! are watched, so that the memory does not grow with the cluster.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use kube::core::NamespaceResourceScope;
use kube::runtime::watcher;
use kube::{Api, Client, Resource};
use podid_api::ObjectError;
use podid_api::assigned::{AzureAssignedIdentity, NODE_LABEL};
use podid_api::binding::AzureIdentityBinding;
use podid_api::exception::AzurePodIdentityException;
use podid_cluster::lenient::Lenient;
use podid_cluster::pods;
use podid_cluster::watch::{Change, WatchStatus, watch};
use podid_policy::facts::ObjectKey;
use serde::de::DeserializeOwned;
use tokio::sync::watch::Receiver;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::NmiError;
use crate::caller::identities;
use crate::caller::index::Index;
use crate::context::Context;

/// How objects of one kind are read, and how the index applies and deletes them.
struct Kind<K, F> {
    name: &'static str,
    facts: fn(&K) -> Result<F, ObjectError>,
    apply: fn(&mut Index, F),
    delete: fn(&mut Index, &ObjectKey),
    keys: fn(&Index) -> Vec<ObjectKey>,
}

type Tasks = JoinSet<(&'static str, Result<(), NmiError>)>;

/// Starts a task for each kind. The index is complete once every receiver says that its watch has listed its objects.
pub(crate) fn start(
    context: &Arc<Context>,
    client: &Client,
    tasks: &mut Tasks,
    shutdown: &CancellationToken,
) -> Vec<(&'static str, Receiver<WatchStatus>)> {
    let node = &context.config.node;
    let mut start = Start {
        context,
        client,
        tasks,
        shutdown,
        healths: Vec::new(),
    };
    start.kind(
        watcher::Config::default().fields(&format!("spec.nodeName={node}")),
        Kind::<Pod, _> {
            name: "Pod",
            facts: |pod| Ok(pods::facts(pod)),
            apply: Index::apply_pod,
            delete: Index::delete_pod,
            keys: Index::pod_keys,
        },
    );
    start.kind(
        watcher::Config::default(),
        Kind {
            name: "AzureIdentity",
            facts: identities::facts,
            apply: |index: &mut Index, (identity, refusal): identities::Identity| {
                index.apply_refusal(&identity.key, refusal);
                index.apply_identity(identity);
            },
            delete: Index::delete_identity,
            keys: Index::identity_keys,
        },
    );
    start.kind(
        watcher::Config::default(),
        Kind {
            name: "AzureIdentityBinding",
            facts: AzureIdentityBinding::facts,
            apply: Index::apply_binding,
            delete: Index::delete_binding,
            keys: Index::binding_keys,
        },
    );
    start.kind(
        watcher::Config::default(),
        Kind {
            name: "AzurePodIdentityException",
            facts: AzurePodIdentityException::facts,
            apply: Index::apply_exception,
            delete: Index::delete_exception,
            keys: Index::exception_keys,
        },
    );
    if context.config.assigned_first {
        start.kind(
            watcher::Config::default().labels(&format!("{NODE_LABEL}={node}")),
            Kind {
                name: "AzureAssignedIdentity",
                facts: AzureAssignedIdentity::facts,
                apply: Index::apply_assigned,
                delete: Index::delete_assigned,
                keys: Index::assigned_keys,
            },
        );
    }
    start.healths
}

struct Start<'a> {
    context: &'a Arc<Context>,
    client: &'a Client,
    tasks: &'a mut Tasks,
    shutdown: &'a CancellationToken,
    healths: Vec<(&'static str, Receiver<WatchStatus>)>,
}

impl Start<'_> {
    fn kind<K, F>(&mut self, config: watcher::Config, kind: Kind<K, F>)
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + kube::ResourceExt
            + Clone
            + Debug
            + DeserializeOwned
            + Send
            + 'static,
        F: 'static,
    {
        let (health, healthy) = tokio::sync::watch::channel(WatchStatus::default());
        self.healths.push((kind.name, healthy));
        let api: Api<Lenient<K>> = Api::all(self.client.clone());
        let (context, shutdown) = (Arc::clone(self.context), self.shutdown.clone());
        let name = kind.name;
        self.tasks.spawn(async move {
            let sink = |change| apply_change(&context, &kind, change);
            watch(api, config, sink, health, shutdown).await;
            (name, Ok(()))
        });
    }
}

/// Applies one event of a watch to the index. An object that cannot be read counts as deleted.
fn apply_change<K: kube::ResourceExt, F>(context: &Context, kind: &Kind<K, F>, change: Change<K>) {
    match change {
        Change::Applied(object) => {
            let key = ObjectKey::new(&object.namespace().unwrap_or_default(), &object.name_any());
            match (kind.facts)(&object) {
                Ok(facts) => context.change(|index| (kind.apply)(index, facts)),
                Err(error) => {
                    tracing::warn!(kind = kind.name, object = %key, reason = %error, "object cannot be used and is ignored");
                    context.change(|index| (kind.delete)(index, &key));
                }
            }
        }
        Change::Deleted(key) => context.change(|index| (kind.delete)(index, &key)),
        Change::Listed(listed) => {
            let gone = |index: &Index, listed: &BTreeSet<ObjectKey>| {
                let mut keys = (kind.keys)(index);
                keys.retain(|key| !listed.contains(key));
                keys
            };
            context.change(|index| {
                for key in gone(index, &listed) {
                    (kind.delete)(index, &key);
                }
            });
        }
    }
}
