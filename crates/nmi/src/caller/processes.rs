//! Processes of the node's pods in `/proc`: which pod a process belongs to, by the control group that the kubelet put it into
//! (cgroups(7)). The attestor asks.
//!
//! Whether the node's processes are seen at all is a matter of this process's pid namespace (pid_namespaces(7)), and not of
//! which pods run at the moment:
//!
//! ```text
//!  the pid namespace is                        in /proc                               pods' processes
//!  the machine's first (hostPID)               inode 4026531836                       seen
//!  that of a node in a container (kind, k3d)   our container's parent is the runtime  seen
//!  that of a node in a pod                     pid 1 is in a pod's control group      seen, and all in one pod's groups
//!  our container's, or our pod's               our container's parent is 0: outside   not seen
//! ```

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// Inode of the machine's first pid namespace, fixed by the kernel (`PROC_PID_INIT_INO`).
const FIRST_PID_NAMESPACE: &str = "pid:[4026531836]";
/// After a listing, which reads a file per process of the node, this many times as long nothing is listed: a pod that gives
/// cause for listings all the time takes a tenth of one core.
const PAUSE: u32 = 9;
/// A pod that has just started waits at most this long for its processes to be listed.
const MAX_PAUSE: Duration = Duration::from_millis(250);
/// Processes of one pod that are remembered; one that lives is enough to know the pod's network namespace.
const MAX_PROCESSES: usize = 8;
/// Lines of a control group file that are read; the kernel has 14 hierarchies at most.
const MAX_LINES: usize = 64;

/// Why pods are not told apart by their processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unseen {
    /// The pid namespace is the container's own, or shared by the containers of its pod.
    #[error("the pods' processes are not to be seen; give the DaemonSet hostPID: true")]
    NoHostPid,
    /// Every control group's path begins with that of the pod that the node is in.
    #[error(
        "the node itself runs in a pod, whose control group all processes are in; nodes in pods are served with --attest=address"
    )]
    NodeInPod,
}

/// The processes of the node's pods.
pub struct Processes {
    root: PathBuf,
    pods: Mutex<HashMap<Box<str>, Vec<u32>>>,
    /// When the last listing began and ended; the task that holds it lists.
    listed: tokio::sync::Mutex<Option<[Instant; 2]>>,
}

impl Processes {
    /// The node's processes, if this process is in the node's pid namespace.
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    pub fn of_node() -> io::Result<Result<Self, Unseen>> {
        Self::seen_in(Path::new("/proc"))
    }

    fn seen_in(root: &Path) -> io::Result<Result<Self, Unseen>> {
        if std::fs::read_link(root.join("self/ns/pid"))? != Path::new(FIRST_PID_NAMESPACE) {
            let own = std::fs::read_link(root.join("self"))?;
            if !is_started_within(root, &own.to_string_lossy())? {
                return Ok(Err(Unseen::NoHostPid));
            }
        }
        if pod_of(&root.join("1")).is_some() {
            return Ok(Err(Unseen::NodeInPod));
        }
        Ok(Ok(Self::below(root.to_owned())))
    }

    pub(crate) fn below(root: PathBuf) -> Self {
        Self {
            root,
            pods: Mutex::default(),
            listed: tokio::sync::Mutex::default(),
        }
    }

    /// The processes of a pod, as of the last listing.
    pub(crate) fn of_pod(&self, uid: &str) -> Vec<u32> {
        self.pods.lock().get(uid).cloned().unwrap_or_default()
    }

    /// Whether the process still is the pod's: process ids are used again.
    pub(crate) fn is_of_pod(&self, pid: u32, uid: &str) -> bool {
        pod_of(&self.root.join(pid.to_string())).as_deref() == Some(uid)
    }

