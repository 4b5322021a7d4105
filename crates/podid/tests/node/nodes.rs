//! Nodes that fail, are drained, and are made anew: power cuts with and without nmi's image, boot rules, and the startup taint.

use std::time::{Duration, Instant};

use podid_testkit::cluster::Program;
use serde_json::json;

use crate::load::{Load, now};
use crate::namespace::{Namespace, bound, pod};
use crate::own_nodes;
use crate::world::{TAINT, World, figure, note, world, world_alone};

/// As many requests of one pod are refused before nmi comes, at least.
const REFUSED: usize = 20;
/// How long a node without an object is watched. Kubernetes deletes its pods after 40 s.
const NO_OBJECT: Duration = Duration::from_secs(3);

#[test]
fn the_page_of_own_nodes_has_these() {
    let world = world();
    let groups = match std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        true => "2",
        false => "1",
    };
    for (name, network) in [("n1", ["bridge", "nftables"]), ("n2", ["ptp", "iptables"])] {
        let node = world.get(&["node", name]);
        own_nodes::hold(&format!("`node` {name}"), &node, network, groups);
    }
}

#[test]
fn a_power_cut_takes_one_nodes_pods_and_they_are_answered_again() {
    let world = world_alone();
    let load = Load::start(&world);
    let own = [world.load.client_id.as_str()];
    let cut = now();
    world.cluster.power_off(1).unwrap();
    let started = (now(), Instant::now());
    world.cluster.power_on(1).unwrap();
    figure(
        "a machine's start until its kubelet runs",
        started.1.elapsed(),
    );
    let served = load.serves("n2", started.0) - started.0;
    figure(
        "from power-on until a pod is answered",
        Duration::from_secs_f64(served),
    );
    world.kubectl_within(&["wait", "--for=condition=Ready", "node/n2"]);
    world.rolled_out();
    figure("from power-on until nmi is ready", started.1.elapsed());
    let refused = load
        .failures("n2")
        .iter()
        .filter(|answer| answer.sent > cut)
        .count();
    note(&format!(
        "{refused:>8}    requests of a pod that started before nmi were refused"
    ));
    load.tokens_are("n2", &own);
    load.noticed_nothing_on("n1", "power cut of n2", &own);
}

/// The worst boot: nmi's image cannot be had. The node's pods are started all the same.
#[test]
fn boot_rules_refuse_pods_until_nmi_runs() {
    let world = world_alone();
    let load = Load::start(&world);
    let own = [world.load.client_id.as_str()];
    let node = &world.cluster.nodes[0];
    let image = format!("localhost/podid/nmi:{}", world.tag);
    let aside = format!("{image}-aside");
    world.cluster.power_off(0).unwrap();
    node.power_on(&world.cluster.fabric).unwrap();
    images(&world, &["tag", &image, &aside]);
    images(&world, &["rm", "--sync", &image]);
    let boot = now();
    node.start_all().unwrap();
    world.until("the node's pod asks, and is refused", || {
        load.answers("n1", boot).len() >= REFUSED
    });
    let answers = load.answers("n1", boot);
    let given: Vec<_> = answers
        .iter()
        .filter(|answer| answer.outcome.is_ok())
        .collect();
    assert!(given.is_empty(), "{given:#?}");

    images(&world, &["tag", &aside, &image]);
    images(&world, &["rm", &aside]);
    // The kubelet waits before it looks for the image again, and not for a new pod.
    let on = "--field-selector=spec.nodeName=n1";
    let mended = Instant::now();
    world.kubectl(&[
        "-n",
        "podid",
        "delete",
        "pod",
        "-l",
        "app.kubernetes.io/component=nmi",
        on,
        "--wait=false",
    ]);
    load.serves("n1", boot);
    figure(
        "from the image's return until a pod is answered",
        mended.elapsed(),
    );
    load.tokens_are("n1", &own);
    load.noticed_nothing_on("n2", "n1 has no image of nmi", &own);
    world.rolled_out();
}

fn images(world: &World, words: &[&str]) {
    let ctr = ["ctr", "-n", "k8s.io", "images"];
    let done = world.cluster.nodes[0]
        .run(&[&ctr[..], words].concat())
        .unwrap();
    assert!(done.status.success(), "{words:?}: {done:?}");
}

#[test]
fn a_node_is_drained_and_its_pods_move() {
    let world = world_alone();
    let load = Load::start(&world);
    let drained = Namespace::new(&world, "drained");
    let mut template = bound(pod("app", "n2"));
    template["metadata"]["labels"]["app"] = json!("app");
    let spec = template["spec"].as_object_mut().unwrap();
    spec.remove("nodeSelector");
    drained.apply(&[json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": "app" },
        "spec": {
            "replicas": 2, "selector": { "matchLabels": { "app": "app" } },
            "template": { "metadata": template["metadata"], "spec": template["spec"] },
        },
    })]);
    drained.within(&["rollout", "status", "deployment/app"]);
    let started = Instant::now();
    world.kubectl_within(&[
        "drain",
        "n2",
        "--ignore-daemonsets",
        "--force",
        "--delete-emptydir-data",
    ]);
    figure("a node is drained", started.elapsed());
    drained.within(&["rollout", "status", "deployment/app"]);
    let pods = drained.get(&[
        "pods",
        "-l",
        "app=app",
        "--field-selector=status.phase=Running",
    ]);
    let mut moved = 0;
    for pod in pods["items"].as_array().unwrap() {
        if pod["metadata"]["deletionTimestamp"].is_null() {
            assert_eq!(pod["spec"]["nodeName"], "n1");
            let name = pod["metadata"]["name"].as_str().unwrap();
            world.until("the pod is served", || drained.is_own(&drained.ask(name)));
            moved += 1;
        }
    }
    assert_eq!(moved, 2);
    load.noticed_nothing_on("n1", "n2 is drained", &[&world.load.client_id]);
}

#[test]
fn a_node_is_deleted_and_registers_anew_with_its_taint() {
    let world = world_alone();
    let load = Load::start(&world);
    world.kubectl(&["delete", "node", "n2"]);
    std::thread::sleep(NO_OBJECT);
    world.cluster.nodes[1].kill(Program::Kubelet);
    world.cluster.nodes[1].start_all().unwrap();
    world.kubectl_within(&["wait", "--for=create", "node/n2"]);
    let registered = Instant::now();
    let mut seen = false;
    world.until("the startup taint is lifted", || {
        let node = world.get(&["node", "n2"]);
        let tainted = node["spec"]["taints"].to_string().contains(TAINT);
        seen |= tainted;
        !tainted
    });
    assert!(seen, "the kubelet registers the node with the taint");
    figure(
        "a node's startup taint is lifted after it has registered anew",
        registered.elapsed(),
    );
    world.kubectl_within(&["wait", "--for=condition=Ready", "node/n2"]);
    load.noticed_nothing(
        "n2's object is deleted and made anew",
        &[&world.load.client_id],
    );
}
