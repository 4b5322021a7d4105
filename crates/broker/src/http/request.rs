//! One HTTPS request: who asks, what for, and the answer.
//!
//! ```text
//!  path and method ──► bearer token ──► reviewer (TokenReview) ──► body
//!    /v1/token: the node agent's account, with a node ──► grant.rs ──► exchange.rs ──► 200 PodToken
//!    /v1/check: the controller's account ───────────────► exchange.rs ──► 204
//!  anything else ──► Refusal
//! ```
//!
//! `server.rs` calls it. It guards the process against callers: the size of a body and the time of a request are bounded, and a body
//! is read of those alone who are known.

use std::net::IpAddr;
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use podid_policy::facts::ObjectKey;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use crate::cluster::grant;
use crate::cluster::reviewer::Caller;
use crate::context::Context;
use crate::protocol::{
    CHECK_PATH, CheckRequest, ErrorBody, ErrorDetail, IdentityRef, PodRef, PodToken,
    PodTokenRequest, TOKEN_PATH,
};
use crate::refusal::Refusal;
use crate::token::exchange::HeldToken;

/// How long a request may take: an assertion, and an exchange that is tried twice.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(12);
/// The largest body in bytes; a resource is the longest part of it.
const MAX_BODY: usize = 16 * 1024;
/// The longest resource in bytes, as the node agent has it.
const MAX_RESOURCE: usize = 2048;
/// The longest name of a Kubernetes object in bytes.
const MAX_NAME: usize = 253;

type Answer = Response<Full<Bytes>>;

/// The endpoint that a request is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Endpoint {
    Token,
    Check,
}

impl Endpoint {
    fn name(self) -> &'static str {
        match self {
            Self::Token => "token",
            Self::Check => "check",
        }
    }
}

/// Answers one request.
pub(crate) async fn respond(context: &Context, request: Request<Incoming>, peer: IpAddr) -> Answer {
    let begun = Instant::now();
    let endpoint = match (request.method(), request.uri().path()) {
        (&Method::POST, TOKEN_PATH) => Endpoint::Token,
        (&Method::POST, CHECK_PATH) => Endpoint::Check,
        _ => {
            let text = format!("there are POST {TOKEN_PATH} and POST {CHECK_PATH} alone");
            return refuse(&Refusal::malformed(StatusCode::NOT_FOUND, text));
        }
    };
    let mut caller = peer.to_string();
    let answer = answer(context, endpoint, request, &mut caller);
    let answer = tokio::time::timeout(REQUEST_TIMEOUT, answer).await;
    let answer = answer.unwrap_or_else(|_| Err(Refusal::too_slow()));
    let outcome = answer
        .as_ref()
        .map_or_else(|refusal| refusal.kind.name(), |_| "ok");
    context
        .metrics
        .answered(endpoint.name(), outcome, begun.elapsed());
    answer.unwrap_or_else(|refusal| {
        context.audit.refused(&caller, &refusal);
        refuse(&refusal)
    })
}

async fn answer(
    context: &Context,
    endpoint: Endpoint,
    request: Request<Incoming>,
    name: &mut String,
) -> Result<Answer, Refusal> {
    if !context.is_synced() {
        return Err(Refusal::not_ready(
            "the cluster's objects are not known yet",
        ));
    }
    let token = bearer(request.headers())?;
    let review = context.reviewer.review(token).await;
    let caller = review.map_err(|error| Refusal::review(&error))?;
    *name = format!(
        "{} on {}",
        caller.account,
        caller.node.as_deref().unwrap_or("no node")
    );
    let allowed = match endpoint {
        Endpoint::Token => &context.config.nmi_account,
        Endpoint::Check => &context.config.mic_account,
    };
    if caller.account != *allowed {
        return Err(Refusal::caller(&caller.account, allowed));
    }
    match endpoint {
        Endpoint::Token => token_for_pod(context, &caller, read(request).await?).await,
        Endpoint::Check => check(context, read(request).await?).await,
    }
}