    /// Lists the node's processes anew, at the latest when this returns.
    pub(crate) async fn list(&self) {
        let asked = Instant::now();
        let mut listed = self.listed.lock().await;
        if let Some([began, ended]) = *listed {
            // A listing that began after the call is new enough: tasks that waited together share it.
            if began > asked {
                return;
            }
            let pause = (ended - began).saturating_mul(PAUSE).min(MAX_PAUSE);
            tokio::time::sleep_until(ended + pause).await;
        }
        let began = Instant::now();
        let root = self.root.clone();
        if let Ok(pods) = tokio::task::spawn_blocking(move || list(&root)).await {
            *self.pods.lock() = pods;
        }
        *listed = Some([began, Instant::now()]);
    }
}

/// Whether the process that started this one's container is in the same pid namespace. A container's runtime (containerd's shim,
/// conmon) is the parent of its first process; when it is in another pid namespace, that first process has the parent 0.
fn is_started_within(root: &Path, own: &str) -> io::Result<bool> {
    let group = |pid: &str| std::fs::read_to_string(root.join(pid).join("cgroup"));
    let ours = group(own)?;
    let mut pid = own.to_owned();
    loop {
        pid = parent(&root.join(&pid))?;
        if pid == "0" {
            return Ok(false);
        }
        if group(&pid)? != ours {
            return Ok(true);
        }
    }
}

/// The `PPid` of a process (proc_pid_status(5)).
fn parent(process: &Path) -> io::Result<String> {
    let status = std::fs::read_to_string(process.join("status"))?;
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"));
    parent
        .map(|pid| pid.trim().to_owned())
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "a process without a parent"))
}

fn list(processes: &Path) -> HashMap<Box<str>, Vec<u32>> {
    let mut pods: HashMap<Box<str>, Vec<u32>> = HashMap::new();
    for entry in std::fs::read_dir(processes).into_iter().flatten().flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        if let Some(uid) = pod_of(&entry.path()) {
            let pids = pods.entry(uid).or_default();
            if pids.len() < MAX_PROCESSES {
                pids.push(pid);
            }
        }
    }
    pods
}

/// The uid of the pod that a process belongs to.
fn pod_of(process: &Path) -> Option<Box<str>> {
    let groups = std::fs::read_to_string(process.join("cgroup")).ok()?;
    groups.lines().take(MAX_LINES).find_map(uid)
}

/// The uid in a line of `/proc/PID/cgroup`: `pod<uid>`, or with systemd `…-pod<uid>.slice` and underscores. The path begins at
/// the reader's cgroup namespace (cgroup_namespaces(7)), so with `..` for each level up to where the paths part. The first uid
/// counts: a pod's processes can make groups below their pod's own and nowhere else, and no group can be called `..`.
fn uid(line: &str) -> Option<Box<str>> {
    let path = line.splitn(3, ':').nth(2)?;
    path.split('/').find_map(|name| {
        let name = name.strip_suffix(".slice").unwrap_or(name);
        let at = name
            .rfind("pod")
            .filter(|at| *at == 0 || name[..*at].ends_with('-'))?;
        let uid = &name[at + "pod".len()..];
        is_uid(uid).then(|| uid.replace('_', "-").into())
    })
}

