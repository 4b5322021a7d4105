//! Every answer in the metadata service's shape: the status that the SDKs act on, and a text that says what to do.

use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CONNECTION, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use http::{Response, StatusCode};
use http_body_util::Full;
use podid_azure::ErrorKind;
use podid_policy::reason::DenialReason;

use crate::http::target::{NEWEST_VERSIONS, QueryError};
use crate::token::cache::CachedToken;
use crate::token::source::SourceError;

/// Longer waits are not asked for: a client should come back while it is still interested.
const MAX_RETRY_AFTER: u64 = 60;
pub(crate) const JSON: HeaderValue = HeaderValue::from_static("application/json; charset=utf-8");

/// A request that gets no token: the only place where a failure becomes a status.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// No such endpoint.
    #[error("no such endpoint; tokens are at /metadata/identity/oauth2/token")]
    NotFound,
    /// Not GET.
    #[error("only GET is allowed")]
    Method,
    /// `Metadata: true` is missing.
    #[error("Required metadata header not specified")]
    NoMetadataHeader,
    /// The request came through a proxy.
    #[error(
        "a request with X-Forwarded-For is refused; set NO_PROXY=169.254.169.254 so that it does not go through a proxy"
    )]
    Forwarded,
    /// The target is too long.
    #[error("the request target is too long")]
    TooLong,
    /// The head is too long.
    #[error("the request's headers are too long, or too many")]
    HeadTooLong,
    /// What came is not HTTP.
    #[error("the request is not valid HTTP/1.1")]
    Malformed,
    /// The body is too long or does not arrive.
    #[error("the request's body is longer than 64 KiB, or did not arrive")]
    Body,
    /// The metadata service pointed elsewhere.
    #[error("the metadata service answered with a redirection, which no client of it expects")]
    Redirected,
    /// The query is refused.
    #[error(transparent)]
    Query(#[from] QueryError),
    /// The category of metadata is not for pods.
    #[error(
        "/metadata/{0} is not served to pods; an operator can allow it with --allow-metadata-paths, or exempt the pod with an AzurePodIdentityException"
    )]
    Category(String),
    /// The caches are not filled yet.
    #[error("podid is starting and has not read the cluster's objects yet; ask again")]
    Starting,
    /// No pod has the caller's address, and none is waiting for one.
    #[error(
        "Identity not found: no pod of this node has the address {0}; pods on the host network cannot be told apart and get no identity"
    )]
    UnknownCaller(std::net::IpAddr),
    /// No pod has the caller's address yet.
    #[error("the pod with the address {0} is not known yet; ask again")]
    UnknownYet(std::net::IpAddr),
    /// The pod that the node asks for is not here.
    #[error("no pod {0} runs on this node")]
    UnknownPod(podid_policy::facts::ObjectKey),
    /// The node asks for a pod that has its tokens from the metadata service itself.
    #[error(
        "AzurePodIdentityException {exception} exempts pod {pod}; it has no identity of podid's"
    )]
    Exempted {
        /// The pod.
        pod: podid_policy::facts::ObjectKey,
        /// What exempts it.
        exception: podid_policy::facts::ObjectKey,
    },
    /// The node must say which pod it asks for.
    #[error("the headers podname and podns must name the pod whose token is asked for")]
    NoPodNamed,
    /// A pod's token is asked for by somebody who is not the node.
    #[error(
        "a pod's token is given to the node's own programs only, by the Unix socket that --host-token-socket names"
    )]
    NotTheNode,
    /// The metadata service does not tell its tenant.
    #[error("the metadata service does not tell which tenant its identities are of; ask again")]
    NoTenant,
    /// Several pods have the caller's address.
    #[error(
        "the address {0} belongs to more than one live pod at the moment; ask again when the old one is gone"
    )]
    AmbiguousCaller(std::net::IpAddr),
    /// The caller's address passed to another pod while its connection was open.
    #[error(
        "the address {0} belongs to another pod than when this connection was opened; connect again"
    )]
    ChangedHands(std::net::IpAddr),
    /// The address is a pod's by what the API server says, and not by what the node's kernel says.
    #[error(
        "the address {address} is pod {pod}'s as far as the API server says, but on this node it leads to somebody else; a pod that has just got the address asks again"
    )]
    NotAttested {
        /// The pod.
        pod: podid_policy::facts::ObjectKey,
        /// The address.
        address: std::net::IpAddr,
    },
    /// The grant changed while the token was fetched.
    #[error("what pod {0} is granted changed while its token was fetched; ask again")]
    GrantChanged(podid_policy::facts::ObjectKey),
    /// The rules grant nothing.
    #[error("Identity not found: {0}")]
    Denied(DenialReason),
    /// Granted, and not yet on the pod's host.
    #[error(
        "identity {identity} is granted to pod {pod} and not yet assigned to its node; see `kubectl describe azureassignedidentity`; ask again"
    )]
    NotAssigned {
        /// The pod.
        pod: podid_policy::facts::ObjectKey,
        /// The AzureIdentity.
        identity: podid_policy::facts::ObjectKey,
    },
    /// The caller has too many connections or sends too many requests.
    #[error("too many requests or open connections from this pod; keep tokens until they expire")]
    Busy,
    /// Too many requests for the metadata service itself.
    #[error("too many requests of this node for the metadata service itself; ask again")]
    Crowded,
    /// The token cannot be had.
    #[error("the token cannot be had: {0}")]
    Source(#[from] std::sync::Arc<SourceError>),
    /// The metadata service did not answer an exempted pod.
    #[error("{0}")]
    Upstream(podid_azure::Error),
}

