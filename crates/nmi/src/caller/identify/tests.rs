use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::Response;
use kube::client::Body;
use podid_azure::entra::Entra;
use podid_azure::imds::Imds;
use podid_policy::facts::{ObjectKey, PodFacts, PodPhase};
use podid_policy::matching::Scope;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::caller::attest::Attestor;
use crate::caller::testing::Node;
use crate::config::{Config, POD_REQUESTS};
use crate::metrics::Metrics;
use crate::refusal::Refusal;
use crate::token::source::Upstream;

const WAIT: Duration = Duration::from_secs(5);
const UID: &str = "2f1c7a10-93b0-4c3e-9a51-0d0c6a1f22ab";
const OTHER_UID: &str = "3f1c7a10-93b0-4c3e-9a51-0d0c6a1f22ab";
const NAMESPACE: i32 = 7;
/// Where the caller is.
const ADDRESS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 7));

/// A caller at [`ADDRESS`], and an API server that lists no pod.
struct Rig {
    context: Context,
    connection: ConnectionContext,
    api_asked: Arc<AtomicUsize>,
}

fn rig(attestor: Arc<Attestor>, pods: &[PodFacts]) -> Rig {
    let api_asked = Arc::<AtomicUsize>::default();
    let count = Arc::clone(&api_asked);
    let client = kube::Client::new(
        tower::service_fn(move |_: http::Request<Body>| {
            count.fetch_add(1, Ordering::SeqCst);
            let list = br#"{ "metadata": {}, "items": [] }"#.to_vec();
            async { Ok::<_, std::io::Error>(Response::new(Body::from(list))) }
        }),
        "default",
    );
    let url = podid_azure::clouds::parse_url("test", "http://127.0.0.1:9").unwrap();
    let upstream = Upstream::new(
        Imds::new(&url, None, WAIT),
        Entra::new(&url, WAIT).unwrap(),
        client.clone(),
        false,
    );
    let config = Config {
        node: "node".into(),
        scope: Scope::Namespaced,
        assigned_first: true,
        pick_first: false,
        prefetch: Vec::new(),
        assignment_wait: WAIT,
        token_floor: Duration::from_secs(300),
        metadata_header_required: true,
        allowed_categories: Vec::new(),
        pod_requests: POD_REQUESTS,
        host_token_socket: None,
        host_token_loopback: false,
        attestor: Some(Arc::clone(&attestor)),
        probe: ([127, 0, 0, 1], 0).into(),
        metrics: ([127, 0, 0, 1], 0).into(),
    };
    let context = Context::new(config, client, upstream, Arc::new(Metrics::default()));
    context.set_synced();
    for pod in pods {
        context.change(|index| index.apply_pod(pod.clone()));
    }
    Rig {
        context,
        connection: ConnectionContext::new(ADDRESS, Some(attestor)),
        api_asked,
    }
}

/// A pod that the API server has no address of.
fn pod(name: &str, uid: &str) -> PodFacts {
    PodFacts {
        key: ObjectKey::new("shop", name),
        uid: uid.into(),
        labels: [].into(),
        service_account: "default".into(),
        node: Some("node".into()),
        addresses: Vec::new(),
        host_network: false,
        phase: PodPhase::Live,
    }
}

fn with_address(pod: PodFacts, address: IpAddr) -> PodFacts {
    PodFacts {
        addresses: vec![address],
        ..pod
    }
}

impl Rig {
    /// Who the caller is found to be, and how long that takes.
    async fn identified(&self) -> (Caller, Duration) {
        let began = Instant::now();
        let never = CancellationToken::new();
        let hold = Hold::new(&self.context, &never);
        identify(&self.context, &self.connection, &hold).await;
        let caller = self.connection.caller(&self.context).unwrap();
        (caller, began.elapsed())
    }

    async fn name(&self) -> Option<String> {
        match self.identified().await.0 {
            Caller::Pod(pod) => Some(pod.key.name.to_string()),
            _ => None,
        }
    }

    fn api_asked(&self) -> usize {
        self.api_asked.load(Ordering::SeqCst)
    }
}

