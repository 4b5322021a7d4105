//! Federated identity: tokens of an AzureIdentity with `spec.federation`, which `podid broker` exchanges a Kubernetes token for.
//! `source.rs` calls this; nothing is attached to the node for such an identity.
//!
//! The broker gives tokens for live pods of this node only, so that a request names one. Any pod that is granted the identity will
//! do, because the token is the identity's and all of them share it in the cache. A pod that has just gone or has just come may be
//! unknown to the broker, and must not cost the others their token: the next pod is named then.
//!
//! ```text
//!  no --broker-url ─────────────────────────────────────────► NoBroker
//!  pods that are granted the identity, one after another:
//!    POST /v1/token ──200──► token
//!         ├─ refused for this pod's sake ──► the next pod; after the last one Broker
//!         └─ anything else ────────────────► Broker
//! ```

use std::future::Future;
use std::sync::Arc;

use jiff::Timestamp;
use podid_azure::Token;
use podid_broker::client::{BrokerClient, ClientError};
use podid_broker::protocol::{ErrorKind, IdentityRef, PodRef, PodToken, PodTokenRequest};
use podid_policy::facts::{IdentityFacts, PodFacts};

use crate::token::source::SourceError;

/// Pods that are named for one token before the fetch fails; each costs a request of the broker's to the API server.
const MAX_PODS_TRIED: usize = 3;

/// The token source of federated identities.
#[derive(Default)]
pub(crate) struct FederatedIdentities {
    broker: Option<BrokerClient>,
}

impl FederatedIdentities {
    pub(crate) fn new(broker: Option<BrokerClient>) -> Self {
        Self { broker }
    }

    /// A token of `identity` for `resource`, on behalf of `pods` of this node that are granted it.
    ///
    /// # Errors
    /// [`SourceError::NoBroker`], [`SourceError::NoPod`] or [`SourceError::Broker`].
    pub(crate) async fn token(
        &self,
        identity: &IdentityFacts,
        resource: &str,
        pods: &[Arc<PodFacts>],
    ) -> Result<Token, SourceError> {
        let Some(broker) = &self.broker else {
            return Err(SourceError::NoBroker(identity.key.clone()));
        };
        let ask = |pod: Arc<PodFacts>| async move {
            broker.token(&request(&pod, identity, resource)).await
        };
        match first_given(pods, ask).await {
            Ok(token) => received(token, identity, resource),
            Err(Some(error)) => Err(error.into()),
            Err(None) => Err(SourceError::NoPod(identity.key.clone())),
        }
    }
}

/// What `ask` gives for the first pod for which it gives anything; `None` where there is no pod.
async fn first_given<T, A>(
    pods: &[Arc<PodFacts>],
    ask: impl Fn(Arc<PodFacts>) -> A,
) -> Result<T, Option<ClientError>>
where
    A: Future<Output = Result<T, ClientError>>,
{
    let mut refused = None;
    for pod in pods.iter().take(MAX_PODS_TRIED) {
        match ask(Arc::clone(pod)).await {
            Ok(given) => return Ok(given),
            Err(error) if is_for_the_pods_sake(&error) => refused = Some(error),
            Err(error) => return Err(Some(error)),
        }
    }
    Err(refused)
}

fn request(pod: &PodFacts, identity: &IdentityFacts, resource: &str) -> PodTokenRequest {
    PodTokenRequest {
        pod: PodRef {
            namespace: pod.key.namespace.to_string(),
            name: pod.key.name.to_string(),
            uid: pod.uid.to_string(),
        },
        identity: IdentityRef::from(&identity.key),
        resource: resource.to_owned(),
    }
}

/// Whether the broker may still give a token when another pod is named.
fn is_for_the_pods_sake(error: &ClientError) -> bool {
    matches!(
        error,
        ClientError::Refused {
            kind: ErrorKind::UnknownPod
                | ErrorKind::PodFinished
                | ErrorKind::WrongNode
                | ErrorKind::NotGranted,
            ..
        }
    )
}

fn received(
    answer: PodToken,
    identity: &IdentityFacts,
    resource: &str,
) -> Result<Token, SourceError> {
    let expires_on = Timestamp::from_second(answer.expires_on).map_err(|_| {
        SourceError::Unusable("the broker's token expires at no time that there is".to_owned())
    })?;
    let mut token = Token::new(answer.access_token, resource, expires_on);
    token.token_type = answer.token_type;
    token.client_id = Some(identity.client_id.to_string());
    token.refresh_on = answer
        .refresh_on
        .and_then(|at| Timestamp::from_second(at).ok());
    Ok(token)
}

#[cfg(test)]
mod tests {
    use super::*;
    use podid_policy::facts::{ObjectKey, PodPhase};

    fn pods(count: usize) -> Vec<Arc<PodFacts>> {
        let pod = |n: usize| PodFacts {
            key: ObjectKey::new("shop", &n.to_string()),
            uid: "u".into(),
            labels: Default::default(),
            service_account: "default".into(),
            node: Some("node".into()),
            addresses: Vec::new(),
            host_network: false,
            phase: PodPhase::Live,
        };
        (0..count).map(|n| Arc::new(pod(n))).collect()
    }

    fn refused(kind: ErrorKind) -> ClientError {
        ClientError::Refused {
            status: 403,
            kind,
            message: "m".to_owned(),
            retry_after: None,
        }
    }

    /// The pods that are named until the broker's answers come to an end, and that end.
    async fn named(
        count: usize,
        answers: &[Option<ErrorKind>],
    ) -> (usize, Result<(), Option<ClientError>>) {
        let asked = std::cell::Cell::new(0);
        let ask = |pod: Arc<PodFacts>| {
            let n: usize = pod.key.name.parse().unwrap();
            asked.set(n + 1);
            let answer = answers[n].map_or(Ok(()), |kind| Err(refused(kind)));
            std::future::ready(answer)
        };
        let outcome = first_given(&pods(count), ask).await;
        (asked.get(), outcome)
    }

    #[tokio::test]
    async fn a_pod_that_the_broker_refuses_does_not_cost_the_others_their_token() {
        use ErrorKind::{CredentialMissing, NotGranted, PodFinished, UnknownPod};
        let gone = Some(UnknownPod);
        assert_eq!(named(1, &[None]).await, (1, Ok(())));
        assert_eq!(
            named(3, &[gone, Some(PodFinished), None]).await,
            (3, Ok(()))
        );
        let last = Err(Some(refused(NotGranted)));
        assert_eq!(named(2, &[gone, Some(NotGranted)]).await, (2, last));
        // Whatever is not the pod's own is the same for all of them.
        let missing = Err(Some(refused(CredentialMissing)));
        assert_eq!(
            named(2, &[Some(CredentialMissing), None]).await,
            (1, missing)
        );
        let bounded = Err(Some(refused(UnknownPod)));
        assert_eq!(named(5, &[gone; 5]).await, (MAX_PODS_TRIED, bounded));
        assert_eq!(named(0, &[]).await, (0, Err(None)));
    }
}
