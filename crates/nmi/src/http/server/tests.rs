use super::*;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use http::{Request, Response};
use parking_lot::Mutex;

use tokio_util::sync::CancellationToken;

use podid_api::assigned::{AssignedFacts, AssignmentState};
use podid_azure::entra::Entra;
use podid_azure::imds::Imds;
use podid_policy::facts::{
    BindingFacts, ExceptionFacts, IdentityFacts, IdentitySource, ObjectKey, PodFacts, PodPhase,
};
use podid_policy::ids::{ClientId, ResourceId};
use podid_policy::matching::Scope;
use rstest::rstest;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

use crate::caller::attest::Attestor;
use crate::config::{Config, POD_REQUESTS};
use crate::http::target::MAX_TARGET;
use crate::metrics::Metrics;
use crate::token::source::Upstream;

const CLIENT: &str = "6f1c0000-0000-0000-0000-0000000022ab";
const OTHER: &str = "6f1c0000-0000-0000-0000-0000000033cd";
/// An `assignment_wait` that ends while a test waits for it.
const SHORT: Duration = Duration::from_millis(200);
/// An `assignment_wait` that does not end before the test.
const LONG: Duration = Duration::from_secs(60);
const TOKEN: &str =
    "/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https://vault.azure.net";

/// A metadata service that answers with what it was asked, and a node agent in front of it.
struct Rig {
    context: Arc<Context>,
    address: std::net::SocketAddr,
    upstream_asked: Arc<AtomicUsize>,
    api: Arc<ApiServer>,
    /// The metadata service answers as often as there are permits.
    gate: Arc<Semaphore>,
    /// So many times the metadata service says that it does not have the identity.
    not_found: Arc<AtomicUsize>,
    stop: CancellationToken,
    /// Ends holds, as a drain does.
    holds_ended: CancellationToken,
}

/// An API server that lists these pods, or is away.
#[derive(Default)]
struct ApiServer {
    pods: Mutex<Vec<serde_json::Value>>,
    is_away: AtomicBool,
    asked: AtomicUsize,
}

