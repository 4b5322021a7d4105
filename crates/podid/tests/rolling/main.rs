//! A rolling update of the node agent under load: real processes, real packets.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test"
)]

mod beside;
mod client;
mod original;
mod released;
#[path = "../world/mod.rs"]
mod world;

use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use client::{Connection, Habit, Load};
use podid_testkit::process::Process;
use tempfile::TempDir;
use world::{PODID, World};

const PODS: [(&str, Ipv4Addr); 4] = [
    ("pod", Ipv4Addr::new(10, 244, 0, 11)),
    ("pod-2", Ipv4Addr::new(10, 244, 0, 12)),
    ("pod-3", Ipv4Addr::new(10, 244, 0, 13)),
    ("pod-4", Ipv4Addr::new(10, 244, 0, 14)),
];
/// Of each pod; together just within what one pod may ask for.
const HABITS: [Habit; 4] = [
    Habit::Fresh(Duration::from_millis(25)),
    Habit::Kept(Duration::from_millis(25)),
    Habit::Kept(Duration::from_millis(150)),
    Habit::Kept(Duration::from_millis(1200)),
];

/// A node on which one node agent follows another.
struct Node {
    world: World,
    running: Process,
    flags: [String; 3],
    generation: usize,
    _folder: TempDir,
}

impl Node {
    fn build(interception: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let flags = [
            format!("--interception={interception}"),
            "--attest=address".to_owned(),
            format!("--handover-socket={}/nmi.sock", folder.path().display()),
        ];
        let mut world = World::build(&["reader"], &flags.each_ref().map(String::as_str));
        world.wait_until_ready();
        world.grant("reader", "app", 1);
        for (pod, address) in PODS {
            world.start_pod(pod, address, "app");
            world.wait_until("a token is had", || world.ask(pod, &[]).0 == 200);
        }
        let running = world.nmi.take().unwrap();
        Self {
            world,
            running,
            flags,
            generation: 1,
            _folder: folder,
        }
    }

    fn load(&self) -> Load {
        Load::start(&PODS.map(|(pod, _)| self.world.net.name(pod)), &HABITS)
    }

    /// Starts the next one; gives the one before it.
    fn start(&mut self) -> Process {
        self.start_program(Path::new(PODID))
    }

    /// As [`Node::start`], with a podid of another version.
    fn start_program(&mut self, podid: &Path) -> Process {
        self.generation += 1;
        let name = format!("nmi-{}", self.generation);
        let flags = self.flags.each_ref().map(String::as_str);
        let next = self.world.spawn_program(podid, &name, &flags);
        std::mem::replace(&mut self.running, next)
    }

    fn until(&self, what: &str, process: &Process, text: &str) {
        self.world.wait_until(what, || process.log().contains(text));
    }

    /// SIGTERM; returns when it has ended.
    fn terminate(&self, process: &Process) {
        signal(process, "TERM");
        self.world.wait_until("it ends", || process.has_ended());
        assert!(!process.log().contains("Error"), "{}", process.log());
    }

    /// Everybody is served now, by the node agent that runs.
    fn serves(&self, load: &Load) {
        self.until("it serves", &self.running, "token issued");
        let before = load.served();
        self.world
            .wait_until("the load goes on", || load.served() > before + 100);
    }
}

fn signal(process: &Process, name: &str) {
    let pid = process.pid().to_string();
    let sent = std::process::Command::new("kill")
        .args(["-s", name, &pid])
        .status();
    assert!(sent.unwrap().success());
}

#[test]
fn no_request_fails_while_one_node_agent_follows_another() {
    for interception in ["nftables", "iptables"] {
        let mut node = Node::build(interception);
        let load = node.load();
        for _ in 0..3 {
            let old = node.start();
            node.until("the old one stands by", &old, "standing by");
            node.serves(&load);
            node.terminate(&old);
            node.serves(&load);
        }
        let failures = load.failures();
        assert!(failures.is_empty(), "{interception}: {failures:#?}");
    }
}

/// As with Kubernetes: the ports are shared, so the old one's answer makes the new one look ready.
#[test]
fn no_request_fails_when_the_old_one_is_told_to_end_before_the_new_one_is_there() {
    let mut node = Node::build("nftables");
    let load = node.load();
    for _ in 0..3 {
        signal(&node.running, "TERM");
        let old = node.start();
        node.world
            .wait_until("the old one ends", || old.has_ended());
        node.serves(&load);
    }
    let failures = load.failures();
    assert!(failures.is_empty(), "{failures:#?}");
}

#[test]
fn one_that_stands_by_serves_again_when_its_successor_is_killed() {
    let mut node = Node::build("nftables");
    let old = node.start();
    node.until("the old one stands by", &old, "standing by");
    node.running.kill();
    assert_eq!(node.world.ask("pod", &[]).0, 200);
    assert!(old.log().contains("serving again"), "{}", old.log());
    // The next one finds it, though it had left the socket to the one that is gone.
    node.start();
    node.until("the old one stands by again", &old, "standing by");
}

#[test]
fn at_its_end_it_answers_what_is_under_way_and_closes_what_is_kept() {
    let mut node = Node::build("nftables");
    let pod = node.world.net.name("pod");
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| {
            client::enter(&pod);
            let mut kept = Connection::open().unwrap();
            assert!(!kept.ask(false).unwrap());
            let idle = Connection::open().unwrap();
            signal(&node.running, "TERM");
            // Its time to be relieved is over when it accepts no more.
            node.world.wait_until("it says that it closes", || {
                kept.is_open() && kept.ask(false).unwrap()
            });
            node.world
                .wait_until("an idle connection is closed", || !idle.is_open());
        });
        asking.join().unwrap();
    });
    node.world
        .wait_until("it ends", || node.running.has_ended());
    let log = node.running.log();
    assert!(!log.contains("cut off"), "{log}");
    assert_eq!(node.world.ask("pod", &[]).0, 0, "somebody answers");
    node.start();
    node.world.wait_until_ready();
    assert_eq!(node.world.ask("pod", &[]).0, 200);
}
