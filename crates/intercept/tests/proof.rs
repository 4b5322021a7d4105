//! The keeper proves that requests are caught and arrive, by a connection of its own and by the packets of pods, and says so when they do not.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test"
)]

mod common;

use std::time::Duration;

use common::group::Kubepods;
use common::way::Way;
use common::{METADATA, Namespace, World};
use podid_intercept::{Backend, HostNetwork, Keeper, Rules, State};
use rstest::rstest;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

const NMI: &str = "127.0.0.1:2579";
/// The keeper gets there within this time, or the test fails.
const STATE_TIMEOUT: Duration = Duration::from_secs(20);

fn all() -> Rules {
    Rules {
        host_network: HostNetwork::All,
        ..Rules::default()
    }
}

async fn until(state: &mut watch::Receiver<State>, holds: impl FnMut(&State) -> bool) -> State {
    let waiting = state.wait_for(holds);
    let state = tokio::time::timeout(STATE_TIMEOUT, waiting).await;
    state.unwrap().unwrap().clone()
}

/// Runs a keeper that looks by itself once an hour, and what is to happen beside it.
fn kept<F: Future<Output = ()>>(
    world: &World,
    backend: Backend,
    rules: &Rules,
    work: impl FnOnce(watch::Receiver<State>) -> F + Send,
) {
    world.node.block_on(|| async {
        let keeper = Keeper::new(backend, rules.clone(), Duration::from_secs(3600));
        tokio::select! {
            () = keeper.run(CancellationToken::new()) => panic!("the keeper ended"),
            () = work(keeper.state()) => {}
        }
    });
}

#[rstest]
fn a_connection_of_its_own_is_caught_before_interception_is_in_place(
    #[values(Way::Nftables, Way::IptablesNft, Way::IptablesLegacy)] way: Way,
) {
    let world = World::new();
    let backend = way.on(&world);
    let (nmi, azure) = (world.nmi(NMI), world.azure.accepted());
    kept(&world, backend, &all(), |mut state| async move {
        let first = until(&mut state, |state| state.in_place).await;
        assert_eq!((first.failures, first.trouble), (0, None));
    });
    assert!(nmi.accepted() >= 1, "nothing was tried");
    assert_eq!(world.azure.accepted(), azure);
}

/// This process is in no pod: as on a node whose kernel does not apply the mark, the rules stand and catch nothing.
#[rstest]
fn rules_that_catch_nothing_are_not_in_place(
    #[values(Way::Nftables, Way::IptablesNft, Way::IptablesLegacy)] way: Way,
) {
    let (world, kubepods) = (World::new(), Kubepods::new());
    let backend = way.on(&world);
    let (nmi, azure) = (world.nmi(NMI), world.azure.accepted());
    let rules = Rules {
        host_network: HostNetwork::Pods {
            cgroup: kubepods.path().to_owned(),
        },
        ..Rules::default()
    };
    kubepods.seen_by_nmi(true, || {
        kept(&world, backend, &rules, |mut state| async move {
            let failed = until(&mut state, |state| state.failures > 0).await;
            assert!(!failed.in_place);
            assert_eq!(failed.applied, 1);
            let trouble = failed.trouble.unwrap();
            assert!(trouble.contains("was not intercepted"), "{trouble}");
            assert!(trouble.contains("answered from elsewhere"), "{trouble}");
            assert!(trouble.contains("bpftool cgroup tree"), "{trouble}");
        });
    });
    assert!(world.azure.accepted() > azure, "nothing was tried");
    assert_eq!(nmi.accepted(), 0);
}

/// A node firewall that refuses at the last moment what podid has caught.
#[test]
fn what_somebody_else_breaks_later_is_seen_and_heals() {
    let world = World::new();
    let _nmi = world.nmi(NMI);
    let world = &world;
    kept(world, Backend::Nftables, &all(), |mut state| async move {
        until(&mut state, |state| state.in_place).await;
        world.node.run("nft add table ip firewall");
        world.node.run(
            "nft add chain ip firewall input { type filter hook input priority 0 ; policy accept ; }",
        );
        world.node.run(
            "nft add rule ip firewall input ip daddr 169.254.169.254 tcp dport 80 reject with tcp reset",
        );
        let broken = until(&mut state, |state| !state.in_place).await;
        let trouble = broken.trouble.unwrap();
        assert!(trouble.contains("a firewall on this node"), "{trouble}");
        world.node.run("nft delete table ip firewall");
        let healed = until(&mut state, |state| state.in_place).await;
        assert_eq!((healed.repaired, healed.trouble), (0, None));
    });
}

/// Somebody who listens at the metadata address is not the other end of a connection that passed.
#[test]
fn a_listener_alone_is_no_proof() {
    let (world, kubepods) = (World::new(), Kubepods::new());
    let _nmi = (world.nmi(NMI), world.nmi(METADATA));
    let rules = Rules {
        host_network: HostNetwork::Pods {
            cgroup: kubepods.path().to_owned(),
        },
        ..Rules::default()
    };
    kubepods.seen_by_nmi(false, || {
        kept(&world, Backend::Nftables, &rules, |mut state| async move {
            let failed = until(&mut state, |state| state.failures > 0).await;
            assert!(!failed.in_place);
        });
    });
}

const ROUTED: &str = "10.78.0.21";

