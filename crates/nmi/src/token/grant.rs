//! Grant: which identity the requester gets, that identity's token, and the line about it in the audit log.
//!
//! `http/request.rs` calls it for a pod, `http/host_token.rs` for the node's own programs. It guards every token: pod and grant are
//! decided anew after each wait, so that no token is given by a grant that is gone.
//!
//! ```text
//!  requester ──► pod ──► decide ──► Ready ──► attest ──► cache ──hit──────────────────────────► token
//!      ▲                   │ │                    │        └──fetched──► decide, attest again ─► token
//!      │                   │ │                    │                             └─ not the same ─► GrantChanged
//!      │                   │ │                    └──► the metadata service does not have the identity yet
//!      │                   │ └──► Pending ──► attest ──► NotAssigned      │
//!      │                   └──► Denied                       │            │
//!      └─────────────── held (hold.rs), then tried again ◄───┴────────────┘
//! ```

use std::sync::Arc;

use podid_policy::facts::{IdentityFacts, ObjectKey, PodFacts};
use podid_policy::verdict::RequestedIdentity;

use crate::caller::connection::ConnectionContext;
use crate::caller::index::{Caller, Decision};
use crate::context::Context;
use crate::hold::Hold;
use crate::refusal::Refusal;
use crate::token::cache::{CachedToken, Served};
use crate::token::object_id;
use crate::token::request::TokenRequest;

/// Who asks for a token.
#[derive(Clone, Copy)]
pub(crate) enum Requester<'a> {
    /// A pod, known by the address of its connection.
    Pod(&'a ConnectionContext, &'a Hold<'a>),
    /// A program of the node, which names the pod.
    Node(&'a ObjectKey, &'a Hold<'a>),
}

impl Requester<'_> {
    /// Attests that a pod is the caller; the node needs no evidence, because its socket admits only the node.
    ///
    /// # Errors
    /// [`Refusal::NotAttested`].
    pub(crate) async fn attest(self, pod: &PodFacts) -> Result<(), Refusal> {
        match self {
            Self::Pod(connection, _) => connection.attest(pod).await,
            Self::Node(..) => Ok(()),
        }
    }

    /// The field `door` of the audit log: the listener that the request came to.
    fn door(self) -> &'static str {
        match self {
            Self::Pod(..) => "imds",
            Self::Node(..) => "host",
        }
    }

    fn hold(&self) -> &Hold<'_> {
        match self {
            Self::Pod(_, hold) | Self::Node(_, hold) => hold,
        }
    }
}

/// A token of the identity that the requester is granted, and that identity. Each one is written to the audit log, with
/// `client_request_id`, the client's own name of its request.
///
/// # Errors
/// Why there is none.
pub(crate) async fn token(
    context: &Context,
    requester: Requester<'_>,
    request: &TokenRequest<'_>,
    client_request_id: &str,
) -> Result<(Arc<CachedToken>, Arc<IdentityFacts>), Refusal> {
    let issued = held(context, requester, || issue(context, requester, request));
    let Issued {
        pod,
        identity,
        token,
        served,
    } = issued.await?;
    let how = match served {
        Served::Hit => "hit",
        Served::Fetched => "fetched",
    };
    if served == Served::Fetched {
        context
            .requested_resources
            .record(&identity.key, &request.resource);
    }
    context.metrics.token(how);
    tracing::info!(
        target: "podid::audit", pod = %pod.key.name, namespace = %pod.key.namespace,
        service_account = %pod.service_account, identity = %identity.key, resource = %request.resource,
        door = requester.door(), cache = how, expires_on = token.expires_on().as_second(),
        client_request_id, "token issued"
    );
    Ok((token, identity))
}

/// A token that was given, and to whom.
struct Issued {
    pod: Arc<PodFacts>,
    identity: Arc<IdentityFacts>,
    token: Arc<CachedToken>,
    served: Served,
}

async fn issue(
    context: &Context,
    requester: Requester<'_>,
    request: &TokenRequest<'_>,
) -> Result<Issued, Refusal> {
    let wanted = resolve(context, requester, &request.wanted, &request.resource).await?;
    let mut was_edited = false;
    loop {
        let (pod, identity) = granted(context, requester, &wanted).await?;
        let (token, served) = context
            .cache
            .get(&identity, &request.resource, request.bypass_cache)
            .await?;
        // The grant may have gone, or gone to another identity, while the token was fetched.
        if served == Served::Fetched {
            match decide(context, requester, &wanted)? {
                Grant::Ready(_, now) if now == identity => {}
                // Who edits an AzureIdentity in use fails no request by it.
                Grant::Ready(_, now) if now.key == identity.key && !was_edited => {
                    was_edited = true;
                    continue;
                }
                _ => return Err(Refusal::GrantChanged(pod.key.clone())),
            }
            requester.attest(&pod).await?;
        }
        return Ok(Issued {
            pod,
            identity,
            token,
            served,
        });
    }
}

