//! Refusal: every reason for which a request gets no token, each once, with its stable name, its HTTP status and its text.
//!
//! The rooms `http`, `caller` and `token` return it; `http/response.rs` renders it.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use podid_azure::ErrorKind;
use podid_broker::client::ClientError;
use podid_broker::protocol::ErrorKind as BrokerErrorKind;
use podid_policy::facts::ObjectKey;
use podid_policy::ids::IdError;
use podid_policy::reason::DenialReason;

use crate::token::request::MAX_RESOURCE;
use crate::token::source::SourceError;

/// `Retry-After` for what changes within a watch event.
const RETRY_SOON: Duration = Duration::from_secs(1);
/// `Retry-After` for what Azure or the controller still has to do.
const RETRY_LATER: Duration = Duration::from_secs(5);

/// How a refusal is answered.
pub(crate) struct Shape {
    pub(crate) status: StatusCode,
    /// `error` of the body, by OAuth2's and the metadata service's names.
    pub(crate) error: &'static str,
    /// When the client should ask again; `None` when it should not.
    pub(crate) retry_after: Option<Duration>,
}

impl Shape {
    fn new(status: StatusCode, error: &'static str) -> Self {
        Self {
            status,
            error,
            retry_after: None,
        }
    }

    fn forbidden() -> Self {
        Self::new(StatusCode::FORBIDDEN, "access_denied")
    }

    fn throttled(retry_after: Duration) -> Self {
        Self {
            retry_after: Some(retry_after),
            ..Self::new(StatusCode::TOO_MANY_REQUESTS, "too_many_requests")
        }
    }

    /// 500 and not 503: every client that asks again at 503 does so at 500 with `Retry-After`, and azidentity 1.0 to 1.3 at 500 only.
    fn unavailable(retry_after: Duration) -> Self {
        Self {
            retry_after: Some(retry_after),
            ..Self::new(StatusCode::INTERNAL_SERVER_ERROR, "temporarily_unavailable")
        }
    }
}

/// Why a request gets no token.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    /// No such endpoint.
    #[error("no such endpoint: {0}; tokens are at /metadata/identity/oauth2/token")]
    NotFound(String),
    /// Not GET.
    #[error("only GET is allowed")]
    Method,
    /// `Metadata: true` is missing.
    #[error("Required metadata header not specified")]
    NoMetadataHeader,
    /// The header `Metadata` has another value.
    #[error(
        "Required metadata header not specified: it must be Metadata: true, and came as Metadata: {0}"
    )]
    OddMetadataHeader(String),
    /// The request came through a proxy, which this header tells.
    #[error(
        "a request with the header {0} is refused, because it came through a proxy; set NO_PROXY=169.254.169.254 so that it does not"
    )]
    Forwarded(&'static str),
    /// The target is too long.
    #[error("the request target is too long")]
    TooLong,
    /// The head is too long.
    #[error("the request's headers are too long, or too many")]
    HeadTooLong,
    /// What came is not HTTP.
    #[error("the request is not valid HTTP/1.1")]
    Malformed,
    /// The body is too long or does not arrive in time.
    #[error("the request's body is longer than 64 KiB, or did not arrive")]
    Body,
    /// The metadata service answered with a redirection.
    #[error("the metadata service answered with a redirection, which no client of it expects")]
    Redirected,
    /// The query is refused.
    #[error(transparent)]
    Query(#[from] QueryError),
    /// Pods may not read this category of metadata.
    #[error(
        "/metadata/{0} is not served to pods; an operator can allow it with --allow-metadata-paths, or exempt the pod with an AzurePodIdentityException"
    )]
    Category(String),
    /// The index is not complete yet.
    #[error("podid is starting and has not read the cluster's objects yet; ask again")]
    Starting,
    /// No pod has the caller's address, and none is waiting for one.
    #[error(
        "Identity not found: no pod of this node has the address {0}; pods on the host network cannot be told apart and get no identity"
    )]
    UnknownCaller(IpAddr),
    /// No pod has the caller's address so far, and some pod of this node has none yet.
    #[error("the pod with the address {0} is not known yet; ask again")]
    UnknownYet(IpAddr),
    /// The pod that the node names is not on this node.
    #[error("no pod {0} runs on this node")]
    UnknownPod(ObjectKey),
    /// The pod that the node names is exempted, so that it has its tokens from the metadata service itself.
    #[error(
        "AzurePodIdentityException {exception} exempts pod {pod}; it has no identity of podid's"
    )]
    Exempted {
        /// The pod.
        pod: ObjectKey,
        /// The exception that exempts it.
        exception: ObjectKey,
    },
    /// The node does not say which pod it asks for.
    #[error("the headers podname and podns must name the pod whose token is asked for")]
    NoPodNamed,
    /// A caller that is not the node asks for a token of a pod that it names.
    #[error(
        "a pod's token is given to the node's own programs only, by the Unix socket that --host-token-socket names, and at this port to root on the host's network where --host-token-loopback says so"
    )]
    NotTheNode,
    /// The metadata service does not say its tenant.
    #[error("the metadata service does not tell which tenant its identities are of; ask again")]
    NoTenant,
    /// Several pods have the caller's address.
    #[error(
        "the address {0} belongs to more than one live pod at the moment; ask again when the old one is gone"
    )]
    AmbiguousCaller(IpAddr),
    /// The caller's address passed to another pod while its connection was open.
    #[error(
        "the address {0} belongs to another pod than when this connection was opened; connect again"
    )]
    ChangedHands(IpAddr),
    /// The API server says that the address is this pod's, and the node's kernel says that it is not.
    #[error(
        "the address {address} is pod {pod}'s as far as the API server says, but on this node it leads to somebody else; a pod that has just got the address asks again"
    )]
    NotAttested {
        /// The pod.
        pod: ObjectKey,
        /// The address.
        address: IpAddr,
    },
    /// The grant changed while the token was fetched.
    #[error("what pod {0} is granted changed while its token was fetched; ask again")]
    GrantChanged(ObjectKey),
    /// The rules grant no identity.
    #[error("Identity not found: {0}")]
    Denied(DenialReason),
    /// The identity is granted and not on the pod's host yet.
    #[error(
        "identity {identity} is granted to pod {pod} and not yet assigned to its node; {}; ask again",
        refusal.as_deref().map_or_else(
            || "see `kubectl describe azureassignedidentity`".to_owned(),
            |refusal| format!("Azure refuses to attach it until that is repaired: {refusal}"),
        )
    )]
    NotAssigned {
        /// The pod.
        pod: ObjectKey,
        /// The AzureIdentity.
        identity: ObjectKey,
        /// Why Azure refuses to attach it, where the controller says so.
        refusal: Option<Arc<str>>,
    },
    /// The caller has too many connections or sends too many requests.
    #[error("too many requests or open connections from this pod; keep tokens until they expire")]
    Busy,
    /// Too many requests are forwarded to the metadata service.
    #[error("too many requests of this node for the metadata service itself; ask again")]
    Crowded,
    /// The issuer gives no token.
    #[error("the token cannot be had: {0}")]
    Source(#[from] Arc<SourceError>),
    /// The metadata service did not answer a forwarded request.
    #[error("{0}")]
    Upstream(podid_azure::Error),
}

