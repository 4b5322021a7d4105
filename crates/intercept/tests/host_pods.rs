//! Pods on the host's network are intercepted, and the node's own processes are not: by eBPF on the group of all pods.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test"
)]

mod common;

use std::fs;

use common::group::Kubepods;
use common::way::Way;
use common::{METADATA, World};
use podid_intercept::{Backend, HostNetwork, Rules};
use rstest::rstest;

const NMI: &str = "127.0.0.1:2579";
const SERVICE: &str = "169.254.169.254";
const OURS: &str = "nmi 10.88.0.1 169.254.169.254:80";
const PINS: &str = "/sys/fs/bpf/podid";

fn rules(kubepods: &Kubepods) -> Rules {
    Rules {
        host_network: HostNetwork::Pods {
            cgroup: kubepods.path().to_owned(),
        },
        ..Rules::default()
    }
}

fn apply(world: &World, backend: Backend, rules: &Rules) {
    world.node.block_on(|| async {
        backend.apply(rules).await.unwrap();
        assert!(
            backend.verify(rules).await.unwrap(),
            "applied rules do not verify"
        );
    });
}

/// Whatever cgroup namespace nmi has: in a private one the group of all pods has no path.
#[rstest]
fn pods_on_the_hosts_network_are_told_from_the_nodes_own_processes(
    #[values(Way::Nftables, Way::IptablesNft, Way::IptablesLegacy)] way: Way,
    #[values(false, true)] private: bool,
) {
    let (world, kubepods) = (World::new(), Kubepods::new());
    let backend = way.on(&world);
    let nmi = world.nmi(NMI);
    let rules = rules(&kubepods);
    let ask = || kubepods.ask(&world.node, SERVICE, 0);
    assert!(
        ask().starts_with("azure "),
        "it is not caught without the rules"
    );
    kubepods.seen_by_nmi(private, || {
        apply(&world, backend, &rules);
        assert_eq!(ask(), OURS);
        let mapped = kubepods.ask(&world.node, "::ffff:169.254.169.254", 0);
        assert_eq!(mapped, OURS);
        // nmi is itself a pod on the host's network.
        let own = kubepods.ask(&world.node, SERVICE, rules.mark_own);
        assert!(own.starts_with("azure "), "nmi's own request: {own}");
        assert!(
            world.node.ask(METADATA).unwrap().starts_with("azure "),
            "the node itself is not served"
        );
        let before = world.azure.accepted();
        drop(nmi);
        assert_eq!(ask(), "", "somebody answered");
        world.node.run("ip rule del pref 4");
        assert_eq!(ask(), "", "somebody answered");
        assert_eq!(world.azure.accepted(), before);
        assert!(world.pod.ask(METADATA).is_err());
    });
}

fn pins() -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(PINS)
        .into_iter()
        .flatten()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn the_programs_follow_the_settings_and_go_with_them() {
    let (world, kubepods) = (World::new(), Kubepods::new());
    let _nmi = world.nmi(NMI);
    let backend = Backend::Nftables;
    let verify = |rules: &Rules| {
        world
            .node
            .block_on(|| async { backend.verify(rules).await })
            .unwrap()
    };
    kubepods.seen_by_nmi(true, || {
        let first = rules(&kubepods);
        apply(&world, backend, &first);
        let of_first = pins();
        assert_eq!(of_first.len(), 2);
        apply(&world, backend, &first);
        assert_eq!(pins(), of_first);
        // Somebody detaches one.
        fs::remove_file(format!("{PINS}/{}", of_first[0])).unwrap();
        assert!(!verify(&first));
        apply(&world, backend, &first);
        let other = Rules {
            mark_pod: 0x80,
            ..first.clone()
        };
        assert!(!verify(&other));
        apply(&world, backend, &other);
        assert_eq!(pins().len(), 2);
        assert!(pins().iter().all(|name| !of_first.contains(name)));
        assert_eq!(kubepods.ask(&world.node, SERVICE, 0), OURS);
        let off = Rules::default();
        assert!(!verify(&off));
        apply(&world, backend, &off);
        assert!(pins().is_empty());
        apply(&world, backend, &first);
        let removed = world.node.block_on(|| Backend::cleanup(&off)).unwrap();
        assert!(removed.join("\n").contains("eBPF: "), "{removed:?}");
        assert!(!fs::exists(PINS).unwrap());
        assert!(kubepods.ask(&world.node, SERVICE, 0).starts_with("azure "));
    });
}

/// The other rules protect pods with a network of their own all the same.
#[test]
fn without_a_bpf_file_system_it_is_said_what_is_missing() {
    let (world, kubepods) = (World::new(), Kubepods::new());
    let _nmi = world.nmi(NMI);
    let rules = rules(&kubepods);
    let error = world
        .node
        .block_on(|| Backend::Nftables.apply(&rules))
        .unwrap_err();
    assert_eq!(error.kind(), podid_intercept::ErrorKind::PodMark);
    assert!(error.to_string().contains("bpf file system"), "{error}");
    assert!(error.to_string().contains("the capability BPF"), "{error}");
    assert_eq!(
        world.pod.ask(METADATA).unwrap(),
        "nmi 10.77.0.11 169.254.169.254:80"
    );
}
