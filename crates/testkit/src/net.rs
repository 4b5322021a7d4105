//! Network namespaces: a node with pods, and Azure behind it.
//!
//! Without interception a pod reaches the metadata service as on a real node: everything that keeps it away is podid's.

#![allow(clippy::panic, reason = "a test cannot go on without its network")]

use std::net::Ipv4Addr;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU16, Ordering};

use parking_lot::Mutex;

use crate::process::command;

/// The metadata service's address, everywhere.
pub const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
/// Azure's other address.
pub const AZURE: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 2);

/// The namespaces. Deleted on drop.
pub struct Net {
    prefix: String,
    places: Mutex<Vec<String>>,
    /// This machine's address on the wire to the node.
    pub outside: Ipv4Addr,
}

/// How a pod is connected to its node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wire {
    /// To a bridge with the others, as with kubenet and flannel.
    Bridge,
    /// By a link of its own and a route, as with Azure CNI, Calico and Cilium.
    Routed,
}

impl Net {
    /// Builds a node (`node`) and Azure (`azure`).
    pub fn build() -> Self {
        static COUNT: AtomicU16 = AtomicU16::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let process = std::process::id();
        let third = u8::try_from((process * 4 + u32::from(count)) % 250).unwrap_or_default();
        let net = Self {
            prefix: format!("pa{process}x{count}"),
            places: Mutex::default(),
            outside: Ipv4Addr::new(100, 64, third, 1),
        };
        net.add("node");
        net.add("azure");
        net.wire_outside();
        net.wire_azure();
        net.lay_bridge();
        net
    }

    fn add(&self, place: &str) {
        ip(&["netns", "add", &self.name(place)]);
        self.places.lock().push(place.to_owned());
        self.ip(place, &["link", "set", "lo", "up"]);
    }

    /// The name of a namespace: `node`, `azure` or a pod's.
    pub fn name(&self, place: &str) -> String {
        format!("{}-{place}", self.prefix)
    }

    /// A command that runs there.
    pub fn command(&self, place: &str, program: &str) -> Command {
        command(Some(&self.name(place)), program)
    }

    /// Runs a command there to its end.
    pub fn run(&self, place: &str, program: &str, arguments: &[&str]) -> Output {
        let output = self.command(place, program).args(arguments).output();
        output.unwrap_or_else(|error| panic!("{program} does not start: {error}"))
    }

    /// Runs the tool `ip` there; panics when it fails.
    pub fn ip(&self, place: &str, arguments: &[&str]) {
        let name = self.name(place);
        ip(&[&["-n", &name], arguments].concat());
    }

    fn wire(&self, one: (&str, &str), other: (&str, &str)) {
        let (here, there) = (self.name(one.0), self.name(other.0));
        ip(&[
            "link", "add", one.1, "netns", &here, "type", "veth", "peer", "name", other.1, "netns",
            &there,
        ]);
        self.ip(one.0, &["link", "set", one.1, "up"]);
        self.ip(other.0, &["link", "set", other.1, "up"]);
    }

    fn wire_outside(&self) {
        let [a, b, c, _] = self.outside.octets();
        let (node, link) = (self.name("node"), self.prefix.as_str());
        ip(&[
            "link", "add", link, "type", "veth", "peer", "name", "outside", "netns", &node,
        ]);
        ip(&["addr", "add", &format!("{}/30", self.outside), "dev", link]);
        ip(&["link", "set", link, "up"]);
        self.ip(
            "node",
            &[
                "addr",
                "add",
                &format!("{a}.{b}.{c}.2/30"),
                "dev",
                "outside",
            ],
        );
        self.ip("node", &["link", "set", "outside", "up"]);
    }

    fn wire_azure(&self) {
        self.wire(("node", "azure"), ("azure", "node"));
        self.ip("node", &["addr", "add", "10.9.0.1/30", "dev", "azure"]);
        self.ip(
            "azure",
            &["addr", "add", &format!("{AZURE}/30"), "dev", "node"],
        );
        self.ip(
            "azure",
            &["addr", "add", &format!("{METADATA}/32"), "dev", "lo"],
        );
        self.ip("azure", &["route", "add", "default", "via", "10.9.0.1"]);
        let azure = AZURE.to_string();
        self.ip("node", &["route", "add", "default", "via", &azure]);
    }

    fn lay_bridge(&self) {
        // Fixed, as network plugins do: else it changes with the ports, and pods go on sending to the old one.
        let bridge = "link add pods address 02:00:0a:f4:00:01 type bridge";
        self.ip("node", &bridge.split(' ').collect::<Vec<_>>());
        self.ip("node", &["addr", "add", "10.244.0.1/24", "dev", "pods"]);
        self.ip("node", &["link", "set", "pods", "up"]);
        let forward = self.run("node", "sysctl", &["-qw", "net.ipv4.ip_forward=1"]);
        assert!(forward.status.success(), "{forward:?}");
    }

    /// Starts a pod's sandbox: `pod` is at most nine letters long, `address` in 10.244.0.0/24 on the bridge, else in 10.245.0.0/24.
    pub fn start_pod(&self, pod: &str, address: Ipv4Addr, wire: Wire) {
        self.add(pod);
        self.wire(("node", pod), (pod, "eth0"));
        match wire {
            Wire::Bridge => {
                self.ip("node", &["link", "set", pod, "master", "pods"]);
                self.ip(
                    pod,
                    &["addr", "add", &format!("{address}/24"), "dev", "eth0"],
                );
                self.ip(pod, &["route", "add", "default", "via", "10.244.0.1"]);
            }
            Wire::Routed => {
                let alone = format!("{address}/32");
                self.ip(pod, &["addr", "add", &alone, "dev", "eth0"]);
                self.ip(
                    pod,
                    &[
                        "route",
                        "add",
                        "169.254.1.1",
                        "dev",
                        "eth0",
                        "scope",
                        "link",
                    ],
                );
                self.ip(pod, &["route", "add", "default", "via", "169.254.1.1"]);
                let proxy = format!("net.ipv4.conf.{pod}.proxy_arp=1");
                let set = self.run("node", "sysctl", &["-qw", &proxy]);
                assert!(set.status.success(), "{set:?}");
                self.ip("node", &["route", "add", &alone, "dev", pod]);
            }
        }
    }

    /// Ends a pod's sandbox; its address is free then.
    pub fn end_pod(&self, pod: &str) {
        // The namespace lives on while a process does; its link is taken away as a network plugin would.
        self.ip("node", &["link", "del", pod]);
        self.places.lock().retain(|place| place != pod);
        ip(&["netns", "del", &self.name(pod)]);
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for place in self.places.lock().iter().rev() {
            // Gone already when building it failed.
            let _ = Command::new("ip")
                .args(["netns", "del", &self.name(place)])
                .output();
        }
        let _ = Command::new("ip")
            .args(["link", "del", &self.prefix])
            .output();
    }
}

fn ip(arguments: &[&str]) {
    let output = Command::new("ip").args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("ip: {error}; install iproute2"));
    assert!(
        output.status.success(),
        "ip {}: {} (this test makes network namespaces and needs root)",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr)
    );
}
