//! Passthrough: requests that the node's metadata service answers itself, without what belongs to one connection (hop-by-hop headers).
//!
//! `request.rs` calls it for an exempted pod's requests, whatever they are, and for categories that pods may read; `info.rs` asks the
//! metadata service with it. It guards the metadata service against clients that would make podid hide a header from it.

use std::time::Duration;

use bytes::Bytes;
use http::header::{
    CONNECTION, CONTENT_LENGTH, EXPECT, FORWARDED, HeaderMap, HeaderName, HeaderValue,
    PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE, VIA,
};
use http::{Request, Response, Uri};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use tokio::time::timeout;

use crate::context::Context;
use crate::http::response::Answer;
use crate::http::target::is_plain_query;
use crate::refusal::{QueryError, Refusal, excerpt};
use crate::token::source::ForwardError;

/// Largest body of a forwarded request, in bytes; what the metadata service takes is far smaller.
const MAX_BODY: usize = 64 * 1024;
/// How long the body of a request may take to arrive, so that a slow client does not hold memory.
const BODY_TIMEOUT: Duration = Duration::from_secs(5);
/// The header that the metadata service demands, and podid too.
pub(crate) const METADATA: HeaderName = HeaderName::from_static("metadata");
/// The header that the metadata service refuses, because a request that came through a proxy is not the node's own.
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
/// The headers by which a proxy tells that it forwards a request, and their usual spelling. No client of the metadata service sends one,
/// and what a proxy in a pod forwards is not the pod's own request.
pub(crate) static PROXIED: [(HeaderName, &str); 3] = [
    (FORWARDED_FOR, "X-Forwarded-For"),
    (VIA, "Via"),
    (FORWARDED, "Forwarded"),
];
/// Headers that are about one connection (RFC 9110, section 7.6.1; of the two for proxies, sections 11.7.1 and 11.7.2), and those
/// that hyper writes anew for the body that podid has read.
const HOP_BY_HOP: [HeaderName; 11] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
    CONTENT_LENGTH,
    EXPECT,
];
/// Headers that `Connection` cannot make podid drop. The metadata service tells a pod's own request from a forged one by them, so
/// that it must see them as the pod sent them.
const END_TO_END: [HeaderName; 2] = [METADATA, FORWARDED_FOR];

/// Removes the hop-by-hop headers, those that `Connection` names included, from a request or an answer that is forwarded.
fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok())
        .filter(|name| !END_TO_END.contains(name))
        .collect();
    for name in HOP_BY_HOP.iter().chain(&named) {
        headers.remove(name);
    }
}

/// Forwards an exempted pod's request, whatever it is.
///
/// # Errors
/// The body is too long or too slow, or the metadata service does not answer.
pub(crate) async fn forward_exempt(
    context: &Context,
    request: Request<Incoming>,
) -> Result<Answer, Refusal> {
    let (mut parts, body) = request.into_parts();
    let whole = timeout(BODY_TIMEOUT, Limited::new(body, MAX_BODY).collect());
    let body = match whole.await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(_)) | Err(_) => return Err(Refusal::Body),
    };
    remove_hop_by_hop(&mut parts.headers);
    relay(context, Request::from_parts(parts, body)).await
}

/// Forwards a request for a category that pods may read. Only its target is forwarded, because another reader than podid could
/// understand a header or a body as a request for something else.
///
/// # Errors
/// The query is ambiguous, or the metadata service does not answer or redirects.
pub(crate) async fn category(context: &Context, target: &Uri) -> Result<Answer, Refusal> {
    if !is_plain_query(target.query().unwrap_or_default()) {
        return Err(QueryError::Odd.into());
    }
    let target = target
        .path_and_query()
        .map_or("/", |target| target.as_str());
    let target = Uri::try_from(target).map_err(|_| Refusal::NotFound(excerpt(target)))?;
    let answer = relay(context, own_request(target)).await?;
    if answer.status().is_redirection() {
        return Err(Refusal::Redirected);
    }
    Ok(answer)
}

/// Asks the metadata service something for podid itself.
///
/// # Errors
/// [`Refusal::Crowded`] beyond the limit of such requests, [`Refusal::Upstream`] without an answer.
pub(crate) async fn ask(context: &Context, target: Uri) -> Result<Response<Bytes>, Refusal> {
    forward(context, own_request(target)).await
}

fn own_request(target: Uri) -> Request<Bytes> {
    let mut request = Request::new(Bytes::new());
    *request.uri_mut() = target;
    let headers = request.headers_mut();
    headers.insert(METADATA, HeaderValue::from_static("true"));
    request
}

async fn relay(context: &Context, request: Request<Bytes>) -> Result<Answer, Refusal> {
    let mut answer = forward(context, request).await?;
    remove_hop_by_hop(answer.headers_mut());
    Ok(answer.map(Full::new))
}

async fn forward(context: &Context, request: Request<Bytes>) -> Result<Response<Bytes>, Refusal> {
    let answer = context.upstream.forward(request).await;
    answer.map_err(|error| match error {
        ForwardError::Throttled => Refusal::Crowded,
        ForwardError::Azure(error) => Refusal::Upstream(error),
    })
}
