//! Who asks, what it is granted, and the token of it.

use std::sync::Arc;

use podid_policy::facts::{IdentityFacts, ObjectKey, PodFacts};
use podid_policy::verdict::RequestedIdentity;

use crate::caller::index::{Caller, Decision};
use crate::context::Context;
use crate::http::request::Told;
use crate::http::response::Refusal;
use crate::http::server::Visit;
use crate::http::target::{Named, TokenRequest};
use crate::token::cache::{CachedToken, Served};
use crate::token::object_id;

/// Who asks.
#[derive(Clone, Copy)]
pub(crate) enum Asker<'a> {
    /// A pod, known by its address.
    Pod(&'a Visit),
    /// The node, in the name of a pod.
    Node(&'a ObjectKey),
}

impl Asker<'_> {
    pub(crate) async fn attest(self, context: &Context, pod: &PodFacts) -> Result<(), Refusal> {
        match self {
            Self::Pod(visit) => visit.attest(context, pod).await,
            Self::Node(_) => Ok(()),
        }
    }

    fn door(self) -> &'static str {
        match self {
            Self::Pod(_) => "imds",
            Self::Node(_) => "host",
        }
    }
}

/// A token of whatever the asker is granted, with whose it is.
pub(crate) async fn token(
    context: &Context,
    asker: Asker<'_>,
    query: &TokenRequest<'_>,
    told: &mut Told,
) -> Result<(Arc<CachedToken>, Arc<IdentityFacts>), Refusal> {
    told.resource.push_str(&query.resource);
    let wanted = wanted(context, asker, &query.named, &query.resource).await?;
    let (pod, identity) = granted(context, asker, &wanted).await?;
    let (token, served) = context
        .cache
        .get(&identity, &query.resource, query.bypass_cache)
        .await?;
    // While the token was fetched the grant may have gone, or gone to another identity.
    if served == Served::Fetched {
        match look(context, asker, &wanted)? {
            Grant::Now(_, now) if now == identity => {}
            _ => return Err(Refusal::GrantChanged(pod.key.clone())),
        }
        asker.attest(context, &pod).await?;
    }
    let how = match served {
        Served::Hit => "hit",
        Served::Fetched => "fetched",
    };
    if served == Served::Fetched {
        context.asked.note(&identity.key, &query.resource);
    }
    context.metrics.token(how);
    tracing::info!(
        target: "podid::audit", pod = %pod.key.name, namespace = %pod.key.namespace,
        service_account = %pod.service_account, identity = %identity.key, resource = %query.resource,
        door = asker.door(), cache = how, expires_on = token.expires_on().as_second(),
        client_request_id = told.client_request_id(), "token issued"
    );
    Ok((token, identity))
}

/// What the rules are asked for. First, whoever nobody knows yet is asked about.
pub(crate) async fn wanted(
    context: &Context,
    asker: Asker<'_>,
    named: &Named,
    resource: &str,
) -> Result<RequestedIdentity, Refusal> {
    if let Asker::Pod(visit) = asker
        && let Some(Caller::Unknown | Caller::NotYet) = context.caller(visit.peer)
    {
        context.lookup.ask(visit.peer).await;
    }
    match &named.object_id {
        Some(id) => Ok(RequestedIdentity::Object(
            object_id::object(context, asker, id, resource).await?,
        )),
        None => Ok(named.wanted.clone()),
    }
}

/// The caller and the identity it is granted; waits a little for one that is on its way to the pod's host.
pub(crate) async fn granted(
    context: &Context,
    asker: Asker<'_>,
    wanted: &RequestedIdentity,
) -> Result<(Arc<PodFacts>, Arc<IdentityFacts>), Refusal> {
    match look(context, asker, wanted)? {
        Grant::Now(pod, identity) => {
            asker.attest(context, &pod).await?;
            return Ok((pod, identity));
        }
        Grant::Soon(pod, _) => asker.attest(context, &pod).await?,
    }
    // Subscribed before looking again, so that no change between the two is missed.
    let mut changes = context.changes.subscribe();
    let until = tokio::time::Instant::now() + context.config.assignment_wait;
    loop {
        let (pod, identity) = match look(context, asker, wanted)? {
            Grant::Now(pod, identity) => {
                asker.attest(context, &pod).await?;
                return Ok((pod, identity));
            }
            Grant::Soon(pod, identity) => (pod, identity),
        };
        let changed = tokio::time::timeout_at(until, changes.changed()).await;
        if !matches!(changed, Ok(Ok(()))) {
            return Err(Refusal::NotAssigned {
                pod: pod.key.clone(),
                identity: identity.key.clone(),
            });
        }
    }
}

enum Grant {
    Now(Arc<PodFacts>, Arc<IdentityFacts>),
    Soon(Arc<PodFacts>, Arc<IdentityFacts>),
}

/// What the asker is granted as things are now: neither the pod nor the grant is remembered from before a wait.
fn look(context: &Context, asker: Asker<'_>, wanted: &RequestedIdentity) -> Result<Grant, Refusal> {
    let pod = pod(context, asker)?;
    match context.index.read().decide(&pod, wanted) {
        Decision::Grant(identity) => Ok(Grant::Now(pod, identity)),
        Decision::NotYet(identity) => Ok(Grant::Soon(pod, identity)),
        Decision::Refused(reason) => Err(Refusal::Denied(reason)),
        Decision::Exempt(exception) if matches!(asker, Asker::Node(_)) => Err(Refusal::Exempted {
            pod: pod.key.clone(),
            exception,
        }),
        // It was not exempted a moment ago; the client asks again.
        Decision::Exempt(_) => Err(Refusal::GrantChanged(pod.key.clone())),
    }
}

/// The pod that asks, or is asked for.
pub(crate) fn pod(context: &Context, asker: Asker<'_>) -> Result<Arc<PodFacts>, Refusal> {
    let visit = match asker {
        Asker::Pod(visit) => visit,
        Asker::Node(key) => {
            let known = context.is_synced();
            let found = context.index.read().pod(key);
            return match found.filter(|pod| pod.is_live()) {
                Some(pod) => Ok(pod),
                None if known => Err(Refusal::UnknownPod(key.clone())),
                None => Err(Refusal::Starting),
            };
        }
    };
    match context.caller(visit.peer).ok_or(Refusal::Starting)? {
        Caller::Pod(pod) if visit.is_of(&pod) => Ok(pod),
        Caller::Pod(_) => Err(Refusal::ChangedHands(visit.peer)),
        Caller::Ambiguous => Err(Refusal::AmbiguousCaller(visit.peer)),
        Caller::NotYet => Err(Refusal::UnknownYet(visit.peer)),
        Caller::Unknown => Err(Refusal::UnknownCaller(visit.peer)),
    }
}
