//! podid beside AAD Pod Identity's nmi on one node, from its coming to its going, under load.

use podid_testkit::process::Process;
use tempfile::TempDir;

use crate::client::{Habit, Load};
use crate::original::Original;
use crate::world::World;
use crate::{HABITS, PODS, signal};

/// Those of the original are DNAT to loopback.
const LOCALNET: &str = "net.ipv4.conf.pods.route_localnet=1";
const BRIDGED: &str = "net.bridge.bridge-nf-call-iptables";
const GONE: &str = "no rule of podid's is on this node any more";

struct Node {
    world: World,
    folder: TempDir,
}

impl Node {
    /// A node whose kubelet uses this variant of iptables, whose bridge is shown to its rules or not, and whose pods are known.
    /// podid is not on it.
    fn build(tool: &str, shown: bool) -> Self {
        let flags = [
            "--interception=none",
            "--handover-socket=",
            "--attest=address",
        ];
        let mut world = World::build(&["reader"], &flags);
        world.wait_until_ready();
        world.nmi.take();
        world.grant("reader", "app", 1);
        for (pod, address) in PODS {
            world.start_pod(pod, address, "app");
        }
        let node = Self {
            world,
            folder: tempfile::tempdir().unwrap(),
        };
        node.run("sysctl", &["-qw", LOCALNET]);
        let shown = format!("{BRIDGED}={}", u8::from(shown));
        // Where the kernel has no such thing, no bridge is shown.
        node.run("sysctl", &["-qew", &shown]);
        let canary = ["-w", "5", "-t", "mangle", "-N", "KUBE-KUBELET-CANARY"];
        node.run(tool, &canary);
        node
    }

