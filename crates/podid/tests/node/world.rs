//! A cluster of two nodes with podid on it, installed by helm as the README says. Tests share one, alone where they disturb others.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{
    MappedRwLockReadGuard, MappedRwLockWriteGuard, Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard,
};
use podid_sim::azure::{Control, Identity};
use podid_testkit::cluster::{Cluster, Config, Fabric, NetworkPlugin, NodeConfig, ProxyMode};
use podid_testkit::tools;
use serde_json::{Value, json};

use crate::azure::{GROUP, Simulated};

/// How long anything may take that a test waits for.
pub const CLUSTER_TIMEOUT: Duration = Duration::from_secs(240);
pub const TAINT: &str = "podid.io/agent-not-ready";
pub const TOKEN: &str = "http://169.254.169.254/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https://vault.azure.net";
pub const NODES: [&str; 2] = ["n1", "n2"];

/// Where podid is installed when a test begins.
static WITH_PODID: RwLock<Option<World>> = RwLock::new(None);
/// Where it is not. Its tests wait for most of their time: it costs less than the time that they would hold the other.
static WITHOUT_PODID: RwLock<Option<World>> = RwLock::new(None);

pub struct World {
    pub cluster: Cluster,
    pub azure: Simulated,
    pub tag: String,
    pub app: String,
    /// Whom the pods ask for that ask all the time.
    pub load: Identity,
    /// What podid is installed with; nothing when it is not, or nobody knows.
    installed: Mutex<Option<Vec<String>>>,
    /// Whether a test was alone with it, and may have broken it.
    disturbed: AtomicBool,
}

/// The world, whole: both nodes are Ready, and podid is there with its usual values. Others use it at the same time. This thread enters
/// the fabric.
pub fn world() -> MappedRwLockReadGuard<'static, World> {
    let mut guard = WITH_PODID.read();
    let whole = |slot: &Option<World>| {
        let world = slot.as_ref();
        world.is_some_and(|world| !world.disturbed.load(Ordering::Relaxed))
    };
    while !whole(&guard) {
        drop(guard);
        let alone = RwLockWriteGuard::map(WITH_PODID.write(), mended);
        alone.disturbed.store(false, Ordering::Relaxed);
        drop(alone);
        guard = WITH_PODID.read();
    }
    let world = RwLockReadGuard::map(guard, |slot| slot.as_ref().unwrap());
    world.cluster.fabric.enter().unwrap();
    world
}

/// As [`world`], for a test that others would notice, or that notices others.
pub fn world_alone() -> MappedRwLockWriteGuard<'static, World> {
    let world = RwLockWriteGuard::map(WITH_PODID.write(), mended);
    world.disturbed.store(true, Ordering::Relaxed);
    world
}

/// A cluster on which podid is not installed, alone.
pub fn world_without_podid() -> MappedRwLockWriteGuard<'static, World> {
    // Nobody would lift a taint.
    let world = RwLockWriteGuard::map(WITHOUT_PODID.write(), |slot| built(slot, json!([])));
    world.nodes_are_ready();
    world
}

fn built(slot: &mut Option<World>, taints: Value) -> &mut World {
    let world = slot.get_or_insert_with(|| World::build(&taints));
    world.cluster.fabric.enter().unwrap();
    world
}

fn mended(slot: &mut Option<World>) -> &mut World {
    let world = built(slot, json!([{ "key": TAINT, "effect": "NoSchedule" }]));
    world.mend();
    world
}

impl World {
    fn build(taints: &Value) -> Self {
        let nodes = [
            ("n1", (NetworkPlugin::Bridge, ProxyMode::Nftables)),
            ("n2", (NetworkPlugin::Ptp, ProxyMode::Iptables)),
        ];
        Self::with_nodes(&nodes, taints)
    }

