//! The network between the nodes, as a cloud has it: a network namespace with a bridge, in which the control plane and Azure run.
//!
//! ```text
//!   fabric  10.9.0.1 (API server, Azure), 169.254.169.254 (metadata service)
//!     └─ bridge ─┬─ veth ─ n1 10.9.0.11, pods 10.244.1.0/24
//!                └─ veth, or tap of a virtual machine ─ n2 10.9.0.12, pods 10.244.2.0/24
//! ```
//!
//! The namespace has no name and lives as long as somebody is in it, so that nothing is left of it.

use std::fs::File;
use std::net::Ipv4Addr;
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow, ensure};
use nix::sched::{CloneFlags, setns, unshare};

use crate::net::METADATA;

/// The fabric's own address, at which nodes and pods reach what runs in it.
pub const FABRIC: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);
const BRIDGE: &str = "fabric";

/// The namespace. It ends when the last process or thread has left it and this is dropped.
#[derive(Debug, Clone)]
pub struct Fabric(Arc<File>);

impl Fabric {
    /// Makes the namespace with its bridge.
    ///
    /// # Errors
    /// When this process is not root's, or iproute2 is missing.
    pub fn build() -> Result<Self> {
        // A thread of its own, since it cannot go back.
        let made = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).context("a network namespace needs root")?;
            for arguments in [
                "link set lo up",
                "link add fabric type bridge",
                "addr add 10.9.0.1/24 dev fabric",
                "link set fabric up",
                &format!("addr add {METADATA}/32 dev lo"),
            ] {
                run("ip", &arguments.split(' ').collect::<Vec<_>>())?;
            }
            run("sysctl", &["-qw", "net.ipv4.ip_forward=1"])?;
            File::open("/proc/thread-self/ns/net").context("its own network namespace")
        });
        let namespace = made.join().map_err(|_| anyhow!("the thread died"))??;
        Ok(Self(Arc::new(namespace)))
    }

    /// Takes this thread, and what it starts from now on, into the fabric.
    ///
    /// # Errors
    /// When this process is not root's.
    pub fn enter(&self) -> Result<()> {
        setns(self.0.as_ref(), CloneFlags::CLONE_NEWNET).context("the fabric's network namespace")
    }

    /// Plugs the network namespace of a process in as a node's, at [`address`], with a route to its pods. This thread is in the fabric.
    pub(super) fn plug(&self, name: &str, number: u8, pid: u32) -> Result<()> {
        let (pid, address) = (pid.to_string(), address(number).to_string());
        let inside = |arguments: &str| {
            let net = format!("--net=/proc/{pid}/ns/net");
            run(
                "nsenter",
                &[&[net.as_str()][..], &words(arguments)].concat(),
            )
        };
        run(
            "ip",
            &words(&format!(
                "link add {name} type veth peer name eth0 netns {pid}"
            )),
        )?;
        run("ip", &words(&format!("link set {name} master {BRIDGE} up")))?;
        inside("ip link set lo up")?;
        inside(&format!("ip addr add {address}/24 dev eth0"))?;
        inside("ip link set eth0 up")?;
        inside(&format!("ip route add default via {FABRIC}"))?;
        // As network plugins demand of a node: packets that cross a bridge are shown to the IP rules.
        inside("sysctl -qw net.ipv4.ip_forward=1 net.bridge.bridge-nf-call-iptables=1")?;
        route_to_pods(number)
    }

    /// Makes a tap device into which a virtual machine plugs its network card, with a route to its pods. This thread is in the fabric.
    pub(super) fn plug_tap(&self, name: &str, number: u8) -> Result<()> {
        run("ip", &words(&format!("tuntap add {name} mode tap")))?;
        run("ip", &words(&format!("link set {name} master {BRIDGE} up")))?;
        // The route is there before the machine is.
        route_to_pods(number)
    }

    /// Takes a node off; its own end goes with its namespace.
    pub(super) fn unplug(&self, name: &str) {
        // Gone already when the namespace was quicker.
        let _ = run("ip", &["link", "del", name]);
    }
}

/// A node's address.
pub(super) fn address(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 9, 0, 10 + number)
}

/// The range of a node's pods. All are in 10.244.0.0/16.
pub(super) fn pods(number: u8) -> String {
    format!("10.244.{number}.0/24")
}

fn route_to_pods(number: u8) -> Result<()> {
    let route = format!("route replace {} via {}", pods(number), address(number));
    run("ip", &words(&route))
}

fn words(line: &str) -> Vec<&str> {
    line.split(' ').collect()
}

fn run(program: &str, arguments: &[&str]) -> Result<()> {
    let output = Command::new(program).args(arguments).output();
    let output = output.with_context(|| format!("{program} does not start; run tools/setup"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "{program} {}: {said}",
        arguments.join(" ")
    );
    Ok(())
}
