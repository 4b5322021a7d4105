//! nmi's container, on the node's network.

use std::net::Ipv4Addr;
use std::time::Duration;

use podid_testkit::container::{Container, Kubelet};
use podid_testkit::net::Wire;
use serde_json::Value;

use crate::world::{Confinement, World, confinement, manifests, template};

const POD: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 11);
/// capabilities(7): their bits.
const NET_ADMIN: u64 = 1 << 12;
const NET_RAW: u64 = 1 << 13;
const NFTABLES: &str = "nft list table inet podid";
const IPTABLES_NFT: &str = "iptables-nft -w 5 -t mangle -S PODID-PREROUTING";
const IPTABLES_LEGACY: &str = "iptables-legacy -w 5 -t mangle -S PODID-PREROUTING";

/// Whether a command succeeds on the node.
fn holds(world: &World, line: &str) -> bool {
    let words: Vec<&str> = line.split(' ').collect();
    world
        .net
        .run("node", words[0], &words[1..])
        .status
        .success()
}

/// The node's other rules are in iptables-legacy, as kubelet's canary says.
fn use_legacy(world: &World) {
    assert!(holds(
        world,
        "iptables-legacy -w 5 -t mangle -N KUBE-KUBELET-CANARY"
    ));
}

/// The template of nmi's pods without one of its capabilities.
fn without(world: &World, capability: &str) -> Value {
    let mut template = template(&world.objects, "podid-nmi");
    let add = &mut template["spec"]["containers"][0]["securityContext"]["capabilities"]["add"];
    let before = add.as_array().unwrap().len();
    add.as_array_mut()
        .unwrap()
        .retain(|name| name != capability);
    assert_eq!(add.as_array().unwrap().len() + 1, before, "{capability}");
    template
}

#[test]
fn as_the_manifests_say_a_pod_gets_its_token_and_nmi_may_do_no_more_than_promised() {
    let world = World::build("standard");
    let mic = world.mic();
    let nmi = world.nmi(&[]);
    let two = NET_ADMIN | NET_RAW;
    let promised = Confinement {
        user: 0,
        capabilities: [two, two, two, 0, 0],
        no_new_privileges: true,
        seccomp_filter: true,
        writable_root: false,
    };
    assert_eq!(confinement(&nmi), promised);
    world.until_nmi_ready(&nmi);
    world.pod("app", POD);
    world.until("it is Assigned", &mic, || world.is_assigned("app"));
    world.until_served("app", &nmi);
    assert!(holds(&world, NFTABLES));
}

#[test]
fn each_way_of_interception_works_from_the_image() {
    for (way, legacy, rules) in [
        ("nftables", false, NFTABLES),
        ("iptables", false, IPTABLES_NFT),
        ("iptables", true, IPTABLES_LEGACY),
    ] {
        let world = World::build("managed");
        if legacy {
            use_legacy(&world);
        }
        let nmi = world.nmi(&[&format!("--interception={way}")]);
        world.until_nmi_ready(&nmi);
        world.pod("app", POD);
        world.until_served("app", &nmi);
        assert!(holds(&world, rules), "{rules}: {}", nmi.log());
    }
}

#[test]
fn it_sees_by_their_processes_who_calls_without_a_capability_for_it() {
    let world = World::build("managed");
    world.pod("app", POD);
    let nmi = world.nmi(&["--attest=processes"]);
    world.until_nmi_ready(&nmi);
    world.until_served("app", &nmi);

    // The address is another's, of whom the API server has not heard.
    world.end_pod("app");
    world.net.start_pod("other", POD, Wire::Bridge);
    let (status, body) = world.ask("other");
    assert_eq!(status, 500, "{body}");
    assert!(
        body.to_string().contains("leads to somebody else"),
        "{body}"
    );
}

#[test]
fn it_hands_over_to_the_next_ones_container() {
    let world = World::build("managed");
    let first = world.nmi(&[]);
    world.until_nmi_ready(&first);
    world.pod("app", POD);
    world.until_served("app", &first);

    let second = world.nmi(&[]);
    world.until("the first stands by", &first, || {
        assert!(world.is_served("app"), "{}", second.log());
        first.log().contains("standing by")
    });
    first.stop().unwrap();
    assert!(world.is_served("app"), "{}", second.log());
    assert!(second.log().contains("token issued"), "{}", second.log());
}

#[test]
fn cleanups_container_takes_the_rules_away() {
    let world = World::build("managed");
    use_legacy(&world);
    for way in ["nftables", "iptables"] {
        let nmi = world.nmi(&[&format!("--interception={way}")]);
        world.until_nmi_ready(&nmi);
        nmi.stop().unwrap();
    }
    world.pod("app", POD);
    assert!(!world.is_served("app"), "the rules went with nmi");
    let template = template(&manifests("cleanup"), "podid-cleanup");
    let kubelet = Kubelet {
        account: None,
        ..world.kubelet("nmi", "node")
    };
    let cleanup = Container::start(&template, "cleanup", &kubelet).unwrap();
    let ended = cleanup.wait(Duration::from_secs(60)).unwrap();
    assert!(ended, "{}", cleanup.log());
    assert!(!holds(&world, NFTABLES) && !holds(&world, IPTABLES_LEGACY));
    // Now the node's own metadata service answers.
    world.until_served("app", &cleanup);

    let done = Container::start(&template, "done", &kubelet).unwrap();
    let nobody = Confinement {
        user: 65532,
        capabilities: [0; 5],
        no_new_privileges: true,
        seccomp_filter: true,
        writable_root: false,
    };
    assert_eq!(confinement(&done), nobody);
    assert!(!done.has_ended(), "{}", done.log());
}

#[test]
fn without_net_admin_it_cannot_intercept_and_says_so() {
    let world = World::build("managed");
    let nmi = world.nmi_of(&without(&world, "NET_ADMIN"), &[]);
    assert!(!nmi.wait(Duration::from_secs(60)).unwrap(), "{}", nmi.log());
    assert!(nmi.log().contains("NET_ADMIN"), "{}", nmi.log());
}

#[test]
fn pods_behind_a_filtered_bridge_are_served_and_port_80_is_free() {
    let world = World::build("managed");
    let shown = holds(&world, "sysctl -qw net.bridge.bridge-nf-call-iptables=1");
    assert!(shown || !holds(&world, "test -e /proc/sys/net/bridge"));
    let nmi = world.nmi(&[]);
    world.until_nmi_ready(&nmi);
    world.pod("app", POD);
    world.until_served("app", &nmi);
    let bind = "import socket; s = socket.socket(); s.bind(('0.0.0.0', 80)); s.listen()";
    let bound = world.net.run("node", "python3", &["-c", bind]);
    assert!(bound.status.success(), "{bound:?}");
}

#[test]
fn without_net_raw_iptables_legacy_cannot_be_asked_and_nftables_does_not_mind() {
    let world = World::build("managed");
    world.pod("app", POD);
    let less = without(&world, "NET_RAW");
    let nmi = world.nmi_of(&less, &[]);
    world.until_nmi_ready(&nmi);
    world.until_served("app", &nmi);
    drop(nmi);
    assert!(holds(&world, "nft delete table inet podid"));

    use_legacy(&world);
    let nmi = world.nmi_of(&less, &["--interception=iptables"]);
    world.until("it says what is missing", &nmi, || {
        nmi.log().contains("NET_RAW")
    });
    let ready = ["-sf", "--noproxy", "*", "http://127.0.0.1:8085/readyz"];
    let ready = world.net.run("node", "curl", &ready);
    assert!(!ready.status.success(), "{}", nmi.log());
}
