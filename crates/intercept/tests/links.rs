//! What the kernel says about who is at the other end of an address.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

mod common;

use std::net::IpAddr;
use std::process::{Child, Command, Stdio};

use common::{Client, METADATA, Namespace, World};
use podid_intercept::{Backend, Link, Links, NamespaceId, Rules};

const POD: &str = "10.77.0.11";
const NEIGHBOUR: &str = "10.77.0.12";

/// A process that does nothing, in a pod.
struct Idle(Child);

impl Idle {
    fn new(pod: &Namespace) -> Self {
        let child = pod.within(|| {
            Command::new("sleep")
                .arg("60")
                .stdin(Stdio::null())
                .spawn()
                .unwrap()
        });
        Self(child)
    }
}

impl Drop for Idle {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn towards(world: &World, address: &str) -> Link {
    let address: IpAddr = address.parse().unwrap();
    world
        .node
        .within(|| Links::open().unwrap().towards(address).unwrap())
}

fn namespace_of(world: &World, process: &Idle) -> Option<NamespaceId> {
    let pid = process.0.id();
    world
        .node
        .within(|| Links::open().unwrap().namespace_of(pid).unwrap())
}

#[test]
fn a_routed_link_leads_to_its_pod() {
    let world = World::new();
    let pod = Namespace::routed(&world.node, "10.78.0.21");
    let process = Idle::new(&pod);
    let link = towards(&world, "10.78.0.21");
    assert!(!link.bridged);
    assert_eq!(link.peer, namespace_of(&world, &process));
    assert!(link.peer.is_some());
    let other = Namespace::routed(&world.node, "10.78.0.22");
    assert_ne!(
        towards(&world, "10.78.0.22").peer,
        namespace_of(&world, &process)
    );

    // The address passes to the other pod.
    world.node.run("ip route del 10.78.0.21/32");
    let device = world
        .node
        .run("ip -o route get 10.78.0.22")
        .split_whitespace()
        .skip_while(|word| *word != "dev")
        .nth(1)
        .unwrap()
        .to_owned();
    world
        .node
        .run(&format!("ip route add 10.78.0.21/32 dev {device}"));
    let thief = Idle::new(&other);
    let link = towards(&world, "10.78.0.21");
    assert_ne!(link.peer, namespace_of(&world, &process));
    assert_eq!(link.peer, namespace_of(&world, &thief));
}

#[test]
fn a_neighbour_that_takes_an_address_on_the_bridge_is_seen() {
    let world = World::new();
    let before = world.azure.accepted();
    let nmi = world.nmi("127.0.0.1:2579");
    let rules = Rules::default();
    let applied = world.node.block_on(|| Backend::Nftables.apply(&rules));
    applied.unwrap();
    let (owner, thief) = (Idle::new(&world.pod), Idle::new(&world.neighbour));
    assert!(
        world
            .pod
            .ask(METADATA)
            .unwrap()
            .starts_with("nmi 10.77.0.11")
    );
    assert!(world.neighbour.ask(METADATA).is_ok());
    let link = towards(&world, POD);
    assert!(link.bridged);
    assert_eq!(link.peer, namespace_of(&world, &owner));
    assert_eq!(
        towards(&world, NEIGHBOUR).peer,
        namespace_of(&world, &thief)
    );

    // Asking for the node's hardware address in the owner's name is what poisons the node's neighbour table.
    world
        .neighbour
        .run(&format!("ip addr add {POD}/32 dev eth0"));
    world
        .neighbour
        .run(&format!("ip route replace default via 10.77.0.1 src {POD}"));
    let stolen = |_| {
        world.neighbour.run("ip neigh flush dev eth0");
        Client::connect(&world.neighbour, METADATA, None)
            .and_then(|mut client| client.ask())
            .is_ok_and(|answer| answer.starts_with("nmi 10.77.0.11"))
    };
    assert!((0..20).any(stolen), "the address could not be taken");
    let link = towards(&world, POD);
    assert_ne!(link.peer, namespace_of(&world, &owner));
    assert_eq!(link.peer, namespace_of(&world, &thief));
    assert_eq!(world.azure.accepted(), before);
    drop(nmi);
}

#[test]
fn what_is_no_pair_and_what_is_nowhere_is_told_apart() {
    let world = World::new();
    assert_eq!(towards(&world, "127.0.0.1").peer, None);
    let nowhere = world.node.within(|| {
        let mut links = Links::open().unwrap();
        let silent = links.towards("10.77.0.99".parse().unwrap());
        let gone = links.namespace_of(u32::MAX / 2);
        (silent.is_err(), gone.is_err())
    });
    assert_eq!(nowhere, (true, true));
}
