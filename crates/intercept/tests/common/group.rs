//! A kubelet's control groups of version 2, and nmi's own view of them.

#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "not every test file needs all of it, and tests may panic"
)]

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};

use super::Namespace;

/// The group of all pods, with a pod's below it and a container's below that.
pub struct Kubepods(PathBuf);

impl Kubepods {
    pub fn new() -> Self {
        let root = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"]
            .map(PathBuf::from)
            .into_iter()
            .find(|root| root.join("cgroup.controllers").exists())
            .expect("control groups of version 2 are not mounted");
        let name = format!(
            "podid-{}-{:?}",
            std::process::id(),
            std::thread::current().id()
        );
        let group = root.join(name.replace(['(', ')'], "")).join("kubepods");
        fs::create_dir_all(group.join("pod-1/container")).unwrap();
        Self(group)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    fn command(&self, words: &[&str]) -> Command {
        let container = self.0.join("pod-1/container/cgroup.procs");
        let mut command = Command::new("bash");
        let join = format!("echo $$ > {} && exec \"$@\"", container.display());
        command.args(["-c", &join, "bash"]).args(words);
        command.stderr(Stdio::null());
        command
    }

    /// Asks the metadata address from a process of the pod, on the host's network.
    pub fn ask(&self, node: &Namespace, address: &str, mark: u32) -> String {
        let script = format!(
            "import socket\n\
             connection = socket.socket(socket.AF_INET6 if ':' in '{address}' else socket.AF_INET)\n\
             connection.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, {mark})\n\
             connection.settimeout(2)\n\
             connection.connect(('{address}', 80))\n\
             connection.send(b'hello\\n')\n\
             print(connection.makefile().readline())"
        );
        let ask = || self.command(&["python3", "-c", &script]).output().unwrap();
        let answer = node.within(ask).stdout;
        String::from_utf8(answer).unwrap().trim().to_owned()
    }

    /// Runs `work` with a bpf file system of its own and, if `private`, in the cgroup namespace that a container runtime makes for nmi
    /// on cgroup v2: its root is nmi's own group.
    pub fn seen_by_nmi<T: Send>(&self, private: bool, work: impl FnOnce() -> T + Send) -> T {
        let container = private.then(|| Container::start(self));
        std::thread::scope(|scope| {
            let worker = scope.spawn(|| {
                own_bpf_file_system();
                if let Some(container) = &container {
                    let namespace = File::open(container.namespace()).unwrap();
                    setns(namespace, CloneFlags::CLONE_NEWCGROUP).unwrap();
                }
                work()
            });
            worker
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

impl Drop for Kubepods {
    fn drop(&mut self) {
        for group in ["pod-1/container", "pod-1"] {
            let _ = fs::remove_dir(self.0.join(group));
        }
        for group in self.0.ancestors().take(2) {
            let _ = fs::remove_dir(group);
        }
    }
}

/// A process in a container's group and in a cgroup namespace of its own.
struct Container(Child);

impl Container {
    fn start(kubepods: &Kubepods) -> Self {
        let mut command = kubepods.command(&["unshare", "-C", "sh", "-c", "echo; exec sleep 600"]);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        // It says a word once it is there.
        let mut word = [0];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut word).unwrap();
        Self(child)
    }

    fn namespace(&self) -> PathBuf {
        format!("/proc/{}/ns/cgroup", self.0.id()).into()
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// For this thread and its children alone.
fn own_bpf_file_system() {
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
    mount(
        Some("bpf"),
        "/sys/fs/bpf",
        Some("bpf"),
        MsFlags::empty(),
        none,
    )
    .unwrap();
}
