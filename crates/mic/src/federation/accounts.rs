//! Service accounts that stand for federated identities: which of them are there, which to create and which to delete.
//!
//! The index holds [`Accounts`]; [`super::account_calls`] tells it what the watch sees, and does what [`Accounts::plan`] says. It guards
//! service accounts of others: only what carries podid's label is deleted.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::ServiceAccount;
use kube::ResourceExt as _;
use podid_cluster::watch::Change;
use podid_policy::facts::ObjectKey;
use podid_policy::federation::service_account;

/// The label of what podid made.
pub(super) const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// The value of that label.
pub(super) const MANAGER: &str = "podid-mic";

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
pub(super) struct Plan {
    /// Service accounts to be created, each with the AzureIdentity that it stands for.
    pub(super) create: Vec<(String, ObjectKey)>,
    /// Names and uids of those to be deleted.
    pub(super) delete: Vec<(String, String)>,
}

impl Accounts {
    /// Whether the service account of an identity is there.
    pub(crate) fn has(&self, identity: &ObjectKey) -> bool {
        self.seen.contains_key(&service_account(identity))
    }

    /// The watch has seen this.
    pub(super) fn apply(&mut self, change: Change<ServiceAccount>) {
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
    pub(super) fn plan<'a>(&self, wanted: impl Iterator<Item = &'a ObjectKey>) -> Plan {
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

#[cfg(test)]
mod tests {
    use podid_policy::federation::NAMESPACE;
    use serde_json::json;

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