impl ApiServer {
    fn client(self: &Arc<Self>) -> kube::Client {
        let this = Arc::clone(self);
        let answer = move |request: Request<kube::client::Body>| {
            this.asked.fetch_add(1, Ordering::SeqCst);
            let query = request.uri().query().unwrap_or_default();
            assert!(
                query.contains("spec.nodeName%3Dnode%2Cstatus.podIP%3D127.0.0.1"),
                "{query}"
            );
            let list = serde_json::json!({ "metadata": {}, "items": *this.pods.lock() });
            let away = this.is_away.load(Ordering::SeqCst);
            async move {
                if away {
                    return Err(std::io::Error::other("no API server"));
                }
                Ok(Response::new(kube::client::Body::from(
                    list.to_string().into_bytes(),
                )))
            }
        };
        kube::Client::new(tower::service_fn(answer), "default")
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn rig() -> Rig {
    rig_with(None, SHORT).await
}

async fn rig_with(attestor: Option<Arc<Attestor>>, assignment_wait: Duration) -> Rig {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let gate = Arc::new(Semaphore::new(1000));
    let pass = Arc::clone(&gate);
    let not_found = Arc::new(AtomicUsize::new(0));
    let unknown = Arc::clone(&not_found);
    let upstream = axum::Router::new().fallback(move |request: axum::extract::Request| {
        count.fetch_add(1, Ordering::SeqCst);
        let pass = Arc::clone(&pass);
        let less = |left: usize| left.checked_sub(1);
        let is_unknown = unknown
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, less)
            .is_ok();
        async move {
            pass.acquire().await.unwrap().forget();
            let uri = request.uri().to_string();
            let said = match is_unknown {
                true => serde_json::json!({ "error": "invalid_request", "error_description": "Identity not found" }),
                false => serde_json::json!({ "access_token": "upstream", "expires_in": "3600", "method": request.method().as_str(), "uri": uri }),
            };
            let status = match is_unknown {
                true => http::StatusCode::BAD_REQUEST,
                false => http::StatusCode::OK,
            };
            (status, said.to_string())
        }
    });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = podid_azure::clouds::parse_url(
        "test",
        &format!("http://{}", listener.local_addr().unwrap()),
    )
    .unwrap();
    tokio::spawn(async move { axum::serve(listener, upstream).await });
    let config = Config {
        node: "node".into(),
        scope: Scope::Namespaced,
        assigned_first: true,
        pick_first: false,
        prefetch: Vec::new(),
        assignment_wait,
        token_floor: Duration::from_secs(300),
        metadata_header_required: true,
        allowed_categories: vec!["versions".into()],
        pod_requests: POD_REQUESTS,
        host_token_socket: None,
        host_token_loopback: false,
        attestor,
        probe: ([127, 0, 0, 1], 0).into(),
        metrics: ([127, 0, 0, 1], 0).into(),
    };
    let api = Arc::<ApiServer>::default();
    let client = api.client();
    let second = Duration::from_secs(1);
    let upstream = Upstream::new(
        Imds::new(&url, None, second),
        Entra::new(&url, second).unwrap(),
        client.clone(),
        false,
    );
    let metrics = Arc::new(Metrics::default());
    let context = Arc::new(Context::new(config, client, upstream, metrics));
    context.set_synced();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let drain = Drain {
        started: stop.clone(),
        idle_closed: stop.clone(),
        holds_ended: CancellationToken::new(),
    };
    let holds_ended = drain.holds_ended.clone();
    tokio::spawn(serve(listener, Arc::clone(&context), drain));
    Rig {
        context,
        address,
        upstream_asked: asked,
        api,
        gate,
        not_found,
        stop,
        holds_ended,
    }
}

/// A rig whose caller is pod shop/web, granted and assigned the identity shop/reader.
async fn served() -> Rig {
    served_with(SHORT).await
}

async fn served_with(assignment_wait: Duration) -> Rig {
    let rig = rig_with(None, assignment_wait).await;
    rig.context.change(|index| {
        index.apply_pod(pod());
        index.apply_identity(identity("reader", CLIENT));
        index.apply_binding(binding("reader"));
    });
    rig.assign(AssignmentState::Assigned);
    rig
}

fn identity(name: &str, client: &str) -> IdentityFacts {
    let resource_id = format!(
        "/subscriptions/s/resourceGroups/r/providers/Microsoft.ManagedIdentity/userAssignedIdentities/{name}"
    );
    IdentityFacts {
        key: ObjectKey::new("shop", name),
        client_id: ClientId::parse(client).unwrap(),
        source: IdentitySource::UserAssigned {
            resource_id: ResourceId::parse(&resource_id).unwrap(),
        },
        namespaced: false,
    }
}

fn binding(identity: &str) -> BindingFacts {
    BindingFacts {
        key: ObjectKey::new("shop", "binding"),
        identity: identity.into(),
        selector: "app".into(),
        weight: 0,
        service_accounts: Vec::new(),
    }
}

fn pod() -> PodFacts {
    PodFacts {
        key: ObjectKey::new("shop", "web"),
        uid: "u".into(),
        labels: [("aadpodidbinding".to_owned(), "app".to_owned())].into(),
        service_account: "default".into(),
        node: Some("node".into()),
        addresses: vec![IpAddr::from([127, 0, 0, 1])],
        host_network: false,
        phase: PodPhase::Live,
    }
}

struct Got {
    status: u16,
    head: String,
    body: Value,
}

impl Rig {
    fn assign(&self, state: AssignmentState) {
        self.assign_identity("reader", state);
    }

    fn assign_identity(&self, identity: &str, state: AssignmentState) {
        self.context.change(|index| {
            index.apply_assigned(AssignedFacts {
                key: ObjectKey::new("default", &format!("web-shop-{identity}")),
                pod: ObjectKey::new("shop", "web"),
                identity: ObjectKey::new("shop", identity),
                binding: None,
                node: "node".into(),
                state,
                deleting: false,
            });
        });
    }