impl Refusal {
    /// Whether it passes by itself and soon, so that the request is held for that (`hold.rs`).
    pub(crate) fn is_awaited(&self) -> bool {
        match self {
            Self::NotAssigned { refusal, .. } => refusal.is_none(),
            Self::Source(error) => error.is_identity_not_found() || error.is_broker_behind(),
            _ => false,
        }
    }

    /// How it is answered. SDKs act on the status: they give up at 400 and 403, and most ask again at 429 and 500.
    pub(crate) fn shape(&self) -> Shape {
        use StatusCode as S;
        match self {
            Self::NotFound(_) => Shape::new(S::NOT_FOUND, "not_found"),
            Self::Method => Shape::new(S::METHOD_NOT_ALLOWED, "invalid_request"),
            Self::TooLong => Shape::new(S::URI_TOO_LONG, "invalid_request"),
            Self::HeadTooLong => Shape::new(S::REQUEST_HEADER_FIELDS_TOO_LARGE, "invalid_request"),
            Self::NoMetadataHeader
            | Self::OddMetadataHeader(_)
            | Self::Forwarded(_)
            | Self::Query(_)
            | Self::Malformed
            | Self::NoPodNamed
            | Self::Exempted { .. }
            | Self::UnknownCaller(_)
            | Self::UnknownPod(_)
            | Self::Denied(_)
            | Self::Body => Shape::new(S::BAD_REQUEST, "invalid_request"),
            Self::Redirected => Shape::new(S::BAD_GATEWAY, "invalid_response"),
            Self::Category(_) | Self::NotTheNode => Shape::forbidden(),
            Self::Starting
            | Self::NoTenant
            | Self::UnknownYet(_)
            | Self::AmbiguousCaller(_)
            | Self::ChangedHands(_)
            | Self::NotAttested { .. }
            | Self::GrantChanged(_) => Shape::unavailable(RETRY_SOON),
            Self::NotAssigned { .. } => Shape::unavailable(RETRY_LATER),
            Self::Busy | Self::Crowded => Shape::throttled(RETRY_SOON),
            Self::Source(error) => of_source(error),
            Self::Upstream(error) => of_azure(error),
        }
    }

    /// A stable name for metrics, logs and the troubleshooting page.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::NotFound(_) => "NotFound",
            Self::Method => "MethodNotAllowed",
            Self::NoMetadataHeader | Self::OddMetadataHeader(_) => "NoMetadataHeader",
            Self::Forwarded(_) => "Forwarded",
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
}

