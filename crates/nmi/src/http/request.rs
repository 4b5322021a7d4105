//! HTTP request: routes one request to the endpoint that answers it, and logs and counts the outcome.
//!
//! `server.rs` calls it for every request; `host_token.rs` shares [`RequestRecord`] and [`finish`]. It guards what pods may reach:
//! what is not exactly a known endpoint is refused, and only an exempted pod's request is forwarded as it is.

use std::fmt::Display;
use std::sync::Arc;
use std::time::Instant;

use http::header::{HeaderName, HeaderValue};
use http::{HeaderMap, Method, Request};
use hyper::body::Incoming;
use jiff::Timestamp;
use podid_policy::facts::PodFacts;

use crate::caller::connection::ConnectionContext;
use crate::caller::identify::identify;
use crate::caller::index::Caller;
use crate::context::Context;
use crate::hold::Hold;
use crate::http::passthrough::{self, METADATA, PROXIED};
use crate::http::rate_limit::Permit;
use crate::http::response::{self, Answer};
use crate::http::target::{Dialect, Endpoint, MAX_TARGET, endpoint, token_request};
use crate::http::{host_token, info};
use crate::refusal::{Refusal, excerpt};
use crate::token::grant::{self, Requester};

/// The client's own name of its request, for the logs.
pub(crate) const CLIENT_REQUEST_ID: HeaderName = HeaderName::from_static("x-ms-client-request-id");
/// Longest client request id that is logged, in bytes; Azure's clients send a GUID.
const MAX_REQUEST_ID: usize = 128;
/// The path by which `/healthz` of this process asks whether this server answers.
pub(crate) const SELF_CHECK_PATH: &str = "/healthz";

/// What the logs and the metrics say about a request. It is filled in while the request is answered.
#[derive(Default)]
pub(crate) struct RequestRecord {
    /// The label `operation_type` of the metrics.
    pub(crate) endpoint: &'static str,
    /// The caller, or the pod that the node names.
    pub(crate) pod: Option<Arc<PodFacts>>,
    /// The audience of the token.
    pub(crate) resource: String,
    /// The header [`CLIENT_REQUEST_ID`], whatever is in it.
    pub(crate) client_request_id: Option<HeaderValue>,
}

impl RequestRecord {
    /// The client request id, or nothing when it is too long or not text.
    pub(crate) fn client_request_id(&self) -> &str {
        let text = self.client_request_id.as_ref().map(HeaderValue::to_str);
        match text {
            Some(Ok(text)) if text.len() <= MAX_REQUEST_ID => text,
            _ => "",
        }
    }
}

/// Answers a request of a pod, whatever it is.
pub(crate) async fn respond(
    context: &Context,
    request: Request<Incoming>,
    connection: &ConnectionContext,
    permit: &Permit,
    hold: Hold<'_>,
) -> Answer {
    if connection.peer.is_loopback() && request.uri().path() == SELF_CHECK_PATH {
        // Neither logged nor counted, because the kubelet causes one every few seconds.
        let refusal = Refusal::NotFound(SELF_CHECK_PATH.to_owned());
        return response::refused(&refusal, &response::correlation_id());
    }
    let started = Instant::now();
    let mut record = RequestRecord {
        endpoint: "other",
        client_request_id: request.headers().get(CLIENT_REQUEST_ID).cloned(),
        ..RequestRecord::default()
    };
    let outcome = match permit.admit(started.into()) {
        true => route(context, request, connection, &hold, &mut record).await,
        false => Err(Refusal::Busy),
    };
    finish(context, outcome, &record, &connection.peer, started)
}

/// The answer to send; a refusal is logged, and every outcome is counted.
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
        log_refusal(context, &refusal, peer, record, &id);
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

fn log_refusal(
    context: &Context,
    refusal: &Refusal,
    peer: &dyn Display,
    record: &RequestRecord,
    id: &str,
) {
    let Some(omitted) = context.refusal_log.admit() else {
        return;
    };
    if omitted > 0 {
        tracing::warn!(
            left_out = omitted,
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
    hold: &Hold<'_>,
    record: &mut RequestRecord,
) -> Result<Answer, Refusal> {
    let endpoint = endpoint(request.uri().path());
    if endpoint == Endpoint::Host && connection.is_root_of_node {
        record.endpoint = "host";
        not_proxied(request.headers())?;
        return host_token::token(context, &request, hold, record).await;
    }
    let is_served = matches!(
        endpoint,
        Endpoint::Token | Endpoint::Info | Endpoint::Category(_)
    );
    // A request that is refused whoever sends it, such as a client's probe without the header, is not held.
    let caller = if is_served && admissible(context, &request).is_ok() {
        identify(context, connection, hold).await
    } else {
        connection.caller(context)
    };
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
            return passthrough::forward_exempt(context, request).await;
        }
    }
    if request
        .uri()
        .path_and_query()
        .is_some_and(|target| target.as_str().len() > MAX_TARGET)
    {
        return Err(Refusal::TooLong);
    }
    match endpoint {
        Endpoint::Identity | Endpoint::Unknown => {
            Err(Refusal::NotFound(excerpt(request.uri().path())))
        }
        Endpoint::Host => Err(Refusal::NotTheNode),
        Endpoint::Info => {
            record.endpoint = "info";
            admissible(context, &request)?;
            info::tenant(context, Requester::Pod(connection, hold), request.uri()).await
        }
        Endpoint::Category(category) => {
            record.endpoint = "metadata";
            if caller.is_none() {
                // An exempted pod must get the metadata service's answer, and who is exempted is not known yet.
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
            let dialect = Dialect::of(&context.config);
            let asked = token_request(request.uri().query().unwrap_or_default(), dialect)?;
            record.resource.push_str(&asked.resource);
            let (token, _) = grant::token(
                context,
                Requester::Pod(connection, hold),
                &asked,
                record.client_request_id(),
            )
            .await?;
            Ok(response::token(&token, Timestamp::now()))
        }
    }
}

/// The rules for every request to podid's own endpoints. They need no lookup, so that SDKs that probe for a metadata service are
/// answered at once.
fn admissible(context: &Context, request: &Request<Incoming>) -> Result<(), Refusal> {
    if request.method() != Method::GET {
        return Err(Refusal::Method);
    }
    let headers = request.headers();
    not_proxied(headers)?;
    if !context.config.metadata_header_required {
        return Ok(());
    }
    let mut values = headers.get_all(METADATA).iter().peekable();
    if values.peek().is_none() {
        return Err(Refusal::NoMetadataHeader);
    }
    // In any case, because clients in use send `True`.
    let odd = values.find(|value| !value.as_bytes().eq_ignore_ascii_case(b"true"));
    odd.map_or(Ok(()), |value| {
        let value = String::from_utf8_lossy(value.as_bytes());
        Err(Refusal::OddMetadataHeader(excerpt(&value)))
    })
}

/// A request that came through a proxy is not the caller's own.
fn not_proxied(headers: &HeaderMap) -> Result<(), Refusal> {
    let mut proxied = PROXIED.iter();
    match proxied.find(|(name, _)| headers.contains_key(name)) {
        Some((_, name)) => Err(Refusal::Forwarded(name)),
        None => Ok(()),
    }
}
