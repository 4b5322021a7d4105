//! Boot rules: what a node loads before the kubelet starts keeps pods from the metadata service until NMI's rules replace it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test"
)]

mod common;

use std::sync::atomic::{AtomicBool, Ordering};

use common::way::Way;
use common::{METADATA, World};
use podid_intercept::{Backend, Rules, boot};
use rstest::rstest;

const NMI: &str = "127.0.0.1:2579";

/// Loads the file that a node has, as its unit does.
fn load(world: &World, way: Way) {
    let rules = Rules::default();
    let (text, load) = match way {
        Way::Nftables => (boot::nftables(&rules), "nft -f"),
        Way::IptablesNft => (boot::iptables(&rules), "iptables-nft-restore --noflush"),
        Way::IptablesLegacy => (boot::iptables(&rules), "iptables-legacy-restore --noflush"),
    };
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    world.node.run(&format!("{load} {}", file.path().display()));
}

/// Every rule of podid's, by whatever tool, in the order of the alphabet.
fn rules_of_podid(world: &World) -> Vec<String> {
    let mut text = world.node.run("nft -s list ruleset");
    text += &world.node.run("iptables-legacy-save -t mangle");
    let of_podid = text
        .lines()
        .filter(|line| line.contains("podid") || line.contains("PODID"));
    let mut rules: Vec<_> = of_podid.map(|line| line.trim().to_owned()).collect();
    rules.sort_unstable();
    rules
}

#[rstest]
#[case(Way::Nftables, Way::Nftables)]
#[case(Way::Nftables, Way::IptablesNft)]
#[case(Way::Nftables, Way::IptablesLegacy)]
#[case(Way::IptablesNft, Way::Nftables)]
#[case(Way::IptablesNft, Way::IptablesNft)]
#[case(Way::IptablesLegacy, Way::Nftables)]
#[case(Way::IptablesLegacy, Way::IptablesLegacy)]
fn pods_are_refused_until_nmi_takes_over_without_a_gap(#[case] at_boot: Way, #[case] then: Way) {
    let (world, fresh) = (World::new(), World::new());
    let backend = then.on(&world);
    load(&world, at_boot);
    // A unit that is started again.
    load(&world, at_boot);
    let before = world.azure.accepted();
    world
        .pod
        .ask(METADATA)
        .expect_err("the metadata service was reached");
    assert_eq!(world.azure.accepted(), before);
    let elsewhere = world.pod.ask("10.88.0.2:8080").unwrap();
    assert!(elsewhere.starts_with("elsewhere "), "{elsewhere}");
    let own = world.node.ask(METADATA).unwrap();
    assert!(own.starts_with("azure "), "the node itself: {own}");

    let before = world.azure.accepted();
    let nmi = world.nmi(NMI);
    let applied = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !applied.load(Ordering::Relaxed) {
                let _ = world.neighbour.ask(METADATA);
            }
        });
        let rules = Rules::default();
        world.node.block_on(|| backend.apply(&rules)).unwrap();
        applied.store(true, Ordering::Relaxed);
    });
    let answer = world.pod.ask(METADATA).unwrap();
    assert!(answer.starts_with("nmi "), "{answer}");
    assert_eq!(world.azure.accepted(), before, "there was a gap");
    let rules = Rules::default();
    let other = then.on(&fresh);
    fresh.node.block_on(|| other.apply(&rules)).unwrap();
    assert_eq!(rules_of_podid(&world), rules_of_podid(&fresh));
    drop(nmi);
    let cleaned = world.node.block_on(|| Backend::cleanup(&rules)).unwrap();
    assert!(!cleaned.is_empty());
    assert!(rules_of_podid(&world).is_empty());
}