/// What `attempt` gives. While it is refused for something that passes by itself ([`Refusal::is_awaited`]), the request is held and
/// tried again.
///
/// # Errors
/// The last refusal.
pub(crate) async fn held<T, A: Future<Output = Result<T, Refusal>>>(
    context: &Context,
    requester: Requester<'_>,
    attempt: impl Fn() -> A,
) -> Result<T, Refusal> {
    let mut outcome = attempt().await;
    if !matches!(&outcome, Err(refusal) if refusal.is_awaited()) {
        return outcome;
    }
    // Subscribed before the next attempt, so that no change between the two is missed.
    let mut changes = context.changes.subscribe();
    loop {
        outcome = attempt().await;
        let is_awaited = matches!(&outcome, Err(refusal) if refusal.is_awaited());
        if !is_awaited || !requester.hold().wait(&mut changes).await {
            return outcome;
        }
    }
}

/// The identity that the rules are asked for: an object id becomes the AzureIdentity that has it.
///
/// # Errors
/// Why an object id cannot be resolved.
pub(crate) async fn resolve(
    context: &Context,
    requester: Requester<'_>,
    wanted: &RequestedIdentity,
    resource: &str,
) -> Result<RequestedIdentity, Refusal> {
    match wanted {
        RequestedIdentity::Object { id, .. } => Ok(RequestedIdentity::Object {
            id: id.clone(),
            identity: object_id::resolve(context, requester, id, resource).await?,
        }),
        other => Ok(other.clone()),
    }
}

/// The caller, and the identity that it is granted and that is on its host.
///
/// # Errors
/// Why there is none; [`Refusal::NotAssigned`] when the identity is not on the pod's host yet.
pub(crate) async fn granted(
    context: &Context,
    requester: Requester<'_>,
    wanted: &RequestedIdentity,
) -> Result<(Arc<PodFacts>, Arc<IdentityFacts>), Refusal> {
    let grant = decide(context, requester, wanted)?;
    let (Grant::Ready(pod, _) | Grant::Pending(pod, _)) = &grant;
    requester.attest(pod).await?;
    match grant {
        Grant::Ready(pod, identity) => Ok((pod, identity)),
        Grant::Pending(_, not_assigned) => Err(not_assigned),
    }
}

enum Grant {
    /// The identity is on the pod's host.
    Ready(Arc<PodFacts>, Arc<IdentityFacts>),
    /// The identity is granted and not on the pod's host yet.
    Pending(Arc<PodFacts>, Refusal),
}

/// What the requester is granted by the index as it is now.
fn decide(
    context: &Context,
    requester: Requester<'_>,
    wanted: &RequestedIdentity,
) -> Result<Grant, Refusal> {
    let pod = pod(context, requester)?;
    match context.index.read().decide(&pod, wanted) {
        Decision::Grant(identity) => Ok(Grant::Ready(pod, identity)),
        Decision::Pending { identity, refusal } => {
            let not_assigned = Refusal::NotAssigned {
                pod: pod.key.clone(),
                identity: identity.key.clone(),
                refusal,
            };
            Ok(Grant::Pending(pod, not_assigned))
        }
        Decision::Refused(reason) => Err(Refusal::Denied(reason)),
        Decision::Exempt(exception) if matches!(requester, Requester::Node(..)) => {
            Err(Refusal::Exempted {
                pod: pod.key.clone(),
                exception,
            })
        }
        // The exemption is newer than the request; the client asks again.
        Decision::Exempt(_) => Err(Refusal::GrantChanged(pod.key.clone())),
    }
}

/// The pod that asks, or that the node names.
///
/// # Errors
/// The pod is not known, or the address is not one pod's.
pub(crate) fn pod(context: &Context, requester: Requester<'_>) -> Result<Arc<PodFacts>, Refusal> {
    let connection = match requester {
        Requester::Pod(connection, _) => connection,
        Requester::Node(key, _) => {
            let is_synced = context.is_synced();
            let found = context.index.read().pod(key);
            return match found.filter(|pod| pod.is_live()) {
                Some(pod) => Ok(pod),
                None if is_synced => Err(Refusal::UnknownPod(key.clone())),
                None => Err(Refusal::Starting),
            };
        }
    };
    let peer = connection.peer;
    match connection.caller(context).ok_or(Refusal::Starting)? {
        Caller::Pod(pod) if connection.is_of(&pod) => Ok(pod),
        Caller::Pod(_) => Err(Refusal::ChangedHands(peer)),
        Caller::Ambiguous => Err(Refusal::AmbiguousCaller(peer)),
        Caller::NotYet => Err(Refusal::UnknownYet(peer)),
        Caller::Unknown => Err(Refusal::UnknownCaller(peer)),
    }
}
