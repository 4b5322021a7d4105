//! Service accounts that stand for federated identities: which of them to create and which to delete, and the calls that do it.
//!
//! [`super::keeper`] calls [`watch`] once the first federated identity is seen, and [`reconcile`] after each change. It guards service
//! accounts of others: only what carries podid's label is deleted.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::{DeleteParams, PostParams, Preconditions};
use kube::runtime::watcher;
use kube::{Api, Error, ResourceExt as _};
use podid_cluster::error_text::describe;
use podid_cluster::watch::{Change, WatchStatus};
use podid_policy::facts::ObjectKey;
use podid_policy::federation::{NAMESPACE, service_account};
use serde_json::json;
use tokio::sync::watch::Sender;
use tokio_util::sync::CancellationToken;

use crate::context::Context;

/// The label of what podid made.
const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// The value of that label.
const MANAGER: &str = "podid-mic";
/// The annotation that names the AzureIdentity, for people.
const IDENTITY: &str = "aadpodidentity.k8s.io/azure-identity";

/// The service accounts of the namespace.
#[derive(Debug, Default)]
pub(crate) struct Accounts {
    /// By name: the uid of one that podid made, `None` for one that others made.
    seen: BTreeMap<String, Option<String>>,
    /// Whether a complete list has been seen.
    is_listed: bool,
}

/// What to do.
#[derive(Debug, Default, PartialEq, Eq)]
struct Plan {
    /// Service accounts to be created, each with the AzureIdentity that it stands for.
    create: Vec<(String, ObjectKey)>,
    /// Names and uids of those to be deleted.
    delete: Vec<(String, String)>,
}

impl Accounts {
    /// Whether the service account of an identity is there.
    pub(crate) fn has(&self, identity: &ObjectKey) -> bool {
        self.seen.contains_key(&service_account(identity))
    }

    fn apply(&mut self, change: Change<ServiceAccount>) {
        match change {
            Change::Applied(account) => {
                let is_ours = account
                    .labels()
                    .get(MANAGED_BY)
                    .is_some_and(|v| v == MANAGER);
                let uid = account.uid().filter(|_| is_ours);
                self.seen.insert(account.name_any(), uid);
            }
            Change::Deleted(key) => {
                self.seen.remove(&*key.name);
            }
            Change::Listed(listed) => {
                let listed: BTreeSet<&str> = listed.iter().map(|key| &*key.name).collect();
                self.seen.retain(|name, _| listed.contains(name.as_str()));
                self.is_listed = true;
            }
        }
    }

    /// What differs from the wanted identities; nothing while the list is not complete.
    fn plan<'a>(&self, wanted: impl Iterator<Item = &'a ObjectKey>) -> Plan {
        if !self.is_listed {
            return Plan::default();
        }
        let wanted: BTreeMap<String, &ObjectKey> =
            wanted.map(|key| (service_account(key), key)).collect();
        let missing = wanted
            .iter()
            .filter(|(name, _)| !self.seen.contains_key(*name));
        let ours = self
            .seen
            .iter()
            .filter_map(|(name, uid)| Some((name, uid.as_ref()?)));
        let surplus = ours.filter(|(name, _)| !wanted.contains_key(*name));
        Plan {
            create: missing
                .map(|(name, key)| (name.clone(), (*key).clone()))
                .collect(),
            delete: surplus
                .map(|(name, uid)| (name.clone(), uid.clone()))
                .collect(),
        }
    }
}

/// Follows the service accounts of the namespace until shutdown.
pub(super) async fn watch(
    context: Arc<Context>,
    status: Sender<WatchStatus>,
    shutdown: CancellationToken,
) {
    let api = Api::namespaced(context.client.clone(), NAMESPACE);
    let sink = move |change| {
        context.index.lock().accounts.apply(change);
        context.federation_changed.notify_one();
    };
    podid_cluster::watch::watch(api, watcher::Config::default(), sink, status, shutdown).await;
}

