//! A real Kubernetes cluster on this machine: control plane, and nodes with kubelet, containerd, kube-proxy and CNI plugins, which are
//! namespaces or virtual machines.
//!
//! Needs root and control groups. A guardian process ends all of it when the test process does, however that ends; the next test process
//! ends what a killed guardian has left.

mod control_plane;
mod fabric;
mod groups;
mod node;
mod node_config;
mod vm;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context as _, Result, anyhow, ensure};
use tempfile::TempDir;

use control_plane::{ControlPlane, Pki};
use groups::Guardian;

pub use fabric::{FABRIC, Fabric};
pub use node::{Node, Program};
pub use node_config::{NetworkPlugin, NodeConfig, ProxyMode};
pub use vm::VirtualMachine;

use crate::scratch;
use crate::tools::{self, Kubernetes};

/// What a cluster is made of.
pub struct Config {
    /// Its nodes; at most nine.
    pub nodes: Vec<NodeConfig>,
    /// Images in the store of [`tools::engine`] that every node has.
    pub images: Vec<String>,
    /// The image among them whose command waits forever: it holds a pod's namespaces.
    pub sandbox_image: String,
}

/// A cluster. It ends when this is dropped.
pub struct Cluster {
    /// The nodes, in the order of the configuration.
    pub nodes: Vec<Node>,
    _control_plane: ControlPlane,
    _guardian: Guardian,
    /// The network that they are on.
    pub fabric: Fabric,
    programs: Kubernetes,
    pki: Pki,
    admin: PathBuf,
    /// The name of its control groups.
    groups: String,
    sandbox_image: String,
    folder: TempDir,
}

impl Cluster {
    /// Starts one on a fabric that this thread has entered. Its nodes run, and are about to register.
    ///
    /// # Errors
    /// When a program is missing (saying what to install) or does not come up (with the end of its log).
    pub fn start(fabric: Fabric, config: Config) -> Result<Self> {
        groups::sweep()?;
        let assets = tools::kubernetes()?;
        let programs = Kubernetes {
            apiserver: assets.join("kube-apiserver"),
            kubectl: assets.join("kubectl"),
            etcd: tools::on_path("etcd").context("etcd is not there: run tools/setup")?,
        };
        let folder = scratch::folder("cluster")?;
        let name = groups::unique_name();
        let guardian = Guardian::new(&name, folder.path())?;
        let pki = Pki::new(folder.path())?;
        let admin = pki.kubeconfig("admin", Some("system:masters"))?;
        let mut nodes = Vec::new();
        for (number, node) in (1..).zip(config.nodes) {
            let image = &config.sandbox_image;
            nodes.push(Node::new(
                node,
                number,
                &name,
                folder.path(),
                &programs,
                &pki,
                image,
            )?);
        }
        let archive = folder.path().join("images.tar");
        save_images(&config.images, &archive)?;
        // Images take the longest: the control plane comes up meanwhile.
        let (images, network) = (archive.as_path(), &fabric);
        let (fresh, control_plane) = std::thread::scope(|scope| {
            let boots = nodes
                .into_iter()
                .map(|node| scope.spawn(move || boot(node, images, network)));
            let boots: Vec<_> = boots.collect();
            let control_plane = ControlPlane::start(&programs, &pki, &admin, folder.path());
            let nodes: Result<Vec<Node>> = boots
                .into_iter()
                .map(|boot| boot.join().map_err(|_| anyhow!("the thread died"))?)
                .collect();
            (nodes, control_plane)
        });
        let (nodes, control_plane) = (fresh?, control_plane?);
        std::fs::remove_file(&archive)?;
        for node in &nodes {
            node.start_all()?;
        }
        Ok(Self {
            nodes,
            _control_plane: control_plane,
            _guardian: guardian,
            fabric,
            programs,
            pki,
            admin,
            groups: name,
            sandbox_image: config.sandbox_image,
            folder,
        })
    }

