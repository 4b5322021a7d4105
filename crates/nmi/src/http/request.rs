//! A request becomes an answer.

use std::fmt::Display;
use std::sync::Arc;
use std::time::Instant;

use http::header::{HeaderName, HeaderValue};
use http::{Method, Request};
use hyper::body::Incoming;
use jiff::Timestamp;
use podid_policy::facts::PodFacts;

use crate::caller::connection::ConnectionContext;
use crate::caller::index::Caller;
use crate::context::Context;
use crate::http::info;
use crate::http::passthrough;
use crate::http::rate_limit::Permit;
use crate::http::response::{self, Answer};
use crate::http::target::{Endpoint, MAX_TARGET, endpoint, token_request};
use crate::lifecycle::health;
use crate::refusal::Refusal;
use crate::token::grant::{self, Requester};

const METADATA: HeaderName = HeaderName::from_static("metadata");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

pub(crate) const CLIENT_REQUEST_ID: HeaderName = HeaderName::from_static("x-ms-client-request-id");
/// Longer ones are not logged.
const MAX_REQUEST_ID: usize = 128;

/// What the logs and the metrics say about a request, as far as it is known when the request is answered.
#[derive(Default)]
pub(crate) struct RequestRecord {
    pub(crate) endpoint: &'static str,
    pub(crate) pod: Option<Arc<PodFacts>>,
    pub(crate) resource: String,
    /// What the client calls its request.
    pub(crate) client_request_id: Option<HeaderValue>,
}

impl RequestRecord {
    pub(crate) fn client_request_id(&self) -> &str {
        let text = self.client_request_id.as_ref().map(HeaderValue::to_str);
        match text {
            Some(Ok(text)) if text.len() <= MAX_REQUEST_ID => text,
            _ => "",
        }
    }
}

/// Answers a request, whatever it is.
pub(crate) async fn respond(
    context: &Context,
    request: Request<Incoming>,
    connection: &ConnectionContext,
    permit: &Permit,
) -> Answer {
    if connection.peer.is_loopback() && request.uri().path() == health::DOOR {
        // Asked by this very process, to see that it is answered; nobody wants to read of that every few seconds.
        return response::refused(&Refusal::NotFound, &response::correlation_id());
    }
    let started = Instant::now();
    let mut record = RequestRecord {
        endpoint: "other",
        client_request_id: request.headers().get(CLIENT_REQUEST_ID).cloned(),
        ..RequestRecord::default()
    };
    let outcome = match permit.admit(started) {
        true => route(context, request, connection, &mut record).await,
        false => Err(Refusal::Busy),
    };
    finish(context, outcome, &record, &connection.peer, started)
}

/// Makes an answer of an outcome, logs and counts it.
pub(crate) fn finish(
    context: &Context,
    outcome: Result<Answer, Refusal>,
    record: &RequestRecord,
    peer: &dyn Display,
    started: Instant,
) -> Answer {
    let answer = outcome.unwrap_or_else(|refusal| {
        context.metrics.refused(refusal.name());
        let id = response::correlation_id();
        log(context, &refusal, peer, record, &id);
        response::refused(&refusal, &id)
    });
    let namespace = record.pod.as_ref().map_or("", |pod| &pod.key.namespace);
    let status = answer.status().as_u16();
    let took = started.elapsed();
    context
        .metrics
        .answered(record.endpoint, status, namespace, &record.resource, took);
    answer
}

fn log(context: &Context, refusal: &Refusal, peer: &dyn Display, record: &RequestRecord, id: &str) {
    let Some(left_out) = context.quiet.admit() else {
        return;
    };
    if left_out > 0 {
        tracing::warn!(
            left_out,
            "more refusals than are logged; metrics count them all"
        );
    }
    let pod = record.pod.as_ref();
    let (name, namespace) = pod.map_or(("", ""), |pod| (&pod.key.name, &pod.key.namespace));
    tracing::info!(
        pod = name, namespace, %peer, status = refusal.shape().status.as_u16(), reason = refusal.name(), detail = %refusal,
        correlation_id = id, client_request_id = record.client_request_id(),
        "refused"
    );
}

async fn route(
    context: &Context,
    request: Request<Incoming>,
    connection: &ConnectionContext,
    record: &mut RequestRecord,
) -> Result<Answer, Refusal> {
    let caller = context.caller(connection.peer);
    if let Some(Caller::Pod(pod)) = &caller {
        if !connection.is_of(pod) {
            return Err(Refusal::ChangedHands(connection.peer));
        }
        record.pod = Some(Arc::clone(pod));
        let exemption = context.index.read().exemption(pod);
        if let Some(exception) = exemption {
            record.endpoint = "exempted";
            connection.attest(pod).await?;
            tracing::debug!(pod = %pod.key, %exception, "passed on unchanged");
            return passthrough::unchanged(context, request).await;
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
        Endpoint::Host => Err(Refusal::NotTheNode),
        Endpoint::Info => {
            record.endpoint = "info";
            admissible(context, &request)?;
            info::tenant(context, Requester::Pod(connection), request.uri()).await
        }
        Endpoint::Category(category) => {
            record.endpoint = "metadata";
            if caller.is_none() {
                // It may be an exempted pod, whose answer is not podid's to give.
                return Err(Refusal::Starting);
            }
            let allowed = &context.config.allowed_categories;
            let is_allowed = allowed
                .iter()
                .any(|name| name.eq_ignore_ascii_case(category));
            if !is_allowed && request.uri().path() == "/metadata/versions" {
                admissible(context, &request)?;
                return Ok(info::versions());
            }
            if !is_allowed {
                return Err(Refusal::Category(category.to_owned()));
            }
            admissible(context, &request)?;
            passthrough::category(context, request.uri()).await
        }
        Endpoint::Token => {
            record.endpoint = "token";
            admissible(context, &request)?;
            let asked = token_request(request.uri().query().unwrap_or_default())?;
            record.resource.push_str(&asked.resource);
            let (token, _) = grant::token(
                context,
                Requester::Pod(connection),
                &asked,
                record.client_request_id(),
            )
            .await?;
            Ok(response::token(&token, Timestamp::now()))
        }
    }
}

/// What holds for every request, known before anything is looked up, so that probes are answered at once.
fn admissible(context: &Context, request: &Request<Incoming>) -> Result<(), Refusal> {
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
    if stated || !context.config.metadata_header_required {
        Ok(())
    } else {
        Err(Refusal::NoMetadataHeader)
    }
}
