//! The control groups that a kubelet makes for a pod's processes.

use std::io;
use std::path::{Path, PathBuf};

/// A pod's group, below one of the test's own. Removed on drop, when its processes have ended.
pub struct PodGroup(PathBuf);

impl PodGroup {
    /// Makes the group of the pod with this uid.
    ///
    /// # Errors
    /// When control groups cannot be written to.
    pub fn new(uid: &str) -> io::Result<Self> {
        let root = [
            "/sys/fs/cgroup",
            "/sys/fs/cgroup/unified",
            "/sys/fs/cgroup/systemd",
        ]
        .map(Path::new)
        .into_iter()
        .find(|root| root.join("cgroup.procs").exists())
        .ok_or_else(|| io::Error::other("no control groups are mounted"))?;
        let group = root
            .join(format!("podid-test-{}", std::process::id()))
            .join(format!("pod{uid}"));
        std::fs::create_dir_all(&group)?;
        Ok(Self(group))
    }

    /// Puts a process into the group.
    ///
    /// # Errors
    /// When it has ended already.
    pub fn add(&self, pid: u32) -> io::Result<()> {
        std::fs::write(self.0.join("cgroup.procs"), pid.to_string())
    }
}

impl Drop for PodGroup {
    fn drop(&mut self) {
        // A group with a process that is ending cannot be removed yet; an empty directory in memory is left then.
        let _ = std::fs::remove_dir(&self.0);
        if let Some(parent) = self.0.parent() {
            let _ = std::fs::remove_dir(parent);
        }
    }
}
