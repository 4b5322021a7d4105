//! The condition `Ready` of an AzureIdentity: whether the hosts of its pods have it, and why not.

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

/// The condition's type.
const READY: &str = "Ready";
/// Longer messages are cut; the API server takes 32 KiB.
const MAX_MESSAGE: usize = 1000;

/// The condition, as far as it matters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Condition {
    /// `True`.
    pub(crate) ready: bool,
    status: String,
    reason: String,
    message: String,
    /// The `metadata.generation` that it speaks of.
    pub(crate) generation: i64,
    since: String,
}

impl Condition {
    /// Reads it from an object's `status`.
    pub(crate) fn read(status: &Value) -> Option<Self> {
        let conditions = status.get("conditions")?.as_array()?;
        let ours = conditions.iter().find(|c| c["type"] == READY)?;
        let text = |name: &str| ours[name].as_str().unwrap_or_default().to_owned();
        Some(Self {
            ready: ours["status"] == "True",
            status: text("status"),
            reason: text("reason"),
            message: text("message"),
            generation: ours["observedGeneration"].as_i64().unwrap_or_default(),
            since: text("lastTransitionTime"),
        })
    }

    fn new(status: &str, reason: &str, message: &str) -> Self {
        Self {
            ready: status == "True",
            status: status.to_owned(),
            reason: reason.to_owned(),
            message: message.chars().take(MAX_MESSAGE).collect(),
            generation: 0,
            since: String::new(),
        }
    }

    fn says_the_same(&self, other: &Self) -> bool {
        let texts = |c: &Self| (c.status.clone(), c.reason.clone(), c.message.clone());
        self.generation == other.generation && texts(self) == texts(other)
    }
}

/// Keeps conditions true until shutdown. Best effort: one that cannot be written is logged, and told again with the next news.
pub(crate) async fn keep(context: Arc<Context>, shutdown: CancellationToken) {
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = context.conditions.news.notified() => {}
        }
        let dirty = std::mem::take(&mut *context.conditions.dirty.lock());
        for identity in dirty.iter().filter(|_| context.is_ready()) {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tell(&context, identity) => {}
            }
        }
    }
}

async fn tell(context: &Context, identity: &ObjectKey) {
    let Some(condition) = due(&context.index.lock(), identity) else {
        return;
    };
    let body = json!({
        "type": READY,
        "status": condition.status,
        "reason": condition.reason,
        "message": condition.message,
        "observedGeneration": condition.generation,
        "lastTransitionTime": condition.since,
    });
    let api: Api<AzureIdentity> = Api::namespaced(context.client.clone(), &identity.namespace);
    let wanted = json!({ "conditions": [body] });
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

/// What the condition must say, where it does not say so yet.
fn due(index: &Index, identity: &ObjectKey) -> Option<Condition> {
    let malformed = index.malformed.get(identity);
    let meta = malformed
        .map(|(meta, _)| meta)
        .or_else(|| index.identities.get(identity))?;
    let mut now = match malformed {
        Some((_, text)) => Condition::new("False", "Malformed", text),
        None => {
            let known = meta.condition.as_ref();
            judge(index, index.desired.identity(identity)?, known)?
        }
    };
    now.generation = meta.generation;
    let before = meta.condition.as_ref();
    if before.is_some_and(|before| before.says_the_same(&now)) {
        return None;
    }
    let same = before.filter(|before| before.status == now.status && !before.since.is_empty());
    now.since = same.map_or_else(
        || {
            let now = Timestamp::now();
            now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
        },
        |before| before.since.clone(),
    );
    Some(now)
}

/// What is so; `None` while nothing can be said, which leaves what was said before.
fn judge(index: &Index, identity: &IdentityFacts, known: Option<&Condition>) -> Option<Condition> {
    let id = identity.resource_id()?;
    let mut users = index.hosts.values().filter(|h| h.wanted.contains_key(id));
    let Some(first) = users.next() else {
        let unknown = || Condition::new("Unknown", "NotInUse", "no pod uses it at present");
        return known.filter(|known| !known.ready).map(|_| unknown());
    };
    let mut attached = false;
    for host in std::iter::once(first).chain(users) {
        if is_unsure(index, host, id, &identity.client_id) {
            return None;
        }
        if let Some((fault, text)) = trouble(index, host, id, &identity.client_id) {
            return Some(Condition::new("False", fault, &text));
        }
        attached |= host.has(id) == Some(true);
    }
    let text = "it is attached to the hosts of its pods";
    attached.then(|| Condition::new("True", "Attached", text))
}

/// Why the identity does not work on a host, if there is anything that people should know.
fn trouble(
    index: &Index,
    host: &Host,
    id: &ResourceId,
    client_id: &ClientId,
) -> Option<(&'static str, String)> {
    if host.has(id) == Some(true) {
        return other_client(index, host, id, client_id);
    }
    if let Some((fault, text)) = index.quarantine.reason(id) {
        return Some((fault.name(), text.to_owned()));
    }
    let trouble = host.trouble.as_ref()?;
    (trouble.attempts >= REPORT_AFTER).then(|| (trouble.fault.name(), trouble.text.clone()))
}

/// Whether Azure is still to be asked which of two client ids is right.
fn is_unsure(index: &Index, host: &Host, id: &ResourceId, client_id: &ClientId) -> bool {
    let shown = host.seen.as_ref().and_then(|seen| seen.user.get(id));
    matches!(shown, Some(Some(shown)) if shown != client_id)
        && !index.client_id_answers.contains_key(id)
}

/// What is wrong with an identity that is attached under another client id than its object says.
fn other_client(
    index: &Index,
    host: &Host,
    id: &ResourceId,
    client_id: &ClientId,
) -> Option<(&'static str, String)> {
    let shown = host.seen.as_ref()?.user.get(id)?.as_ref()?;
    if shown == client_id {
        return None;
    }
    let advice = format!("az identity show --ids {id} --query clientId");
    let mismatch = "ClientIDMismatch";
    Some(match &index.client_id_answers.get(id)?.told {
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
            mismatch,
            format!(
                "spec.clientID is {}, and Azure says that the identity's is {}; compare with `{advice}`",
                client_id.redacted(),
                real.redacted()
            ),
        ),
        Err(error) => (
            mismatch,
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