fn of_source(error: &SourceError) -> Shape {
    match error {
        SourceError::Azure(error) => of_azure(error),
        SourceError::Secret(error) if error.is_transient() => Shape::unavailable(RETRY_LATER),
        SourceError::ShortLived => Shape::unavailable(RETRY_LATER),
        SourceError::NoPod(_) => Shape::unavailable(RETRY_SOON),
        SourceError::Broker(error) => of_broker(error),
        SourceError::Secret(_) | SourceError::Unusable(_) | SourceError::NoBroker(_) => {
            Shape::forbidden()
        }
    }
}

fn of_broker(error: &ClientError) -> Shape {
    use BrokerErrorKind as Kind;
    let wait = error.retry_after();
    let ClientError::Refused { kind, .. } = error else {
        return Shape::unavailable(wait.unwrap_or(RETRY_LATER));
    };
    match kind {
        Kind::Malformed => Shape::new(StatusCode::BAD_REQUEST, "invalid_resource"),
        Kind::Throttled => Shape::throttled(wait.unwrap_or(RETRY_LATER)),
        Kind::NoTenant
        | Kind::CredentialMissing
        | Kind::CredentialMismatch
        | Kind::TenantRefused
        | Kind::CallerRefused => Shape::forbidden(),
        // The node agent's watch and the broker's differ for a moment; what lasts, the node agent sees itself.
        Kind::UnknownPod
        | Kind::PodFinished
        | Kind::WrongNode
        | Kind::NotGranted
        | Kind::UnknownIdentity
        | Kind::NotFederated => Shape::unavailable(wait.unwrap_or(RETRY_SOON)),
        Kind::Propagating
        | Kind::IssuerUnreachable
        | Kind::Unauthenticated
        | Kind::Unavailable
        | Kind::Unknown => Shape::unavailable(wait.unwrap_or(RETRY_LATER)),
    }
}

fn of_azure(error: &podid_azure::Error) -> Shape {
    let wait = error.retry_after().unwrap_or(RETRY_LATER);
    match error.kind() {
        ErrorKind::Throttled => Shape::throttled(wait),
        ErrorKind::BadRequest => Shape::new(StatusCode::BAD_REQUEST, "invalid_resource"),
        ErrorKind::Forbidden | ErrorKind::IdentityForbidden | ErrorKind::InvalidCredential => {
            Shape::forbidden()
        }
        // The metadata service learns of an identity a little after the cluster says that it is assigned.
        ErrorKind::IdentityNotFound
        | ErrorKind::Unavailable
        | ErrorKind::Timeout
        | ErrorKind::Conflict
        | ErrorKind::NotFound
        | ErrorKind::HostRefused
        | ErrorKind::Subscription
        | ErrorKind::Malformed => Shape::unavailable(wait),
    }
}

/// The longest text of a request that an answer and the log repeat, in characters.
const MAX_EXCERPT: usize = 200;

/// A part of a request as an answer and the log may repeat it: its beginning, without control characters.
pub(crate) fn excerpt(text: &str) -> String {
    let plain = text.chars().filter(|c| !c.is_control());
    plain.take(MAX_EXCERPT).collect()
}

fn synonym(first: &str, second: &str) -> String {
    match first == second {
        true => String::new(),
        false => format!(", once as '{first}'"),
    }
}

/// Why a query is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum QueryError {
    /// `api-version` is absent or not one that has identities.
    #[error("Bad request. api-version is invalid or was not specified in the request")]
    ApiVersion,
    /// `resource` is absent.
    #[error("Required query variable 'resource' is missing")]
    NoResource,
    /// `resource` is too long.
    #[error("query variable 'resource' is longer than {MAX_RESOURCE} bytes")]
    LongResource,
    /// `resource` has a control character.
    #[error("query variable 'resource' has a control character in it, such as a line break")]
    ControlInResource,
    /// `resource` is not text.
    #[error("query variable 'resource' is not UTF-8")]
    ResourceNotText,
    /// The same variable twice, by the names that were sent.
    #[error("query variable '{second}' is given twice{}", synonym(first, second))]
    Twice {
        /// The name of the first.
        first: &'static str,
        /// The name of the second, which means the same.
        second: &'static str,
    },
    /// Two ways of naming the identity at once.
    #[error("query variables '{0}' and '{1}' exclude one another: each names an identity")]
    TwoSelectors(&'static str, &'static str),
    /// The identity is named by something that is not an id.
    #[error("query variable '{name}' is malformed: {cause}{hint}")]
    Selector {
        /// The variable that was sent.
        name: &'static str,
        /// What is wrong with its value.
        cause: IdError,
        /// What is likely to have gone wrong.
        hint: &'static str,
    },
    /// The query of a request for a category could be read in several ways.
    #[error("the query has characters other than letters, digits and -_.~=&,:+")]
    Odd,
}

#[cfg(test)]
mod tests;
