//! Node of a cluster: kubelet, containerd and kube-proxy in namespaces that stand for a machine, with its own disk and its own memory.
//!
//! ```text
//!             power_on                        start(kubelet…)
//!   off ──────────────────► containerd runs ──────────────────► Ready
//!    ▲                                                            │ kill(program), start(program): its pods live on
//!    └───────────────── power_off: every process at once ─────────┘
//! ```
//!
//! Its own are mounts, network and host name. The process ids are the machine's, since podid attests pods in the kernel's first process-id
//! namespace alone.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::control_plane::Pki;
use super::fabric::{self, Fabric};
use super::groups::NodeGroups;
use crate::process::{Process, command};
use crate::tools::Kubernetes;

const UP_WITHIN: Duration = Duration::from_secs(30);
const SOCKET: &str = "/run/containerd/containerd.sock";

/// How a node connects its pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NetworkPlugin {
    /// To a bridge with the others, as kubenet and flannel do.
    Bridge,
    /// By a link of its own and a route, as Azure CNI and Calico do.
    Ptp,
}

/// What kube-proxy writes Services into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxyMode {
    /// nftables.
    Nftables,
    /// iptables.
    Iptables,
}

/// How a node is made.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    /// Its name, at most ten letters long.
    pub name: String,
    /// How its pods are connected.
    pub network_plugin: NetworkPlugin,
    /// How Services reach their pods.
    pub proxy_mode: ProxyMode,
    /// What the cloud calls it.
    pub provider_id: String,
    /// Taints with which its kubelet registers it, as Kubernetes writes them.
    pub taints: Value,
    /// Files of root's alone that are on its disk from the start: path and content.
    pub files: Vec<(PathBuf, String)>,
}

/// A program of a node's that can be killed and started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// The kubelet.
    Kubelet,
    /// containerd; the shims of containers are processes of their own.
    Containerd,
    /// kube-proxy.
    KubeProxy,
}

const PROGRAMS: [Program; 3] = [Program::Containerd, Program::Kubelet, Program::KubeProxy];

impl Program {
    fn name(self) -> &'static str {
        match self {
            Self::Kubelet => "kubelet",
            Self::Containerd => "containerd",
            Self::KubeProxy => "kube-proxy",
        }
    }
}

/// A node. It ends when this is dropped.
pub struct Node {
    config: NodeConfig,
    number: u8,
    cluster: String,
    folder: PathBuf,
    assets: PathBuf,
    // Programs end before what holds the namespaces.
    running: Mutex<Vec<(Program, Process)>>,
    machine: Mutex<Option<(Process, NodeGroups)>>,
}

impl Node {
    /// Makes a node's disk; it is off.
    pub(super) fn new(
        config: NodeConfig,
        number: u8,
        cluster: &str,
        folder: &Path,
        programs: &Kubernetes,
        pki: &Pki,
        sandbox_image: &str,
    ) -> Result<Self> {
        let node = Self {
            folder: folder.join(&config.name),
            config,
            number,
            cluster: cluster.to_owned(),
            assets: programs.apiserver.parent().context("a folder")?.to_owned(),
            running: Mutex::default(),
            machine: Mutex::default(),
        };
        for folder in [
            "etc",
            "var",
            "work-etc",
            "work-var",
            "containerd",
            "kubelet",
            "cgroup",
            "sysctl",
            // The node's own units; a machine without systemd has no such folder.
            "etc/systemd/system",
        ] {
            fs::create_dir_all(node.folder.join(folder))?;
        }
        node.configure(pki, sandbox_image)?;
        Ok(node)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.config.name
    }

    fn configure(&self, pki: &Pki, sandbox_image: &str) -> Result<()> {
        let name = self.name();
        let tls = format!("kubelet-{name}");
        pki.kubelet_server(&tls, name, fabric::address(self.number).into())?;
        pki.kubeconfig(&format!("system:node:{name}"), Some("system:nodes"))?;
        let containerd = include_str!("containerd.toml").replace("SANDBOX_IMAGE", sandbox_image);
        self.write("/etc/kubernetes/containerd.toml", &containerd)?;
        self.write(
            "/etc/kubernetes/kubelet.yaml",
            &self.kubelet(pki, &tls)?.to_string(),
        )?;
        let proxy = self.kube_proxy(pki)?.to_string();
        self.write("/etc/kubernetes/kube-proxy.yaml", &proxy)?;
        self.write("/etc/kubernetes/resolv.conf", "")?;
        self.write(
            "/etc/cni/net.d/10-pods.conflist",
            &self.network().to_string(),
        )?;
        for (path, content) in &self.config.files {
            self.write(&path.display().to_string(), content)?;
        }
        Ok(())
    }

    /// Puts a file on the disk of a node that is off.
    fn write(&self, path: &str, content: &str) -> Result<()> {
        let path = self.folder.join(path.trim_start_matches('/'));
        fs::create_dir_all(path.parent().context("a folder")?)?;
        fs::write(&path, content)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
        Ok(())
    }

