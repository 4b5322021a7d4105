//! Control groups (cgroups) of pods, named as a kubelet names them, so that nmi can attest a test's processes.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

const MOUNTED: &str = "/sys/fs/cgroup";
/// How often a group is looked at whose processes are ending, two seconds in all.
const ENDING_CHECKS: u32 = 200;
const ENDING_CHECK_INTERVAL: Duration = Duration::from_millis(10);

/// A pod's group, below one of the test's own. Removed on drop, when its processes have ended.
pub struct PodGroup {
    groups: Vec<PathBuf>,
    roots: Vec<PathBuf>,
}

impl PodGroup {
    /// Makes the group of the pod with this uid.
    ///
    /// # Errors
    /// When control groups cannot be written to.
    pub fn new(uid: &str) -> io::Result<Self> {
        let unified = Path::new(MOUNTED).join("unified");
        let systemd = Path::new(MOUNTED).join("systemd");
        let root = [PathBuf::from(MOUNTED), unified, systemd]
            .into_iter()
            .find(|root| is_hierarchy(root))
            .ok_or_else(|| io::Error::other("no control groups are mounted"))?;
        Self::below(vec![root], uid, None)
    }

    /// Makes the group of a container below its pod's, in every hierarchy: nothing of such a container's processes is outside.
    ///
    /// # Errors
    /// When control groups cannot be written to.
    pub fn of_container(uid: &str, container: &str) -> io::Result<Self> {
        let mut roots = vec![PathBuf::from(MOUNTED)];
        if !is_hierarchy(&roots[0]) {
            let entries = std::fs::read_dir(MOUNTED)?.flatten();
            roots = entries.map(|entry| entry.path()).collect();
            roots.retain(|root| is_hierarchy(root));
        }
        Self::below(roots, uid, Some(container))
    }

    fn below(roots: Vec<PathBuf>, uid: &str, container: Option<&str>) -> io::Result<Self> {
        // Tests that run at once remove no folder of another's.
        let own = format!("podid-test-{}-{uid}", std::process::id());
        let mut made = Self {
            groups: Vec::new(),
            roots: roots.iter().map(|root| root.join(&own)).collect(),
        };
        for root in &made.roots {
            let mut group = root.clone();
            make(&group)?;
            for name in ["kubepods", &*format!("pod{uid}")]
                .into_iter()
                .chain(container)
            {
                group.push(name);
                make(&group)?;
            }
            made.groups.push(group);
        }
        Ok(made)
    }

    /// The group of another pod of the same kubelet.
    ///
    /// # Errors
    /// When control groups cannot be written to.
    pub fn beside(&self, uid: &str) -> io::Result<Self> {
        let mut made = Self {
            groups: Vec::new(),
            roots: self.roots.clone(),
        };
        for root in &self.roots {
            let group = root.join("kubepods").join(format!("pod{uid}"));
            make(&group)?;
            made.groups.push(group);
        }
        Ok(made)
    }

    /// Puts a process into the group.
    ///
    /// # Errors
    /// When it has ended already.
    pub fn add(&self, pid: u32) -> io::Result<()> {
        for procs in self.procs() {
            std::fs::write(procs, pid.to_string())?;
        }
        Ok(())
    }

    /// The files by which a process joins: it writes 0.
    pub fn procs(&self) -> impl Iterator<Item = PathBuf> {
        self.groups.iter().map(|group| group.join("cgroup.procs"))
    }
}

fn is_hierarchy(root: &Path) -> bool {
    root.join("cgroup.procs").exists()
}

fn make(group: &Path) -> io::Result<()> {
    std::fs::create_dir_all(group)?;
    // Version 1's cpuset takes no process before it has processors and memory.
    if let Some(parent) = group.parent()
        && group.join("cpuset.memory_migrate").exists()
    {
        for name in ["cpuset.cpus", "cpuset.mems"] {
            std::fs::write(group.join(name), std::fs::read(parent.join(name))?)?;
        }
    }
    Ok(())
}

/// Removes a group, once the processes that end in it are gone.
fn remove(group: &Path) {
    for _ in 0..ENDING_CHECKS {
        match std::fs::remove_dir(group) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                std::thread::sleep(ENDING_CHECK_INTERVAL);
            }
            _ => return,
        }
    }
}

impl Drop for PodGroup {
    fn drop(&mut self) {
        for (group, root) in self.groups.iter().zip(&self.roots) {
            let levels = group
                .ancestors()
                .take_while(|level| level.starts_with(root));
            levels.for_each(remove);
        }
    }
}
