//! Where packets go, in network namespaces: with the rules, without NMI, and after somebody else was there.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test"
)]

mod common;

use std::net::SocketAddr;
use std::time::Duration;

use common::way::{Way, assert_closed};
use common::{Client, METADATA, Namespace, World};
use podid_intercept::{Backend, HostNetwork, Keeper, Rules, cut_connections};
use rstest::rstest;
use socket2::{Domain, Socket, Type};
use tokio_util::sync::CancellationToken;

const NMI: &str = "127.0.0.1:2579";

fn apply(world: &World, backend: Backend, rules: &Rules) {
    world.node.block_on(|| backend.apply(rules)).unwrap();
    assert!(
        world.node.block_on(|| backend.verify(rules)).unwrap(),
        "applied rules do not verify"
    );
}

fn verify(world: &World, backend: Backend, rules: &Rules) -> bool {
    world.node.block_on(|| backend.verify(rules)).unwrap()
}

fn host_rules() -> Rules {
    Rules {
        host_network: HostNetwork::All,
        ..Rules::default()
    }
}

#[rstest]
#[case(Way::Nftables)]
#[case(Way::IptablesNft)]
#[case(Way::IptablesLegacy)]
fn pods_reach_nmi_as_themselves_and_nothing_else_changes(#[case] way: Way) {
    let world = World::new();
    let backend = way.on(&world);
    let before = world.azure.accepted();
    let _nmi = world.nmi(NMI);
    apply(&world, backend, &Rules::default());
    assert_eq!(
        world.pod.ask(METADATA).unwrap(),
        "nmi 10.77.0.11 169.254.169.254:80"
    );
    assert_eq!(
        world.neighbour.ask(METADATA).unwrap(),
        "nmi 10.77.0.12 169.254.169.254:80"
    );
    world
        .pod
        .ask("169.254.169.254:8080")
        .expect_err("another port of the metadata address was reached");
    assert_eq!(world.azure.accepted(), before);

    assert_eq!(
        world.pod.ask("10.88.0.2:8080").unwrap(),
        "elsewhere 10.77.0.11 10.88.0.2:8080"
    );
    assert_eq!(
        world.pod.ask("10.88.0.2:80").unwrap(),
        "azure 10.77.0.11 10.88.0.2:80"
    );
    assert_eq!(
        world.node.ask(METADATA).unwrap(),
        "azure 10.88.0.1 169.254.169.254:80"
    );
}

#[rstest]
#[case(Way::Nftables)]
#[case(Way::IptablesNft)]
#[case(Way::IptablesLegacy)]
fn without_nmi_nothing_gets_through(#[case] way: Way) {
    let world = World::new();
    let backend = way.on(&world);
    let nmi = world.nmi(NMI);
    apply(&world, backend, &host_rules());
    let before = world.azure.accepted();
    let mut open = Client::connect(&world.pod, METADATA, None).unwrap();
    assert_eq!(open.ask().unwrap(), "nmi 10.77.0.11 169.254.169.254:80");
    drop(nmi);
    open.ask().expect_err("a connection outlived its server");
    assert_closed(way, world.pod.ask(METADATA));
    assert_closed(way, world.node.ask(METADATA));
    // A host process that takes port 80 of every address must not be mistaken for NMI.
    let _ingress = common::Server::new(
        "ingress",
        world
            .node
            .within(|| std::net::TcpListener::bind("0.0.0.0:80").unwrap()),
    );
    assert_closed(way, world.pod.ask(METADATA));
    assert_closed(way, world.node.ask(METADATA));
    assert_eq!(world.azure.accepted(), before);

    let _again = world.nmi(NMI);
    assert_eq!(
        world.pod.ask(METADATA).unwrap(),
        "nmi 10.77.0.11 169.254.169.254:80"
    );
}

