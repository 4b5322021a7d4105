//! TokenReview: has the API server say whose a caller's bearer token is, and reads the node of its pod from the answer.
//!
//! `http/request.rs` calls it for each request. It guards the broker from tokens that are forged, expired, of another audience or of a
//! pod that is gone. An answer is kept for some seconds by the token's hash; the token itself is not kept.

use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, UserInfo};
use kube::api::PostParams;
use kube::{Api, Client};
use podid_cluster::error_text::describe;
use podid_policy::facts::ObjectKey;
use podid_policy::federation::BROKER_AUDIENCE;
use tokio::sync::Semaphore;

use crate::flight_cache::FlightCache;

/// How long an accepted token counts as accepted: as long as the API server itself keeps that.
const ACCEPTED_TTL: Duration = Duration::from_secs(10);
/// How long a refused token counts as refused, so that it does not cost a review each time.
const REFUSED_TTL: Duration = Duration::from_secs(2);
/// How long the API server may take, waiting for a turn included; the node agent waits for 5 s in all.
const REVIEW_TIMEOUT: Duration = Duration::from_secs(3);
/// Reviews under way at a time, because anybody who reaches the port causes them.
const MAX_CONCURRENT: usize = 32;
/// Answers that are kept at once: more than a cluster has nodes.
const MAX_ANSWERS: u64 = 16_384;
/// The field of a review's answer that says the node of a token's pod.
const NODE: &str = "authentication.kubernetes.io/node-name";

/// Who calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Caller {
    /// The service account.
    pub(crate) account: ObjectKey,
    /// The node of the pod that the token is bound to; `None` for a token of no pod, and from API servers before 1.30.
    pub(crate) node: Option<Arc<str>>,
}

/// Why it is not known who calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ReviewError {
    /// The API server does not accept the token.
    Refused(Arc<str>),
    /// The API server did not answer as it should.
    Unavailable(Arc<str>),
}

/// Has tokens reviewed.
pub(crate) struct Reviewer {
    reviews: Api<TokenReview>,
    turns: Semaphore,
    answers: FlightCache<[u8; 32], Result<Arc<Caller>, ReviewError>>,
}

impl Reviewer {
    pub(crate) fn new(client: Client) -> Self {
        Self {
            reviews: Api::all(client),
            turns: Semaphore::new(MAX_CONCURRENT),
            answers: FlightCache::new(MAX_ANSWERS),
        }
    }

    /// Whose token it is.
    pub(crate) async fn review(&self, token: &str) -> Result<Arc<Caller>, ReviewError> {
        let mut hash = [0; 32];
        hash.copy_from_slice(digest(&SHA256, token.as_bytes()).as_ref());
        let ask = async {
            let answer = tokio::time::timeout(REVIEW_TIMEOUT, self.ask(token)).await;
            let late = || Err(ReviewError::Unavailable("no answer in time".into()));
            let answer = answer.unwrap_or_else(|_| late());
            let ttl = match &answer {
                Ok(_) => ACCEPTED_TTL,
                Err(ReviewError::Refused(_)) => REFUSED_TTL,
                Err(ReviewError::Unavailable(_)) => Duration::ZERO,
            };
            (answer, ttl)
        };
        self.answers.get(hash, ask).await
    }

    async fn ask(&self, token: &str) -> Result<Arc<Caller>, ReviewError> {
        // The semaphore is never closed.
        let _turn = self.turns.acquire().await;
        let review = TokenReview {
            spec: TokenReviewSpec {
                audiences: Some(vec![BROKER_AUDIENCE.to_owned()]),
                token: Some(token.to_owned()),
            },
            ..TokenReview::default()
        };
        let answer = self.reviews.create(&PostParams::default(), &review).await;
        let status = match answer {
            Ok(review) => review.status.unwrap_or_default(),
            // No text of serde's: it may quote the token, which the answer repeats.
            Err(kube::Error::SerdeError(_)) => {
                return Err(ReviewError::Unavailable(
                    "the answer is no TokenReview".into(),
                ));
            }
            Err(error) => return Err(ReviewError::Unavailable(describe(&error).into())),
        };
        let for_broker = |audiences: Vec<String>| audiences.iter().any(|a| a == BROKER_AUDIENCE);
        if status.authenticated != Some(true) || !status.audiences.is_some_and(for_broker) {
            let text = status
                .error
                .unwrap_or_else(|| "not authenticated".to_owned());
            return Err(ReviewError::Refused(text.into()));
        }
        let caller = status.user.as_ref().and_then(caller);
        let caller = caller.map(Arc::new);
        caller.ok_or_else(|| ReviewError::Refused("it is no service account's".into()))
    }
}

fn caller(user: &UserInfo) -> Option<Caller> {
    let name = user.username.as_deref()?;
    let account = name.strip_prefix("system:serviceaccount:")?;
    let (namespace, name) = account.split_once(':')?;
    let nodes = user.extra.as_ref().and_then(|extra| extra.get(NODE));
    let node = match nodes.map(Vec::as_slice) {
        Some([node]) if !node.is_empty() => Some(node.as_str().into()),
        _ => None,
    };
    Some(Caller {
        account: ObjectKey::new(namespace, name),
        node,
    })
}
