//! The kubelet's cgroup of all pods (kubepods), found by the one that this process is in. A kubelet's `cgroupRoot` puts it anywhere, and a
//! container sees its own path only from its own cgroup namespace, so the hierarchy is searched for this process.

use std::fs;
use std::path::{Path, PathBuf};

/// The directory of the cgroup of all pods of which process `pid` is one's, below `root`, a hierarchy of version 2.
pub(crate) fn find(root: &Path, pid: u32) -> Option<PathBuf> {
    // Only groups of version 2 have this file.
    if !root.join("cgroup.controllers").exists() {
        return None;
    }
    let own = group_of(root, &pid.to_string())?;
    // The innermost, where a whole node runs in a pod of another.
    own.ancestors()
        .take_while(|group| *group != root)
        .find(|group| is_kubepods(group))
        .map(Path::to_owned)
}

fn group_of(group: &Path, pid: &str) -> Option<PathBuf> {
    // A group of threads cannot be read, and its processes are in the one above.
    let processes = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    if processes.lines().any(|line| line == pid) {
        return Some(group.to_owned());
    }
    fs::read_dir(group)
        .ok()?
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .find_map(|entry| group_of(&entry.path(), pid))
}

/// `kubepods`; with systemd a slice, below another one `kubelet-kubepods.slice`.
fn is_kubepods(group: &Path) -> bool {
    let name = group
        .file_name()
        .map(|name| name.to_string_lossy())
        .unwrap_or_default();
    let name = name.strip_suffix(".slice").unwrap_or(&name);
    name == "kubepods" || name.ends_with("-kubepods")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A hierarchy as far as this file reads it, in which process 7 is in one group and others are elsewhere.
    fn found(own: &str) -> Option<String> {
        let root = tempfile::tempdir().unwrap();
        let file = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        file("cgroup.controllers", "");
        file("cgroup.procs", "1\n77\n");
        file("system.slice/kubelet.service/cgroup.procs", "70\n");
        file(&format!("{own}/cgroup.procs"), "17\n7\n0\n");
        let group = find(root.path(), 7)?;
        let group = group.strip_prefix(root.path()).unwrap();
        Some(group.to_str().unwrap().to_owned())
    }

    #[test]
    fn the_group_of_all_pods_is_found_wherever_the_kubelet_puts_it() {
        let cases = [
            (
                "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice/cri-containerd-2.scope",
                "kubepods.slice",
            ),
            (
                "kubepods.slice/kubepods-pod1.slice/crio-2.scope/container",
                "kubepods.slice",
            ),
            ("kubepods/besteffort/pod1/2", "kubepods"),
            ("realnode/n1/kubepods/pod1/2", "realnode/n1/kubepods"),
            (
                "kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/a.slice/b.scope",
                "kubelet.slice/kubelet-kubepods.slice",
            ),
            (
                "kubepods/pod0/node/kubelet.slice/kubelet-kubepods.slice/a.slice/b.scope",
                "kubepods/pod0/node/kubelet.slice/kubelet-kubepods.slice",
            ),
        ];
        for (own, group) in cases {
            assert_eq!(found(own).as_deref(), Some(group), "{own}");
        }
        assert_eq!(found("system.slice/podid.service"), None);
        assert_eq!(found("kubepods-burstable.slice/x"), None);
    }

    #[test]
    fn a_hierarchy_of_version_1_has_none() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("kubepods")).unwrap();
        fs::write(root.path().join("kubepods/cgroup.procs"), "7\n").unwrap();
        assert_eq!(find(root.path(), 7), None);
    }
}