    /// A request that the metadata service has been asked for, during which `change` happens.
    async fn get_while(&self, change: impl FnOnce()) -> Got {
        self.gate.forget_permits(1000);
        let before = self.asked();
        let (got, ()) = tokio::join!(self.get(TOKEN), async {
            while self.asked() == before {
                tokio::task::yield_now().await;
            }
            change();
            self.gate.add_permits(1000);
        });
        got
    }

    /// Sends exactly these bytes (lines end as HTTP's do) and reads the answer to its end.
    async fn raw(&self, head: &str) -> Got {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let head = format!(
            "{}\r\nConnection: close\r\n\r\n",
            head.replace('\n', "\r\n")
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        Got {
            status: head.split(' ').nth(1).unwrap().parse().unwrap(),
            head: head.to_ascii_lowercase(),
            body: serde_json::from_str(body).unwrap_or_default(),
        }
    }

    async fn get(&self, target: &str) -> Got {
        self.raw(&format!("GET {target} HTTP/1.1\nHost: x\nMetadata: true"))
            .await
    }

    fn asked(&self) -> usize {
        self.upstream_asked.load(Ordering::SeqCst)
    }
}

#[tokio::test]
async fn a_token_is_given_as_the_sdks_need_it() {
    let rig = served().await;
    let got = rig.get(TOKEN).await;
    assert_eq!(got.status, 200, "{}", got.body);
    assert!(
        got.head
            .contains("content-type: application/json; charset=utf-8")
    );
    assert!(got.head.contains("content-length: "));
    assert_eq!(got.body["access_token"], "upstream");
    assert_eq!(got.body["client_id"], CLIENT);
    assert_eq!(got.body["resource"], "https://vault.azure.net");
    for target in [
        TOKEN.to_owned(),
        TOKEN.replace("token?", "token/?"),
        format!("/{TOKEN}"),
        format!("///{TOKEN}"),
        format!("http://169.254.169.254{TOKEN}"),
        format!("{TOKEN}&client_id={}", CLIENT.to_uppercase()),
        format!("{TOKEN}&xms_cc=cp1&authority=http://evil/"),
    ] {
        assert_eq!(rig.get(&target).await.status, 200, "{target}");
    }
    assert_eq!(rig.asked(), 1, "one token for all");
}

#[rstest]
#[case::method("POST {} HTTP/1.1\nHost: x\nMetadata: true\nContent-Length: 0", 405)]
#[case::head("HEAD {} HTTP/1.1\nHost: x\nMetadata: true", 405)]
#[case::no_header("GET {} HTTP/1.1\nHost: x", 400)]
#[case::wrong_header("GET {} HTTP/1.1\nHost: x\nMetadata: yes", 400)]
#[case::two_headers("GET {} HTTP/1.1\nHost: x\nMetadata: true\nMetadata: false", 400)]
#[case::proxied(
    "GET {} HTTP/1.1\nHost: x\nMetadata: true\nX-Forwarded-For: 10.0.0.1",
    400
)]
#[case::no_resource(
    "GET /metadata/identity/oauth2/token?api-version=2018-02-01 HTTP/1.1\nHost: x\nMetadata: true",
    400
)]
#[case::no_version(
    "GET /metadata/identity/oauth2/token?resource=r HTTP/1.1\nHost: x\nMetadata: true",
    400
)]
#[case::another_identity(
    "GET {}&client_id=00000000-0000-0000-0000-000000000000 HTTP/1.1\nHost: x\nMetadata: true",
    400
)]
#[case::imds_v2(
    "GET /metadata/identity/getplatformmetadata?cred-api-version=2.0 HTTP/1.1\nHost: x",
    404
)]
#[case::backslash(
    "GET /metadata/identity\\oauth2\\token HTTP/1.1\nHost: x\nMetadata: true",
    404
)]
#[case::encoded(
    "GET /metadata/%69dentity/oauth2/token?api-version=2018-02-01&resource=r HTTP/1.1\nHost: x\nMetadata: true",
    404
)]
#[case::host_token(
    "GET /host/token/?resource=r HTTP/1.1\nHost: x\npodname: web\npodns: shop",
    403
)]
#[case::instance(
    "GET /metadata/instance?api-version=2021-02-01 HTTP/1.1\nHost: x\nMetadata: true",
    403
)]
#[case::long("GET {}&x={long} HTTP/1.1\nHost: x\nMetadata: true", 414)]
#[tokio::test]
async fn what_is_not_a_request_for_ones_own_token_is_refused(
    #[case] head: &str,
    #[case] status: u16,
) {
    let rig = served().await;
    let head = head
        .replace("{}", TOKEN)
        .replace("{long}", &"x".repeat(MAX_TARGET));
    let got = rig.raw(&head).await;
    assert_eq!(got.status, status, "{}", got.body);
    assert!(got.head.contains("application/json"));
    if !head.starts_with("HEAD") {
        assert!(got.body["error"].is_string() && got.body["error_description"].is_string());
    }
    assert!(!got.head.contains("retry-after"));
    assert_eq!(rig.asked(), 0, "nothing reaches the metadata service");
}

