//! Where packets go on nodes of different shapes, and over IPv6.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test"
)]

mod common;

use std::process::Command;

use common::way::{Way, assert_closed};
use common::{Client, METADATA, Namespace, World};
use podid_intercept::{Backend, HostNetwork, Rules};
use rstest::rstest;

const NMI: &str = "127.0.0.1:2579";
const ROUTED: &str = "10.78.0.21";

fn apply(world: &World, backend: Backend, rules: &Rules) {
    world.node.block_on(|| backend.apply(rules)).unwrap();
}

fn all() -> Rules {
    Rules {
        host_network: HostNetwork::All,
        ..Rules::default()
    }
}

/// As with Azure CNI, Calico and Cilium: a pair of links and a route for each pod. Nobody has set anything up for podid:
/// there is no kube-proxy, and `route_localnet` is off.
#[rstest]
fn a_routed_pod_reaches_nmi_and_nothing_else(
    #[values(Way::Nftables, Way::IptablesNft, Way::IptablesLegacy)] way: Way,
    #[values("0", "1", "2")] reverse_path: &str,
) {
    let world = World::new();
    let pod = Namespace::routed(&world.node, ROUTED);
    for link in ["all", "default", "v0a4e0015"] {
        world.node.run(&format!(
            "sysctl -qw net.ipv4.conf.{link}.route_localnet=0 net.ipv4.conf.{link}.rp_filter={reverse_path}"
        ));
    }
    let backend = way.on(&world);
    let nmi = world.nmi(NMI);
    apply(&world, backend, &Rules::default());
    let before = world.azure.accepted();
    for asking in [&pod, &world.pod] {
        let answer = asking.ask(METADATA).unwrap();
        assert!(answer.starts_with("nmi 10.7"), "{answer}");
        assert!(answer.ends_with(" 169.254.169.254:80"), "{answer}");
    }
    drop(nmi);
    assert_closed(way, pod.ask(METADATA));
    assert_closed(way, world.pod.ask(METADATA));
    assert_eq!(world.azure.accepted(), before);
}

#[rstest]
#[case(Way::Nftables)]
#[case(Way::IptablesNft)]
#[case(Way::IptablesLegacy)]
fn nmis_own_mark_is_beyond_the_reach_of_others(#[case] way: Way) {
    let world = World::new();
    let backend = way.on(&world);
    let _nmi = world.nmi(NMI);
    let rules = all();
    apply(&world, backend, &rules);
    let answer = Client::connect(&world.node, METADATA, Some(rules.mark_own))
        .and_then(|mut client| client.ask());
    assert!(answer.unwrap().starts_with("azure "));
    // Any process of the host's network that has neither NET_ADMIN nor, since Linux 5.17, NET_RAW.
    let script = "import socket\ntry:\n socket.socket().setsockopt(1, 36, 32)\n print('set')\nexcept PermissionError:\n print('denied')";
    let with = |capabilities: &str| {
        let mut command = Command::new("setpriv");
        command.args(["--bounding-set", capabilities, "--inh-caps", capabilities]);
        command.args(["python3", "-c", script]);
        let output = world.node.within(|| command.output().unwrap());
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    assert_eq!(with("-net_admin,-net_raw"), "denied");
    assert_eq!(with("+net_admin"), "set");
}

#[rstest]
#[case(Way::Nftables)]
#[case(Way::IptablesNft)]
#[case(Way::IptablesLegacy)]
fn an_ipv6_socket_does_not_get_past(#[case] way: Way) {
    let world = World::new();
    let backend = way.on(&world);
    let nmi = world.nmi(NMI);
    apply(&world, backend, &Rules::default());
    let before = world.azure.accepted();
    // A socket of the other family sends the same packets.
    let mapped = || {
        let socket = socket2::Socket::new(socket2::Domain::IPV6, socket2::Type::STREAM, None)?;
        let to: std::net::SocketAddr = "[::ffff:169.254.169.254]:80".parse().unwrap();
        socket.connect_timeout(&to.into(), std::time::Duration::from_secs(1))
    };
    world.pod.within(mapped).unwrap();
    drop(nmi);
    world.pod.within(mapped).expect_err("somebody answered");
    assert_eq!(world.azure.accepted(), before);
}

/// Azure behind a translator: what is sent to the well-known prefix would arrive at the metadata service.
#[test]
fn a_translator_from_ipv6_is_not_reached() {
    let world = World::new();
    let target = "64:ff9b::a9fe:a9fe";
    world.node.run("sysctl -qw net.ipv6.conf.all.forwarding=1");
    world.node.run("ip -6 addr add fd00:77::1/64 dev br0 nodad");
    world
        .node
        .run("ip -6 addr add fd00:88::1/64 dev uplink nodad");
    world
        .node
        .run(&format!("ip -6 route add {target}/128 via fd00:88::2"));
    world
        .pod
        .run("ip -6 addr add fd00:77::11/64 dev eth0 nodad");
    world.pod.run("ip -6 route add default via fd00:77::1");
    let azure = world.azure_place();
    azure.run("ip -6 addr add fd00:88::2/64 dev eth0 nodad");
    azure.run(&format!("ip -6 addr add {target}/128 dev lo nodad"));
    azure.run("ip -6 route add default via fd00:88::1");
    let _translator =
        azure.within(|| std::net::TcpListener::bind(format!("[{target}]:80")).unwrap());
    let connect = || {
        let to: std::net::SocketAddr = format!("[{target}]:80").parse().unwrap();
        std::net::TcpStream::connect_timeout(&to, std::time::Duration::from_secs(2)).map(drop)
    };
    let reached = (0..20).any(|_| world.pod.within(connect).is_ok());
    assert!(reached, "the namespaces are not wired");
    apply(&world, Backend::Nftables, &Rules::default());
    world
        .pod
        .within(connect)
        .expect_err("the translator was reached");
}
