//! Carries out what [`crate::assigned`] decides: writes little, and learns from the answers at once.

use podid_cluster::error_text::describe;
use std::sync::Arc;

use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::core::{ApiResource, DynamicObject};
use kube::{Api, Error};
use podid_policy::desired::AssignmentKey;
use podid_policy::facts::ObjectKey;
use serde_json::Value;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::assigned::{AssignedObject, ObjectWrite, WatchedAssignedIdentity, decide};
use crate::context::Context;
use crate::index::Effects;
use crate::metrics::WriteKind;
use crate::report::events;

/// One of the writers: takes keys from the queue until shutdown.
pub(crate) async fn write(context: Arc<Context>, shutdown: CancellationToken) {
    loop {
        let key = tokio::select! {
            () = shutdown.cancelled() => return,
            key = context.queue.next() => key,
        };
        let fine = tokio::select! {
            () = shutdown.cancelled() => return,
            fine = settle(&context, &key) => fine,
        };
        context.queue.done(key, fine);
    }
}

/// Brings the objects of one assignment to where they should be. Says whether that worked.
async fn settle(context: &Context, key: &AssignmentKey) -> bool {
    if !context.is_ready() {
        return true;
    }
    let (steps, news) = decide(&mut context.index.lock(), key, &context.config);
    for step in &steps {
        let started = Instant::now();
        let kind = match step {
            ObjectWrite::Create(..) => WriteKind::Addition,
            ObjectWrite::Patch(..) => WriteKind::Update,
            ObjectWrite::Remove { .. } => WriteKind::Deletion,
        };
        match carry_out(context, step).await {
            Ok(()) => {
                context.write_trouble.lock().clear();
                context.metrics.wrote(kind, started.elapsed());
            }
            // Somebody else was faster: the watch brings what they did.
            Err(error) if code(&error) == Some(409) => return false,
            Err(error) => {
                context.metrics.write_failed(kind);
                complain(context, key, &describe(&error));
                return false;
            }
        }
    }
    if let Some(news) = news {
        let note = events::of_binding(&context.index.lock(), &key.pod, news);
        context.record_event(note);
    }
    true
}

fn complain(context: &Context, key: &AssignmentKey, reason: &str) {
    let mut said = context.write_trouble.lock();
    if *said != reason {
        reason.clone_into(&mut said);
        tracing::warn!(pod = %key.pod, identity = %key.identity, reason, "AzureAssignedIdentities cannot be written; retried");
    }
}

async fn carry_out(context: &Context, step: &ObjectWrite) -> Result<(), Error> {
    match step {
        ObjectWrite::Create(key, body) => {
            let resource = ApiResource::erase::<WatchedAssignedIdentity>(&());
            let api: Api<DynamicObject> =
                Api::namespaced_with(context.client.clone(), &key.namespace, &resource);
            let object = serde_json::from_value(body.clone()).map_err(Error::SerdeError)?;
            let made = api.create(&PostParams::default(), &object).await?;
            let made = serde_json::to_value(made).and_then(serde_json::from_value);
            learn(context, made.map_err(Error::SerdeError)?);
            Ok(())
        }
        ObjectWrite::Patch(key, body) => {
            let changed = patch(context, key, body).await?;
            learn(context, changed);
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

/// What the API server answered is so now, whatever the watch still has under way.
fn learn(context: &Context, seen: WatchedAssignedIdentity) {
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