impl Refusal {
    /// The status, `error`, and whether and when to ask again.
    fn shape(&self) -> (StatusCode, &'static str, Option<Duration>) {
        use StatusCode as S;
        let soon = Some(Duration::from_secs(1));
        match self {
            Self::NotFound => (S::NOT_FOUND, "not_found", None),
            Self::Method => (S::METHOD_NOT_ALLOWED, "invalid_request", None),
            Self::TooLong => (S::URI_TOO_LONG, "invalid_request", None),
            Self::HeadTooLong => (S::REQUEST_HEADER_FIELDS_TOO_LARGE, "invalid_request", None),
            Self::NoMetadataHeader
            | Self::Forwarded
            | Self::Query(_)
            | Self::Malformed
            | Self::NoPodNamed
            | Self::Exempted { .. }
            | Self::Body => (S::BAD_REQUEST, "invalid_request", None),
            Self::Redirected => (S::BAD_GATEWAY, "invalid_response", None),
            Self::Category(_) | Self::NotTheNode => (S::FORBIDDEN, "access_denied", None),
            Self::UnknownCaller(_) | Self::UnknownPod(_) | Self::Denied(_) => {
                (S::BAD_REQUEST, "invalid_request", None)
            }
            Self::Starting
            | Self::NoTenant
            | Self::UnknownYet(_)
            | Self::AmbiguousCaller(_)
            | Self::ChangedHands(_)
            | Self::NotAttested { .. }
            | Self::GrantChanged(_) => (S::SERVICE_UNAVAILABLE, "temporarily_unavailable", soon),
            Self::NotAssigned { .. } => (
                S::SERVICE_UNAVAILABLE,
                "temporarily_unavailable",
                Some(Duration::from_secs(5)),
            ),
            Self::Busy | Self::Crowded => (S::TOO_MANY_REQUESTS, "too_many_requests", soon),
            Self::Source(error) => source(error),
            Self::Upstream(error) => azure(error),
        }
    }

    /// The status that it is answered with.
    pub fn status(&self) -> StatusCode {
        self.shape().0
    }

