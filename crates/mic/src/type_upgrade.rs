//! Type upgrade: rewrites objects that have the capitalised field names of old versions of AAD Pod Identity, in place.
//!
//! The watches report what they find ([`TypeUpgrade::on_seen`]); [`crate::Mic::run`] starts [`keep`], which rewrites while this replica
//! leads. Objects in the old spelling work before that, too.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use kube::api::{Patch, PatchParams};
use kube::core::{ApiResource, DynamicObject, GroupVersionKind};
use kube::{Api, Error};
use parking_lot::Mutex;
use podid_api::{GROUP, VERSION, legacy_case};
use podid_cluster::error_text::describe;
use podid_policy::facts::ObjectKey;
use serde_json::json;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::context::Context;

/// An object is rewritten at most once in 10 minutes: a tool that applies the old spelling again and again must not cause a storm of
/// writes.
const REWRITE_COOLDOWN: Duration = Duration::from_secs(600);
/// What could not be written is tried again after 30 seconds.
const RETRY_DELAY: Duration = Duration::from_secs(30);

/// An object: its kind, the plural of the kind, and its key.
type LegacyObject = (&'static str, &'static str, ObjectKey);

/// The objects in the old spelling.
#[derive(Default)]
pub(crate) struct TypeUpgrade {
    found: Mutex<BTreeSet<LegacyObject>>,
    added: Notify,
}

impl TypeUpgrade {
    /// A watch has seen an object; `is_legacy` says whether it has the old spelling.
    pub(crate) fn on_seen(
        &self,
        kind: &'static str,
        plural: &'static str,
        key: &ObjectKey,
        is_legacy: bool,
    ) {
        let object = (kind, plural, key.clone());
        if is_legacy {
            self.found.lock().insert(object);
            // It may have been found before, and have changed under the rewriting.
            self.added.notify_one();
        } else {
            self.found.lock().remove(&object);
        }
    }

    /// A new leader rewrites everything that was found meanwhile.
    pub(crate) fn on_leading(&self) {
        self.added.notify_one();
    }
}

/// Rewrites the found objects while this replica leads, until shutdown.
pub(crate) async fn keep(context: Arc<Context>, shutdown: CancellationToken) {
    let mut done: HashMap<LegacyObject, Instant> = HashMap::new();
    let mut last_error = String::new();
    loop {
        let found = context.type_upgrade.found.lock().clone();
        for object in found.iter().filter(|_| context.is_ready()) {
            if done
                .get(object)
                .is_some_and(|at| at.elapsed() < REWRITE_COOLDOWN)
            {
                continue;
            }
            let rewritten = tokio::select! {
                () = shutdown.cancelled() => return,
                rewritten = rewrite(&context, object) => rewritten,
            };
            match rewritten {
                Ok(()) => {
                    last_error.clear();
                    context.type_upgrade.found.lock().remove(object);
                    done.insert(object.clone(), Instant::now());
                }
                Err(error) => log_once(&mut last_error, object, &error),
            }
        }
        done.retain(|_, at| at.elapsed() < REWRITE_COOLDOWN);
        let left = !context.type_upgrade.found.lock().is_empty();
        let again = async {
            if left {
                sleep(RETRY_DELAY).await;
            } else {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = context.type_upgrade.added.notified() => {}
            () = again => {}
        }
    }
}

async fn rewrite(context: &Context, (kind, plural, key): &LegacyObject) -> Result<(), Error> {
    let version = GroupVersionKind::gvk(GROUP, VERSION, kind);
    let resource = ApiResource::from_gvk_with_plural(&version, plural);
    let api: Api<DynamicObject> =
        Api::namespaced_with(context.client.clone(), &key.namespace, &resource);
    let Some(object) = api.get_opt(&key.name).await? else {
        return Ok(());
    };
    let Some(mut patch) = object.data.get("spec").and_then(legacy_case::patch) else {
        return Ok(());
    };
    patch["metadata"] = json!({ "resourceVersion": object.metadata.resource_version });
    let params = PatchParams::default();
    api.patch(&key.name, &params, &Patch::Merge(patch)).await?;
    tracing::info!(%kind, object = %key, "the object's fields are spelt as today's versions spell them");
    Ok(())
}

fn log_once(last_error: &mut String, (kind, _, key): &LegacyObject, error: &Error) {
    let reason = describe(error);
    // Somebody else has changed the object since; the watch brings the new version.
    if matches!(error, Error::Api(status) if status.code == 409) || *last_error == reason {
        return;
    }
    tracing::warn!(%kind, object = %key, %reason, "the object keeps the older spelling of its fields, which is read too; check that RBAC allows get and patch; retried");
    *last_error = reason;
}
