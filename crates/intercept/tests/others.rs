//! Others change the node's rules, or have left some.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

mod common;

use std::net::TcpListener;
use std::time::Duration;

use common::way::Way;
use common::{Client, METADATA, Server, World};
use podid_intercept::{Backend, Keeper, Rules, State};
use rstest::rstest;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

const NMI: &str = "127.0.0.1:2579";
const PATIENCE: Duration = Duration::from_secs(20);

/// Runs a keeper that looks this seldom by itself, and what is to happen beside it.
fn kept<F: Future<Output = ()>>(
    world: &World,
    backend: Backend,
    interval: Duration,
    work: impl FnOnce(watch::Receiver<State>) -> F + Send,
) {
    world.node.block_on(|| async {
        let keeper = Keeper::new(backend, Rules::default(), interval);
        let (state, stop) = (keeper.state(), CancellationToken::new());
        let told = stop.clone();
        let keeping = tokio::spawn(async move { keeper.run(told).await });
        until(&mut state.clone(), |state| state.in_place).await;
        work(state).await;
        stop.cancel();
        keeping.await.unwrap();
    });
}

async fn until(state: &mut watch::Receiver<State>, holds: impl FnMut(&State) -> bool) {
    let waiting = state.wait_for(holds);
    tokio::time::timeout(PATIENCE, waiting)
        .await
        .unwrap()
        .unwrap();
}

/// The interval alone would take an hour.
#[rstest]
#[case(Way::Nftables, "nft flush ruleset")]
#[case(Way::Nftables, "nft delete table inet podid")]
#[case(Way::Nftables, "ip rule flush pref 88")]
#[case(Way::Nftables, "ip route flush table 2579")]
#[case(Way::IptablesNft, "iptables-nft -w 5 -t mangle -F")]
#[case(
    Way::IptablesNft,
    "iptables-nft -w 5 -t mangle -I PREROUTING -j ACCEPT"
)]
#[case(Way::IptablesLegacy, "ip rule del pref 88")]
fn what_somebody_else_changes_is_put_back_at_once(#[case] way: Way, #[case] change: &str) {
    let world = World::new();
    let backend = way.on(&world);
    let _nmi = world.nmi(NMI);
    let hour = Duration::from_secs(3600);
    let world = &world;
    kept(world, backend, hour, |mut state| async move {
        world.node.run(change);
        until(&mut state, |state| state.repaired == 1).await;
        // Once more: it goes on listening.
        world.node.run(change);
        until(&mut state, |state| state.repaired == 2).await;
        let answer = world.pod.ask(METADATA).unwrap();
        assert_eq!(answer, "nmi 10.77.0.11 169.254.169.254:80");
    });
}

#[rstest]
#[case(Way::Nftables)]
#[case(Way::IptablesNft)]
#[case(Way::IptablesLegacy)]
fn no_rule_is_there_twice_however_often_it_is_put_back(#[case] way: Way) {
    let world = World::new();
    let backend = way.on(&world);
    let rules = Rules::default();
    let apply = || world.node.block_on(|| backend.apply(&rules)).unwrap();
    let everything = || {
        let nft = world.node.run("nft -s list ruleset");
        let legacy = world.node.run("iptables-legacy-save -t mangle");
        let legacy: String = legacy
            .lines()
            .filter(|line| line.starts_with('-'))
            .collect();
        nft + &legacy + &world.node.run("ip rule") + &world.node.run("ip -4 route show table all")
    };
    apply();
    let once = everything();
    for _ in 0..50 {
        apply();
    }
    assert_eq!(everything(), once);
}

/// The redirect of AAD Pod Identity's nmi, as that one puts it into the table nat.
fn redirect(world: &World, tool: &str) {
    let nat = |line: &str| world.node.run(&format!("{tool} -w 5 -t nat {line}"));
    nat("-N aad-metadata");
    nat(
        "-A aad-metadata ! -s 127.0.0.1/32 -d 169.254.169.254/32 -p tcp -m tcp --dport 80 -j DNAT --to-destination 127.0.0.1:2579",
    );
    nat("-A aad-metadata -j RETURN");
    nat("-I PREROUTING 1 -j aad-metadata");
}