async fn token_for_pod(
    context: &Context,
    caller: &Caller,
    request: PodTokenRequest,
) -> Result<Answer, Refusal> {
    let node = caller.node.as_deref().ok_or_else(Refusal::no_node)?;
    validate_pod(&request.pod)?;
    let identity = key(&request.identity)?;
    if request.resource.is_empty() || request.resource.len() > MAX_RESOURCE {
        let text = format!("resource must have 1 to {MAX_RESOURCE} bytes");
        return Err(Refusal::malformed(StatusCode::BAD_REQUEST, text));
    }
    let identity = grant::authorize(context, node, &request.pod, &identity).await?;
    let given = context.exchange.token(&identity, &request.resource).await;
    let (held, source) = given.map_err(|error| Refusal::exchange(&error))?;
    // The exchange takes a while, in which the pod may have gone, its grant may have ended, or the identity may be another.
    let granted = grant::authorize(context, node, &request.pod, &identity.key).await?;
    if granted != identity {
        return Err(Refusal::not_ready("the AzureIdentity has just changed"));
    }
    context.audit.token(caller, &request, source);
    Ok(json(StatusCode::OK, &pod_token(&held)))
}

async fn check(context: &Context, request: CheckRequest) -> Result<Answer, Refusal> {
    let identity = grant::identity(context, &key(&request.identity)?).await?;
    let checked = context.exchange.check(&identity).await;
    checked.map_err(|error| Refusal::exchange(&error))?;
    let mut answer = Response::new(Full::default());
    *answer.status_mut() = StatusCode::NO_CONTENT;
    Ok(answer)
}

fn bearer(headers: &HeaderMap) -> Result<&str, Refusal> {
    let value = headers
        .get(AUTHORIZATION)
        .and_then(|value| value.to_str().ok());
    let token = value.and_then(|value| {
        let (scheme, token) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
    });
    token
        .filter(|token| !token.is_empty())
        .ok_or_else(Refusal::no_token)
}

async fn read<T: DeserializeOwned>(request: Request<Incoming>) -> Result<T, Refusal> {
    let malformed = |what: &str| Refusal::malformed(StatusCode::BAD_REQUEST, what);
    let body = Limited::new(request.into_body(), MAX_BODY).collect().await;
    let body = body.map_err(|_| malformed("the body is cut short or too long"))?;
    serde_json::from_slice(&body.to_bytes())
        .map_err(|error| malformed(&format!("the body: {error}")))
}

fn key(identity: &IdentityRef) -> Result<ObjectKey, Refusal> {
    validate(&[&identity.namespace, &identity.name])?;
    Ok(ObjectKey::new(&identity.namespace, &identity.name))
}

fn validate_pod(pod: &PodRef) -> Result<(), Refusal> {
    validate(&[&pod.namespace, &pod.name, &pod.uid])
}

/// Names become parts of paths at the API server.
fn validate(names: &[&str]) -> Result<(), Refusal> {
    let is_name = |name: &&str| {
        let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.');
        !name.is_empty() && name.len() <= MAX_NAME && name.chars().all(fine)
    };
    match names.iter().all(is_name) {
        true => Ok(()),
        false => Err(Refusal::malformed(
            StatusCode::BAD_REQUEST,
            "a namespace, name or uid is none that Kubernetes gives",
        )),
    }
}

fn pod_token(held: &HeldToken) -> PodToken {
    let token = &held.token;
    PodToken {
        access_token: token.secret().to_owned().into(),
        token_type: token.token_type.clone(),
        expires_on: token.expires_on.as_second(),
        refresh_on: token.refresh_on.map(|at| at.as_second()),
    }
}

fn refuse(refusal: &Refusal) -> Answer {
    let body = ErrorBody {
        error: ErrorDetail {
            kind: refusal.kind,
            message: refusal.message.clone(),
        },
    };
    let mut answer = json(refusal.status, &body);
    if let Some(wait) = refusal.retry_after {
        let seconds = wait.as_secs().max(1);
        answer.headers_mut().insert(RETRY_AFTER, seconds.into());
    }
    answer
}

fn json(status: StatusCode, body: &impl Serialize) -> Answer {
    let body = serde_json::to_vec(body).unwrap_or_default();
    let mut answer = Response::new(Full::from(body));
    *answer.status_mut() = status;
    let json = HeaderValue::from_static("application/json");
    answer.headers_mut().insert(CONTENT_TYPE, json);
    answer
}