/// A UUID, or the digest that static pods have instead.
fn is_uid(text: &str) -> bool {
    matches!(text.len(), 32 | 36)
        && text
            .bytes()
            .all(|b| b.is_ascii_hexdigit() || matches!(b, b'-' | b'_'))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    const UID: &str = "2f1c7a10-93b0-4c3e-9a51-0d0c6a1f22ab";

    #[test]
    fn a_pods_control_groups_name_it() {
        let names = [
            format!("0::/kubepods/burstable/pod{UID}/cri-1"),
            format!("0::/kubepods/pod{UID}"),
            format!("11:cpu,cpuacct:/kubepods/besteffort/pod{UID}/abc"),
            format!("0::/../../pod{UID}/abc"),
            format!(
                "0::/../../../kubepods-besteffort.slice/kubepods-besteffort-pod{}.slice/cri-containerd-1.scope",
                UID.replace('-', "_")
            ),
            format!(
                "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{}.slice/cri-containerd-1.scope",
                UID.replace('-', "_")
            ),
        ];
        for line in names {
            assert_eq!(uid(&line).as_deref(), Some(UID), "{line}");
        }
        let digest = "0f343b0931126a20f133d67c2b018a3b";
        assert_eq!(
            uid(&format!("0::/kubepods/pod{digest}/x")).as_deref(),
            Some(digest)
        );
    }

    #[test]
    fn a_pod_cannot_name_itself_otherwise() {
        let other = UID.replace('2', "3");
        for nested in [
            format!("0::/kubepods/pod{UID}/abc/pod{other}/x"),
            format!(
                "0::/../../../kubepods.slice/kubepods-pod{UID}.slice/cri-1.scope/kubepods-pod{other}.slice"
            ),
            format!("0::/../../pod{UID}/..pod{other}/pod{other}"),
        ] {
            assert_eq!(uid(&nested).as_deref(), Some(UID), "{nested}");
        }
        for line in [
            "0::/system.slice/kubelet.service",
            "0::/kubepods/podx",
            "0::/",
            "0::/../cri-containerd-1.scope",
            "",
            "garbage",
            &format!("0::/kubepods/tripod{UID}"),
        ] {
            assert_eq!(uid(line), None, "{line}");
        }
    }

    /// A `/proc` with these processes: id, parent, control group. The last one is the reader.
    fn proc(namespace: &str, processes: &[(&str, &str, &str)]) -> tempfile::TempDir {
        let proc = tempfile::tempdir().unwrap();
        for (pid, parent, group) in processes {
            let process = proc.path().join(pid);
            std::fs::create_dir_all(process.join("ns")).unwrap();
            std::fs::write(process.join("cgroup"), format!("0::{group}\n")).unwrap();
            let status = format!("Name:\tx\nPid:\t{pid}\nPPid:\t{parent}\n");
            std::fs::write(process.join("status"), status).unwrap();
            symlink(format!("pid:[{namespace}]"), process.join("ns/pid")).unwrap();
        }
        let (own, ..) = processes.last().unwrap();
        symlink(own, proc.path().join("self")).unwrap();
        proc
    }

    fn seen(proc: &tempfile::TempDir) -> Option<Unseen> {
        Processes::seen_in(proc.path()).unwrap().err()
    }

    const FIRST: &str = "4026531836";
    const LATER: &str = "4026532500";
    const SHIM: (&str, &str, &str) = ("50", "1", "/../../../../system.slice/containerd.service");

    #[test]
    fn the_first_pod_of_a_node_sees_the_nodes_processes() {
        let init = ("1", "0", "/../../../../init.scope");
        let pause = ("60", "50", "/../cri-containerd-1.scope");
        let node = [init, SHIM, pause, ("70", "50", "/")];
        // A node of its own, and one in a container (kind).
        for namespace in [FIRST, LATER] {
            assert_eq!(seen(&proc(namespace, &node)), None);
        }
        // The image may start podid by way of another program.
        let wrapped = [init, SHIM, pause, ("70", "50", "/"), ("71", "70", "/")];
        assert_eq!(seen(&proc(LATER, &wrapped)), None);
    }

    #[test]
    fn a_container_that_does_not_see_its_runtime_does_not_see_the_node() {
        let alone = [("1", "0", "/")];
        let wrapped = [("1", "0", "/"), ("7", "1", "/")];
        let beside_pause = [("1", "0", "/../cri-containerd-1.scope"), ("7", "0", "/")];
        for processes in [&alone[..], &wrapped, &beside_pause] {
            assert_eq!(seen(&proc(LATER, processes)), Some(Unseen::NoHostPid));
        }
    }

    #[test]
    fn a_node_in_a_pod_has_all_processes_in_that_pods_group() {
        let outer = format!("/kubepods/pod{UID}/1");
        let inner = format!("{outer}/kubelet/kubepods/pod{}/2", UID.replace('2', "3"));
        let node = [
            ("1", "0", &*outer),
            ("50", "1", &*outer),
            ("70", "50", &*inner),
        ];
        assert_eq!(seen(&proc(LATER, &node)), Some(Unseen::NodeInPod));
    }
}
