//! Lookup: asks the API server about a pod, an identity or bindings that the watches have not reported yet.
//!
//! `grant.rs` calls it for what the index does not have, because the node agent's watch may be ahead. It guards the API server: one
//! question is asked once in a second, few are under way at a time, and each has a time limit.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::{Api, Client};
use podid_api::binding::AzureIdentityBinding;
use podid_api::identity::AzureIdentity;
use podid_cluster::error_text::describe;
use podid_cluster::lenient::Lenient;
use podid_cluster::pods;
use podid_policy::facts::{BindingFacts, IdentityFacts, ObjectKey, PodFacts};
use tokio::sync::Semaphore;

use crate::flight_cache::FlightCache;

/// How long an answer is kept; after that the watch is newer.
const ANSWER_TTL: Duration = Duration::from_secs(1);
/// How long the API server may take, waiting for a turn included; the node agent waits for 5 s in all.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(2);
/// Questions under way at a time.
const MAX_CONCURRENT: usize = 16;
/// Answers that are kept at once, a bound on memory.
const MAX_ANSWERS: u64 = 1024;

/// An answer; the error says why the API server gave none.
pub(crate) type Answer<T> = Result<T, Arc<str>>;
/// An identity and the bindings that name it; `None` where there is no such identity, or it cannot be used.
pub(crate) type Grants = Option<(Arc<IdentityFacts>, Arc<[BindingFacts]>)>;

/// Asks the API server.
pub(crate) struct Lookup {
    client: Client,
    turns: Semaphore,
    pods: FlightCache<ObjectKey, Answer<Option<Arc<PodFacts>>>>,
    grants: FlightCache<ObjectKey, Answer<Grants>>,
}

impl Lookup {
    pub(crate) fn new(client: Client) -> Self {
        Self {
            client,
            turns: Semaphore::new(MAX_CONCURRENT),
            pods: FlightCache::new(MAX_ANSWERS),
            grants: FlightCache::new(MAX_ANSWERS),
        }
    }

    /// The pod with this name; none for a mirror pod, which its node may have made up.
    pub(crate) async fn pod(&self, key: &ObjectKey) -> Answer<Option<Arc<PodFacts>>> {
        let ask = async {
            let api: Api<Pod> = Api::namespaced(self.client.clone(), &key.namespace);
            let pod = api.get_opt(&key.name).await?;
            let pod = pod.filter(|pod| !pods::is_mirror(pod));
            Ok(pod.map(|pod| Arc::new(pods::facts(&pod))))
        };
        let ask = async { (self.in_turn(ask).await, ANSWER_TTL) };
        self.pods.get(key.clone(), ask).await
    }

    /// The identity with this name, and the bindings that name it.
    pub(crate) async fn grants(&self, identity: &ObjectKey) -> Answer<Grants> {
        let ask = async { (self.in_turn(self.read_grants(identity)).await, ANSWER_TTL) };
        self.grants.get(identity.clone(), ask).await
    }

    async fn read_grants(&self, key: &ObjectKey) -> Result<Grants, kube::Error> {
        let namespace = &key.namespace;
        let api: Api<AzureIdentity> = Api::namespaced(self.client.clone(), namespace);
        let identity = api.get_opt(&key.name).await?;
        let Some(identity) = identity.and_then(|identity| identity.facts().ok()) else {
            return Ok(None);
        };
        let api: Api<Lenient<AzureIdentityBinding>> =
            Api::namespaced(self.client.clone(), namespace);
        let all = api.list(&ListParams::default()).await?;
        let all = all.into_iter().filter_map(|read| read.0.ok()?.facts().ok());
        let bindings = all.filter(|binding| binding.identity == key.name).collect();
        Ok(Some((Arc::new(identity), bindings)))
    }

    async fn in_turn<T>(&self, ask: impl Future<Output = Result<T, kube::Error>>) -> Answer<T> {
        let ask = async {
            // The semaphore is never closed.
            let _turn = self.turns.acquire().await;
            ask.await
        };
        match tokio::time::timeout(LOOKUP_TIMEOUT, ask).await {
            Ok(answer) => answer.map_err(|error| describe(&error).into()),
            Err(_) => Err("no answer in time".into()),
        }
    }
}
