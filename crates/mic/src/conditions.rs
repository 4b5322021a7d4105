//! The condition on an AzureIdentity that tells whether Azure lets podid attach it.

use std::sync::Arc;

use jiff::Timestamp;
use kube::Api;
use podid_api::identity::AzureIdentity;
use podid_cluster::status;
use podid_policy::facts::ObjectKey;
use podid_policy::ids::ResourceId;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::context::Context;
use crate::controller::State;

/// The condition's type.
pub(crate) const ATTACHABLE: &str = "Attachable";

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
    let Some((attachable, message)) = due(&context.state.lock(), identity) else {
        return;
    };
    let reason = if attachable {
        "Attached"
    } else {
        "RefusedByAzure"
    };
    let condition = json!({
        "type": ATTACHABLE,
        "status": if attachable { "True" } else { "False" },
        "reason": reason,
        "message": message,
        "lastTransitionTime": Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
    });
    let api: Api<AzureIdentity> = Api::namespaced(context.client.clone(), &identity.namespace);
    let wanted = json!({ "conditions": [condition] });
    match status::write(&api, &identity.name, None, &wanted, &Value::Null).await {
        Ok(_) => {
            let mut state = context.state.lock();
            if let Some(meta) = state.identities.get_mut(identity) {
                meta.condition = Some((attachable, message));
            }
        }
        Err(error) => {
            tracing::info!(%identity, reason = %error, "the condition of the AzureIdentity was not written");
        }
    }
}

/// What the condition must say, where it does not say so yet: refused if any host's worker was refused; attachable only once a
/// refused one has been attached.
fn due(state: &State, identity: &ObjectKey) -> Option<(bool, String)> {
    let known = state.identities.get(identity)?.condition.clone();
    let id: ResourceId = state.desired.identity(identity)?.resource_id()?.clone();
    let refused = state.hosts.values().find_map(|host| {
        let text = host.quarantine.reason(&id)?;
        Some(format!("{}: {text}", host.key))
    });
    let now = match refused {
        Some(text) => (false, text),
        None if state.hosts.values().any(|host| host.has(&id) == Some(true)) => {
            (true, "attached to the hosts of its pods".to_owned())
        }
        None => return None,
    };
    match known {
        Some(known) if known == now || (known.0 && now.0) => None,
        None if now.0 => None,
        _ => Some(now),
    }
}