/// A firewall of the node, as an operator has it who allowed what AAD Pod Identity needs, or as Calico's endpoint-to-host action is.
fn firewall(world: &World, tool: &str, refusal: &str) {
    let filter = |line: &str| world.node.run(&format!("{tool} -w 5 {line}"));
    if refusal == "calico" {
        filter("-I INPUT 1 -i v0a4e0015 -j DROP");
        return;
    }
    filter("-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT");
    filter("-A INPUT -i lo -j ACCEPT");
    filter("-A INPUT -p tcp --dport 2579 -j ACCEPT");
    filter(&format!("-A INPUT -j {refusal}"));
}

#[rstest]
fn a_firewall_that_refuses_pods_is_told_within_seconds(
    #[values(Way::Nftables, Way::IptablesNft, Way::IptablesLegacy)] way: Way,
    #[values("iptables-nft", "iptables-legacy")] tool: &str,
    #[values("REJECT", "DROP", "calico")] refusal: &str,
) {
    let world = World::new();
    let pod = Namespace::routed(&world.node, ROUTED);
    firewall(&world, tool, refusal);
    let (backend, _nmi) = (way.on(&world), world.nmi(NMI));
    let azure = world.azure.accepted();
    let (world, pod) = (&world, &pod);
    kept(world, backend, &Rules::default(), |mut state| async move {
        until(&mut state, |state| state.in_place).await;
        reads(&mut state).await;
        pod.ask(METADATA).expect_err("the firewall let it pass");
        let broken = until(&mut state, |state| !state.in_place).await;
        let trouble = broken.trouble.unwrap();
        assert!(trouble.contains("INPUT"), "{trouble}");
        assert!(broken.lost.in_input > 0 && broken.lost.before_input == 0);
        // The rule that the text names.
        let allow = trouble.split('`').nth(1).unwrap();
        let allow = allow.strip_prefix("iptables ").unwrap();
        world.node.run(&format!("{tool} -w 5 {allow}"));
        assert!(pod.ask(METADATA).unwrap().starts_with("nmi "));
        let healed = until(&mut state, |state| state.in_place).await;
        assert_eq!(healed.trouble, None);
        assert!(healed.arrived > 0);
    });
    assert_eq!(world.azure.accepted(), azure);
}

/// Returns when the keeper has read its counters for the first time.
async fn reads(state: &mut watch::Receiver<State>) {
    until(state, |state| state.reads > 0).await;
}

#[rstest]
fn packets_that_a_policy_rule_takes_elsewhere_are_told(
    #[values(Way::Nftables, Way::IptablesNft, Way::IptablesLegacy)] way: Way,
) {
    let world = World::new();
    let pod = Namespace::routed(&world.node, ROUTED);
    let (backend, _nmi) = (way.on(&world), world.nmi(NMI));
    let azure = world.azure.accepted();
    world
        .node
        .run("ip rule add pref 0 to 169.254.169.254 lookup 101");
    world
        .node
        .run("ip route add default via 10.88.0.2 table 101");
    let pod = &pod;
    kept(&world, backend, &Rules::default(), |mut state| async move {
        reads(&mut state).await;
        pod.ask(METADATA).expect_err("it was served");
        let broken = until(&mut state, |state| !state.in_place).await;
        assert!(broken.trouble.unwrap().contains("policy rule"));
        assert!(broken.lost.before_input > 0);
    });
    assert_eq!(world.azure.accepted(), azure);
}

/// A network policy denies the metadata address to one pod.
#[rstest]
fn one_pod_that_is_denied_is_counted_and_no_fault(
    #[values(Way::Nftables, Way::IptablesNft, Way::IptablesLegacy)] way: Way,
) {
    let world = World::new();
    let pod = Namespace::routed(&world.node, ROUTED);
    firewall(&world, "iptables-nft", "calico");
    let (backend, _nmi) = (way.on(&world), world.nmi(NMI));
    let (world, pod) = (&world, &pod);
    kept(world, backend, &Rules::default(), |mut state| async move {
        reads(&mut state).await;
        pod.ask(METADATA).expect_err("it was served");
        assert!(world.pod.ask(METADATA).unwrap().starts_with("nmi "));
        let counted = until(&mut state, |state| state.lost.in_input > 0).await;
        assert!(counted.arrived > 0 && counted.in_place);
    });
}

/// The node's label says that packets of pods pass by.
#[test]
fn rules_that_are_bypassed_are_not_in_place() {
    let world = World::new();
    let _nmi = world.nmi(NMI);
    world.node.block_on(|| async {
        let keeper = Keeper::new(
            Backend::Nftables,
            Rules::default(),
            Duration::from_secs(3600),
        );
        let (mut state, bypassed) = (keeper.state(), keeper.bypassed());
        let story = async {
            until(&mut state, |state| state.in_place).await;
            bypassed.send_replace(true);
            let told = until(&mut state, |state| !state.in_place).await;
            assert!(told.trouble.unwrap().contains("ebpf-host-routing"));
        };
        tokio::select! {
            () = keeper.run(CancellationToken::new()) => panic!("the keeper ended"),
            () = story => {}
        }
    });
}

/// Whether packets pass by is not known before one arrives.
#[test]
fn a_link_of_cilium_is_told_until_a_request_arrives() {
    let world = World::new();
    let _nmi = world.nmi(NMI);
    world
        .node
        .run("ip link add cilium_host type veth peer name cilium_net");
    let world = &world;
    kept(
        world,
        Backend::Nftables,
        &Rules::default(),
        |mut state| async move {
            let first = until(&mut state, |state| state.in_place).await;
            assert_eq!(first.unproven, Some("Cilium"));
            reads(&mut state).await;
            assert!(world.pod.ask(METADATA).unwrap().starts_with("nmi "));
            let proven = until(&mut state, |state| state.arrived > 0).await;
            assert_eq!(proven.unproven, None);
        },
    );
}
