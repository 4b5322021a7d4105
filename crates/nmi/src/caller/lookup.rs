//! Asking the API server who has an address that the watch has not told of yet: once for all who wait, and seldom.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::{Api, Client};
use parking_lot::Mutex;
use podid_policy::facts::PodFacts;
use tokio::time::Instant;

use crate::caller::index::Caller;
use crate::caller::pods;
use crate::metrics::Metrics;

/// An answer holds this long, whatever it is: by then the watch knows better.
const HOLD: Duration = Duration::from_secs(1);
/// An answer that takes longer is not waited for.
const PATIENCE: Duration = Duration::from_secs(1);
/// Answers that are held at once.
const MAX_ANSWERS: usize = 1024;

/// Asks the API server for the pods of this node at an address.
pub(crate) struct Lookup {
    pods: Api<Pod>,
    node: String,
    metrics: Arc<Metrics>,
    answers: Mutex<HashMap<IpAddr, Answer>>,
    /// One question at a time.
    turn: tokio::sync::Mutex<()>,
}

#[derive(Clone)]
struct Answer {
    /// `None` when there was none.
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
            turn: tokio::sync::Mutex::default(),
        }
    }

    /// Makes sure that there is an answer about `address` that holds.
    pub(crate) async fn ask(&self, address: IpAddr) {
        if self.held(address).is_some() {
            return;
        }
        let pods = match tokio::time::timeout(PATIENCE, self.turn.lock()).await {
            // Whoever waited for the turn may have waited for this very answer.
            Ok(_turn) if self.held(address).is_some() => return,
            Ok(_turn) => self.list(address).await,
            Err(_) => None,
        };
        let now = Instant::now();
        let mut answers = self.answers.lock();
        answers.retain(|_, answer| answer.until > now);
        if answers.len() < MAX_ANSWERS {
            let until = now + HOLD;
            answers.insert(address, Answer { pods, until });
        }
    }

    /// What is known by asking, next to what the watch knows.
    pub(crate) fn caller(&self, address: IpAddr, watched: Caller) -> Caller {
        if matches!(watched, Caller::Pod(_) | Caller::Ambiguous) {
            return watched;
        }
        match self.held(address).map(|answer| answer.pods) {
            None => watched,
            Some(None) => Caller::NotYet,
            Some(Some(pods)) => match pods.as_slice() {
                [] => watched,
                [pod] => Caller::Pod(Arc::clone(pod)),
                _ => Caller::Ambiguous,
            },
        }
    }

    fn held(&self, address: IpAddr) -> Option<Answer> {
        let answers = self.answers.lock();
        let answer = answers.get(&address)?;
        (Instant::now() < answer.until).then(|| answer.clone())
    }

    async fn list(&self, address: IpAddr) -> Option<Vec<Arc<PodFacts>>> {
        let selector = format!("spec.nodeName={},status.podIP={address}", self.node);
        let params = ListParams::default().fields(&selector);
        match tokio::time::timeout(PATIENCE, self.pods.list(&params)).await {
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
