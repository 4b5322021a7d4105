//! The writers of AzureAssignedIdentities: tasks that take keys from the work queue and write what [`super::reconcile`] decides.
//!
//! [`crate::Mic::run`] starts as many as the configuration says, which limits the concurrency of writes. The API server's answers go
//! into the index at once, so that the next decision does not depend on how late the watch is.

use std::sync::Arc;

use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::core::{ApiResource, DynamicObject};
use kube::{Api, Error};
use podid_cluster::error_text::describe;
use podid_policy::desired::AssignmentKey;
use podid_policy::facts::ObjectKey;
use serde_json::Value;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::assigned::object::{AssignedObject, WatchedAssignedIdentity};
use crate::assigned::reconcile::{ObjectWrite, decide};
use crate::context::Context;
use crate::index::Effects;
use crate::metrics::WriteKind;
use crate::report::events;

/// One writer: takes keys from the queue until shutdown.
pub(crate) async fn write(context: Arc<Context>, shutdown: CancellationToken) {
    loop {
        let key = tokio::select! {
            () = shutdown.cancelled() => return,
            key = context.queue.next() => key,
        };
        let succeeded = tokio::select! {
            () = shutdown.cancelled() => return,
            succeeded = reconcile(&context, &key) => succeeded,
        };
        context.queue.done(key, succeeded);
    }
}

/// Makes the objects of one assignment what they must be. Says whether that worked.
async fn reconcile(context: &Context, key: &AssignmentKey) -> bool {
    if !context.is_ready() {
        return true;
    }
    let (writes, event) = decide(&mut context.index.lock(), key, &context.config);
    for write in &writes {
        let started = Instant::now();
        let kind = match write {
            ObjectWrite::Create(..) => WriteKind::Addition,
            ObjectWrite::Patch(..) => WriteKind::Update,
            ObjectWrite::Remove { .. } => WriteKind::Deletion,
        };
        match carry_out(context, write).await {
            Ok(()) => {
                context.last_write_error.lock().clear();
                context.metrics.wrote(kind, started.elapsed());
            }
            // Somebody else has changed the object since; the watch brings the new version.
            Err(error) if code(&error) == Some(409) => return false,
            Err(error) => {
                context.metrics.write_failed(kind);
                log_once(context, key, &describe(&error));
                return false;
            }
        }
    }
    if let Some(event) = event {
        let event = events::of_binding(&context.index.lock(), &key.pod, event);
        context.record_event(event);
    }
    true
}

fn log_once(context: &Context, key: &AssignmentKey, reason: &str) {
    let mut last_error = context.last_write_error.lock();
    if *last_error != reason {
        reason.clone_into(&mut last_error);
        tracing::warn!(pod = %key.pod, identity = %key.identity, reason, "AzureAssignedIdentities cannot be written; retried");
    }
}

async fn carry_out(context: &Context, write: &ObjectWrite) -> Result<(), Error> {
    match write {
        ObjectWrite::Create(key, body) => {
            let resource = ApiResource::erase::<WatchedAssignedIdentity>(&());
            let api: Api<DynamicObject> =
                Api::namespaced_with(context.client.clone(), &key.namespace, &resource);
            let object = serde_json::from_value(body.clone()).map_err(Error::SerdeError)?;
            let created = api.create(&PostParams::default(), &object).await?;
            let created = serde_json::to_value(created).and_then(serde_json::from_value);
            index_answer(context, created.map_err(Error::SerdeError)?);
            Ok(())
        }
        ObjectWrite::Patch(key, body) => {
            let changed = patch(context, key, body).await?;
            index_answer(context, changed);
            Ok(())
        }
        ObjectWrite::Remove {
            key,
            uid,
            patch: body,
            delete,
        } => {
            let gone = remove(context, key, uid, body.as_ref(), *delete).await;
            match gone {
                Err(error) if code(&error) != Some(404) => return Err(error),
                _ => context.update(|index| index.delete_object(key)),
            }
            Ok(())
        }
    }
}

async fn remove(
    context: &Context,
    key: &ObjectKey,
    uid: &str,
    body: Option<&Value>,
    delete: bool,
) -> Result<(), Error> {
    if let Some(body) = body {
        patch(context, key, body).await?;
    }
    if delete {
        let params = DeleteParams {
            preconditions: Some(Preconditions {
                uid: Some(uid.to_owned()).filter(|uid| !uid.is_empty()),
                resource_version: None,
            }),
            ..DeleteParams::default()
        };
        let api: Api<WatchedAssignedIdentity> =
            Api::namespaced(context.client.clone(), &key.namespace);
        api.delete(&key.name, &params).await?;
    }
    Ok(())
}

async fn patch(
    context: &Context,
    key: &ObjectKey,
    body: &Value,
) -> Result<WatchedAssignedIdentity, Error> {
    let api: Api<WatchedAssignedIdentity> = Api::namespaced(context.client.clone(), &key.namespace);
    let params = PatchParams::default();
    api.patch(&key.name, &params, &Patch::Merge(body)).await
}

/// Puts the API server's answer into the index, because the watch brings the same only later.
fn index_answer(context: &Context, seen: WatchedAssignedIdentity) {
    match AssignedObject::read(seen) {
        Ok(object) => context.update(|index| {
            index.apply_object(object);
            Effects::default()
        }),
        Err(error) => {
            tracing::warn!(reason = %error, "the API server answered with an AzureAssignedIdentity that cannot be read")
        }
    }
}

fn code(error: &Error) -> Option<u16> {
    match error {
        Error::Api(status) => Some(status.code),
        _ => None,
    }
}
