//! A request becomes an answer.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http::header::HeaderName;
use http::{Method, Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use podid_policy::facts::PodFacts;

use crate::answer::Refusal;
use crate::door::Visit;
use crate::grant;
use crate::index::Caller;
use crate::pass;
use crate::shared::Shared;
use crate::target::{Endpoint, MAX_TARGET, endpoint};

const METADATA: HeaderName = HeaderName::from_static("metadata");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

pub(crate) type Answer = Response<Full<Bytes>>;

/// What the log and the metrics are told about a request.
#[derive(Default)]
pub(crate) struct Told {
    pub(crate) endpoint: &'static str,
    pub(crate) pod: Option<Arc<PodFacts>>,
    pub(crate) resource: String,
}

/// Answers a request, whatever it is.
pub(crate) async fn respond(shared: &Shared, request: Request<Incoming>, visit: &Visit) -> Answer {
    let started = Instant::now();
    let mut told = Told {
        endpoint: "other",
        ..Told::default()
    };
    let outcome = match visit.place.admit(started) {
        true => route(shared, request, visit, &mut told).await,
        false => Err(Refusal::Busy),
    };
    let answer = match outcome {
        Ok(answer) => answer,
        Err(refusal) => {
            shared.metrics.refused(refusal.name());
            tell(shared, &refusal, visit.peer, told.pod.as_deref());
            refusal.answer()
        }
    };
    let namespace = told.pod.as_ref().map_or("", |pod| &pod.key.namespace);
    let status = answer.status().as_u16();
    let took = started.elapsed();
    shared
        .metrics
        .answered(told.endpoint, status, namespace, &told.resource, took);
    answer
}

fn tell(shared: &Shared, refusal: &Refusal, peer: IpAddr, pod: Option<&PodFacts>) {
    let Some(left_out) = shared.quiet.admit() else {
        return;
    };
    if left_out > 0 {
        tracing::warn!(
            left_out,
            "more refusals than are logged; metrics count them all"
        );
    }
    let (name, namespace) = pod.map_or(("", ""), |pod| (&pod.key.name, &pod.key.namespace));
    tracing::info!(
        pod = name, namespace, %peer, status = refusal.status().as_u16(), reason = refusal.name(), detail = %refusal,
        "refused"
    );
}

async fn route(
    shared: &Shared,
    request: Request<Incoming>,
    visit: &Visit,
    told: &mut Told,
) -> Result<Answer, Refusal> {
    let caller = shared.caller(visit.peer);
    if let Some(Caller::Pod(pod)) = &caller {
        if !visit.is_of(pod) {
            return Err(Refusal::ChangedHands(visit.peer));
        }
        told.pod = Some(Arc::clone(pod));
        let exemption = shared.index.read().exemption(pod);
        if let Some(exception) = exemption {
            told.endpoint = "exempted";
            visit.attest(shared, pod).await?;
            tracing::debug!(pod = %pod.key, %exception, "passed on unchanged");
            return pass::unchanged(shared, request).await;
        }
    }
    if request
        .uri()
        .path_and_query()
        .is_some_and(|target| target.as_str().len() > MAX_TARGET)
    {
        return Err(Refusal::TooLong);
    }
    match endpoint(request.uri().path()) {
        Endpoint::Identity | Endpoint::Unknown => Err(Refusal::NotFound),
        Endpoint::Category(category) => {
            told.endpoint = "metadata";
            if caller.is_none() {
                // It may be an exempted pod, whose answer is not podid's to give.
                return Err(Refusal::Starting);
            }
            let allowed = &shared.config.allowed_categories;
            if !allowed
                .iter()
                .any(|name| name.eq_ignore_ascii_case(category))
            {
                return Err(Refusal::Category(category.to_owned()));
            }
            admissible(shared, &request)?;
            pass::category(shared, request.uri()).await
        }
        Endpoint::Token => {
            told.endpoint = "token";
            admissible(shared, &request)?;
            grant::token(shared, &request, visit, told).await
        }
    }
}

/// What holds for every request, known before anything is looked up, so that probes are answered at once.
fn admissible(shared: &Shared, request: &Request<Incoming>) -> Result<(), Refusal> {
    if request.method() != Method::GET {
        return Err(Refusal::Method);
    }
    let headers = request.headers();
    if headers.contains_key(FORWARDED_FOR) {
        return Err(Refusal::Forwarded);
    }
    let mut values = headers.get_all(METADATA).iter();
    let stated =
        values.next().is_some_and(|value| value == "true") && values.all(|value| value == "true");
    if stated || !shared.config.metadata_header_required {
        Ok(())
    } else {
        Err(Refusal::NoMetadataHeader)
    }
}