    /// Makes further images of the store of [`tools::engine`] known to every node.
    ///
    /// # Errors
    /// When the engine does not have them, or a node does not take them.
    pub fn import_images(&self, images: &[String]) -> Result<()> {
        let archive = self.folder().join("further-images.tar");
        save_images(images, &archive)?;
        std::thread::scope(|scope| {
            let (archive, nodes) = (&archive, self.nodes.iter());
            let imports = nodes.map(|node| scope.spawn(|| node.import_images(archive)));
            let imports: Vec<_> = imports.collect();
            imports
                .into_iter()
                .try_for_each(|import| import.join().map_err(|_| anyhow!("the thread died"))?)
        })?;
        Ok(std::fs::remove_file(&archive)?)
    }

    /// Powers on a virtual machine as one more node, with the images of the first node, on which no pod runs yet. It boots
    /// while the caller does other things; it ends before the cluster.
    ///
    /// # Errors
    /// When QEMU is missing, or the machine's disks cannot be made.
    pub fn power_on_virtual_machine(&self, config: NodeConfig) -> Result<VirtualMachine> {
        let first = self.nodes.first().context("the images are a node's")?;
        let number = u8::try_from(self.nodes.len() + 1)?;
        let plan = vm::Plan {
            config,
            number,
            cluster: &self.groups,
            folder: self.folder(),
            images: &first.disk_of_images(),
            sandbox_image: &self.sandbox_image,
            pki: &self.pki,
        };
        // Its database must not change while it is copied.
        first.kill(Program::Containerd);
        let machine = VirtualMachine::power_on(plan, &self.fabric);
        first.start_all()?;
        machine
    }

    /// Power on a node that was powered off, as an administrator does who starts a machine again.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn power_on(&self, node: usize) -> Result<()> {
        self.nodes[node].power_on(&self.fabric)?;
        self.nodes[node].start_all()
    }

    /// Power cut of a node.
    ///
    /// # Errors
    /// When a process of its does not end.
    pub fn power_off(&self, node: usize) -> Result<()> {
        self.nodes[node].power_off(&self.fabric)
    }

    /// The kubeconfig of an administrator in the fabric.
    pub fn kubeconfig(&self) -> &Path {
        &self.admin
    }

    /// A folder that goes with the cluster.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// kubectl of an administrator. This thread is in the fabric.
    pub fn kubectl(&self) -> Command {
        let mut kubectl = Command::new(&self.programs.kubectl);
        kubectl
            .env("KUBECONFIG", &self.admin)
            .env("KUBECACHEDIR", self.folder.path().join("kubectl-cache"));
        kubectl
    }

    /// Runs [`Cluster::kubectl`] to its end with this standard input.
    ///
    /// # Errors
    /// When it does not start; that it failed is in the output's status.
    pub fn run_kubectl(&self, words: &[&str], input: &str) -> Result<Output> {
        let mut kubectl = self.kubectl();
        kubectl.args(words).stdin(Stdio::piped());
        let child = kubectl
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        let mut child = child.context("kubectl does not start")?;
        if let Some(mut stdin) = child.stdin.take() {
            // Who refuses its arguments closes its input unread.
            let _ = stdin.write_all(input.as_bytes());
        }
        Ok(child.wait_with_output()?)
    }
}

/// A machine with its images. This thread enters the fabric first.
fn boot(node: Node, images: &Path, fabric: &Fabric) -> Result<Node> {
    fabric.enter()?;
    node.power_on(fabric)?;
    node.import_images(images)?;
    Ok(node)
}

/// Writes images of the engine's store into one archive, layers that they share once.
fn save_images(images: &[String], archive: &Path) -> Result<()> {
    let mut save = Command::new(tools::engine());
    save.args(["save", "--quiet", "--multi-image-archive", "--output"]);
    let output = save.arg(archive).args(images).output();
    let output = output.context("the container engine does not start")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{images:?}: {said}");
    Ok(())
}