#[rstest]
#[case(Way::Nftables)]
#[case(Way::IptablesNft)]
#[case(Way::IptablesLegacy)]
fn pods_on_a_bridge_that_is_shown_to_the_rules_reach_nmi(#[case] way: Way) {
    let world = World::new();
    world.show_bridged(true);
    let backend = way.on(&world);
    let before = world.azure.accepted();
    let nmi = world.nmi(NMI);
    apply(&world, backend, &Rules::default());
    assert_eq!(
        world.pod.ask(METADATA).unwrap(),
        "nmi 10.77.0.11 169.254.169.254:80"
    );
    drop(nmi);
    world.pod.ask(METADATA).expect_err("the pod was answered");
    let _ingress = common::Server::new(
        "ingress",
        world
            .node
            .within(|| std::net::TcpListener::bind("0.0.0.0:80").unwrap()),
    );
    world.pod.ask(METADATA).expect_err("the pod was answered");
    assert_eq!(world.azure.accepted(), before);
}

/// An ingress on the host's network, and the options of its socket.
fn ingress(world: &World, address: &str, reuse_port: bool) -> common::Server {
    let address: SocketAddr = address.parse().unwrap();
    let bind = || {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(reuse_port)?;
        socket.bind(&address.into())?;
        socket.listen(8)?;
        std::io::Result::Ok(socket.into())
    };
    common::Server::new("ingress", world.node.within(bind).unwrap())
}

#[rstest]
fn port_80_of_the_node_is_free(
    #[values(Way::Nftables, Way::IptablesNft, Way::IptablesLegacy)] way: Way,
    #[values(false, true)] shown: bool,
) {
    let world = World::new();
    world.show_bridged(shown);
    let routed = Namespace::routed(&world.node, "10.78.0.21");
    let backend = way.on(&world);
    apply(&world, backend, &Rules::default());
    let served = || {
        for (pod, address) in [(&world.pod, "10.77.0.11"), (&routed, "10.78.0.21")] {
            let answer = pod.ask(METADATA).unwrap();
            assert_eq!(answer, format!("nmi {address} 169.254.169.254:80"));
        }
        let answer = world.node.ask("10.88.0.1:80").unwrap();
        assert!(answer.starts_with("ingress "), "{answer}");
    };
    for (address, reuse_port) in [
        ("0.0.0.0:80", false),
        ("0.0.0.0:80", true),
        ("[::]:80", false),
    ] {
        let nmi = world.nmi(NMI);
        let ingress_after = ingress(&world, address, reuse_port);
        served();
        drop((nmi, ingress_after));
        let _ingress_before = ingress(&world, address, reuse_port);
        let _nmi = world.nmi(NMI);
        served();
    }
}

#[rstest]
#[case(Way::Nftables)]
#[case(Way::IptablesNft)]
#[case(Way::IptablesLegacy)]
fn without_the_policy_route_nothing_gets_through(#[case] way: Way) {
    let world = World::new();
    let backend = way.on(&world);
    let _nmi = world.nmi(NMI);
    apply(&world, backend, &host_rules());
    let before = world.azure.accepted();
    for preference in 1..=4 {
        world.node.run(&format!("ip rule del pref {preference}"));
    }
    world.pod.ask(METADATA).expect_err("the pod was answered");
    world.node.ask(METADATA).expect_err("the node was answered");
    assert_eq!(world.azure.accepted(), before);
    assert!(!verify(&world, backend, &host_rules()));
}

#[rstest]
#[case(Way::Nftables)]
#[case(Way::IptablesNft)]
#[case(Way::IptablesLegacy)]
fn host_processes_are_intercepted_but_nmi_passes(#[case] way: Way) {
    let world = World::new();
    let backend = way.on(&world);
    let _nmi = world.nmi(NMI);
    let rules = host_rules();
    apply(&world, backend, &rules);
    assert_eq!(
        world.node.ask(METADATA).unwrap(),
        "nmi 10.88.0.1 169.254.169.254:80"
    );
    let mut own = Client::connect(&world.node, METADATA, Some(rules.mark_own)).unwrap();
    assert_eq!(own.ask().unwrap(), "azure 10.88.0.1 169.254.169.254:80");
    // A mark does not leave its namespace.
    let mut forged = Client::connect(&world.pod, METADATA, Some(rules.mark_own)).unwrap();
    assert_eq!(forged.ask().unwrap(), "nmi 10.77.0.11 169.254.169.254:80");
}

