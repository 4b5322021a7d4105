//! Control groups of a cluster: all that runs on its nodes is in them, so that it can be listed and ended, whoever started it.
//!
//! ```text
//!   /sys/fs/cgroup/HIERARCHY/podid-node-PID-COUNT     the cluster's; PID is the test's
//!     └─ n1                                           a node's, the kubelet's cgroupRoot
//!        ├─ system                                    kubelet, containerd, its shims, kube-proxy
//!        └─ kubepods                                  the pods', by the kubelet
//! ```

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::scratch;

const ROOT: &str = "/sys/fs/cgroup";
const PREFIX: &str = "podid-node-";
/// Processes that were killed are gone by then.
const GONE_WITHIN: Duration = Duration::from_secs(20);

/// A name for a cluster's groups that no other has.
pub(super) fn unique_name() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("{PREFIX}{}-{count}", std::process::id())
}

/// The groups of a node.
#[derive(Debug)]
pub(super) struct NodeGroups {
    /// Below each hierarchy: the cluster's name and the node's.
    path: String,
}

impl NodeGroups {
    /// Makes them in every hierarchy.
    pub(super) fn make(cluster: &str, node: &str) -> Result<Self> {
        let path = format!("{cluster}/{node}");
        for hierarchy in hierarchies()? {
            let mut group = hierarchy.clone();
            for part in [cluster, node, "system"] {
                pass_on_controllers(&group)?;
                group.push(part);
                fs::create_dir_all(&group)
                    .with_context(|| format!("no control group {}", group.display()))?;
                // A group without processors and memory takes no process.
                for setting in ["cpuset.cpus", "cpuset.mems"] {
                    if let Ok(all) = fs::read(hierarchy.join(setting)) {
                        fs::write(group.join(setting), all)?;
                    }
                }
            }
        }
        Ok(Self { path })
    }

    /// A command that runs another, given after these words, in the group of the node's own programs.
    pub(super) fn command(&self) -> Result<Vec<String>> {
        let script = "for group in $0; do echo $$ >$group/cgroup.procs; done; exec \"$@\"";
        let groups = hierarchies()?.into_iter().map(|hierarchy| {
            let group = hierarchy.join(&self.path).join("system");
            group.display().to_string()
        });
        let groups = groups.collect::<Vec<_>>().join(" ");
        Ok(["sh", "-c", script, &groups].map(str::to_owned).to_vec())
    }

    /// The ids of the processes that run on the node.
    pub(super) fn processes(&self) -> Result<BTreeSet<u32>> {
        let mut found = BTreeSet::new();
        for hierarchy in hierarchies()? {
            processes_below(&hierarchy.join(&self.path), &mut found);
        }
        Ok(found)
    }

    /// Kills all that runs on the node and removes the groups.
    pub(super) fn end(&self) -> Result<()> {
        let deadline = Instant::now() + GONE_WITHIN;
        loop {
            let mut left = BTreeSet::new();
            for hierarchy in hierarchies()? {
                end_below(&hierarchy.join(&self.path), &mut left);
            }
            if left.is_empty() {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "{}: these do not end: {left:?}",
                self.path
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Adds the processes of a group and of those below it.
fn processes_below(group: &Path, found: &mut BTreeSet<u32>) {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            processes_below(&entry.path(), found);
        }
    }
    let processes = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    found.extend(
        processes
            .lines()
            .filter_map(|line| line.parse::<u32>().ok()),
    );
}

/// Kills the processes of a group and of those below it, and removes the groups that are empty. `left` are those that are not.
fn end_below(group: &Path, left: &mut BTreeSet<String>) {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            end_below(&entry.path(), left);
        }
    }
    let processes = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    for pid in processes.lines().filter_map(|line| line.parse().ok()) {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    if group.exists() && fs::remove_dir(group).is_err() {
        left.insert(format!(
            "{} ({})",
            group.display(),
            processes.replace('\n', " ")
        ));
    }
}

/// In version 2 a group has the controllers that the one above it passes on.
fn pass_on_controllers(group: &Path) -> Result<()> {
    let controllers = fs::read_to_string(group.join("cgroup.controllers")).unwrap_or_default();
    for controller in controllers.split_whitespace() {
        fs::write(
            group.join("cgroup.subtree_control"),
            format!("+{controller}"),
        )
        .with_context(|| format!("{} keeps {controller}", group.display()))?;
    }
    Ok(())
}

/// Where groups of each kind are: one place in version 2; in version 1 each controller has a hierarchy of its own.
fn hierarchies() -> Result<Vec<PathBuf>> {
    if Path::new(ROOT).join("cgroup.controllers").exists() {
        return Ok(vec![PathBuf::from(ROOT)]);
    }
    let found = fs::read_dir(ROOT).context("no control groups are mounted")?;
    let found = found.flatten().map(|entry| entry.path());
    // Links give two names to one.
    Ok(found
        .filter(|path| !path.is_symlink() && path.join("cgroup.procs").exists())
        .collect())
}

/// A process that ends a cluster as soon as this one lets go of it, if only by dying.
#[derive(Debug)]
pub(super) struct Guardian(Child);

impl Guardian {
    pub(super) fn new(cluster: &str, folder: &Path) -> Result<Self> {
        let mut command = guardian(cluster);
        command.arg(folder).stdin(Stdio::piped());
        Ok(Self(command.spawn().context("sh does not start")?))
    }
}

impl Drop for Guardian {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// Ends the clusters of test processes that are no more, should somebody have killed their guardians, too.
pub(super) fn sweep() -> Result<()> {
    for hierarchy in hierarchies()? {
        for entry in fs::read_dir(hierarchy).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let owner = name
                .strip_prefix(PREFIX)
                .and_then(|rest| rest.split('-').next());
            let owner = owner.and_then(|pid| pid.parse().ok());
            if owner.is_some_and(scratch::is_dead) {
                let _ = guardian(&name).stdin(Stdio::null()).status();
            }
        }
    }
    Ok(())
}

fn guardian(cluster: &str) -> Command {
    let mut command = Command::new("sh");
    command
        .args(["-c", include_str!("guardian.sh"), "guardian.sh", cluster])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        // A terminal's interrupt is for the test, not for what cleans up after it.
        .process_group(0);
    command
}
