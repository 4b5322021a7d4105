//! Virtual machine as a node of a cluster: a kernel, systemd, AppArmor and control groups of version 2 of its own, emulated by QEMU.
//!
//! It needs no KVM, and is slower than a node of namespaces by a factor of ten or so.
//!
//! ```text
//!   fabric ─ bridge ─ tap ─ eth0      /dev/vda  disk of tools/vm/build; what is written to it goes with the machine
//!                                     /dev/vdb  images, as containerd keeps them
//!                                     /dev/vdc  tar archive: which node it is, unpacked at each boot
//! ```

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use super::control_plane::Pki;
use super::fabric::{self, FABRIC, Fabric};
use super::groups::NodeGroups;
use super::node_config::{Machine, NodeConfig, write_files};
use crate::process::{Process, command};
use crate::tools;

/// Time from power on until systemd has started the programs of the node, on a machine that is busy with other things.
const BOOT_TIMEOUT: Duration = Duration::from_secs(600);
/// Time for a connection to the machine's shell, and for each answer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const COMMAND_TIMEOUT: Duration = Duration::from_secs(120);
/// The port of its shell: tools/vm/units/shell.socket.
const SHELL_PORT: u16 = 1022;
/// What the shell says after a script, before its status.
const STATUS: &str = "status of the script: ";
/// MiB of memory, and size of the disk with the images.
const MEMORY: &str = "2048";
const IMAGES_SIZE: &str = "3G";

/// A virtual machine that is a node. It ends when this is dropped.
pub struct VirtualMachine {
    name: String,
    number: u8,
    folder: PathBuf,
    groups: NodeGroups,
    qemu: Process,
}

/// What a cluster gives a virtual machine.
pub(super) struct Plan<'a> {
    pub config: NodeConfig,
    /// Which node of the cluster it is.
    pub number: u8,
    pub cluster: &'a str,
    /// The folder of the cluster.
    pub folder: &'a Path,
    /// containerd's folder with the images, which nobody writes to meanwhile.
    pub images: &'a Path,
    pub sandbox_image: &'a str,
    pub pki: &'a Pki,
}

