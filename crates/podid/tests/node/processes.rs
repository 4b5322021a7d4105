//! Processes that crash on a node: nmi, kubelet and containerd, killed while pods ask; and mic, which ends to read a new cloud configuration.

use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use podid_testkit::cluster::{Node, Program};
use serde_json::Value;

use crate::load::{Load, now, refused_for};
use crate::namespace::{Namespace, bound, pod};
use crate::world::{World, figure, world_alone};

/// How long the kubelet or containerd is away.
const AWAY: Duration = Duration::from_secs(5);
/// docs/outages.md: a crash of nmi refuses requests for a second or two; a machine that is busy with other things takes longer to start it.
const CRASH: Duration = Duration::from_secs(5);
/// The kubelet's wait before it starts a container again that has crashed for the second time.
const BACK_OFF: Duration = Duration::from_secs(10);

/// Kills nmi's process on a node.
fn kill_nmi(node: &Node) {
    let found = node.processes(&["/podid", "nmi"]).unwrap();
    assert_eq!(found.len(), 1, "{found:?}");
    kill(
        Pid::from_raw(i32::try_from(found[0]).unwrap()),
        Signal::SIGKILL,
    )
    .unwrap();
}

fn nmis_pod(world: &World, node: &str) -> Value {
    let on = format!("--field-selector=spec.nodeName={node},status.phase=Running");
    let pods = world.get(&[
        "-n",
        "podid",
        "pods",
        "-l",
        "app.kubernetes.io/component=nmi",
        &on,
    ]);
    pods["items"][0].clone()
}

#[test]
fn a_crash_of_nmi_refuses_pods_for_seconds_and_nobody_reaches_the_node() {
    let world = world_alone();
    let load = Load::start(&world);
    let own = [world.load.client_id.as_str()];
    let node = &world.cluster.nodes[0];
    // A pod that has crashed before waits longer.
    let name = nmis_pod(&world, "n1")["metadata"]["name"].clone();
    world.kubectl_within(&["-n", "podid", "delete", "pod", name.as_str().unwrap()]);
    world.rolled_out();
    load.noticed_nothing("nmi's pod is deleted on one node", &own);

    let killed = now();
    kill_nmi(node);
    load.serves("n1", killed + 0.1);
    let refused = refused_for(&load.failures("n1"), killed);
    figure("pods are refused after a crash of nmi", refused);
    assert!(refused < CRASH, "{refused:?}\n{}", world.explain());

    // The kubelet waits now, and a new pod does not.
    let again = now();
    kill_nmi(node);
    world.until("the kubelet has seen it", || {
        let pod = nmis_pod(&world, "n1");
        pod.pointer("/status/containerStatuses/0/state/waiting")
            .is_some()
    });
    let name = nmis_pod(&world, "n1")["metadata"]["name"].clone();
    world.kubectl(&[
        "-n",
        "podid",
        "delete",
        "pod",
        name.as_str().unwrap(),
        "--wait=false",
    ]);
    load.serves("n1", again + 0.1);
    let refused = refused_for(&load.failures("n1"), again);
    figure(
        "pods are refused after a second crash, with nmi's pod deleted",
        refused,
    );
    assert!(refused < BACK_OFF, "{refused:?}");
    load.tokens_are("n1", &own);
    load.noticed_nothing_on("n2", "nmi crashes on n1", &own);
    world.rolled_out();
}

#[test]
fn nobody_notices_that_kubelet_and_containerd_crash() {
    let world = world_alone();
    let load = Load::start(&world);
    let containers = || {
        let pods = world.get(&["-n", "load", "pods"]);
        let pods = pods["items"].as_array().unwrap().clone();
        let ids = pods
            .iter()
            .map(|pod| pod["status"]["containerStatuses"][0]["containerID"].clone());
        ids.collect::<Vec<_>>()
    };
    let before = containers();
    let both = [Program::Kubelet, Program::Containerd];
    for [first, second] in [both, [both[1], both[0]]] {
        world.cluster.nodes[0].kill(first);
        world.cluster.nodes[1].kill(second);
        std::thread::sleep(AWAY);
        for node in &world.cluster.nodes {
            node.start_all().unwrap();
        }
    }
    world.kubectl_within(&["wait", "--for=condition=Ready", "node", "--all"]);
    world.rolled_out();
    load.noticed_nothing("kubelet and containerd crash", &[&world.load.client_id]);
    assert_eq!(containers(), before, "the pods live on");
}

#[test]
fn a_cloud_configuration_that_is_replaced_by_renaming_is_used() {
    let world = world_alone();
    let load = Load::start(&world);
    let restarts = || {
        let pods = world.get(&[
            "-n",
            "podid",
            "pods",
            "-l",
            "app.kubernetes.io/component=mic",
        ]);
        let pods = pods["items"].as_array().unwrap().clone();
        let count = |pod: &Value| pod["status"]["containerStatuses"][0]["restartCount"].as_u64();
        pods.iter().filter_map(count).collect::<Vec<_>>()
    };
    let renewed = world.azure.renew_secret();
    let before = restarts();
    let started = Instant::now();
    for node in &world.cluster.nodes {
        let replace = "cd /etc/kubernetes && printf %s \"$0\" >azure.json.new && mv azure.json.new azure.json";
        let replaced = node.run(&["sh", "-c", replace, &renewed]).unwrap();
        assert!(replaced.status.success(), "{replaced:?}");
    }
    world.until("both replicas have read the file", || {
        restarts()
            .iter()
            .zip(&before)
            .all(|(now, before)| now > before)
    });
    figure("a replaced cloud configuration is read", started.elapsed());
    // The former secret would be refused.
    let renewed = Namespace::new(&world, "renewed");
    renewed.start(&[bound(pod("renewed", "n1"))]);
    world.until("mic works with it", || {
        renewed.is_own(&renewed.ask("renewed"))
    });
    load.noticed_nothing(
        "mic reads a new cloud configuration",
        &[&world.load.client_id],
    );
}
