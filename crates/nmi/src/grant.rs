//! Who asks, what it is granted, and the token of it.

use std::sync::Arc;

use http::Request;
use hyper::body::Incoming;
use jiff::Timestamp;
use podid_policy::facts::{IdentityFacts, PodFacts};
use podid_policy::verdict::Wanted;

use crate::answer::{self, Refusal};
use crate::cache::Served;
use crate::door::Visit;
use crate::index::{Caller, Decision};
use crate::request::{Answer, Told};
use crate::shared::Shared;
use crate::target::token_request;

/// Answers a request for a token.
pub(crate) async fn token(
    shared: &Shared,
    request: &Request<Incoming>,
    visit: &Visit,
    told: &mut Told,
) -> Result<Answer, Refusal> {
    let query = token_request(request.uri().query().unwrap_or_default())?;
    told.resource.push_str(&query.resource);
    if let Some(Caller::Unknown | Caller::NotYet) = shared.caller(visit.peer) {
        shared.lookup.ask(visit.peer).await;
    }
    let (pod, identity) = granted(shared, visit, &query.wanted).await?;
    let (token, served) = shared
        .cache
        .get(&identity, &query.resource, query.bypass_cache)
        .await?;
    // While the token was fetched the grant may have gone, or gone to another identity.
    if served == Served::Fetched {
        match look(shared, visit, &query.wanted)? {
            Grant::Now(_, now) if now == identity => {}
            _ => return Err(Refusal::GrantChanged(pod.key.clone())),
        }
        visit.attest(shared, &pod).await?;
    }
    let how = match served {
        Served::Hit => "hit",
        Served::Fetched => "fetched",
    };
    shared.metrics.token(how);
    tracing::info!(
        target: "podid::audit", pod = %pod.key.name, namespace = %pod.key.namespace,
        service_account = %pod.service_account, identity = %identity.key, resource = %query.resource,
        door = "imds", cache = how, expires_on = token.expires_on().as_second(), "token issued"
    );
    Ok(answer::token(&token, Timestamp::now()))
}

/// The caller and the identity it is granted; waits a little for one that is on its way to the pod's host.
async fn granted(
    shared: &Shared,
    visit: &Visit,
    wanted: &Wanted,
) -> Result<(Arc<PodFacts>, Arc<IdentityFacts>), Refusal> {
    match look(shared, visit, wanted)? {
        Grant::Now(pod, identity) => {
            visit.attest(shared, &pod).await?;
            return Ok((pod, identity));
        }
        Grant::Soon(pod, _) => visit.attest(shared, &pod).await?,
    }
    // Subscribed before looking again, so that no change between the two is missed.
    let mut changes = shared.changes.subscribe();
    let until = tokio::time::Instant::now() + shared.config.assignment_wait;
    loop {
        let (pod, identity) = match look(shared, visit, wanted)? {
            Grant::Now(pod, identity) => return Ok((pod, identity)),
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

/// What the caller is granted as things are now: neither the pod nor the grant is remembered from before a wait.
fn look(shared: &Shared, visit: &Visit, wanted: &Wanted) -> Result<Grant, Refusal> {
    if !shared.is_synced() {
        return Err(Refusal::Starting);
    }
    let index = shared.index.read();
    let watched = index.caller(visit.peer);
    let pod = match shared.lookup.caller(visit.peer, watched) {
        Caller::Pod(pod) if visit.is_of(&pod) => pod,
        Caller::Pod(_) => return Err(Refusal::ChangedHands(visit.peer)),
        Caller::Ambiguous => return Err(Refusal::AmbiguousCaller(visit.peer)),
        Caller::NotYet => return Err(Refusal::UnknownYet(visit.peer)),
        Caller::Unknown => return Err(Refusal::UnknownCaller(visit.peer)),
    };
    match index.decide(&pod, wanted) {
        Decision::Grant(identity) => Ok(Grant::Now(pod, identity)),
        Decision::NotYet(identity) => Ok(Grant::Soon(pod, identity)),
        Decision::Refused(reason) => Err(Refusal::Denied(reason)),
        // It was not exempted a moment ago; the client asks again.
        Decision::Exempt(_) => Err(Refusal::GrantChanged(pod.key.clone())),
    }
}
