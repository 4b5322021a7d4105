//! Authorization of one token request: the pod is live, on the caller's node, and granted the identity.
//!
//! ```text
//!  the index, else the API server ──► no pod of this name and uid ──► UnknownPod
//!                                 ──► it has finished ──────────────► PodFinished
//!                                 ──► it is on another node ────────► WrongNode
//!  policy, by the index, else by what the API server has now
//!                                 ──► no such AzureIdentity ────────► UnknownIdentity
//!                                 ──► no binding grants it ─────────► NotGranted
//!                                 ──► it has no spec.federation ────► NotFederated
//! ```
//!
//! `http/request.rs` calls it. It guards invariant 11: the credentials of a node get tokens for live pods of that node alone.

use std::sync::Arc;

use podid_policy::facts::{IdentityFacts, IdentitySource, ObjectKey, PodFacts, PodPhase};

use crate::cluster::index::Decision;
use crate::context::Context;
use crate::protocol::PodRef;
use crate::refusal::Refusal;

/// The identity, where a pod of `node` may have its token.
pub(crate) async fn authorize(
    context: &Context,
    node: &str,
    pod: &PodRef,
    identity: &ObjectKey,
) -> Result<Arc<IdentityFacts>, Refusal> {
    let pod = live_pod(context, node, pod).await?;
    let identity = granted(context, &pod, identity).await?;
    federated(identity)
}

/// The identity with this name, where it is federated.
pub(crate) async fn identity(
    context: &Context,
    key: &ObjectKey,
) -> Result<Arc<IdentityFacts>, Refusal> {
    let watched = context.index.read().identity(key);
    if let Some(identity) = watched.filter(|identity| is_federated(identity)) {
        return Ok(identity);
    }
    // The watch may not have reported yet that it was made, or that it has the block now.
    let found = context.lookup.grants(key).await;
    match found.map_err(|reason| Refusal::api_server(&reason))? {
        Some((identity, _)) => federated(identity),
        None => Err(Refusal::unknown_identity(key)),
    }
}

async fn live_pod(context: &Context, node: &str, asked: &PodRef) -> Result<Arc<PodFacts>, Refusal> {
    let key = ObjectKey::new(&asked.namespace, &asked.name);
    let is_it = |pod: &Arc<PodFacts>| *pod.uid == *asked.uid && !asked.uid.is_empty();
    let watched = context.index.read().pod(&key);
    let watched = watched.filter(|pod| is_it(pod) && pod.node.is_some());
    let pod = match watched {
        Some(pod) => pod,
        None => {
            let found = context.lookup.pod(&key).await;
            let found = found.map_err(|reason| Refusal::api_server(&reason))?;
            let found = found.filter(is_it);
            found.ok_or_else(|| Refusal::unknown_pod(&key, &asked.uid))?
        }
    };
    if pod.phase == PodPhase::Finished {
        return Err(Refusal::pod_finished(&key));
    }
    if pod.node.as_deref() != Some(node) {
        return Err(Refusal::wrong_node(&key, node));
    }
    Ok(pod)
}

async fn granted(
    context: &Context,
    pod: &PodFacts,
    key: &ObjectKey,
) -> Result<Arc<IdentityFacts>, Refusal> {
    let watched = context.index.read().decide(pod, key);
    match watched {
        Decision::Granted(identity) => return Ok(identity),
        Decision::Exempt(exception) => return Err(Refusal::exempt(&pod.key, &exception)),
        Decision::Refused(_) | Decision::UnknownIdentity => {}
    }
    let found = context.lookup.grants(key).await;
    let Some((identity, bindings)) = found.map_err(|reason| Refusal::api_server(&reason))? else {
        return Err(Refusal::unknown_identity(key));
    };
    let bindings: Vec<_> = bindings.iter().collect();
    let decision = context.index.read().decide_by(pod, &identity, &bindings);
    match decision {
        Decision::Granted(identity) => Ok(identity),
        Decision::Exempt(exception) => Err(Refusal::exempt(&pod.key, &exception)),
        Decision::Refused(reason) => Err(Refusal::not_granted(&reason)),
        Decision::UnknownIdentity => Err(Refusal::unknown_identity(key)),
    }
}

fn federated(identity: Arc<IdentityFacts>) -> Result<Arc<IdentityFacts>, Refusal> {
    match is_federated(&identity) {
        true => Ok(identity),
        false => Err(Refusal::not_federated(&identity.key)),
    }
}

fn is_federated(identity: &IdentityFacts) -> bool {
    matches!(identity.source, IdentitySource::Federated { .. })
}
