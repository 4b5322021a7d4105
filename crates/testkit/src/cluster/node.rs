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
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use parking_lot::Mutex;

use super::control_plane::Pki;
use super::fabric::Fabric;
use super::groups::NodeGroups;
use super::node_config::{CONTAINERD_SOCKET, Machine, NodeConfig, write_files};
use crate::process::{Process, command};
use crate::tools::Kubernetes;

const UP_WITHIN: Duration = Duration::from_secs(30);

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
        let machine = Machine::Namespaces {
            cgroup_root: format!("/{}/{}", node.cluster, node.name()),
        };
        let files = node
            .config
            .all_files(number, &machine, pki, sandbox_image)?;
        write_files(&node.folder, &files)?;
        Ok(node)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.config.name
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
            .run(&["ctr", "--address", CONTAINERD_SOCKET, "version"])?
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
        let words: Vec<String> = match program {
            Program::Containerd => ["containerd", "--config", "/etc/kubernetes/containerd.toml"]
                .map(str::to_owned)
                .to_vec(),
            Program::KubeProxy => vec![own, "--config=/etc/kubernetes/kube-proxy.yaml".to_owned()],
            Program::Kubelet => {
                let pki = format!("{}/pki", self.cluster_folder());
                let arguments = self.config.kubelet_arguments(self.number, &pki);
                std::iter::once(own).chain(arguments).collect()
            }
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
            CONTAINERD_SOCKET,
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

    /// The folder in which its containerd keeps images.
    pub(super) fn disk_of_images(&self) -> PathBuf {
        self.folder.join("containerd")
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