impl VirtualMachine {
    /// Powers it on. This thread is in the fabric.
    pub(super) fn power_on(plan: Plan<'_>, fabric: &Fabric) -> Result<Self> {
        let Plan { config, number, .. } = &plan;
        let folder = plan.folder.join(&config.name);
        fs::create_dir_all(&folder)?;
        let images = folder.join("images.disk");
        let mut format = Command::new(tools::on_path("mke2fs").context("no mke2fs")?);
        format.args(["-q", "-t", "ext4", "-L", "containerd", "-d"]);
        succeed(format.arg(plan.images).arg(&images).arg(IMAGES_SIZE))?;
        let archive = folder.join("node.tar");
        write_archive(&plan, &folder.join("root"), &archive)?;
        fabric.plug_tap(&config.name, *number)?;
        let groups = NodeGroups::make(plan.cluster, &config.name)?;
        let mut inside = command(None, "sh");
        inside.args(&groups.command()?[1..]);
        inside.args(qemu(&config.name, &images, &archive, &monitor(&folder))?);
        Ok(Self {
            name: config.name.clone(),
            number: *number,
            qemu: Process::spawn(inside, &folder.join("console.log"))?,
            groups,
            folder,
        })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs a script of root's in it, and gives what that has printed. This thread is in the fabric.
    ///
    /// # Errors
    /// When the machine does not answer, or the script fails.
    pub fn run(&self, script: &str) -> Result<String> {
        let address = SocketAddr::from((fabric::address(self.number), SHELL_PORT));
        let connected = TcpStream::connect_timeout(&address, CONNECT_TIMEOUT);
        let mut shell = connected.context("the machine's shell does not answer")?;
        shell.set_read_timeout(Some(COMMAND_TIMEOUT))?;
        shell.write_all(format!("( {script}\n) </dev/null\necho \"{STATUS}$?\"\n").as_bytes())?;
        shell.shutdown(Shutdown::Write)?;
        let mut said = String::new();
        shell.read_to_string(&mut said)?;
        match said.rsplit_once(STATUS) {
            Some((said, status)) if status.trim() == "0" => Ok(said.to_owned()),
            _ => bail!("{script}: {said}"),
        }
    }

    /// Waits until systemd has started the node's programs. This thread is in the fabric.
    ///
    /// # Errors
    /// When it does not come up, with what it said.
    pub fn wait_until_up(&self) -> Result<()> {
        let deadline = Instant::now() + BOOT_TIMEOUT;
        loop {
            let Err(error) = self.run("systemctl is-active kubelet") else {
                return Ok(());
            };
            ensure!(
                Instant::now() < deadline && !self.qemu.has_ended(),
                "{} does not come up: {error:#}\n{}",
                self.name,
                self.qemu.log()
            );
            std::thread::sleep(Duration::from_millis(500));
        }
    }

    /// Power cut, and power on again at once: memory is gone, disks stay.
    ///
    /// # Errors
    /// When it does not come up again.
    pub fn power_cycle(&self) -> Result<()> {
        let mut monitor = UnixStream::connect(monitor(&self.folder))?;
        monitor.write_all(b"system_reset\n")?;
        monitor.shutdown(Shutdown::Write)?;
        // QEMU has done it when it closes the connection.
        monitor.read_to_end(&mut Vec::new())?;
        self.wait_until_up()
    }

    /// The end of what its programs have said, for a test that failed.
    pub fn logs(&self) -> String {
        let journal = "journalctl --boot --no-pager --lines=80";
        let journal = self
            .run(journal)
            .unwrap_or_else(|error| format!("{error:#}"));
        format!("--- {}\n{}\n{journal}", self.name, self.qemu.log())
    }
}

impl Drop for VirtualMachine {
    fn drop(&mut self) {
        self.qemu.kill();
        // The guardian tries again.
        let _ = self.groups.end();
    }
}

fn monitor(folder: &Path) -> PathBuf {
    folder.join("monitor")
}

/// The command that runs the machine until it is killed.
fn qemu(name: &str, images: &Path, archive: &Path, monitor: &Path) -> Result<Vec<String>> {
    let built = tools::virtual_machine()?;
    let file = |name: &str| built.join(name).display().to_string();
    let drive = |path: &str, options: &str| {
        let path = path.replace(',', ",,");
        format!("file={path},if=virtio,format=raw,cache=unsafe,{options}")
    };
    let (images, archive) = (images.display().to_string(), archive.display().to_string());
    let words = [
        // Other tests of this machine measure time; this one waits.
        "nice",
        "--adjustment=5",
        "qemu-system-x86_64",
        "-nodefaults",
        "-machine",
        "q35",
        "-accel",
        "tcg,thread=multi",
        // It boots with less work than "max", of which a variant (without svm) made systemd not see its mounts.
        "-cpu",
        "Westmere,+rdrand",
        "-smp",
        "2",
        "-m",
        MEMORY,
        "-display",
        "none",
        "-serial",
        "stdio",
        "-monitor",
        &format!("unix:{},server,nowait", monitor.display()),
        "-kernel",
        &file("vmlinuz"),
        "-initrd",
        &file("initrd"),
        "-append",
        &format!(
            "root=/dev/vda rw console=ttyS0 quiet net.ifnames=0 mitigations=off systemd.hostname={name}"
        ),
        "-drive",
        &drive(&file("disk.img"), "snapshot=on"),
        "-drive",
        &drive(&images, "readonly=off"),
        "-drive",
        &drive(&archive, "readonly=on"),
        "-netdev",
        &format!("tap,id=fabric,ifname={name},script=no,downscript=no"),
        "-device",
        "virtio-net-pci,netdev=fabric",
        "-device",
        "virtio-rng-pci",
    ];
    Ok(words.map(str::to_owned).to_vec())
}

/// What makes the machine this node: the third disk. The cluster's keys lie at the same paths as on this machine.
fn write_archive(plan: &Plan<'_>, root: &Path, archive: &Path) -> Result<()> {
    let Plan { config, number, .. } = plan;
    let mut files = config.all_files(*number, &Machine::Virtual, plan.pki, plan.sandbox_image)?;
    let address = fabric::address(*number);
    let network = format!(
        "set -e\nip link set lo up\nip addr replace {address}/24 dev eth0\nip link set eth0 up\n\
         ip route replace default via {FABRIC}\n\
         sysctl -qw net.ipv4.ip_forward=1 net.bridge.bridge-nf-call-iptables=1\n"
    );
    let pki = plan.pki.path("").display().to_string();
    let kubelet = config.kubelet_arguments(*number, pki.trim_end_matches('/'));
    let environment = |arguments: &str| format!("ARGUMENTS={arguments}\n");
    for (name, content) in [
        ("network.sh", network),
        ("kubelet.env", environment(&kubelet.join(" "))),
        (
            "kube-proxy.env",
            environment("--config=/etc/kubernetes/kube-proxy.yaml"),
        ),
    ] {
        files.push((Path::new("/etc/kubernetes").join(name), content));
    }
    for entry in fs::read_dir(plan.pki.path(""))? {
        let path = entry?.path();
        let content = fs::read_to_string(&path)?;
        files.push((path, content));
    }
    write_files(root, &files)?;
    let mut tar = Command::new("tar");
    succeed(tar.arg("-C").arg(root).arg("-cf").arg(archive).arg("."))
}

fn succeed(command: &mut Command) -> Result<()> {
    let output = command
        .output()
        .with_context(|| format!("{command:?} does not start; run tools/setup"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {said}");
    Ok(())
}
