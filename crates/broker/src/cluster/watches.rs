//! Watches (informers, reflectors): keep the broker's index equal to the cluster's objects.
//!
//! `lib.rs` starts one per kind; `podid_cluster::watch` is the reflector beneath. Of pods only those with a binding label are watched,
//! since no other has an identity.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use kube::core::NamespaceResourceScope;
use kube::runtime::watcher;
use kube::{Api, Client, Resource};
use podid_api::ObjectError;
use podid_api::binding::AzureIdentityBinding;
use podid_api::exception::AzurePodIdentityException;
use podid_api::identity::AzureIdentity;
use podid_cluster::lenient::Lenient;
use podid_cluster::pods;
use podid_cluster::watch::{Change, WatchStatus, watch};
use podid_policy::facts::{ObjectKey, PodFacts};
use podid_policy::matching::BINDING_LABEL;
use serde::de::DeserializeOwned;
use tokio::sync::watch::Receiver;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::cluster::index::Index;
use crate::context::Context;
use crate::error::TaskResult;

/// How objects of one kind are read, and how the index applies and deletes them.
struct Kind<K, F> {
    name: &'static str,
    facts: fn(&K) -> Result<F, ObjectError>,
    apply: fn(&mut Index, F),
    delete: fn(&mut Index, &ObjectKey),
    keys: fn(&Index) -> Vec<ObjectKey>,
}

/// The status of each kind's watch.
pub(crate) type WatchStatuses = Vec<(&'static str, Receiver<WatchStatus>)>;

/// Starts a task for each kind. The index is complete once every receiver says that its watch has listed its objects.
pub(crate) fn start(
    context: &Arc<Context>,
    client: &Client,
    tasks: &mut JoinSet<TaskResult>,
    shutdown: &CancellationToken,
) -> WatchStatuses {
    let mut start = Start {
        context,
        client,
        tasks,
        shutdown,
        statuses: Vec::new(),
    };
    start.kind(
        watcher::Config::default().labels(BINDING_LABEL),
        Kind::<Pod, _> {
            name: "Pod",
            facts: pod_facts,
            apply: Index::apply_pod,
            delete: Index::delete_pod,
            keys: Index::pod_keys,
        },
    );
    start.kind(
        watcher::Config::default(),
        Kind {
            name: "AzureIdentity",
            facts: AzureIdentity::facts,
            apply: Index::apply_identity,
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
    start.statuses
}

struct Start<'a> {
    context: &'a Arc<Context>,
    client: &'a Client,
    tasks: &'a mut JoinSet<TaskResult>,
    shutdown: &'a CancellationToken,
    statuses: WatchStatuses,
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
        let (status, statuses) = tokio::sync::watch::channel(WatchStatus::default());
        self.statuses.push((kind.name, statuses));
        let api: Api<Lenient<K>> = Api::all(self.client.clone());
        let (context, shutdown) = (Arc::clone(self.context), self.shutdown.clone());
        let name = kind.name;
        self.tasks.spawn(async move {
            let sink = |change| apply_change(&context, &kind, change);
            watch(api, config, sink, status, shutdown).await;
            (name, Ok(()))
        });
    }
}

/// The facts of a pod, unless its node may have made it up.
fn pod_facts(pod: &Pod) -> Result<PodFacts, ObjectError> {
    if pods::is_mirror(pod) {
        return Err(ObjectError::Unsupported {
            field: "metadata.annotations",
            value: pods::MIRROR_ANNOTATION.to_owned(),
            allowed: "a static pod has no federated identity, because its node chooses its labels",
        });
    }
    Ok(pods::facts(pod))
}

/// Applies one event of a watch to the index. An object that cannot be read counts as deleted.
fn apply_change<K: kube::ResourceExt, F>(context: &Context, kind: &Kind<K, F>, change: Change<K>) {
    match change {
        Change::Applied(object) => {
            let key = ObjectKey::new(&object.namespace().unwrap_or_default(), &object.name_any());
            match (kind.facts)(&object) {
                Ok(facts) => (kind.apply)(&mut context.index.write(), facts),
                Err(error) => {
                    tracing::warn!(kind = kind.name, object = %key, reason = %error, "object cannot be used and is ignored");
                    (kind.delete)(&mut context.index.write(), &key);
                }
            }
        }
        Change::Deleted(key) => (kind.delete)(&mut context.index.write(), &key),
        Change::Listed(listed) => delete_unlisted(&mut context.index.write(), kind, &listed),
    }
}

fn delete_unlisted<K, F>(index: &mut Index, kind: &Kind<K, F>, listed: &BTreeSet<ObjectKey>) {
    for key in (kind.keys)(index) {
        if !listed.contains(&key) {
            (kind.delete)(index, &key);
        }
    }
}
