//! Rolling updates of nmi and of mic, and pods of nmi that are deleted: no request fails, and nothing warns of anything.

use std::time::{Duration, Instant};

use podid_testkit::cluster::Node;
use serde_json::Value;

use crate::load::{Answer, Load, now};
use crate::namespace::{Namespace, bound, pod};
use crate::world::{NODES, World, figure, note, world_alone};

const NMI: &str = "daemonset/podid-nmi";
const MIC: &str = "deployment/podid-mic";
const NMIS_PODS: &str = "app.kubernetes.io/component=nmi";
const MICS_PODS: &str = "app.kubernetes.io/component=mic";

/// How long an nmi that is told to end serves on until its next pod starts (docs/outages.md).
const WAITS_FOR_NEXT: Duration = Duration::from_secs(5);

/// Restarts all pods of a DaemonSet or Deployment of podid's, as `kubectl rollout restart` does, and waits until that is done.
fn roll(world: &World, what: &str) -> Duration {
    let started = Instant::now();
    world.kubectl(&["-n", "podid", "rollout", "restart", what]);
    world.kubectl_within(&["-n", "podid", "rollout", "status", what]);
    started.elapsed()
}

/// Warnings about podid's own objects since a time.
fn warnings(world: &World, since: f64) -> Vec<String> {
    let events = world.get(&["-n", "podid", "events", "--field-selector=type=Warning"]);
    let late = |event: &&Value| {
        let times = ["lastTimestamp", "eventTime", "firstTimestamp"];
        let at = times.iter().find_map(|time| event[time].as_str()).unwrap();
        let at: jiff::Timestamp = at.parse().unwrap();
        // Timestamps of Events are whole seconds.
        at.as_second() > since as i64
    };
    let told = |event: &Value| format!("{} {}", event["reason"], event["message"]);
    let items = events["items"].as_array().unwrap();
    items.iter().filter(late).map(told).collect()
}

#[test]
fn nobody_notices_a_rolling_update_of_nmi() {
    let world = world_alone();
    let load = Load::start(&world);
    let since = now();
    for _ in 0..2 {
        figure("nmi is rolled out on two nodes", roll(&world, NMI));
    }
    load.noticed_nothing("rolling update of nmi", &[&world.load.client_id]);
    assert_eq!(warnings(&world, since), Vec::<String>::new());
}

#[test]
fn nobody_notices_that_nmis_pods_are_deleted() {
    let world = world_alone();
    let load = Load::start(&world);
    let (deleted, started) = (now(), Instant::now());
    world.kubectl_within(&["-n", "podid", "delete", "pod", "-l", NMIS_PODS]);
    world.rolled_out();
    figure("nmi's deleted pods are replaced", started.elapsed());
    load.goes_on();
    for node in NODES {
        // A machine that is busy with other things may be slower than what nmi waits for.
        let early = |answer: &Answer| answer.sent < deleted + WAITS_FOR_NEXT.as_secs_f64();
        let mut failures = load.failures(node);
        failures.retain(early);
        assert!(failures.is_empty(), "{failures:#?}\n{}", world.explain());
        load.tokens_are(node, &[&world.load.client_id]);
    }
}

#[test]
fn a_rolling_update_of_mic_delays_new_pods_alone_and_leaves_its_replicas_on_two_nodes() {
    let world = world_alone();
    let load = Load::start(&world);
    let late = Namespace::new(&world, "late");
    let since = now();
    figure("mic is rolled out, the first time", roll(&world, MIC));
    world.kubectl(&["-n", "podid", "rollout", "restart", MIC]);
    let started = Instant::now();
    late.start(&[bound(pod("late", "n1"))]);
    world.until("the new pod is served", || late.is_own(&late.ask("late")));
    figure(
        "a pod that is made during a roll of mic is served",
        started.elapsed(),
    );
    world.rolled_out();
    world.until("the former replicas have ended", || mics(&world).len() == 2);
    let mut nodes = mics(&world);
    nodes.sort();
    assert_eq!(nodes, NODES, "{}", world.explain());
    load.noticed_nothing("rolling update of mic", &[&world.load.client_id]);
    assert_eq!(warnings(&world, since), Vec::<String>::new());
}

/// The node of each of mic's pods.
fn mics(world: &World) -> Vec<String> {
    let pods = world.get(&["-n", "podid", "pods", "-l", MICS_PODS]);
    let nodes = pods["items"].as_array().unwrap().iter();
    let nodes = nodes.map(|pod| {
        pod["spec"]["nodeName"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    });
    nodes.collect()
}

#[test]
fn podids_pods_need_little_memory() {
    let world = world_alone();
    let mut told = Vec::new();
    // The kubelet measures a new container some seconds later.
    world.until("the kubelets have measured podid", || {
        let nodes = world.cluster.nodes.iter();
        told = nodes.flat_map(|node| memory(&world, node)).collect();
        told.len() >= 4
    });
    for (name, working_set, resident) in told {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let (working, resident) = (mib(working_set), mib(resident));
        note(&format!(
            "{working:>8.1} MiB  working set of {name}; {resident:.1} MiB of the process are in memory"
        ));
        // What the chart requests for each of them.
        let requested = if name.contains("mic") {
            64 << 20
        } else {
            32 << 20
        };
        assert!(working_set < requested, "{name}: {working_set}");
    }
}

/// Name and working set of each container of podid's on a node, and what of its process is in memory, the program's own pages too.
fn memory(world: &World, node: &Node) -> Vec<(String, u64, u64)> {
    let summary = format!("/api/v1/nodes/{}/proxy/stats/summary", node.name());
    let summary = world.kubectl(&["get", "--raw", &summary]);
    let summary: Value = serde_json::from_str(&summary).unwrap();
    let pods = summary["pods"].as_array().unwrap().iter();
    let podids = pods.filter(|pod| pod["podRef"]["namespace"] == "podid");
    let containers = podids.flat_map(|pod| pod["containers"].as_array().into_iter().flatten());
    containers
        .filter_map(|container| {
            let role = container["name"].as_str()?;
            let process = *node.processes(&["/podid", role]).unwrap().first()?;
            let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
            let resident = status
                .lines()
                .find_map(|line| line.strip_prefix("VmRSS:"))?;
            let kib: u64 = resident.trim().trim_end_matches(" kB").parse().ok()?;
            let name = format!("{role} on {}", node.name());
            Some((
                name,
                container["memory"]["workingSetBytes"].as_u64()?,
                kib << 10,
            ))
        })
        .collect()
}
