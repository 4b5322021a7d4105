//! Requests that the node's metadata service answers itself.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, Request, Response, Uri};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use tokio::time::timeout;

use crate::context::Context;
use crate::http::response::{self, Answer};
use crate::http::target::is_plain_query;
use crate::refusal::{QueryError, Refusal};
use crate::token::source::ForwardError;

/// Larger bodies are refused.
const MAX_BODY: usize = 64 * 1024;
/// A body that takes longer to arrive is not waited for.
const PATIENCE: Duration = Duration::from_secs(5);
/// What belongs to the connection that a request came on.
const HOP: [&str; 8] = [
    "connection",
    "keep-alive",
    "transfer-encoding",
    "content-length",
    "upgrade",
    "te",
    "trailer",
    "expect",
];

/// An exempted pod's request, as it is.
pub(crate) async fn forward_exempt(
    context: &Context,
    request: Request<Incoming>,
) -> Result<Answer, Refusal> {
    let (mut parts, body) = request.into_parts();
    let whole = timeout(PATIENCE, Limited::new(body, MAX_BODY).collect());
    let body = match whole.await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(_)) | Err(_) => return Err(Refusal::Body),
    };
    for name in HOP {
        parts.headers.remove(name);
    }
    send(context, Request::from_parts(parts, body)).await
}

/// A request for a category that pods may read. Only its target is passed on: a header or a body could tell another reader
/// that something else is asked for.
pub(crate) async fn category(context: &Context, target: &Uri) -> Result<Answer, Refusal> {
    if !is_plain_query(target.query().unwrap_or_default()) {
        return Err(QueryError::Odd.into());
    }
    let target = target
        .path_and_query()
        .map_or("/", |target| target.as_str());
    let mut request = Request::new(Bytes::new());
    *request.uri_mut() = Uri::try_from(target).map_err(|_| Refusal::NotFound)?;
    request.headers_mut().insert(
        HeaderName::from_static("metadata"),
        http::HeaderValue::from_static("true"),
    );
    let answer = send(context, request).await?;
    if answer.status().is_redirection() {
        return Err(Refusal::Redirected);
    }
    Ok(answer)
}

async fn send(context: &Context, request: Request<Bytes>) -> Result<Answer, Refusal> {
    Ok(response::forwarded(forward(context, request).await?))
}

/// Asks the metadata service itself, within the limit for requests that are not podid's own.
///
/// # Errors
/// [`Refusal::Crowded`] beyond the limit, [`Refusal::Upstream`] without an answer.
pub(crate) async fn forward(
    context: &Context,
    request: Request<Bytes>,
) -> Result<Response<Bytes>, Refusal> {
    let answer = context.upstream.forward(request).await;
    answer.map_err(|error| match error {
        ForwardError::Throttled => Refusal::Crowded,
        ForwardError::Azure(error) => Refusal::Upstream(error),
    })
}