    /// A cluster of these nodes, which register with these taints. podid is not there.
    pub fn with_nodes(nodes: &[(&str, (NetworkPlugin, ProxyMode))], taints: &Value) -> Self {
        let started = Instant::now();
        let (tag, app) = (tools::images().unwrap(), tools::app_image().unwrap());
        let app = format!("localhost/podid/app:{app}");
        let fabric = Fabric::build().unwrap();
        fabric.enter().unwrap();
        let azure = Simulated::start(&fabric);
        let nodes = (0..).zip(nodes).map(|(number, (name, network))| {
            let mut node = node_config(&azure, name, number, *network);
            node.taints = taints.clone();
            node
        });
        let config = Config {
            nodes: nodes.collect(),
            images: ["mic", "nmi"]
                .map(|image| format!("localhost/podid/{image}:{tag}"))
                .into_iter()
                .chain([app.clone()])
                .collect(),
            sandbox_image: app.clone(),
        };
        let cluster = Cluster::start(fabric, config).unwrap();
        figure("the cluster runs", started.elapsed());
        Self {
            load: azure.control.create_identity(GROUP, "load"),
            cluster,
            azure,
            tag,
            app,
            installed: Mutex::default(),
            disturbed: AtomicBool::default(),
        }
    }

    /// Brings everything back to where each test begins.
    fn mend(&self) {
        for node in 0..self.cluster.nodes.len() {
            if self.cluster.nodes[node].is_on() {
                self.cluster.nodes[node].start_all().unwrap();
            } else {
                self.cluster.power_on(node).unwrap();
            }
        }
        self.nodes_are_ready();
        if self.installed.lock().as_ref() != Some(&self.usual()) {
            let started = Instant::now();
            self.install(&self.usual());
            figure("helm upgrade --install --wait", started.elapsed());
        }
        self.rolled_out();
    }

    /// Waits until both nodes are there for pods.
    fn nodes_are_ready(&self) {
        for node in NODES {
            self.kubectl_within(&["wait", "--for=create", &format!("node/{node}")]);
            self.kubectl(&["uncordon", node]);
        }
        self.kubectl_within(&["wait", "--for=condition=Ready", "node", "--all"]);
    }

    /// Waits until podid is as its DaemonSet and its Deployment say.
    pub fn rolled_out(&self) {
        for what in ["daemonset/podid-nmi", "deployment/podid-mic"] {
            self.kubectl_within(&["-n", "podid", "rollout", "status", what]);
        }
    }

    /// Where images are, and a simulated Azure; the startup taint and the boot rules, as docs/security.md advises; and attestation without
    /// which nmi is not to start.
    pub fn usual(&self) -> Vec<String> {
        let more = ["nmi.bootRules=true", "nmi.extraArgs={--attest=processes}"];
        let more = more.map(str::to_owned);
        self.values_of(&self.tag).into_iter().chain(more).collect()
    }

    /// The values of the README's command and what any version needs here.
    pub fn values_of(&self, tag: &str) -> Vec<String> {
        vec![
            "image.repository=localhost/podid".to_owned(),
            format!("mic.tag={tag}"),
            format!("nmi.tag={tag}"),
            "mic.customCloud.enabled=true".to_owned(),
            format!("nmi.startupTaint={TAINT}:NoSchedule"),
        ]
    }

    /// `helm upgrade --install` of this source's chart.
    pub fn install(&self, values: &[String]) {
        self.install_chart(&tools::repository().join("charts/podid"), values);
    }

    /// `helm upgrade --install` of a chart.
    pub fn install_chart(&self, chart: &Path, values: &[String]) {
        let mut words: Vec<String> = ["upgrade", "--install", "podid"].map(str::to_owned).into();
        words.push(chart.display().to_string());
        words.extend(["--create-namespace", "--wait"].map(str::to_owned));
        words.push(format!("--timeout={}s", CLUSTER_TIMEOUT.as_secs()));
        words.extend(
            values
                .iter()
                .flat_map(|value| ["--set".to_owned(), value.clone()]),
        );
        *self.installed.lock() = None;
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        self.helm(&words);
        *self.installed.lock() = Some(values.to_vec());
    }

    /// A program of an administrator of the cluster.
    pub fn administrator(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        let own = self.cluster.folder().join("helm");
        for variable in ["HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"] {
            command.env(variable, &own);
        }
        command.env("KUBECONFIG", self.cluster.kubeconfig());
        command
    }