/// As AAD Pod Identity's nmi leaves it when it is killed.
#[rstest]
#[case(Way::IptablesNft, "iptables-nft")]
#[case(Way::IptablesLegacy, "iptables-legacy")]
fn the_originals_redirect_is_removed_and_nothing_else_of_that_table(
    #[case] way: Way,
    #[case] tool: &str,
) {
    let world = World::new();
    let backend = way.on(&world);
    let nat = |line: &str| world.node.run(&format!("{tool} -w 5 -t nat {line}"));
    let _nmi = world.nmi(NMI);
    nat("-N KUBE-SERVICES");
    nat("-A PREROUTING -j KUBE-SERVICES");
    let before = nat("-S");
    redirect(&world, tool);
    kept(&world, backend, PATIENCE, |_| async {
        assert_eq!(nat("-S"), before);
        let answer = world.pod.ask(METADATA).unwrap();
        assert_eq!(answer, "nmi 10.77.0.11 169.254.169.254:80");
    });
}

/// AAD Pod Identity's nmi lives on the node and has its redirect in place, before podid comes and after it has gone.
#[rstest]
#[case("iptables-nft")]
#[case("iptables-legacy")]
fn beside_the_original_no_request_goes_unanswered(#[case] tool: &str) {
    let world = World::new();
    let original = world.node.within(|| TcpListener::bind(NMI).unwrap());
    let original = Server::new("original", original);
    world
        .node
        .run("sysctl -qw net.ipv4.conf.br0.route_localnet=1");
    redirect(&world, tool);
    let nat = || world.node.run(&format!("{tool} -w 5 -t nat -S"));
    let before = nat();
    let ours = "nmi 10.77.0.11 169.254.169.254:80";
    let theirs = "original 10.77.0.11 127.0.0.1:2579";
    assert_eq!(world.pod.ask(METADATA).unwrap(), theirs);
    // A request that is under way when podid comes.
    let mut under_way = Client::connect(&world.pod, METADATA, None).unwrap();
    assert_eq!(under_way.ask().unwrap(), theirs);

    let rules = Rules {
        listen_port: 2578,
        ..Rules::default()
    };
    let _nmi = world.nmi("127.0.0.1:2578");
    world.node.block_on(|| async {
        let keeper = Keeper::new(Backend::Nftables, rules.clone(), PATIENCE);
        let (state, stop) = (keeper.state(), CancellationToken::new());
        let told = stop.clone();
        let keeping = tokio::spawn(async move { keeper.run(told).await });
        until(&mut state.clone(), |state| state.in_place).await;
        assert_eq!(under_way.ask().unwrap(), theirs, "it ends where it began");
        for _ in 0..5 {
            assert_eq!(world.pod.ask(METADATA).unwrap(), ours);
        }
        // The original looks after its own once a minute.
        world.node.run(&format!("{tool} -w 5 -t nat -F aad-metadata"));
        world.node.run(&format!("{tool} -w 5 -t nat -A aad-metadata ! -s 127.0.0.1/32 -d 169.254.169.254/32 -p tcp -m tcp --dport 80 -j DNAT --to-destination 127.0.0.1:2579"));
        world.node.run(&format!("{tool} -w 5 -t nat -A aad-metadata -j RETURN"));
        assert_eq!(world.pod.ask(METADATA).unwrap(), ours);
        assert_eq!(nat(), before);
        assert_eq!(under_way.ask().unwrap(), theirs);
        stop.cancel();
        keeping.await.unwrap();
        // podid goes: the original serves as if nothing had been.
        Backend::cleanup(&rules).await.unwrap();
        assert_eq!(world.pod.ask(METADATA).unwrap(), theirs);
    });
    // And without the original nothing falls through to Azure while podid is there.
    let backend = Backend::Nftables;
    world.node.block_on(|| backend.apply(&rules)).unwrap();
    drop(original);
    assert_eq!(world.pod.ask(METADATA).unwrap(), ours);
}

#[test]
fn cleanup_says_what_it_removed() {
    let world = World::new();
    let rules = Rules::default();
    let cleanup = || world.node.block_on(|| Backend::cleanup(&rules)).unwrap();
    assert!(cleanup().is_empty());
    for way in [Way::IptablesLegacy, Way::Nftables] {
        let backend = way.on(&world);
        world.node.block_on(|| backend.apply(&rules)).unwrap();
    }
    let removed = cleanup().join("\n");
    for part in ["iptables-legacy: ", "nftables: ", "ip rule: ", "ip route: "] {
        assert!(removed.contains(part), "{part} is not in {removed}");
    }
    assert!(cleanup().is_empty());
}
