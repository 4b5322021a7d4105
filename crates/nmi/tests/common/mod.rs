//! The whole node agent between a scripted API server and a scripted metadata service.

// Each test program uses a part of it, and helpers of tests may panic, as tests do.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

pub mod api;
pub mod client;
pub mod corpus;
pub mod fuzz;
pub mod lenient;
pub mod log;
pub mod objects;
pub mod upstream;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use podid_azure::entra::Entra;
use podid_azure::imds::Imds;
use podid_nmi::{Config, Nmi, NmiError, POD_REQUESTS};
use podid_policy::matching::Scope;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use api::ApiServer;
use client::{Answer, get};
use objects::{NOBODY, WEB};
use upstream::Upstream;

pub const PATH: &str = "/metadata/identity/oauth2/token";
pub const TOKEN: &str = "/metadata/identity/oauth2/token?api-version=2018-02-01&resource=";
pub const METADATA: &str = "Metadata: true\r\n";
/// After this a test fails instead of waiting longer, also on a slow machine.
pub const TEST_TIMEOUT: Duration = Duration::from_secs(30);

/// How long the scripted issuers may take to answer.
const UPSTREAM_TIMEOUT: Duration = Duration::from_secs(2);

pub struct Rig {
    pub api: Arc<ApiServer>,
    pub upstream: Arc<Upstream>,
    /// The metadata listener.
    pub listener: SocketAddr,
    pub probe: SocketAddr,
    pub metrics: SocketAddr,
    pub active: watch::Sender<bool>,
    pub stop: CancellationToken,
    pub agent: JoinHandle<Result<(), NmiError>>,
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// A node agent that serves.
pub async fn rig(change: impl FnOnce(&mut Config)) -> Rig {
    let rig = rig_that_waits(true, change).await;
    rig.until(200).await;
    rig
}

/// A node agent whose API server may be down at the start.
pub async fn rig_that_waits(api_is_up: bool, change: impl FnOnce(&mut Config)) -> Rig {
    let api = ApiServer::new(api_is_up);
    let base = api.serve().await;
    let upstream = Upstream::start().await;
    let mut config = Config {
        node: "node".into(),
        scope: Scope::Namespaced,
        assigned_first: true,
        pick_first: false,
        prefetch: Vec::new(),
        assignment_wait: Duration::from_millis(100),
        token_floor: Duration::from_secs(300),
        metadata_header_required: true,
        allowed_categories: Vec::new(),
        pod_requests: POD_REQUESTS,
        host_token_socket: None,
        host_token_loopback: false,
        attestor: None,
        probe: ([127, 0, 0, 1], 0).into(),
        metrics: ([127, 0, 0, 1], 0).into(),
    };
    change(&mut config);
    let client = kube::Client::try_from(kube::Config::new(base.parse().unwrap())).unwrap();
    let url =
        podid_azure::clouds::parse_url("test", &format!("http://{}", upstream.address)).unwrap();
    let azure = podid_nmi::Upstream::new(
        Imds::new(&url, None, UPSTREAM_TIMEOUT),
        Entra::new(&url, UPSTREAM_TIMEOUT).unwrap(),
        client.clone(),
        false,
    );
    let (active, is_active) = watch::channel(false);
    let nmi = Nmi::new(config, client, azure, is_active);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let listeners = nmi.bind(vec![listener]).unwrap();
    let stop = CancellationToken::new();
    Rig {
        listener: listeners.metadata[0].local_addr().unwrap(),
        probe: listeners.probe.local_addr().unwrap(),
        metrics: listeners.metrics.local_addr().unwrap(),
        agent: tokio::spawn(nmi.run(listeners, stop.clone())),
        api,
        upstream,
        active,
        stop,
    }
}

impl Rig {
    /// The answer to a GET of `target` from the address `from`, with the header `Metadata: true`.
    pub async fn get(&self, from: &str, target: &str) -> Answer {
        get(from, self.listener, target, METADATA).await
    }

    /// The answer to a request for a token from the address `from`.
    pub async fn token(&self, from: &str, resource: &str) -> Answer {
        self.get(from, &format!("{TOKEN}{resource}")).await
    }

    /// The only answer to exactly these bytes.
    pub async fn raw(&self, from: &str, bytes: &str) -> Answer {
        let received = client::exchange(from, self.listener, bytes.as_bytes(), TEST_TIMEOUT).await;
        let mut answers = client::answers(&received, bytes.starts_with("HEAD"));
        assert_eq!(answers.len(), 1, "{answers:?}");
        answers.remove(0)
    }

    /// Asks until the answer has this status. With 200, the watches have synced.
    pub async fn until(&self, status: u16) {
        let asking = async {
            while self.token(WEB, "until").await.status != status {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let in_time = tokio::time::timeout(TEST_TIMEOUT, asking).await;
        let last = self.token(NOBODY, "r").await;
        assert!(in_time.is_ok(), "never {status}; nobody gets {last:?}");
    }

    /// Waits until `what` is true.
    pub async fn when(&self, what: impl Fn(&Self) -> bool) {
        let holds = async {
            while !what(self) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(TEST_TIMEOUT, holds)
            .await
            .expect("never happened");
    }

    pub async fn ready(&self) -> u16 {
        get(WEB, self.probe, "/readyz", "").await.status
    }

    /// Shuts it down, and fails if that fails.
    pub async fn end(mut self) {
        self.stop.cancel();
        (&mut self.agent).await.unwrap().unwrap();
    }
}