    pub fn helm(&self, words: &[&str]) -> String {
        let mut helm = self.administrator(&tools::helm().unwrap());
        let output = helm.args(words).args(["--namespace", "podid"]).output();
        let output = output.unwrap();
        assert!(
            output.status.success(),
            "helm {words:?}: {}\n{}",
            text(&output),
            self.explain()
        );
        text(&output)
    }

    /// What kubectl says; it must succeed.
    pub fn kubectl(&self, words: &[&str]) -> String {
        self.kubectl_input(words, "")
    }

    fn kubectl_input(&self, words: &[&str], input: &str) -> String {
        let output = self.cluster.run_kubectl(words, input).unwrap();
        let explained = || format!("kubectl {words:?}: {}\n{}", text(&output), self.explain());
        assert!(output.status.success(), "{}", explained());
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// As [`World::kubectl`], of a command that waits for what its words say.
    pub fn kubectl_within(&self, words: &[&str]) -> String {
        let timeout = format!("--timeout={}s", CLUSTER_TIMEOUT.as_secs());
        self.kubectl(&[words, &[&timeout]].concat())
    }

    pub fn apply_yaml(&self, namespace: &str, yaml: &str) {
        self.kubectl_input(&["-n", namespace, "apply", "-f", "-"], yaml);
    }

    pub fn get(&self, words: &[&str]) -> Value {
        let said = self.kubectl(&[&["get", "-o", "json"][..], words].concat());
        serde_json::from_str(&said).unwrap()
    }

    /// An identity in Azure.
    pub fn identity(&self, name: &str) -> Identity {
        self.azure.control.create_identity(GROUP, name)
    }

    /// Polls until something holds that no Kubernetes object tells.
    pub fn until(&self, what: &str, mut holds: impl FnMut() -> bool) {
        let deadline = Instant::now() + CLUSTER_TIMEOUT;
        while !holds() {
            assert!(
                Instant::now() < deadline,
                "never: {what}\n{}",
                self.explain()
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// What an operator would look at first.
    pub fn explain(&self) -> String {
        let mut told = String::new();
        for words in [
            "get nodes,pods -A -o wide",
            "get events -A --sort-by=.lastTimestamp",
            "-n podid logs --prefix --tail=40 -l app.kubernetes.io/component=nmi",
            "-n podid logs --prefix --tail=40 -l app.kubernetes.io/component=mic",
        ] {
            let words: Vec<&str> = words.split(' ').collect();
            let output = self.cluster.run_kubectl(&words, "");
            let said = output.map_or_else(|error| error.to_string(), |output| text(&output));
            let lines: Vec<&str> = said.lines().collect();
            let last = lines[lines.len().saturating_sub(60)..].join("\n");
            told += &format!("--- kubectl {}\n{last}\n", words.join(" "));
        }
        for node in &self.cluster.nodes {
            told += &node.logs();
        }
        told
    }
}

/// A node that is this one by number in the scale set.
pub fn node_config(
    azure: &Simulated,
    name: &str,
    number: u32,
    (network_plugin, proxy_mode): (NetworkPlugin, ProxyMode),
) -> NodeConfig {
    NodeConfig {
        name: name.to_owned(),
        network_plugin,
        proxy_mode,
        provider_id: Control::provider_id(&azure.scale_set, number),
        taints: json!([]),
        files: azure.files(),
    }
}

/// A duration for the notes.
pub fn figure(what: &str, took: Duration) {
    note(&format!("{:>8.2} s  {what}", took.as_secs_f64()));
}

/// A line for the notes: `--nocapture` shows them, and they are kept in `target/tmp/*-figures.txt`.
pub fn note(line: &str) {
    static FILE: OnceLock<Mutex<File>> = OnceLock::new();
    println!("{line}");
    let file = FILE.get_or_init(|| {
        let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR"))
            .join(concat!(env!("CARGO_CRATE_NAME"), "-figures.txt"));
        Mutex::new(File::create(path).unwrap())
    });
    writeln!(file.lock(), "{line}").unwrap();
}

pub fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}