    fn kubelet(&self, pki: &Pki, tls: &str) -> Result<Value> {
        let root = format!("/{}/{}", self.cluster, self.name());
        Ok(json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
            "authentication": {
                "anonymous": { "enabled": false }, "webhook": { "enabled": true },
                "x509": { "clientCAFile": pki.path("ca.crt") },
            },
            "authorization": { "mode": "Webhook" },
            "tlsCertFile": pki.path(&format!("{tls}.crt")), "tlsPrivateKeyFile": pki.path(&format!("{tls}.key")),
            "cgroupDriver": "cgroupfs", "cgroupRoot": root, "failCgroupV1": false, "failSwapOn": false,
            "containerRuntimeEndpoint": format!("unix://{SOCKET}"),
            // Where nobody makes the folder of the default.
            "volumePluginDir": "/var/lib/kubelet/volumeplugins",
            "resolvConf": "/etc/kubernetes/resolv.conf", "clusterDNS": ["10.96.0.10"], "clusterDomain": "cluster.local",
            "providerID": self.config.provider_id, "registerWithTaints": self.config.taints,
            "nodeStatusUpdateFrequency": "5s", "syncFrequency": "10s",
            "maxPods": 120,
            // The machine's disk is no concern of these tests.
            "evictionHard": { "memory.available": "50Mi", "nodefs.available": "1%", "imagefs.available": "1%", "nodefs.inodesFree": "1%" },
            "imageGCHighThresholdPercent": 100,
            // A test waits for pods, not for a server that is spared.
            "kubeAPIQPS": 100, "kubeAPIBurst": 200, "serializeImagePulls": false,
        }))
    }

    fn kube_proxy(&self, pki: &Pki) -> Result<Value> {
        let mode = match self.config.proxy_mode {
            ProxyMode::Nftables => "nftables",
            ProxyMode::Iptables => "iptables",
        };
        Ok(json!({
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
            "mode": mode, "hostnameOverride": self.name(), "clusterCIDR": "10.244.0.0/16",
            "clientConnection": { "kubeconfig": pki.kubeconfig("system:kube-proxy", None)? },
            // These are the whole machine's.
            "conntrack": { "maxPerCore": 0, "tcpCloseWaitTimeout": "0s", "tcpEstablishedTimeout": "0s" },
        }))
    }

    fn network(&self) -> Value {
        let mut plugin = match self.config.network_plugin {
            NetworkPlugin::Bridge => {
                json!({ "type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true })
            }
            NetworkPlugin::Ptp => json!({ "type": "ptp" }),
        };
        plugin["ipMasq"] = json!(true);
        plugin["ipam"] = json!({
            "type": "host-local", "ranges": [[{ "subnet": fabric::pods(self.number) }]], "routes": [{ "dst": "0.0.0.0/0" }],
        });
        json!({ "cniVersion": "0.4.0", "name": "pods", "plugins": [plugin, { "type": "portmap", "capabilities": { "portMappings": true } }] })
    }

    /// Makes the machine and starts containerd on it. This thread is in the fabric.
    ///
    /// # Errors
    /// When it does not come up, with what it said.
    pub fn power_on(&self, fabric: &Fabric) -> Result<()> {
        let groups = NodeGroups::make(&self.cluster, self.name())?;
        let up = self.folder.join("up");
        // Not there at the first start.
        let _ = fs::remove_file(&up);
        let mut holder = command(None, "unshare");
        holder
            .args([
                "--mount",
                "--uts",
                "--net",
                "--propagation=private",
                "sh",
                "-c",
                include_str!("node.sh"),
                "node.sh",
            ])
            .arg(&self.folder)
            .arg(self.name());
        let holder = Process::spawn(holder, &self.log("machine"))?;
        let deadline = Instant::now() + UP_WITHIN;
        while !up.exists() {
            ensure!(
                Instant::now() < deadline && !holder.has_ended(),
                "{} does not come up: {}",
                self.name(),
                holder.log()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
        fabric.plug(self.name(), self.number, holder.pid())?;
        *self.machine.lock() = Some((holder, groups));
        self.start(Program::Containerd)?;
        while !self
            .run(&["ctr", "--address", SOCKET, "version"])?
            .status
            .success()
        {
            ensure!(
                Instant::now() < deadline,
                "containerd does not answer: {}",
                self.logs()
            );
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    /// Power cut: every process of the node's is gone at once, and so is what its kernel knew of networks. Its disk stays.
    ///
    /// # Errors
    /// When a process does not end.
    pub fn power_off(&self, fabric: &Fabric) -> Result<()> {
        let Some((mut holder, groups)) = self.machine.lock().take() else {
            return Ok(());
        };
        fabric.unplug(self.name());
        let ended = groups.end();
        self.running.lock().clear();
        holder.kill();
        ended
    }

    /// Starts a program of a node that is on.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(&self, program: Program) -> Result<()> {
        let name = program.name();
        let own = self.assets.join(name).display().to_string();
        let user = |user: &str| {
            format!(
                "--kubeconfig={}/pki/{user}.kubeconfig",
                self.cluster_folder()
            )
        };
        let words: Vec<String> = match program {
            Program::Containerd => ["containerd", "--config", "/etc/kubernetes/containerd.toml"]
                .map(str::to_owned)
                .to_vec(),
            Program::KubeProxy => vec![own, "--config=/etc/kubernetes/kube-proxy.yaml".to_owned()],
            Program::Kubelet => vec![
                own,
                "--config=/etc/kubernetes/kubelet.yaml".to_owned(),
                user(&format!("system-node-{}", self.name())),
                format!("--hostname-override={}", self.name()),
                format!("--node-ip={}", fabric::address(self.number)),
                "--v=2".to_owned(),
            ],
        };
        let machine = self.machine.lock();
        let (holder, groups) = machine.as_ref().context("the node is off")?;
        let mut inside = command(None, "sh");
        let group = groups.command()?;
        inside.args(&group[1..]);
        inside.args(enter(holder.pid())).args(words);
        let process = Process::spawn(inside, &self.log(name))?;
        self.running.lock().push((program, process));
        Ok(())
    }

    /// Kills a program (SIGKILL).
    pub fn kill(&self, program: Program) {
        let mut running = self.running.lock();
        running.retain(|(running, _)| *running != program);
    }

    /// Starts those programs that do not run.
    ///
    /// # Errors
    /// When the node is off, or one cannot be started.
    pub fn start_all(&self) -> Result<()> {
        for program in PROGRAMS {
            let runs = |(running, process): &(Program, Process)| {
                *running == program && !process.has_ended()
            };
            if !self.running.lock().iter().any(runs) {
                self.kill(program);
                self.start(program)?;
            }
        }
        Ok(())
    }

    /// Whether it is on.
    pub fn is_on(&self) -> bool {
        self.machine.lock().is_some()
    }

    /// A command on the node, as an administrator who is logged in there.
    ///
    /// # Errors
    /// When the node is off.
    pub fn command(&self, words: &[&str]) -> Result<Command> {
        let machine = self.machine.lock();
        let (holder, _) = machine.as_ref().context("the node is off")?;
        let mut command = command(None, "nsenter");
        command.args(&enter(holder.pid())[1..]).args(words);
        Ok(command)
    }

    /// Runs a command on the node to its end.
    ///
    /// # Errors
    /// When the node is off; that the command failed is in the output's status.
    pub fn run(&self, words: &[&str]) -> Result<Output> {
        let mut command = self.command(words)?;
        command.output().context("nsenter does not start")
    }

    /// Where a file of the node's disk lies on this machine; its path begins with /etc or /var. It is there whether the node is on or off.
    pub fn disk(&self, path: &str) -> PathBuf {
        self.folder.join(path.trim_start_matches('/'))
    }

    /// The ids, on this machine, of the processes on the node whose command line begins with these words.
    ///
    /// # Errors
    /// When the node is off.
    pub fn processes(&self, words: &[&str]) -> Result<Vec<u32>> {
        let machine = self.machine.lock();
        let (_, groups) = machine.as_ref().context("the node is off")?;
        let begins = |pid: &u32| {
            // A process that has ended meanwhile has no command line.
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let mut given = line.split(|byte| *byte == 0);
            words
                .iter()
                .all(|word| given.next() == Some(word.as_bytes()))
        };
        Ok(groups.processes()?.into_iter().filter(begins).collect())
    }

    /// Makes the images of an archive (`podman save`) known to the node.
    ///
    /// # Errors
    /// When containerd does not take them.
    pub fn import_images(&self, archive: &Path) -> Result<()> {
        let archive = archive.display().to_string();
        let import = [
            "ctr",
            "--address",
            SOCKET,
            "-n",
            "k8s.io",
            "images",
            "import",
            &archive,
        ];
        let output = self.run(&import)?;
        if !output.status.success() {
            bail!(
                "{}: {}",
                self.name(),
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(())
    }

    /// The end of what each of its programs has said.
    pub fn logs(&self) -> String {
        let of = |(program, process): &(Program, Process)| {
            format!(
                "--- {}'s {}\n{}",
                self.name(),
                program.name(),
                process.log()
            )
        };
        self.running.lock().iter().map(of).collect()
    }

    fn log(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.log"))
    }

    fn cluster_folder(&self) -> String {
        let folder = self.folder.parent().unwrap_or(&self.folder);
        folder.display().to_string()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some((_, groups)) = self.machine.get_mut() {
            // The guardian tries again.
            let _ = groups.end();
        }
    }
}

/// What brings a command into the namespaces of a process.
fn enter(pid: u32) -> Vec<String> {
    let target = format!("--target={pid}");
    ["nsenter", &target, "--mount", "--uts", "--net", "--"]
        .map(str::to_owned)
        .to_vec()
}
