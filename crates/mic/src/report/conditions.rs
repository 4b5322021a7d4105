//! Conditions: the condition `Ready` of each AzureIdentity says whether the identity is on the hosts of its pods, or its tokens come by
//! federation, and why not.
//!
//! [`crate::Mic::run`] starts [`keep`]; what may change a condition calls [`Context::recheck_conditions`]. It guards the API server from
//! needless writes: a condition is written only when it changes.

use std::sync::Arc;

use jiff::Timestamp;
use kube::Api;
use podid_api::identity::AzureIdentity;
use podid_cluster::status;
use podid_policy::facts::{IdentityFacts, ObjectKey};
use podid_policy::ids::{ClientId, ResourceId};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::context::Context;
use crate::host::cloud::Fault;
use crate::host::{Host, REPORT_AFTER};
use crate::index::Index;
use crate::meta::{Condition, FEDERATED};

/// The reason of a condition: AzureIdentity and Azure disagree about the client id.
const MISMATCH: &str = "ClientIDMismatch";

/// Keeps conditions true until shutdown. One that cannot be written is logged, and tried again with the next change.
pub(crate) async fn keep(context: Arc<Context>, shutdown: CancellationToken) {
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = context.conditions.added.notified() => {}
        }
        let identities = std::mem::take(&mut *context.conditions.pending.lock());
        for identity in identities.iter().filter(|_| context.is_ready()) {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = write(&context, identity) => {}
            }
        }
    }
}

async fn write(context: &Context, identity: &ObjectKey) {
    let Some(condition) = changed_condition(&context.index.lock(), identity) else {
        return;
    };
    let api: Api<AzureIdentity> = Api::namespaced(context.client.clone(), &identity.namespace);
    let wanted = json!({ "conditions": [condition.body()] });
    match status::write(&api, &identity.name, None, &wanted, &Value::Null).await {
        Ok(_) => {
            if let Some(meta) = context.index.lock().identities.get_mut(identity) {
                meta.condition = Some(condition);
            }
        }
        Err(error) => {
            tracing::info!(%identity, reason = %error, "the condition of the AzureIdentity was not written");
        }
    }
}

/// The condition as it must be; `None` where it is so already, or where nothing can be said.
fn changed_condition(index: &Index, identity: &ObjectKey) -> Option<Condition> {
    let malformed = index.malformed.get(identity);
    let meta = malformed
        .map(|(meta, _)| meta)
        .or_else(|| index.identities.get(identity))?;
    let mut condition = match malformed {
        Some((_, text)) => Condition::new("False", "Malformed", text),
        None => {
            let known = meta.condition.as_ref();
            condition_of(index, index.desired.identity(identity)?, known)?
        }
    };
    condition.generation = meta.generation;
    let before = meta.condition.as_ref();
    if before.is_some_and(|before| before.is_same(&condition)) {
        return None;
    }
    let same = before.filter(|b| b.status == condition.status && !b.since.is_empty());
    condition.since = same.map_or_else(
        || {
            let now = Timestamp::now();
            now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
        },
        |before| before.since.clone(),
    );
    Some(condition)
}

/// The condition by what is known of the hosts; `None` while nothing can be said, which leaves the condition as it is.
fn condition_of(
    index: &Index,
    identity: &IdentityFacts,
    known: Option<&Condition>,
) -> Option<Condition> {
    if identity.is_federated() {
        let outcome = index.checks.outcome(&identity.key)?;
        return Some(match outcome {
            Ok(()) => Condition::new("True", FEDERATED, "its tokens come by federation"),
            Err(failure) => Condition::new("False", &failure.reason, &failure.text),
        });
    }
    let id = identity.attached_id()?;
    let mut users = index.hosts.values().filter(|h| h.is_wanted(id));
    let Some(first) = users.next() else {
        let unknown = || Condition::new("Unknown", "NotInUse", "no pod uses it at present");
        // What it says of hosts stays true; what it says of federation does not.
        let is_outdated = |known: &&Condition| !known.ready || known.says_federated();
        return known.filter(is_outdated).map(|_| unknown());
    };
    let mut attached = false;
    for host in std::iter::once(first).chain(users) {
        if is_unanswered(index, host, id, &identity.client_id) {
            return None;
        }
        if let Some((fault, text)) = problem_of(index, host, id, &identity.client_id) {
            return Some(Condition::new("False", fault, &text));
        }
        attached |= host.has(id) == Some(true);
    }
    let text = "it is attached to the hosts of its pods";
    attached.then(|| Condition::new("True", "Attached", text))
}

/// Why the identity does not work on a host, where people should know of it.
fn problem_of(
    index: &Index,
    host: &Host,
    id: &ResourceId,
    client_id: &ClientId,
) -> Option<(&'static str, String)> {
    if host.has(id) == Some(true) {
        return mismatch(index, host, id, client_id);
    }
    if let Some((fault, text)) = index.quarantine.reason(id, &host.key) {
        return Some((fault.name(), text.to_owned()));
    }
    let trouble = host.trouble.as_ref()?;
    (trouble.attempts >= REPORT_AFTER).then(|| (trouble.fault.name(), trouble.text.clone()))
}

/// Whether Azure shows another client id and has not said yet which one is right.
fn is_unanswered(index: &Index, host: &Host, id: &ResourceId, client_id: &ClientId) -> bool {
    let shown = host.shown_client_id(id);
    shown.is_some_and(|shown| shown != client_id) && !index.client_id_answers.contains_key(id)
}

/// The problem of an identity that is attached under another client id than its AzureIdentity says.
fn mismatch(
    index: &Index,
    host: &Host,
    id: &ResourceId,
    client_id: &ClientId,
) -> Option<(&'static str, String)> {
    let shown = host.shown_client_id(id)?;
    if shown == client_id {
        return None;
    }
    let advice = format!("az identity show --ids {id} --query clientId");
    Some(match &index.client_id_answers.get(id)?.answer {
        Ok(None) => (
            Fault::IdentityNotFound.name(),
            format!(
                "{id} does not exist any more; create it and put its new client id into spec.clientID"
            ),
        ),
        Ok(Some(real)) if real == client_id => (
            "Recreated",
            format!(
                "{id} was deleted and made anew; podid takes the dead one off {} and attaches the new one, where it had attached it",
                host.key
            ),
        ),
        Ok(Some(real)) => (
            MISMATCH,
            format!(
                "spec.clientID is {}, and Azure says that the identity's is {}; compare with `{advice}`",
                client_id.redacted(),
                real.redacted()
            ),
        ),
        Err(error) => (
            MISMATCH,
            format!(
                "spec.clientID is {}, and {} has the identity as {}; which is right could not be asked: {}; compare with `{advice}`",
                client_id.redacted(),
                host.key,
                shown.redacted(),
                error.text
            ),
        ),
    })
}