#[rstest]
#[case(Way::Nftables)]
#[case(Way::IptablesNft)]
#[case(Way::IptablesLegacy)]
fn a_reverse_path_check_by_mark_does_no_harm(#[case] way: Way) {
    let world = World::new();
    let backend = way.on(&world);
    world
        .node
        .run("sysctl -qw net.ipv4.conf.all.src_valid_mark=1");
    let _nmi = world.nmi(NMI);
    apply(&world, backend, &Rules::default());
    assert_eq!(
        world.pod.ask(METADATA).unwrap(),
        "nmi 10.77.0.11 169.254.169.254:80"
    );
}

#[rstest]
#[case(Way::Nftables)]
#[case(Way::IptablesNft)]
#[case(Way::IptablesLegacy)]
fn older_connections_end(#[case] way: Way) {
    let world = World::new();
    let backend = way.on(&world);
    let _nmi = world.nmi(NMI);
    let mut older = Client::connect(&world.pod, METADATA, None).unwrap();
    assert_eq!(older.ask().unwrap(), "azure 10.77.0.11 169.254.169.254:80");
    apply(&world, backend, &Rules::default());
    older
        .ask()
        .expect_err("an older connection still reaches Azure");
}

#[test]
fn tracked_connections_are_forgotten() {
    let world = World::new();
    // Without a rule that asks for it, the kernel tracks nothing.
    world.node.run("nft add table ip tracking");
    world
        .node
        .run("nft add chain ip tracking c { type filter hook prerouting priority 0 ; }");
    world
        .node
        .run("nft add rule ip tracking c ct state established accept");
    let _older = Client::connect(&world.pod, METADATA, None).unwrap();
    let rules = Rules::default();
    assert_eq!(world.node.block_on(|| cut_connections(&rules)).unwrap(), 1);
    assert_eq!(world.node.block_on(|| cut_connections(&rules)).unwrap(), 0);
}

#[rstest]
#[case(Way::Nftables)]
#[case(Way::IptablesNft)]
#[case(Way::IptablesLegacy)]
fn rules_survive_reapplying_and_cleanup_removes_them_all(#[case] way: Way) {
    let world = World::new();
    let backend = way.on(&world);
    let nothing = everything(&world);
    apply(&world, backend, &host_rules());
    let once = everything(&world);
    apply(&world, backend, &host_rules());
    assert_eq!(everything(&world), once);
    apply(&world, backend, &Rules::default());
    assert!(
        !verify(&world, backend, &host_rules()),
        "other rules verify"
    );
    world
        .node
        .block_on(|| async { Backend::cleanup(&Rules::default()).await })
        .unwrap();
    world
        .node
        .block_on(|| async { Backend::cleanup(&Rules::default()).await })
        .unwrap();
    assert_eq!(everything(&world), nothing);
    assert_eq!(
        world.pod.ask(METADATA).unwrap(),
        "azure 10.77.0.11 169.254.169.254:80"
    );
}

/// Whatever podid might leave on the node.
fn everything(world: &World) -> String {
    let tables = world
        .node
        .run("nft list tables")
        .lines()
        .filter(|line| line.contains("podid"))
        .collect::<String>();
    let parts = [
        world.node.run("iptables-nft -w 5 -t mangle -S"),
        world.node.run("iptables-legacy -w 5 -t mangle -S"),
        world.node.run("ip rule"),
        world.node.run("ip -4 route show table all type local"),
    ];
    tables + &parts.concat()
}

