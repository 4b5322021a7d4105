//! A node with two pods, and Azure behind it, in network namespaces.
//!
//! Without interception a pod reaches the metadata service as on a real node: everything that keeps it away is podid's.

use std::net::Ipv4Addr;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU16, Ordering};

use podid_testkit::process::command;

/// The metadata service's address, everywhere.
pub const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
/// Azure's other address.
pub const AZURE: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 2);
/// The pod that is granted an identity.
pub const MYAPP: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 11);
/// Its neighbour on the node.
pub const NEIGHBOUR: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 12);

/// The namespaces. Deleted on drop.
pub struct Net {
    prefix: String,
    /// This machine's address on the wire to the node.
    pub outside: Ipv4Addr,
}

impl Net {
    /// Builds everything.
    pub fn build() -> Self {
        static COUNT: AtomicU16 = AtomicU16::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let process = std::process::id();
        let third = u8::try_from((process * 4 + u32::from(count)) % 250).unwrap();
        let net = Self {
            prefix: format!("pa{process}x{count}"),
            outside: Ipv4Addr::new(100, 64, third, 1),
        };
        for place in ["node", "azure", "myapp", "neighbour"] {
            ip(&["netns", "add", &net.name(place)]);
            net.ip(place, &["link", "set", "lo", "up"]);
        }
        net.wire_outside();
        net.wire_azure();
        net.wire_pods();
        net
    }

    /// The name of a namespace: `node`, `azure`, `myapp` or `neighbour`.
    pub fn name(&self, place: &str) -> String {
        format!("{}-{place}", self.prefix)
    }

    /// A command that runs there.
    pub fn command(&self, place: &str, program: &str) -> Command {
        command(Some(&self.name(place)), program)
    }

    /// Runs a command there to its end.
    pub fn run(&self, place: &str, program: &str, arguments: &[&str]) -> Output {
        self.command(place, program)
            .args(arguments)
            .output()
            .unwrap()
    }

    fn ip(&self, place: &str, arguments: &[&str]) {
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
        self.ip(
            "node",
            &[
                "route",
                "add",
                &METADATA.to_string(),
                "via",
                &AZURE.to_string(),
            ],
        );
    }

    fn wire_pods(&self) {
        self.ip("node", &["link", "add", "pods", "type", "bridge"]);
        self.ip("node", &["addr", "add", "10.244.0.1/24", "dev", "pods"]);
        self.ip("node", &["link", "set", "pods", "up"]);
        for (pod, address) in [("myapp", MYAPP), ("neighbour", NEIGHBOUR)] {
            self.wire(("node", pod), (pod, "eth0"));
            self.ip("node", &["link", "set", pod, "master", "pods"]);
            self.ip(
                pod,
                &["addr", "add", &format!("{address}/24"), "dev", "eth0"],
            );
            self.ip(pod, &["route", "add", "default", "via", "10.244.0.1"]);
        }
        let forward = self.run("node", "sysctl", &["-qw", "net.ipv4.ip_forward=1"]);
        assert!(forward.status.success(), "{forward:?}");
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for place in ["myapp", "neighbour", "azure", "node"] {
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
    let output = Command::new("ip")
        .args(arguments)
        .output()
        .expect("the program ip is missing; install iproute2");
    assert!(
        output.status.success(),
        "ip {}: {} (this test makes network namespaces and needs root)",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr)
    );
}
