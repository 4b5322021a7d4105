//! The whole node agent between a scripted API server and a scripted metadata service.

// Helpers of tests fail as tests do.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use futures::StreamExt as _;
use parking_lot::Mutex;
use podid_azure::entra::Entra;
use podid_azure::imds::Imds;
use podid_nmi::config::POD_REQUESTS;
use podid_nmi::{Config, Nmi, NmiError, Upstream};
use podid_policy::matching::Scope;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{broadcast, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const TOKEN: &str = "/metadata/identity/oauth2/token?api-version=2018-02-01&resource=";
const PATIENCE: Duration = Duration::from_secs(30);

/// An API server that lists what it is given and tells what changes, when it is up.
struct ApiServer {
    objects: Mutex<BTreeMap<&'static str, Vec<Value>>>,
    events: broadcast::Sender<(&'static str, String)>,
    up: watch::Sender<bool>,
    version: AtomicUsize,
}

impl ApiServer {
    fn new(up: bool) -> Arc<Self> {
        let named = |name: &str| json!({ "namespace": "shop", "name": name });
        let custom = |kind: &str, spec: Value| {
            vec![json!({
                "apiVersion": "aadpodidentity.k8s.io/v1", "kind": kind, "metadata": named("reader"), "spec": spec,
                "status": { "status": "Assigned" },
            })]
        };
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "namespace": "shop", "name": "web", "uid": "u", "labels": { "aadpodidbinding": "app" } },
            "spec": { "nodeName": "node", "containers": [] },
            "status": { "phase": "Running", "podIP": "127.0.0.1" },
        });
        let objects = BTreeMap::from([
            ("pods", vec![pod]),
            (
                "azureidentities",
                custom(
                    "AzureIdentity",
                    json!({
                        "type": 0, "clientID": "6f1c0000-0000-0000-0000-0000000022ab",
                        "resourceID": "/subscriptions/s/resourceGroups/r/providers/Microsoft.ManagedIdentity/userAssignedIdentities/reader",
                    }),
                ),
            ),
            (
                "azureidentitybindings",
                custom(
                    "AzureIdentityBinding",
                    json!({ "azureIdentity": "reader", "selector": "app" }),
                ),
            ),
            (
                "azureassignedidentities",
                custom(
                    "AzureAssignedIdentity",
                    json!({
                        "pod": "web", "podNamespace": "shop", "nodename": "node",
                        "azureIdentityRef": { "metadata": named("reader") },
                    }),
                ),
            ),
        ]);
        Arc::new(Self {
            objects: Mutex::new(objects),
            events: broadcast::Sender::new(16),
            up: watch::Sender::new(up),
            version: AtomicUsize::new(1),
        })
    }

    /// Takes the objects of a kind away and tells the watches, if there are any.
    fn delete(&self, kind: &'static str) {
        let version = self.version.fetch_add(1, Ordering::SeqCst) + 1;
        for mut object in self.objects.lock().insert(kind, Vec::new()).unwrap() {
            object["metadata"]["resourceVersion"] = version.to_string().into();
            let event = json!({ "type": "DELETED", "object": object });
            let _ = self.events.send((kind, format!("{event}\n")));
        }
    }

    fn answer(&self, request: &Request) -> Response {
        if !*self.up.borrow() {
            return StatusCode::SERVICE_UNAVAILABLE.into_response();
        }
        let kind = request.uri().path().rsplit('/').next().unwrap().to_owned();
        let version = self.version.load(Ordering::SeqCst);
        let query = request.uri().query().unwrap_or_default();
        if query.contains("watch=true") {
            let current = format!("resourceVersion={version}");
            return if query.split('&').any(|pair| pair == current) {
                self.watch(kind)
            } else {
                // It keeps no history: whoever missed something lists anew.
                let gone = json!({ "kind": "Status", "status": "Failure", "reason": "Expired", "message": "too old", "code": 410 });
                format!("{}\n", json!({ "type": "ERROR", "object": gone })).into_response()
            };
        }
        let items = self.objects.lock().get(&*kind).cloned().unwrap_or_default();
        json!({ "metadata": { "resourceVersion": version.to_string() }, "items": items })
            .to_string()
            .into_response()
    }

    /// Events until the server goes down.
    fn watch(&self, kind: String) -> Response {
        let events = self.events.subscribe();
        let lines = futures::stream::unfold((events, kind), |(mut events, kind)| async {
            loop {
                let (of, line) = events.recv().await.ok()?;
                if of == kind {
                    return Some((Ok::<_, Infallible>(line), (events, kind)));
                }
            }
        });
        let mut up = self.up.subscribe();
        let down = async move {
            let _ = up.wait_for(|up| !up).await;
        };
        Body::from_stream(lines.take_until(Box::pin(down))).into_response()
    }
}

struct Rig {
    api: Arc<ApiServer>,
    door: SocketAddr,
    probe: SocketAddr,
    metrics: SocketAddr,
    active: watch::Sender<bool>,
    stop: CancellationToken,
    agent: JoinHandle<Result<(), NmiError>>,
}