#[tokio::test]
async fn a_probe_is_answered_before_anything_is_known() {
    let rig = rig().await;
    let got = rig
        .raw("GET /metadata/identity/oauth2/token HTTP/1.1\nHost: x")
        .await;
    assert_eq!(got.status, 400);
    assert_eq!(
        got.body["error_description"],
        "Required metadata header not specified"
    );
}

#[tokio::test]
async fn callers_without_a_grant_learn_why() {
    let rig = rig().await;
    let got = rig.get(TOKEN).await;
    assert_eq!(got.status, 400);
    assert!(
        got.body["error_description"]
            .as_str()
            .unwrap()
            .starts_with("Identity not found: no pod of this node")
    );
    rig.context.change(|index| index.apply_pod(pod()));
    let got = rig.get(TOKEN).await;
    assert_eq!(
        (got.status, &got.body["error"]),
        (400, &Value::from("invalid_request"))
    );
    assert!(
        got.body["error_description"]
            .as_str()
            .unwrap()
            .contains("no AzureIdentityBinding in namespace shop selects pod shop/web")
    );
    rig.context.change(|index| {
        index.apply_pod(PodFacts {
            key: ObjectKey::new("shop", "twin"),
            ..pod()
        });
    });
    let got = rig.get(TOKEN).await;
    assert_eq!(got.status, 500);
    assert!(got.head.contains("retry-after: 1"));
}

#[tokio::test]
async fn an_identity_on_its_way_is_waited_for_a_little() {
    let rig = served().await;
    rig.assign(AssignmentState::Created);
    let got = rig.get(TOKEN).await;
    assert_eq!(got.status, 500);
    assert!(got.head.contains("retry-after: 5"));
    assert!(
        got.body["error_description"]
            .as_str()
            .unwrap()
            .contains("not yet assigned")
    );
    let (got, ()) = tokio::join!(rig.get(TOKEN), async {
        // The request is waiting when it is the second to look.
        while rig.context.changes.receiver_count() == 0 {
            tokio::task::yield_now().await;
        }
        rig.assign(AssignmentState::Assigned);
    });
    assert_eq!(got.status, 200);
}

#[tokio::test]
async fn a_token_ends_with_its_grant() {
    let rig = served().await;
    assert_eq!(rig.get(TOKEN).await.status, 200);
    rig.context
        .change(|index| index.delete_binding(&ObjectKey::new("shop", "binding")));
    assert_eq!(rig.get(TOKEN).await.status, 400);
    assert!(rig.context.cache.is_empty());
}

#[tokio::test]
async fn an_exempted_pods_request_is_passed_on_unchanged() {
    let rig = served().await;
    rig.context.change(|index| {
        index.apply_exception(ExceptionFacts {
            key: ObjectKey::new("shop", "exception"),
            pod_labels: [("aadpodidbinding".to_owned(), "app".to_owned())].into(),
        });
    });
    let got = rig.raw("POST /metadata/anything?bypass_cache=true&msi_res_id=%2Fx HTTP/1.1\nHost: x\nContent-Length: 0").await;
    assert_eq!(got.status, 200);
    assert_eq!(got.body["method"], "POST");
    assert_eq!(
        got.body["uri"],
        "/metadata/anything?bypass_cache=true&msi_res_id=%2Fx"
    );
}

