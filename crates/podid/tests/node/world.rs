//! A cluster of two nodes with podid on it, installed by helm as the README says. All tests share it, one at a time.

use std::process::{Command, Output};
use std::time::{Duration, Instant};

use parking_lot::{MappedMutexGuard, Mutex, MutexGuard};
use podid_sim::azure::{Control, Identity};
use podid_testkit::cluster::{Cluster, Config, Fabric, NetworkPlugin, NodeConfig, ProxyMode};
use podid_testkit::tools;
use serde_json::{Value, json};

use crate::azure::{GROUP, Simulated, Storage};

/// How long anything may take that a test waits for.
pub const CLUSTER_TIMEOUT: Duration = Duration::from_secs(90);
pub const TAINT: &str = "podid.io/agent-not-ready";
pub const TOKEN: &str = "http://169.254.169.254/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https://vault.azure.net";

static WORLD: Mutex<Option<World>> = Mutex::new(None);

pub struct World {
    pub cluster: Cluster,
    pub azure: Simulated,
    pub storage: Storage,
    pub tag: String,
    pub app: String,
    /// What podid is installed with; nothing when it is not.
    installed: Mutex<Option<Vec<String>>>,
}

/// The world, whole: both nodes are Ready, and podid is there with its usual values. This thread enters the fabric.
pub fn world() -> MappedMutexGuard<'static, World> {
    let mut slot = WORLD.lock();
    if let Some(world) = slot.as_mut() {
        world.cluster.fabric.enter().unwrap();
    } else {
        *slot = Some(World::build());
    }
    let world = MutexGuard::map(slot, |slot| slot.as_mut().unwrap());
    world.mend();
    world
}

impl World {
    fn build() -> Self {
        let started = Instant::now();
        let (tag, app) = (tools::images().unwrap(), tools::app_image().unwrap());
        let app = format!("localhost/podid/app:{app}");
        let fabric = Fabric::build().unwrap();
        fabric.enter().unwrap();
        let azure = Simulated::start(&fabric);
        let node = |name: &str, number: u32, network_plugin, proxy_mode| NodeConfig {
            name: name.to_owned(),
            network_plugin,
            proxy_mode,
            provider_id: Control::provider_id(&azure.scale_set, number),
            taints: json!([{ "key": TAINT, "effect": "NoSchedule" }]),
            files: azure.files(),
        };
        let config = Config {
            nodes: vec![
                node("n1", 0, NetworkPlugin::Bridge, ProxyMode::Nftables),
                node("n2", 1, NetworkPlugin::Ptp, ProxyMode::Iptables),
            ],
            images: ["mic", "nmi"]
                .map(|image| format!("localhost/podid/{image}:{tag}"))
                .into_iter()
                .chain([app.clone()])
                .collect(),
            sandbox_image: app.clone(),
        };
        let cluster = Cluster::start(fabric, config).unwrap();
        figure("the cluster runs", started.elapsed());
        let storage = Storage::start(cluster.folder());
        Self {
            cluster,
            azure,
            storage,
            tag,
            app,
            installed: Mutex::default(),
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
        for node in ["n1", "n2"] {
            self.kubectl_within(&["wait", "--for=create", &format!("node/{node}")]);
            self.kubectl(&["uncordon", node]);
        }
        self.kubectl_within(&["wait", "--for=condition=Ready", "node", "--all"]);
        if self.installed.lock().as_ref() != Some(&self.usual()) {
            let started = Instant::now();
            self.install(&self.usual());
            figure("helm upgrade --install --wait", started.elapsed());
        }
        for what in ["daemonset/podid-nmi", "deployment/podid-mic"] {
            self.kubectl_within(&["-n", "podid", "rollout", "status", what]);
        }
    }

    /// The values of the README's command, where a simulated Azure is, the startup taint, and attestation without which nmi is not to start.
    pub fn usual(&self) -> Vec<String> {
        vec![
            "image.repository=localhost/podid".to_owned(),
            format!("mic.tag={}", self.tag),
            format!("nmi.tag={}", self.tag),
            "mic.customCloud.enabled=true".to_owned(),
            format!("nmi.startupTaint={TAINT}:NoSchedule"),
            "nmi.extraArgs={--attest=processes}".to_owned(),
        ]
    }

    /// `helm upgrade --install` of this source's chart.
    pub fn install(&self, values: &[String]) {
        let chart = tools::repository().join("charts/podid");
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

    pub fn helm(&self, words: &[&str]) -> String {
        let mut helm = Command::new(tools::helm().unwrap());
        let own = self.cluster.folder().join("helm");
        for variable in ["HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"] {
            helm.env(variable, &own);
        }
        helm.env("KUBECONFIG", self.cluster.kubeconfig());
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

/// A number for the notes; `--nocapture` shows it.
pub fn figure(what: &str, took: Duration) {
    println!("{:>8.2} s  {what}", took.as_secs_f64());
}

pub fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}
