//! One owner, one set of rules: whatever podid ran here before, with another backend or other settings.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test"
)]

mod common;

use std::time::Duration;

use common::way::{Way, assert_closed, leave_both};
use common::{METADATA, World};
use podid_intercept::{Backend, HostNetwork, Keeper, Rules};
use rstest::rstest;
use tokio_util::sync::CancellationToken;

const NMI: &str = "127.0.0.1:2579";
const OURS: &str = "nmi 10.77.0.11 169.254.169.254:80";
const AZURE: &str = "azure 10.88.0.1 169.254.169.254:80";

fn all() -> Rules {
    Rules {
        host_network: HostNetwork::All,
        ..Rules::default()
    }
}

/// Every rule of podid's, by whatever tool.
fn rules_of_podid(world: &World) -> String {
    let mut text = world.node.run("nft -s list ruleset");
    for table in ["mangle", "nat"] {
        text += &world.node.run(&format!("iptables-legacy-save -t {table}"));
    }
    text.lines()
        .filter(|line| line.contains("podid") || line.contains("PODID"))
        .map(|line| line.trim().to_owned() + "\n")
        .collect()
}

fn keep(world: &World, backend: Backend, rules: &Rules) {
    world.node.block_on(|| async {
        let keeper = Keeper::new(backend, rules.clone(), Duration::from_secs(3600));
        let (mut state, stop) = (keeper.state(), CancellationToken::new());
        tokio::select! {
            () = keeper.run(stop.clone()) => panic!("the keeper ended"),
            settled = tokio::time::timeout(
                Duration::from_secs(20),
                state.wait_for(|state| state.in_place),
            ) => drop(settled.unwrap().unwrap()),
        }
    });
}

/// The node agent before this one ran with another backend and intercepted the whole node.
#[rstest]
#[case(Way::Nftables, Way::IptablesNft)]
#[case(Way::Nftables, Way::IptablesLegacy)]
#[case(Way::IptablesNft, Way::Nftables)]
#[case(Way::IptablesLegacy, Way::Nftables)]
#[case(Way::IptablesNft, Way::IptablesLegacy)]
#[case(Way::IptablesLegacy, Way::IptablesNft)]
fn another_backends_rules_go(#[case] before: Way, #[case] after: Way) {
    let (world, fresh) = (World::new(), World::new());
    let nmi = world.nmi(NMI);
    keep(&world, before.on(&world), &all());
    assert!(world.node.ask(METADATA).unwrap().starts_with("nmi "));
    before.off(&world);
    let backend = after.on(&world);
    keep(&world, backend, &Rules::default());
    assert_eq!(world.node.ask(METADATA).unwrap(), AZURE);
    assert_eq!(world.pod.ask(METADATA).unwrap(), OURS);
    keep(&fresh, after.on(&fresh), &Rules::default());
    assert_eq!(rules_of_podid(&world), rules_of_podid(&fresh));
    drop(nmi);
    assert_closed(after, world.pod.ask(METADATA));
}

/// A node agent was killed after it had put its own rules in place and before it had removed the others.
#[rstest]
#[case(Way::IptablesNft, Way::IptablesNft)]
#[case(Way::IptablesNft, Way::Nftables)]
#[case(Way::IptablesLegacy, Way::IptablesLegacy)]
#[case(Way::IptablesLegacy, Way::Nftables)]
fn rules_that_a_crash_left_are_seen_and_go(#[case] other: Way, #[case] after: Way) {
    let world = World::new();
    let _nmi = world.nmi(NMI);
    let (nftables, iptables) = match after {
        Way::Nftables => (Rules::default(), all()),
        _ => (all(), Rules::default()),
    };
    leave_both(&world, other, &nftables, &iptables);
    assert!(world.node.ask(METADATA).unwrap().starts_with("nmi "));
    let backend = match after {
        Way::Nftables => Backend::Nftables,
        _ => Backend::Iptables,
    };
    let verify = || {
        let rules = Rules::default();
        world
            .node
            .block_on(|| async { backend.verify(&rules).await })
            .unwrap()
    };
    assert!(!verify(), "another backend's rules are not seen");
    keep(&world, backend, &Rules::default());
    assert!(verify());
    assert_eq!(world.node.ask(METADATA).unwrap(), AZURE);
    assert_eq!(world.pod.ask(METADATA).unwrap(), OURS);
}

/// A node agent that is relieved while it looks: its successor's rules stay as they are.
#[rstest]
#[case(Way::Nftables)]
#[case(Way::IptablesNft)]
#[case(Way::IptablesLegacy)]
fn a_look_that_is_under_way_puts_nothing_in_place_any_more(#[case] way: Way) {
    let world = World::new();
    let _nmi = world.nmi(NMI);
    let backend = way.on(&world);
    world
        .node
        .block_on(|| async { backend.apply(&Rules::default()).await })
        .unwrap();
    let successors = rules_of_podid(&world);
    world.node.block_on(|| async {
        let relieved = CancellationToken::new();
        relieved.cancel();
        let keeper = Keeper::new(Backend::Nftables, all(), Duration::from_secs(3600));
        keeper.run(relieved).await;
    });
    assert_eq!(rules_of_podid(&world), successors);
}
