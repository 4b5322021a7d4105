//! Others change the node's rules, or have left some.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

mod common;

use std::net::TcpListener;
use std::time::Duration;

use common::way::{Way, assert_closed, leave_both};
use common::{Client, METADATA, Namespace, Server, World};
use podid_intercept::{Backend, Keeper, Rules, State, withdraw};
use rstest::rstest;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

const NMI: &str = "127.0.0.1:2579";
/// The keeper gets there within this time, or the test fails.
const STATE_TIMEOUT: Duration = Duration::from_secs(20);

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
    tokio::time::timeout(STATE_TIMEOUT, waiting)
        .await
        .unwrap()
        .unwrap();
}

/// The interval alone would take an hour.
#[rstest]
#[case(Way::Nftables, "nft flush ruleset")]
#[case(Way::Nftables, "nft delete table inet podid")]
#[case(Way::Nftables, "ip rule flush pref 2")]
#[case(Way::Nftables, "ip route flush table 2579")]
#[case(Way::IptablesNft, "iptables-nft -w 5 -t mangle -F")]
#[case(
    Way::IptablesNft,
    "iptables-nft -w 5 -t mangle -I PREROUTING -j ACCEPT"
)]
#[case(Way::IptablesLegacy, "ip rule del pref 2")]
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

/// As Azure CNI does it in its mode transparent-tunnel: the whole mark, and a table of its own for what has it.
#[rstest]
fn a_mark_that_somebody_else_sets_does_no_harm(
    #[values(Way::Nftables, Way::IptablesNft, Way::IptablesLegacy)] way: Way,
    #[values("iptables-nft", "iptables-legacy")] tool: &str,
    #[values(false, true)] first: bool,
    #[values("", "pref 10")] preference: &str,
) {
    let world = World::new();
    let pod = Namespace::routed(&world.node, "10.78.0.21");
    let backend = way.on(&world);
    let _nmi = world.nmi(NMI);
    let azure = world.azure.accepted();
    let rules = Rules::default();
    let apply = || world.node.block_on(|| backend.apply(&rules)).unwrap();
    let mark = || {
        world.node.run(&format!(
            "{tool} -w 5 -t mangle -A PREROUTING -i v0a4e0015 -j MARK --set-mark 3"
        ));
        world
            .node
            .run(&format!("ip rule add {preference} fwmark 3/3 lookup 101"));
        world
            .node
            .run("ip route add default via 10.88.0.2 table 101");
    };
    if first {
        mark();
        apply();
    } else {
        apply();
        mark();
    }
    let answer = pod.ask(METADATA).unwrap();
    assert_eq!(answer, "nmi 10.78.0.21 169.254.169.254:80");
    assert_eq!(world.azure.accepted(), azure);
}

