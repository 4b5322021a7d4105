//! HTTP response: renders tokens and refusals in the metadata service's shape, with the status that the SDKs act on.
//!
//! `request.rs` and `host_token.rs` send them; `server.rs` and `error_body.rs` write a refusal where hyper has no request to answer.

use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CONNECTION, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use http::{Response, StatusCode};
use http_body_util::Full;

use crate::http::target::NEWEST_VERSIONS;
use crate::refusal::{QueryError, Refusal};
use crate::token::cache::CachedToken;

/// Largest `Retry-After` in seconds: a client should come back while it is still interested.
const MAX_RETRY_AFTER: u64 = 60;
pub(crate) const JSON: HeaderValue = HeaderValue::from_static("application/json; charset=utf-8");

/// What a request is answered with: bodies are small and known whole.
pub(crate) type Answer = Response<Full<Bytes>>;

/// A JSON body with status 200.
pub(crate) fn json(body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    answer.headers_mut().insert(CONTENT_TYPE, JSON);
    answer
}

/// The answer with a token.
pub(crate) fn token(token: &CachedToken, now: jiff::Timestamp) -> Answer {
    json(token.body(now))
}

/// The answer to a refused request; `correlation_id` is also in the log line about it.
pub(crate) fn refused(refusal: &Refusal, correlation_id: &str) -> Answer {
    let shape = refusal.shape();
    let mut answer = json(body(refusal, correlation_id));
    *answer.status_mut() = shape.status;
    let headers = answer.headers_mut();
    if let Some(wait) = shape.retry_after {
        headers.insert(RETRY_AFTER, HeaderValue::from(seconds(wait)));
    }
    if matches!(
        refusal,
        Refusal::ChangedHands(_) | Refusal::NotAttested { .. }
    ) {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    if shape.status == StatusCode::METHOD_NOT_ALLOWED {
        headers.insert(ALLOW, HeaderValue::from_static("GET"));
    }
    answer
}

/// The bytes of a whole response that refuses and says that the connection is closed after it; for connections that hyper does
/// not serve, or no longer.
pub(crate) fn closing_bytes(refusal: &Refusal) -> Bytes {
    let shape = refusal.shape();
    let body = body(refusal, &correlation_id());
    let wait = shape.retry_after.map_or_else(String::new, |wait| {
        format!("retry-after: {}\r\n", seconds(wait))
    });
    format!(
        "HTTP/1.1 {}\r\n{wait}content-type: application/json; charset=utf-8\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
        shape.status,
        body.len()
    )
    .into()
}

fn body(refusal: &Refusal, correlation_id: &str) -> String {
    let shape = refusal.shape();
    let mut description = refusal.to_string();
    // Some clients take "unreachable" in a 403 to mean that there is no metadata service.
    if shape.status == StatusCode::FORBIDDEN
        && description.to_ascii_lowercase().contains("unreachable")
    {
        description =
            "the issuer refused, and its words are not for clients; see the node agent's log"
                .to_owned();
    }
    let mut body = serde_json::json!({
        "error": shape.error,
        "error_description": description,
        "correlationId": correlation_id,
    });
    if matches!(refusal, Refusal::Query(QueryError::ApiVersion)) {
        body["newest-versions"] = serde_json::json!(NEWEST_VERSIONS);
    }
    body.to_string()
}

/// A new random id, by which an answer and a log line are found together.
pub(crate) fn correlation_id() -> String {
    uuid::Uuid::new_v4().to_string()
}

/// `Retry-After` in whole seconds, which all clients read.
fn seconds(wait: Duration) -> u64 {
    wait.as_secs().clamp(1, MAX_RETRY_AFTER)
}
