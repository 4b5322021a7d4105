//! Who is given what: a stolen address, an exempt pod, a pod on the host's network, and pods without the label.

use serde_json::json;

use crate::namespace::{Namespace, bound, network_admin, pod, reaches_node};
use crate::world::{NODES, World, text, world, world_alone};

#[test]
fn a_neighbours_address_gives_nothing() {
    let world = world();
    let theft = Namespace::new(&world, "theft");
    // Most of it is waiting for answers that do not come.
    std::thread::scope(|scope| {
        for node in NODES {
            let (world, theft) = (&world, &theft);
            scope.spawn(move || {
                world.cluster.fabric.enter().unwrap();
                steal(theft, node);
            });
        }
    });
}

/// A pod takes its neighbour's address on a node, asks, and gives it back.
fn steal(theft: &Namespace, node: &str) {
    let world = theft.world;
    let (owner, thief) = (format!("owner-{node}"), format!("thief-{node}"));
    theft.start(&[bound(pod(&owner, node)), network_admin(&thief, node)]);
    let answer = theft.ask(&owner);
    assert!(theft.is_own(&answer), "{answer:?}\n{}", world.explain());
    let address = theft.get(&["pod", &owner])["status"]["podIP"].clone();
    let address = address.as_str().unwrap();

    let take = format!("ip addr add {address}/24 dev eth0 && arping -U -c 2 -I eth0 {address}");
    let taken = theft.exec(&thief, &["sh", "-c", &take]);
    assert!(taken.status.success(), "{}", text(&taken));
    for _ in 0..3 {
        let (status, body) = theft.ask_from(&thief, address);
        // The bridge believes the thief, who is answered; a link of its own leads to the owner, whoever asks.
        let expected = if node == "n1" { 500 } else { 0 };
        assert_eq!(status, expected, "on {node}: {body}");
        assert!(!body.contains("access_token"));
    }
    let back = format!("ip addr del {address}/24 dev eth0");
    theft.exec(&thief, &["sh", "-c", &back]);
    world.until("the owner is served again", || {
        theft.is_own(&theft.ask(&owner))
    });
}

#[test]
fn a_pod_without_the_label_is_refused_and_one_with_it_is_served() {
    let world = world();
    let labels = Namespace::new(&world, "labels");
    for node in NODES {
        let (with, without) = (format!("with-{node}"), format!("without-{node}"));
        labels.start(&[bound(pod(&with, node)), pod(&without, node)]);
        assert!(labels.is_own(&labels.ask(&with)), "{}", world.explain());
        let (status, body) = labels.ask(&without);
        assert_eq!(status, 400, "{body}");
        assert!(body.to_string().contains("has no label"), "{body}");
    }
}

#[test]
fn an_exempt_pod_reaches_the_node_and_its_neighbour_does_not() {
    let world = world();
    let exempt = Namespace::new(&world, "exempt");
    exempt.apply(&[json!({
        "apiVersion": "aadpodidentity.k8s.io/v1", "kind": "AzurePodIdentityException", "metadata": { "name": "agents" },
        "spec": { "podLabels": { "noaad": "true" } },
    })]);
    for node in NODES {
        let (agent, other) = (format!("agent-{node}"), format!("other-{node}"));
        let mut labelled = pod(&agent, node);
        labelled["metadata"]["labels"]["noaad"] = json!("true");
        exempt.start(&[labelled, pod(&other, node)]);
        world.until("the exempt pod reaches the node's metadata service", || {
            reaches_node(&exempt, &agent)
        });
        assert!(!reaches_node(&exempt, &other));
    }
}

#[test]
fn a_pod_on_the_hosts_network_never_has_an_identity_by_the_nodes_address() {
    let world = world_alone();
    host_network(&world, |namespace, pod| {
        // Nobody's traffic of the host's network is intercepted: the answer is the node's.
        assert!(reaches_node(namespace, pod));
    });
    let mut values = world.usual();
    values.push("nmi.interceptHostNetwork=all".to_owned());
    world.install(&values);
    host_network(&world, |namespace, pod| {
        let (status, body) = namespace.ask(pod);
        assert_eq!(status, 400, "{body}");
        assert!(!reaches_node(namespace, pod));
    });
}

fn host_network(world: &World, check: impl Fn(&Namespace, &str)) {
    let host = Namespace::new(world, "host");
    for node in NODES {
        let name = format!("host-{node}");
        let mut on_host = bound(pod(&name, node));
        on_host["spec"]["hostNetwork"] = json!(true);
        host.start(&[on_host]);
        check(&host, &name);
    }
    host.within(&["delete", "namespace", "host"]);
}