/// What an older podid has left is taken away.
#[test]
fn the_policy_rule_of_an_older_podid_goes() {
    let world = World::new();
    let rules = Rules::default();
    let (backend, node) = (Backend::Nftables, &world.node);
    let verified = || node.block_on(|| backend.verify(&rules)).unwrap();
    node.block_on(|| backend.apply(&rules)).unwrap();
    node.run("ip rule add pref 88 fwmark 0x10/0x10 lookup 2579");
    assert!(!verified());
    node.block_on(|| backend.apply(&rules)).unwrap();
    assert!(verified());
    assert!(!node.run("ip rule").contains("88:"));
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

/// The tool of the original, and what is set where kube-proxy is.
fn original(world: &World, tool: &str) -> Server {
    let listener = world.node.within(|| TcpListener::bind(NMI).unwrap());
    world
        .node
        .run("sysctl -qw net.ipv4.conf.br0.route_localnet=1");
    redirect(world, tool);
    Server::new("original", listener)
}

fn beside() -> Rules {
    Rules {
        listen_port: 2578,
        ..Rules::default()
    }
}

const OURS: &str = "nmi 10.77.0.11 169.254.169.254:80";
const THEIRS: &str = "original 10.77.0.11 127.0.0.1:2579";

/// As AAD Pod Identity's nmi leaves it when it is killed; podid may have its port.
#[rstest]
#[case(Way::Nftables, "iptables-nft")]
#[case(Way::Nftables, "iptables-legacy")]
#[case(Way::IptablesNft, "iptables-nft")]
#[case(Way::IptablesLegacy, "iptables-legacy")]
fn what_a_dead_original_left_does_no_harm_and_stays(#[case] way: Way, #[case] tool: &str) {
    let world = World::new();
    let backend = way.on(&world);
    let nat = |line: &str| world.node.run(&format!("{tool} -w 5 -t nat {line}"));
    let nmi = world.nmi(NMI);
    nat("-N KUBE-SERVICES");
    nat("-A PREROUTING -j KUBE-SERVICES");
    redirect(&world, tool);
    let before = nat("-S");
    for shown in [false, true] {
        world.show_bridged(shown);
        kept(&world, backend, STATE_TIMEOUT, |_| async {
            for _ in 0..3 {
                assert_eq!(world.pod.ask(METADATA).unwrap(), OURS);
            }
        });
    }
    drop(nmi);
    let asked = world.azure.accepted();
    world.show_bridged(false);
    assert_closed(way, world.pod.ask(METADATA));
    assert_eq!(world.azure.accepted(), asked);
    let rules = Rules::default();
    let removed = world.node.block_on(|| Backend::cleanup(&rules));
    assert!(!removed.unwrap().is_empty());
    assert_eq!(nat("-S"), before);
}

/// AAD Pod Identity's nmi lives on the node and has its redirect in place, before podid comes and after it has gone.
#[rstest]
#[case(Way::Nftables, "iptables-nft")]
#[case(Way::Nftables, "iptables-legacy")]
#[case(Way::IptablesNft, "iptables-nft")]
#[case(Way::IptablesNft, "iptables-legacy")]
#[case(Way::IptablesLegacy, "iptables-legacy")]
#[case(Way::IptablesLegacy, "iptables-nft")]
fn beside_the_original_no_request_goes_unanswered(#[case] way: Way, #[case] tool: &str) {
    let world = World::new();
    let backend = way.on(&world);
    let original = original(&world, tool);
    let theirs = || {
        world
            .node
            .run(&format!("{tool} -w 5 -t nat -S aad-metadata"))
    };
    let before = theirs();
    assert_eq!(world.pod.ask(METADATA).unwrap(), THEIRS);
    // A request that is under way when podid comes.
    let mut under_way = Client::connect(&world.pod, METADATA, None).unwrap();
    assert_eq!(under_way.ask().unwrap(), THEIRS);

    let rules = beside();
    let nmi = world.nmi("127.0.0.1:2578");
    world.node.block_on(|| async {
        let keeper = Keeper::new(backend, rules.clone(), STATE_TIMEOUT);
        let (state, stop) = (keeper.state(), CancellationToken::new());
        let told = stop.clone();
        let keeping = tokio::spawn(async move { keeper.run(told).await });
        until(&mut state.clone(), |state| state.in_place).await;
        assert_eq!(under_way.ask().unwrap(), THEIRS, "it ends where it began");
        for _ in 0..5 {
            assert_eq!(world.pod.ask(METADATA).unwrap(), OURS);
        }
        let mut ours = Client::connect(&world.pod, METADATA, None).unwrap();
        // It starts anew, and its jump is the first again, for as long as podid does not look.
        let nat = |line: &str| world.node.run(&format!("{tool} -w 5 -t nat {line}"));
        nat("-D PREROUTING -j aad-metadata");
        assert_eq!(world.pod.ask(METADATA).unwrap(), OURS);
        nat("-I PREROUTING 1 -j aad-metadata");
        for _ in 0..5 {
            let answer = world.pod.ask(METADATA).unwrap();
            assert!(answer.starts_with("nmi 10.77.0.11 "), "{answer}");
        }
        assert_eq!(theirs(), before);
        assert_eq!(under_way.ask().unwrap(), THEIRS);
        assert_eq!(ours.ask().unwrap(), OURS);
        stop.cancel();
        keeping.await.unwrap();
        // podid goes: the original serves as if nothing had been.
        Backend::cleanup(&rules).await.unwrap();
        assert_eq!(world.pod.ask(METADATA).unwrap(), THEIRS);
        assert_eq!(theirs(), before);
    });
    // And without the original nothing falls through to Azure while podid is there.
    world.node.block_on(|| backend.apply(&rules)).unwrap();
    drop(original);
    let answer = world.pod.ask(METADATA).unwrap();
    assert!(answer.starts_with("nmi "), "{answer}");
    drop(nmi);
}

/// Until podid looks: the original has just started, or uses the other variant. Its redirect leads to the port that podid has.
#[rstest]
fn podid_answers_whatever_comes_first_in_nat(
    #[values(Way::IptablesNft, Way::IptablesLegacy)] way: Way,
    #[values("iptables-nft", "iptables-legacy")] tool: &str,
) {
    let world = World::new();
    let backend = way.on(&world);
    world
        .node
        .run("sysctl -qw net.ipv4.conf.br0.route_localnet=1");
    let _nmi = world.nmi(NMI);
    let rules = Rules::default();
    world.node.block_on(|| backend.apply(&rules)).unwrap();
    redirect(&world, tool);
    for _ in 0..3 {
        let answer = world.pod.ask(METADATA).unwrap();
        assert!(answer.starts_with("nmi 10.77.0.11 "), "{answer}");
    }
}

/// With the original on the node, and without: then the metadata service itself answers.
#[rstest]
fn whoever_podid_has_is_served_to_the_end_when_it_withdraws(
    #[values(Way::Nftables, Way::IptablesNft, Way::IptablesLegacy)] way: Way,
    #[values(false, true)] with_original: bool,
    #[values(false, true)] shown: bool,
) {
    let world = World::new();
    let backend = way.on(&world);
    let tool = match way {
        Way::IptablesLegacy => "iptables-legacy",
        _ => "iptables-nft",
    };
    world.show_bridged(shown);
    let rules = beside();
    let _nmi = world.nmi("127.0.0.1:2578");
    world.node.block_on(|| backend.apply(&rules)).unwrap();
    let _original = with_original.then(|| original(&world, tool));
    world.node.block_on(|| backend.apply(&rules)).unwrap();
    let next = if with_original {
        THEIRS
    } else {
        "azure 10.77.0.11 169.254.169.254:80"
    };
    let stop = CancellationToken::new();
    let world = &world;
    let mut kept: Vec<_> = (0..3)
        .map(|_| Client::connect(&world.pod, METADATA, None).unwrap())
        .collect();
    for client in &mut kept {
        assert_eq!(client.ask().unwrap(), OURS);
    }
    world.node.block_on(|| async {
        let removed = withdraw(
            &rules,
            async || {
                let mut others: Vec<_> = (0..3)
                    .map(|_| Client::connect(&world.pod, METADATA, None).unwrap())
                    .collect();
                for _ in 0..3 {
                    for client in &mut others {
                        assert_eq!(client.ask().unwrap(), next);
                    }
                    for client in &mut kept {
                        assert_eq!(client.ask().unwrap(), OURS);
                    }
                }
            },
            &stop,
        );
        assert!(!removed.await.unwrap().is_empty());
        assert_eq!(Backend::in_place().await.unwrap(), None);
        // Once more, as after a restart: nothing is to be done, and nobody waited for.
        let again = withdraw(&rules, async || panic!("there is nothing to end"), &stop);
        assert!(again.await.unwrap().is_empty());
    });
    assert_eq!(world.pod.ask(METADATA).unwrap(), next);
}

#[test]
fn cleanup_says_what_it_removed() {
    let world = World::new();
    let rules = Rules::default();
    let cleanup = || world.node.block_on(|| Backend::cleanup(&rules)).unwrap();
    assert!(cleanup().is_empty());
    leave_both(&world, Way::IptablesLegacy, &rules, &rules);
    let removed = cleanup().join("\n");
    for part in ["iptables-legacy: ", "nftables: ", "ip rule: ", "ip route: "] {
        assert!(removed.contains(part), "{part} is not in {removed}");
    }
    assert!(cleanup().is_empty());
}