/// Creates and deletes what differs. What fails is given with the identity that it concerns, to be tried again.
///
/// # Errors
/// The last failure, by identity where it concerns one.
pub(super) async fn reconcile(context: &Context) -> Vec<(Option<ObjectKey>, String)> {
    let plan = {
        let index = context.index.lock();
        index.accounts.plan(index.checks.identities())
    };
    let api: Api<ServiceAccount> = Api::namespaced(context.client.clone(), NAMESPACE);
    let mut failed = Vec::new();
    for (name, identity) in plan.create {
        match create(&api, &name, &identity).await {
            Ok(()) => tracing::info!(%identity, account = name, "service account created"),
            // Somebody was faster; the watch shows it.
            Err(Error::Api(status)) if status.is_already_exists() => {}
            Err(error) => {
                let text = format!(
                    "the service account {name} cannot be created in the namespace {NAMESPACE}: {}; check that the namespace and mic's Role in it are installed",
                    describe(&error)
                );
                failed.push((Some(identity), text));
            }
        }
    }
    for (name, uid) in plan.delete {
        match delete(&api, &name, uid).await {
            Ok(()) => tracing::info!(
                account = name,
                "service account deleted: no federated identity needs it"
            ),
            // It is gone, or another one has its name.
            Err(Error::Api(status)) if matches!(status.code, 404 | 409) => {}
            Err(error) => {
                let text = format!(
                    "the service account {name} cannot be deleted in the namespace {NAMESPACE}: {}",
                    describe(&error)
                );
                failed.push((None, text));
            }
        }
    }
    failed
}

async fn create(api: &Api<ServiceAccount>, name: &str, identity: &ObjectKey) -> Result<(), Error> {
    let account = serde_json::from_value(json!({
        "apiVersion": "v1", "kind": "ServiceAccount",
        "metadata": {
            "name": name,
            "labels": { MANAGED_BY: MANAGER },
            "annotations": { IDENTITY: identity.to_string() },
        },
    }));
    let account = account.map_err(Error::SerdeError)?;
    api.create(&PostParams::default(), &account).await.map(drop)
}

async fn delete(api: &Api<ServiceAccount>, name: &str, uid: String) -> Result<(), Error> {
    let params = DeleteParams::default().preconditions(Preconditions {
        uid: Some(uid),
        resource_version: None,
    });
    api.delete(name, &params).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(name: &str, label: Option<&str>) -> Change<ServiceAccount> {
        let labels = label.map(|value| json!({ MANAGED_BY: value }));
        let meta = json!({ "name": name, "namespace": NAMESPACE, "uid": format!("uid-{name}"), "labels": labels });
        Change::Applied(serde_json::from_value(json!({ "metadata": meta })).unwrap())
    }

    fn listed(names: &[&str]) -> Change<ServiceAccount> {
        let key = |name: &&str| ObjectKey::new(NAMESPACE, name);
        Change::Listed(names.iter().map(key).collect())
    }

    #[test]
    fn only_what_podid_made_is_deleted() {
        let mut accounts = Accounts::default();
        accounts.apply(account("shop.gone", Some(MANAGER)));
        accounts.apply(account("shop.reader", None));
        accounts.apply(account("default", None));
        accounts.apply(account("helms", Some("Helm")));
        let wanted = [
            ObjectKey::new("shop", "reader"),
            ObjectKey::new("shop", "new"),
        ];
        // Before the list is complete nothing is certain.
        assert_eq!(accounts.plan(wanted.iter()), Plan::default());
        accounts.apply(listed(&["shop.gone", "shop.reader", "default", "helms"]));
        let plan = accounts.plan(wanted.iter());
        assert_eq!(plan.create, [("shop.new".to_owned(), wanted[1].clone())]);
        assert_eq!(
            plan.delete,
            [("shop.gone".to_owned(), "uid-shop.gone".to_owned())]
        );
    }

    #[test]
    fn what_somebody_deleted_is_created_again() {
        let mut accounts = Accounts::default();
        accounts.apply(account("shop.reader", Some(MANAGER)));
        accounts.apply(listed(&["shop.reader"]));
        let wanted = [ObjectKey::new("shop", "reader")];
        assert_eq!(accounts.plan(wanted.iter()), Plan::default());
        accounts.apply(Change::Deleted(ObjectKey::new(NAMESPACE, "shop.reader")));
        assert_eq!(accounts.plan(wanted.iter()).create.len(), 1);
    }
}
