//! Lookup: asks the API server which pod has an address that the watch has not reported yet.
//!
//! Requests of unknown callers cause it. It guards the API server: concurrent requests share one answer (single flight), and an answer
//! is kept for a second, also one that there is no such pod (negative caching).

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::{Api, Client};
use parking_lot::Mutex;
use podid_cluster::pods;
use podid_policy::facts::PodFacts;
use tokio::time::Instant;

use crate::caller::index::Caller;
use crate::metrics::Metrics;

/// How long an answer is kept; after that the watch is newer.
const ANSWER_TTL: Duration = Duration::from_secs(1);
/// How long the API server may take to answer; clients of the metadata service give up soon after.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(1);
/// Answers that are kept at once, a bound on memory.
const MAX_ANSWERS: usize = 1024;

/// Asks for the pods of this node at an address.
pub(crate) struct Lookup {
    pods: Api<Pod>,
    node: String,
    metrics: Arc<Metrics>,
    answers: Mutex<HashMap<IpAddr, Answer>>,
    /// Held while the API server is asked, so that it is asked one question at a time.
    asking: tokio::sync::Mutex<()>,
}

#[derive(Clone)]
struct Answer {
    /// `None` when the API server did not answer.
    pods: Option<Vec<Arc<PodFacts>>>,
    until: Instant,
}

impl Lookup {
    pub(crate) fn new(client: Client, node: &str, metrics: Arc<Metrics>) -> Self {
        Self {
            pods: Api::all(client),
            node: node.to_owned(),
            metrics,
            answers: Mutex::default(),
            asking: tokio::sync::Mutex::default(),
        }
    }

    /// Returns once an answer about `address` is kept.
    pub(crate) async fn ask(&self, address: IpAddr) {
        if self.kept(address).is_some() {
            return;
        }
        let pods = match tokio::time::timeout(LOOKUP_TIMEOUT, self.asking.lock()).await {
            // The request before this one may have asked about the same address.
            Ok(_asking) if self.kept(address).is_some() => return,
            Ok(_asking) => self.list(address).await,
            Err(_) => None,
        };
        let now = Instant::now();
        let mut answers = self.answers.lock();
        answers.retain(|_, answer| answer.until > now);
        if answers.len() < MAX_ANSWERS {
            let until = now + ANSWER_TTL;
            answers.insert(address, Answer { pods, until });
        }
    }

    /// Which pod has the address: what the watch says, or the kept answer where the watch knows no pod.
    pub(crate) fn caller(&self, address: IpAddr, watched: Caller) -> Caller {
        if matches!(watched, Caller::Pod(_) | Caller::Ambiguous) {
            return watched;
        }
        match self.kept(address).map(|answer| answer.pods) {
            None => watched,
            Some(None) => Caller::NotYet,
            Some(Some(pods)) => match pods.as_slice() {
                [] => watched,
                [pod] => Caller::Pod(Arc::clone(pod)),
                _ => Caller::Ambiguous,
            },
        }
    }

    fn kept(&self, address: IpAddr) -> Option<Answer> {
        let answers = self.answers.lock();
        let answer = answers.get(&address)?;
        (Instant::now() < answer.until).then(|| answer.clone())
    }

    async fn list(&self, address: IpAddr) -> Option<Vec<Arc<PodFacts>>> {
        let selector = format!("spec.nodeName={},status.podIP={address}", self.node);
        let params = ListParams::default().fields(&selector);
        match tokio::time::timeout(LOOKUP_TIMEOUT, self.pods.list(&params)).await {
            Ok(Ok(list)) => {
                let found = list.iter().map(pods::facts).filter(|pod| {
                    pod.is_live() && !pod.host_network && pod.addresses.contains(&address)
                });
                Some(found.map(Arc::new).collect())
            }
            Ok(Err(error)) => self.failed(address, &error),
            Err(_) => self.failed(address, &"no answer in time"),
        }
    }

    fn failed<T>(&self, address: IpAddr, reason: &dyn std::fmt::Display) -> Option<T> {
        self.metrics.api_failed("get_pod_list");
        tracing::warn!(%address, %reason, "the API server could not be asked who has an address");
        None
    }
}