#[rstest]
#[case(Way::Nftables, "nft insert rule inet podid forward accept")]
#[case(Way::Nftables, "nft flush chain inet podid forward")]
#[case(Way::Nftables, "nft delete chain inet podid input")]
#[case(Way::IptablesNft, "iptables-nft -w 5 -t mangle -I FORWARD 1 -j ACCEPT")]
#[case(
    Way::IptablesNft,
    "iptables-nft -w 5 -t mangle -I PODID-FORWARD 1 -j ACCEPT"
)]
#[case(Way::IptablesLegacy, "iptables-legacy -w 5 -t mangle -F PODID-FORWARD")]
#[case(Way::IptablesLegacy, "iptables-legacy -w 5 -t mangle -D PREROUTING 1")]
fn a_change_by_somebody_else_is_seen_and_undone(#[case] way: Way, #[case] change: &str) {
    let world = World::new();
    let backend = way.on(&world);
    apply(&world, backend, &Rules::default());
    world.node.run(change);
    assert!(!verify(&world, backend, &Rules::default()));
    apply(&world, backend, &Rules::default());
}

#[rstest]
#[case(Way::Nftables)]
#[case(Way::IptablesNft)]
#[case(Way::IptablesLegacy)]
fn the_keeper_repairs_and_leaves_the_rules_behind(#[case] way: Way) {
    let world = World::new();
    let backend = way.on(&world);
    let _nmi = world.nmi(NMI);
    world.node.block_on(|| async {
        let keeper = Keeper::new(backend, Rules::default(), Duration::from_secs(1));
        let (mut state, shutdown) = (keeper.state(), CancellationToken::new());
        let stop = shutdown.clone();
        let task = tokio::spawn(async move { keeper.run(stop).await });
        let patience = Duration::from_secs(20);
        let first = tokio::time::timeout(patience, state.wait_for(|state| state.in_place))
            .await
            .unwrap()
            .unwrap()
            .clone();
        assert_eq!((first.applied, first.repaired, first.failures), (1, 0, 0));
        way.flush(&world);
        let later = tokio::time::timeout(patience, state.wait_for(|state| state.repaired > 0))
            .await
            .unwrap()
            .unwrap()
            .clone();
        assert_eq!((later.applied, later.repaired, later.failures), (2, 1, 0));
        shutdown.cancel();
        task.await.unwrap();
    });
    assert!(verify(&world, backend, &Rules::default()));
    assert_eq!(
        world.pod.ask(METADATA).unwrap(),
        "nmi 10.77.0.11 169.254.169.254:80"
    );
}

#[rstest]
#[case(Way::Nftables)]
#[case(Way::IptablesNft)]
#[case(Way::IptablesLegacy)]
fn the_listener_is_reached_directly_only_when_allowed(#[case] way: Way) {
    let world = World::new();
    let backend = way.on(&world);
    let _nmi = world.nmi("0.0.0.0:2579");
    apply(&world, backend, &Rules::default());
    world
        .pod
        .ask("10.77.0.1:2579")
        .expect_err("a pod reached the listener's own port");
    assert_eq!(
        world.node.ask("127.0.0.1:2579").unwrap(),
        "nmi 127.0.0.1 127.0.0.1:2579"
    );
    assert_eq!(
        world.pod.ask(METADATA).unwrap(),
        "nmi 10.77.0.11 169.254.169.254:80"
    );
    apply(
        &world,
        backend,
        &Rules {
            direct: true,
            ..Rules::default()
        },
    );
    assert_eq!(
        world.pod.ask("10.77.0.1:2579").unwrap(),
        "nmi 10.77.0.11 10.77.0.1:2579"
    );
}

#[test]
fn the_best_backend_is_detected_without_changing_anything() {
    let world = World::new();
    let nothing = everything(&world);
    let backend = world
        .node
        .block_on(|| async { Backend::detect(&Rules::default()).await })
        .unwrap();
    assert_eq!(backend, Backend::Nftables);
    assert_eq!(everything(&world), nothing);
}