#[tokio::test]
async fn an_allowed_category_is_passed_on() {
    let rig = served().await;
    assert_eq!(rig.get("/metadata/versions").await.status, 200);
    assert_eq!(
        rig.raw("GET /metadata/versions HTTP/1.1\nHost: x")
            .await
            .status,
        400
    );
    assert_eq!(
        rig.get("/metadata/versions/../identity/oauth2/token")
            .await
            .status,
        404
    );
    assert_eq!(rig.asked(), 1);
}

#[tokio::test]
async fn a_connection_serves_many_requests_and_ends_at_shutdown() {
    let rig = served().await;
    let mut stream = TcpStream::connect(rig.address).await.unwrap();
    let mut buffer = vec![0; 4096];
    for _ in 0..100 {
        let request = format!("GET {TOKEN} HTTP/1.1\r\nHost: x\r\nMetadata: true\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let read = stream.read(&mut buffer).await.unwrap();
        assert!(buffer[..read].starts_with(b"HTTP/1.1 200"));
    }
    rig.stop.cancel();
    assert_eq!(stream.read(&mut buffer).await.unwrap(), 0);
}

#[tokio::test]
async fn a_token_is_not_given_when_its_grant_passed_to_another_identity() {
    let rig = served().await;
    rig.context
        .change(|index| index.apply_identity(identity("other", OTHER)));
    rig.assign_identity("other", AssignmentState::Assigned);
    let got = rig
        .get_while(|| {
            rig.context
                .change(|index| index.apply_binding(binding("other")));
        })
        .await;
    assert_eq!(got.status, 500, "{}", got.body);
    assert!(got.head.contains("retry-after: 1"));
    let got = rig.get(TOKEN).await;
    assert_eq!((got.status, &got.body["client_id"]), (200, &OTHER.into()));
}

/// Such as when `spec.federation` is added to it.
#[tokio::test]
async fn a_request_outlives_an_edit_of_its_identity() {
    let rig = served().await;
    let got = rig
        .get_while(|| {
            rig.context
                .change(|index| index.apply_identity(identity("reader", OTHER)));
        })
        .await;
    assert_eq!((got.status, &got.body["client_id"]), (200, &OTHER.into()));
}

#[tokio::test]
async fn a_token_is_not_given_when_the_pod_lost_its_label_meanwhile() {
    let rig = served().await;
    let bare = PodFacts {
        labels: std::collections::BTreeMap::new(),
        ..pod()
    };
    let got = rig
        .get_while(|| rig.context.change(|index| index.apply_pod(bare)))
        .await;
    assert_eq!(got.status, 400, "{}", got.body);
}

#[tokio::test]
async fn an_open_connection_does_not_pass_to_the_next_pod_with_the_address() {
    let rig = served().await;
    let request = format!("GET {TOKEN} HTTP/1.1\r\nHost: x\r\nMetadata: true\r\n\r\n");
    let mut stream = TcpStream::connect(rig.address).await.unwrap();
    let mut buffer = vec![0; 4096];
    stream.write_all(request.as_bytes()).await.unwrap();
    let read = stream.read(&mut buffer).await.unwrap();
    assert!(buffer[..read].starts_with(b"HTTP/1.1 200"));
    let successor = PodFacts {
        uid: "v".into(),
        ..pod()
    };
    rig.context.change(|index| index.apply_pod(successor));
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut rest = String::new();
    // The connection ends with this answer.
    stream.read_to_string(&mut rest).await.unwrap();
    assert!(rest.starts_with("HTTP/1.1 500"), "{rest}");
    assert_eq!(
        rig.get(TOKEN).await.status,
        200,
        "on a connection of its own"
    );
}

mod eager;
mod holds;
mod lookups;
