//! The type upgrade: objects in the capitalised spelling of older versions are brought to today's, in place.

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

/// Somebody who applies the old spelling again and again is not followed faster than this.
const REWRITE_COOLDOWN: Duration = Duration::from_secs(600);
/// How often what could not be written is tried again.
const RETRY: Duration = Duration::from_secs(30);

/// An object: its kind, the plural of that, and its key.
type Which = (&'static str, &'static str, ObjectKey);

/// Objects in the old spelling.
#[derive(Default)]
pub(crate) struct TypeUpgrade {
    found: Mutex<BTreeSet<Which>>,
    news: Notify,
}

impl TypeUpgrade {
    /// The object was seen; `old` says how it is spelt.
    pub(crate) fn saw(&self, kind: &'static str, plural: &'static str, key: &ObjectKey, old: bool) {
        let which = (kind, plural, key.clone());
        if !old {
            self.found.lock().remove(&which);
        } else if self.found.lock().insert(which) {
            self.news.notify_one();
        }
    }

    /// A leader looks at everything that was found meanwhile.
    pub(crate) fn begin(&self) {
        self.news.notify_one();
    }
}

/// Rewrites what is found while this replica leads, until shutdown.
pub(crate) async fn keep(context: Arc<Context>, shutdown: CancellationToken) {
    let mut done: HashMap<Which, Instant> = HashMap::new();
    let mut said = String::new();
    loop {
        let found = context.type_upgrade.found.lock().clone();
        for which in found.iter().filter(|_| context.is_ready()) {
            if done
                .get(which)
                .is_some_and(|at| at.elapsed() < REWRITE_COOLDOWN)
            {
                continue;
            }
            let rewritten = tokio::select! {
                () = shutdown.cancelled() => return,
                rewritten = rewrite(&context, which) => rewritten,
            };
            match rewritten {
                Ok(()) => {
                    said.clear();
                    context.type_upgrade.found.lock().remove(which);
                    done.insert(which.clone(), Instant::now());
                }
                Err(error) => complain(&mut said, which, &error),
            }
        }
        done.retain(|_, at| at.elapsed() < REWRITE_COOLDOWN);
        let left = !context.type_upgrade.found.lock().is_empty();
        let again = async {
            if left {
                sleep(RETRY).await;
            } else {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = context.type_upgrade.news.notified() => {}
            () = again => {}
        }
    }
}

async fn rewrite(context: &Context, (kind, plural, key): &Which) -> Result<(), Error> {
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

fn complain(said: &mut String, (kind, _, key): &Which, error: &Error) {
    let reason = describe(error);
    // Somebody else was faster: the watch brings what they did.
    if matches!(error, Error::Api(status) if status.code == 409) || *said == reason {
        return;
    }
    tracing::warn!(%kind, object = %key, %reason, "the object keeps the older spelling of its fields, which is read too; check that RBAC allows get and patch; retried");
    *said = reason;
}