    /// A stable name, for metrics and logs.
    pub fn name(&self) -> &'static str {
        match self {
            Self::NotFound => "NotFound",
            Self::Method => "MethodNotAllowed",
            Self::NoMetadataHeader => "NoMetadataHeader",
            Self::Forwarded => "Forwarded",
            Self::TooLong => "TooLong",
            Self::HeadTooLong => "HeadTooLong",
            Self::Malformed => "Malformed",
            Self::Body => "BadBody",
            Self::Redirected => "Redirected",
            Self::Query(_) => "BadQuery",
            Self::Category(_) => "CategoryBlocked",
            Self::Starting => "Starting",
            Self::UnknownCaller(_) => "UnknownCaller",
            Self::UnknownPod(_) => "UnknownPod",
            Self::Exempted { .. } => "Exempted",
            Self::NoPodNamed => "NoPodNamed",
            Self::NotTheNode => "NotTheNode",
            Self::NoTenant => "NoTenant",
            Self::UnknownYet(_) => "UnknownYet",
            Self::AmbiguousCaller(_) => "AmbiguousCaller",
            Self::ChangedHands(_) => "ChangedHands",
            Self::NotAttested { .. } => "NotAttested",
            Self::GrantChanged(_) => "GrantChanged",
            Self::Denied(reason) => reason.name(),
            Self::NotAssigned { .. } => "NotAssigned",
            Self::Busy => "Busy",
            Self::Crowded => "Crowded",
            Self::Source(error) => error.name(),
            Self::Upstream(error) => error.kind().name(),
        }
    }

    /// The answer, under an id by which the log tells more.
    pub fn answer(&self, correlation_id: &str) -> Response<Full<Bytes>> {
        let (status, _, wait) = self.shape();
        let mut answer = Response::new(Full::new(self.body(correlation_id).into()));
        *answer.status_mut() = status;
        let headers = answer.headers_mut();
        headers.insert(CONTENT_TYPE, JSON);
        if let Some(wait) = wait {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds(wait)));
        }
        if matches!(self, Self::ChangedHands(_) | Self::NotAttested { .. }) {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        if status == StatusCode::METHOD_NOT_ALLOWED {
            headers.insert(ALLOW, HeaderValue::from_static("GET"));
        }
        answer
    }

    /// The answer as it goes over the wire, after which the connection is closed.
    pub(crate) fn last_words(&self) -> Bytes {
        let (status, _, wait) = self.shape();
        let body = self.body(&correlation_id());
        let wait = wait.map_or_else(String::new, |wait| {
            format!("retry-after: {}\r\n", seconds(wait))
        });
        format!(
            "HTTP/1.1 {status}\r\n{wait}content-type: application/json; charset=utf-8\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )
        .into()
    }

    fn body(&self, correlation_id: &str) -> String {
        let (status, code, _) = self.shape();
        let mut description = self.to_string();
        // Some clients take this word in a refusal for a metadata service that is not there.
        if status == StatusCode::FORBIDDEN
            && description.to_ascii_lowercase().contains("unreachable")
        {
            description =
                "the issuer refused, and its words are not for clients; see the node agent's log"
                    .to_owned();
        }
        let mut body = serde_json::json!({
            "error": code,
            "error_description": description,
            "correlationId": correlation_id,
        });
        if matches!(self, Self::Query(QueryError::ApiVersion)) {
            body["newest-versions"] = serde_json::json!(NEWEST_VERSIONS);
        }
        body.to_string()
    }
}

/// A new id.
pub(crate) fn correlation_id() -> String {
    uuid::Uuid::new_v4().to_string()
}

/// What `Retry-After` says: whole seconds, as all clients read it.
fn seconds(wait: Duration) -> u64 {
    wait.as_secs().clamp(1, MAX_RETRY_AFTER)
}

fn source(error: &SourceError) -> (StatusCode, &'static str, Option<Duration>) {
    match error {
        SourceError::Azure(error) => azure(error),
        SourceError::Secret(error) if error.is_transient() => unavailable(None),
        SourceError::ShortLived => unavailable(None),
        SourceError::Secret(_) | SourceError::Unusable(_) => {
            (StatusCode::FORBIDDEN, "access_denied", None)
        }
    }
}

fn azure(error: &podid_azure::Error) -> (StatusCode, &'static str, Option<Duration>) {
    let wait = error.retry_after();
    match error.kind() {
        ErrorKind::Throttled => (
            StatusCode::TOO_MANY_REQUESTS,
            "too_many_requests",
            wait.or(Some(Duration::from_secs(5))),
        ),
        ErrorKind::BadRequest => (StatusCode::BAD_REQUEST, "invalid_resource", None),
        ErrorKind::Forbidden | ErrorKind::IdentityForbidden | ErrorKind::InvalidCredential => {
            (StatusCode::FORBIDDEN, "access_denied", None)
        }
        // What the cluster says is assigned the metadata service learns of a little later.
        ErrorKind::IdentityNotFound => unavailable(wait),
        ErrorKind::Unavailable
        | ErrorKind::Timeout
        | ErrorKind::Conflict
        | ErrorKind::NotFound
        | ErrorKind::Malformed => unavailable(wait),
    }
}

fn unavailable(wait: Option<Duration>) -> (StatusCode, &'static str, Option<Duration>) {
    (
        StatusCode::SERVICE_UNAVAILABLE,
        "temporarily_unavailable",
        wait.or(Some(Duration::from_secs(5))),
    )
}

/// The answer with a token.
pub fn token(token: &CachedToken, now: jiff::Timestamp) -> Response<Full<Bytes>> {
    let mut answer = Response::new(Full::new(token.body(now)));
    answer.headers_mut().insert(CONTENT_TYPE, JSON);
    answer
}

/// An answer of the metadata service to an exempted pod, without what belongs to the connection it came on.
pub fn forwarded(answer: Response<Bytes>) -> Response<Full<Bytes>> {
    let mut answer = answer.map(Full::new);
    for name in [
        "connection",
        "keep-alive",
        "transfer-encoding",
        "content-length",
    ] {
        answer.headers_mut().remove(name);
    }
    answer
}