#[tokio::test(start_paused = true)]
async fn the_kernel_knows_a_pod_whose_address_the_api_server_does_not() {
    for bridged in [false, true] {
        let node = Node::new();
        node.link(ADDRESS, Some(NAMESPACE), bridged);
        node.process(1, OTHER_UID, NAMESPACE + 1);
        node.process(2, UID, NAMESPACE);
        let rig = rig(node.attestor(), &[pod("other", OTHER_UID), pod("web", UID)]);
        let (caller, took) = rig.identified().await;
        let Caller::Pod(found) = caller else {
            panic!("{caller:?}");
        };
        assert_eq!(&*found.key.name, "web");
        assert!(took < Duration::from_millis(1), "{took:?}");
        assert_eq!(rig.api_asked(), 0);
        rig.connection.attest(&found).await.unwrap();

        // The evidence is looked for again, and nothing else speaks for this address.
        let another = ConnectionContext::new(ADDRESS, rig.context.config.attestor.clone());
        for namespace in [Some(NAMESPACE + 1), None] {
            node.link(ADDRESS, namespace, true);
            let refused = another.attest(&found).await;
            assert!(
                matches!(refused, Err(Refusal::NotAttested { .. })),
                "{refused:?}"
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn no_pod_is_known_by_a_namespace_that_is_not_its_own_alone() {
    let mut host = pod("host", UID);
    host.host_network = true;
    let mut finished = pod("finished", UID);
    finished.phase = PodPhase::Finished;
    let neighbour = with_address(pod("neighbour", UID), IpAddr::from([10, 0, 0, 8]));
    let node = Node::new();
    node.link(ADDRESS, Some(NAMESPACE), true);
    node.process(1, UID, NAMESPACE);
    node.process(2, OTHER_UID, NAMESPACE);
    for pods in [
        vec![],
        vec![host],
        vec![finished],
        // It answers for an address on the bridge that is not its own.
        vec![neighbour.clone()],
        vec![pod("one", UID), pod("two", OTHER_UID)],
        // An annotation says that one is the other's mirror.
        vec![pod("one", UID), pod("mirror", UID)],
    ] {
        let rig = rig(node.attestor(), &pods);
        assert_eq!(rig.name().await, None, "{pods:?}");
    }
    // Nobody else can send by a link of the pod's own.
    node.link(ADDRESS, Some(NAMESPACE), false);
    let rig = rig(node.attestor(), &[neighbour]);
    assert_eq!(rig.name().await.as_deref(), Some("neighbour"));
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_the_kernel_cannot_tell_is_held_until_its_address_is_known() {
    let node = Node::new();
    node.link(ADDRESS, Some(NAMESPACE), false);
    let rig = rig(node.attestor_without_processes(), &[pod("web", UID)]);
    let told = async {
        while rig.context.changes.receiver_count() == 0 || rig.api_asked() == 0 {
            tokio::task::yield_now().await;
        }
        // Somebody else's address changes nothing for this one.
        let other = with_address(pod("other", OTHER_UID), IpAddr::from([10, 0, 0, 8]));
        rig.context.change(|index| index.apply_pod(other));
        tokio::time::sleep(WAIT / 2).await;
        let web = with_address(pod("web", UID), ADDRESS);
        rig.context.change(|index| index.apply_pod(web));
    };
    let ((caller, took), ()) = tokio::join!(rig.identified(), told);
    let Caller::Pod(found) = caller else {
        panic!("{caller:?}");
    };
    assert_eq!(&*found.key.name, "web");
    assert!((WAIT / 2..WAIT).contains(&took), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn an_address_that_never_becomes_a_pods_is_held_no_longer_than_an_assignment() {
    let node = Node::new();
    node.link(ADDRESS, Some(NAMESPACE), false);
    let rig = rig(node.attestor_without_processes(), &[pod("web", UID)]);
    let all = futures::future::join_all((0..50).map(|_| rig.identified())).await;
    for (caller, took) in all {
        assert_eq!(caller, Caller::NotYet);
        let at_most = WAIT + Duration::from_millis(100);
        assert!((WAIT..at_most).contains(&took), "{took:?}");
    }
    let seconds = usize::try_from(WAIT.as_secs()).unwrap();
    assert!(
        rig.api_asked() <= seconds + 1,
        "asked {} times",
        rig.api_asked()
    );
}

#[tokio::test(start_paused = true)]
async fn an_address_that_is_not_at_a_pods_link_is_not_held() {
    let node = Node::new();
    node.link(ADDRESS, None, false);
    for address in [ADDRESS, IpAddr::from([10, 0, 0, 9])] {
        let mut rig = rig(node.attestor(), &[pod("web", UID)]);
        rig.connection = ConnectionContext::new(address, Some(node.attestor()));
        let (caller, took) = rig.identified().await;
        assert_eq!((caller, took), (Caller::NotYet, Duration::ZERO));
        assert_eq!(rig.api_asked(), 1);
    }
}
