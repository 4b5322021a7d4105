//! Calls for the service accounts that stand for federated identities: the watch, create and delete.
//!
//! [`super::keeper`] calls [`watch`] once the first federated identity is seen, and [`reconcile`] after each change. What is done follows
//! from [`super::accounts`].

use std::sync::Arc;

use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::{DeleteParams, PostParams, Preconditions};
use kube::runtime::watcher;
use kube::{Api, Error};
use podid_cluster::error_text::describe;
use podid_cluster::watch::WatchStatus;
use podid_policy::facts::ObjectKey;
use podid_policy::federation::NAMESPACE;
use serde_json::json;
use tokio::sync::watch::Sender;
use tokio_util::sync::CancellationToken;

use super::accounts::{MANAGED_BY, MANAGER};
use crate::context::Context;

/// The annotation that names the AzureIdentity, for people.
const IDENTITY: &str = "aadpodidentity.k8s.io/azure-identity";

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

/// Creates and deletes what differs. Gives what failed, with the identity that it concerns where it concerns one.
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