async fn rig(api_is_up: bool) -> Rig {
    let api = ApiServer::new(api_is_up);
    let server = Arc::clone(&api);
    let base = listen(move |request| server.answer(&request)).await;
    let imds = listen(|_| {
        json!({ "access_token": "upstream", "expires_in": "86400" })
            .to_string()
            .into_response()
    })
    .await;
    let config = Config {
        node: "node".into(),
        scope: Scope::Namespaced,
        assigned_first: true,
        assignment_wait: Duration::from_millis(100),
        token_floor: Duration::from_secs(300),
        metadata_header_required: true,
        allowed_categories: Vec::new(),
        pod_requests: POD_REQUESTS,
        host_token_socket: None,
        attestor: None,
        probe: ([127, 0, 0, 1], 0).into(),
        metrics: ([127, 0, 0, 1], 0).into(),
    };
    let client = kube::Client::try_from(kube::Config::new(base.parse().unwrap())).unwrap();
    let url = podid_azure::clouds::url("test", &imds).unwrap();
    let upstream = Upstream::new(
        Imds::new(&url, None, PATIENCE),
        Entra::new(&url, PATIENCE).unwrap(),
        client.clone(),
    );
    let (active, is_active) = watch::channel(false);
    let nmi = Nmi::new(config, client, upstream, is_active);
    let door = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let listeners = nmi.bind(vec![door]).unwrap();
    let stop = CancellationToken::new();
    Rig {
        door: listeners.doors[0].local_addr().unwrap(),
        probe: listeners.probe.local_addr().unwrap(),
        metrics: listeners.metrics.local_addr().unwrap(),
        agent: tokio::spawn(nmi.run(listeners, stop.clone())),
        api,
        active,
        stop,
    }
}

async fn listen(answer: impl Fn(Request) -> Response + Clone + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}/", listener.local_addr().unwrap());
    let router = axum::Router::new().fallback(move |request: Request| {
        let answer = answer(request);
        async { answer }
    });
    tokio::spawn(async move { axum::serve(listener, router).await });
    base
}

async fn get(address: SocketAddr, target: &str, header: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {target} HTTP/1.1\r\nHost: x\r\n{header}Connection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    (status, answer)
}

impl Rig {
    async fn token(&self, resource: &str) -> (u16, String) {
        get(
            self.door,
            &format!("{TOKEN}{resource}"),
            "Metadata: true\r\n",
        )
        .await
    }

    /// Asks until the answer has this status.
    async fn until(&self, status: u16) {
        let asking = async {
            while self.token("r").await.0 != status {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let in_time = tokio::time::timeout(PATIENCE, asking).await;
        assert!(
            in_time.is_ok(),
            "never {status}: {:?}",
            self.token("r").await
        );
    }

    async fn ready(&self) -> u16 {
        get(self.probe, "/readyz", "").await.0
    }
}

#[tokio::test]
async fn an_api_server_that_is_away_is_waited_for_and_later_done_without() {
    let rig = rig(false).await;
    let (status, answer) = rig.token("r").await;
    assert_eq!(status, 503, "{answer}");
    assert!(answer.to_ascii_lowercase().contains("retry-after: 1"));
    assert!(answer.contains("\"error\""));
    let probe = TOKEN.split('?').next().unwrap();
    assert_eq!(
        get(rig.door, probe, "").await.0,
        400,
        "a probe needs nothing"
    );
    rig.active.send_replace(true);
    assert_eq!(rig.ready().await, 503);

    rig.api.up.send_replace(true);
    rig.until(200).await;
    assert_eq!(rig.ready().await, 200);

    rig.api.up.send_replace(false);
    assert_eq!(rig.token("r").await.0, 200, "from memory");
    assert_eq!(
        rig.token("other").await.0,
        200,
        "and what was never asked for"
    );
    assert_eq!(rig.ready().await, 200);

    // What went while nobody was told goes with the next complete list.
    rig.api.delete("azureidentitybindings");
    rig.api.up.send_replace(true);
    rig.until(400).await;
    rig.stop.cancel();
    rig.agent.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_grant_ends_when_the_watch_says_so() {
    for kind in ["azureidentitybindings", "azureidentities", "pods"] {
        let rig = rig(true).await;
        rig.until(200).await;
        // An event before the watch begins would be lost.
        let told = async {
            while rig.api.events.receiver_count() < 5 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, told).await.unwrap();
        rig.api.delete(kind);
        rig.until(400).await;
        rig.stop.cancel();
        rig.agent.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn probes_and_metrics_are_served_under_the_names_that_are_known() {
    let rig = rig(true).await;
    rig.until(200).await;
    let (status, answer) = get(rig.probe, "/healthz", "").await;
    assert!(status == 200 && answer.ends_with("Not Active"), "{answer}");
    assert_eq!(rig.ready().await, 503, "requests are not intercepted");
    rig.active.send_replace(true);
    let (_, answer) = get(rig.probe, "/healthz", "").await;
    assert!(answer.ends_with("\r\n\r\nActive"), "{answer}");
    let (_, text) = get(rig.metrics, "/metrics", "").await;
    for name in [
        "aadpodidentity_nmi_operations_duration_seconds_bucket{",
        "status_code=\"200\",namespace=\"shop\"",
        "podid_nmi_watch_synced{kind=\"Pod\"} 1",
    ] {
        assert!(text.contains(name), "{name} is not in {text}");
    }
    assert!(!text.contains("upstream"), "no token in metrics");
    rig.stop.cancel();
    rig.agent.await.unwrap().unwrap();
}
