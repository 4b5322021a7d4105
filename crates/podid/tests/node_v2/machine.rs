//! The emulated node n2, in a cluster where mic is on n1. All tests share it, one at a time.

use std::time::Instant;

use parking_lot::{MappedMutexGuard, Mutex, MutexGuard};
use podid_testkit::cluster::{NetworkPlugin, ProxyMode, VirtualMachine};
use serde_json::{Value, json};

use crate::own_nodes;
use crate::world::{TAINT, World, figure, node_config};

pub const NODE: &str = "n2";
static EMULATED: Mutex<Option<Emulated>> = Mutex::new(None);

/// A cluster with an emulated node.
pub struct Emulated {
    // The machine ends before its cluster.
    pub machine: VirtualMachine,
    pub world: World,
}

/// The cluster: podid is there with its usual values, and nothing else is on the node. This thread enters the fabric.
pub fn emulated() -> MappedMutexGuard<'static, Emulated> {
    let mut slot = EMULATED.lock();
    if let Some(emulated) = slot.as_mut() {
        emulated.world.cluster.fabric.enter().unwrap();
        emulated.mend();
    } else {
        *slot = Some(Emulated::build());
    }
    MutexGuard::map(slot, |slot| slot.as_mut().unwrap())
}

impl Emulated {
    fn build() -> Self {
        let started = Instant::now();
        let bridge = (NetworkPlugin::Bridge, ProxyMode::Nftables);
        // Nothing takes a startup taint off where no nmi is.
        let world = World::with_nodes(&[("n1", bridge)], &json!([]));
        let mut config = node_config(&world.azure, NODE, 1, bridge);
        config.taints = json!([{ "key": TAINT, "effect": "NoSchedule" }]);
        let machine = world.cluster.power_on_virtual_machine(config).unwrap();
        let powered_on = Instant::now();
        let emulated = Self { machine, world };
        emulated.world.install(&emulated.usual());
        emulated.await_node();
        figure("from power on to Ready", powered_on.elapsed());
        let taints = emulated.node()["spec"]["taints"].to_string();
        assert!(taints.contains(TAINT), "{taints}");
        emulated.await_podid();
        figure(
            "from power on until nmi has taken its taint off",
            powered_on.elapsed(),
        );
        figure("the cluster runs", started.elapsed());
        emulated
    }

    fn mend(&self) {
        self.world.install(&self.usual());
        self.await_podid();
    }

    /// Attestation without which nmi does not start, on the emulated node alone; mic is elsewhere.
    pub fn usual(&self) -> Vec<String> {
        let more = [
            "mic.replicas=1",
            "mic.nodeSelector.kubernetes\\.io/hostname=n1",
            "nmi.nodeSelector.kubernetes\\.io/hostname=n2",
        ];
        let more = more.map(str::to_owned);
        self.world.usual().into_iter().chain(more).collect()
    }

    pub fn node(&self) -> Value {
        self.world.get(&["node", NODE])
    }

    fn await_node(&self) {
        let up = self.machine.wait_until_up();
        up.unwrap_or_else(|error| panic!("{error:#}\n{}", self.world.explain()));
        let node = format!("node/{NODE}");
        self.within(&["wait", "--for=create", &node]);
        self.within(&["wait", "--for=condition=Ready", &node]);
    }

    /// Waits until nmi is ready on the node, and its taint is gone.
    pub fn await_podid(&self) {
        self.within(&["-n", "podid", "rollout", "status", "daemonset/podid-nmi"]);
        self.until("nmi is ready, and its taint is gone", || {
            let pods = self.nmi();
            let ready = |pod: &Value| {
                let conditions = pod["status"]["conditions"].as_array();
                conditions
                    .into_iter()
                    .flatten()
                    .any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
            };
            let taints = self.node()["spec"]["taints"].to_string();
            pods.len() == 1 && pods.iter().all(ready) && !taints.contains("podid.io")
        });
    }

    /// The pods of the node agent.
    pub fn nmi(&self) -> Vec<Value> {
        let label = "app.kubernetes.io/component=nmi";
        let pods = self.world.get(&["-n", "podid", "pods", "-l", label]);
        pods["items"].as_array().cloned().unwrap_or_default()
    }

    /// The names of all pods on the node.
    pub fn pods(&self) -> Vec<String> {
        let on_node = format!("--field-selector=spec.nodeName={NODE}");
        let names = self
            .world
            .kubectl(&["get", "pods", "-A", "-o", "name", &on_node]);
        names.lines().map(str::to_owned).collect()
    }

    pub fn within(&self, words: &[&str]) -> String {
        self.world.kubectl_within(words)
    }

    pub fn until(&self, what: &str, holds: impl FnMut() -> bool) {
        self.world.until(what, holds);
    }

    /// The answer of the node's own metadata service to a process of the node's, on its network.
    pub fn ask_from_the_node(&self) -> String {
        let request = "GET /metadata/instance?api-version=2021-02-01 HTTP/1.0\\r\\nHost: 169.254.169.254\\r\\nMetadata: true\\r\\n\\r\\n";
        let ask = format!("printf '{request}' | socat -t 20 - TCP:169.254.169.254:80");
        self.machine.run(&ask).unwrap()
    }
}

#[test]
fn the_page_of_own_nodes_has_this() {
    let emulated = emulated();
    let said = emulated
        .machine
        .run("stat -fc %T /sys/fs/cgroup; cat /sys/module/apparmor/parameters/enabled");
    let said = said.unwrap();
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines[..2], ["cgroup2fs", "Y"], "{said}");
    let row = format!("`node_v2` {NODE}");
    own_nodes::hold(&row, &emulated.node(), ["bridge", "nftables"], "2");
}