    fn run(&self, program: &str, arguments: &[&str]) -> String {
        let output = self.world.net.run("node", program, arguments);
        assert!(
            output.status.success(),
            "{program} {arguments:?}: {output:?}"
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn load(&self) -> Load {
        self.load_of(&HABITS)
    }

    fn load_of(&self, habits: &[Habit]) -> Load {
        Load::start(&PODS.map(|(pod, _)| self.world.net.name(pod)), habits)
    }

    fn original(&self, tool: &'static str) -> Original {
        Original::start(&self.world.net.name("node"), tool)
    }

    fn podid(&self, name: &str, interception: &str) -> Process {
        let interception = format!("--interception={interception}");
        let socket = format!(
            "--handover-socket={}/nmi.sock",
            self.folder.path().display()
        );
        let flags = [
            "--nmi-port=2580",
            "--attest=address",
            &interception,
            &socket,
        ];
        self.world.spawn_nmi(name, &flags)
    }

    fn until(&self, process: &Process, text: &str) {
        process.wait_for_log(text).unwrap();
    }

    fn goes_on(&self, load: &Load) {
        let before = load.served();
        self.world
            .wait_until("the load goes on", || load.served() > before + 300);
    }

    fn end(&self, process: &Process) {
        signal(process, "TERM");
        self.world.wait_until("it ends", || process.has_ended());
        assert!(!process.log().contains("Error"), "{}", process.log());
    }

    /// What podid has in the node's tables.
    fn rules(&self) -> String {
        let nft = self.run("nft", &["list", "ruleset"]);
        let legacy =
            ["mangle", "nat"].map(|table| self.run("iptables-legacy-save", &["-t", table]));
        let rule = self.run("ip", &["rule"]);
        [nft, legacy.concat(), rule]
            .concat()
            .lines()
            .filter(|line| {
                line.contains("podid") || line.contains("PODID") || line.contains("2579:")
            })
            .collect()
    }
}

/// podid comes beside the original, sees it start anew, and leaves again: by a rolling update to `--interception=withdraw`.
fn take_over_and_hand_back(interception: &str, tool: &'static str, shown: bool) {
    let node = Node::build(tool, shown);
    let original = node.original(tool);
    let load = node.load();
    node.goes_on(&load);

    let podid = node.podid("nmi-1", interception);
    node.until(&podid, "interception is in place");
    node.until(&podid, "token issued");
    let accepted = original.accepted();
    node.goes_on(&load);
    assert_eq!(original.accepted(), accepted, "podid answers what is new");
    // It is replaced by another of its kind, whose jump is the first until podid looks. On a bridge that is shown to the rules
    // both answer until then.
    original.leave();
    node.goes_on(&load);
    let original = node.original(tool);
    node.goes_on(&load);
    if !shown || interception == "nftables" {
        assert_eq!(original.accepted(), 0, "podid goes on answering");
    }

    let leaving = node.podid("nmi-2", "withdraw");
    node.until(&leaving, GONE);
    assert_eq!(node.rules(), "");
    assert!(original.accepted() > 0);
    node.world.wait_until_ready();
    node.goes_on(&load);
    node.end(&podid);
    // As after a restart of its container: nothing comes back.
    node.end(&leaving);
    let again = node.podid("nmi-3", "withdraw");
    node.until(&again, GONE);
    assert_eq!(node.rules(), "");
    node.end(&again);
    node.goes_on(&load);
    let failures = load.failures();
    assert!(
        failures.is_empty(),
        "{interception}, {tool}, {shown}: {failures:#?}"
    );
}

#[test]
fn no_request_fails_from_take_over_to_hand_back_with_nftables() {
    for shown in [false, true] {
        take_over_and_hand_back("nftables", "iptables-nft", shown);
    }
}

#[test]
fn no_request_fails_from_take_over_to_hand_back_with_iptables_nft() {
    for shown in [false, true] {
        take_over_and_hand_back("iptables", "iptables-nft", shown);
    }
}

#[test]
fn no_request_fails_from_take_over_to_hand_back_with_iptables_legacy() {
    for shown in [false, true] {
        take_over_and_hand_back("iptables", "iptables-legacy", shown);
    }
}

/// Without the original the node's own metadata service is next. Clients keep their connections here: the kernel remembers for a
/// minute what podid has closed, and a new connection from the same port to somebody else would have to wait for so long.
#[test]
fn no_request_fails_when_podid_is_removed() {
    for (interception, tool, shown) in [
        ("nftables", "iptables-nft", false),
        ("iptables", "iptables-nft", true),
        ("iptables", "iptables-legacy", false),
    ] {
        let node = Node::build(tool, shown);
        let podid = node.podid("nmi-1", interception);
        node.until(&podid, "interception is in place");
        let load = node.load_of(&HABITS[1..]);
        node.goes_on(&load);
        let asked = node.world.asked();
        let leaving = node.podid("nmi-2", "withdraw");
        node.until(&leaving, GONE);
        node.end(&podid);
        node.end(&leaving);
        node.goes_on(&load);
        assert_eq!(node.rules(), "");
        assert!(node.world.asked() > asked + 300, "who answers?");
        let failures = load.failures();
        assert!(failures.is_empty(), "{interception}, {tool}: {failures:#?}");
    }
}

/// The rules do not come back, though the one before it is still there; and nobody is cut off.
#[test]
fn one_that_is_killed_while_it_withdraws_leaves_nothing_to_put_back() {
    let node = Node::build("iptables-nft", false);
    let podid = node.podid("nmi-1", "nftables");
    node.until(&podid, "interception is in place");
    let load = node.load();
    node.goes_on(&load);
    let _original = node.original("iptables-nft");
    let mut leaving = node.podid("nmi-2", "withdraw");
    node.until(&podid, "standing by");
    let tproxy = || node.run("nft", &["list", "ruleset"]).contains("tproxy");
    node.world.wait_until("new requests pass", || !tproxy());
    let connected = "-Htn state established src 169.254.169.254";
    let connected: Vec<_> = connected.split(' ').collect();
    node.world.wait_until("podid has nobody any more", || {
        node.run("ss", &connected).is_empty()
    });
    leaving.kill();
    node.goes_on(&load);
    assert!(!podid.log().contains("serving again"), "{}", podid.log());
    assert!(!tproxy());
    let again = node.podid("nmi-3", "withdraw");
    node.until(&again, GONE);
    assert_eq!(node.rules(), "");
    node.end(&podid);
    node.end(&again);
    let failures = load.failures();
    assert!(failures.is_empty(), "{failures:#?}");
}

/// As by `helm uninstall`, before the rollout is over.
#[test]
fn one_that_is_told_to_end_while_it_withdraws_ends_when_it_has() {
    let node = Node::build("iptables-nft", false);
    let podid = node.podid("nmi-1", "nftables");
    node.until(&podid, "interception is in place");
    let _original = node.original("iptables-nft");
    let load = node.load();
    node.goes_on(&load);
    let leaving = node.podid("nmi-2", "withdraw");
    node.until(&podid, "standing by");
    node.end(&podid);
    node.end(&leaving);
    assert_eq!(node.rules(), "");
    node.goes_on(&load);
    let failures = load.failures();
    assert!(failures.is_empty(), "{failures:#?}");
}
