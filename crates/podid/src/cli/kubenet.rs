//! kubenet: whether the node uses this network plugin, under which a pod can take another pod's address. `podid nmi` asks at its start.
//!
//! The kubelet's own command line says so, and its configuration file, which not every node has.

use std::fs;
use std::path::Path;

/// What the kubelet is given where the node uses kubenet.
pub const KUBENET: &str = "--network-plugin=kubenet";
/// The processes of all pods are in control groups with this in their name.
const PODS: &str = "kubepods";

/// Where the node is said to use kubenet: the file, or the kubelet that is to be seen in `proc`.
pub fn find(file: &Path, proc: &Path) -> Option<String> {
    if fs::read_to_string(file).is_ok_and(|text| text.contains(KUBENET)) {
        return Some(file.display().to_string());
    }
    let processes = fs::read_dir(proc).ok()?;
    let mut paths = processes.filter_map(|entry| Some(entry.ok()?.path()));
    paths
        .any(|process| is_kubelet(&process) && words(&process).contains(KUBENET))
        .then(|| "the kubelet's command line".to_owned())
}

/// A pod may give its process any name.
fn is_kubelet(process: &Path) -> bool {
    let read = |name| fs::read_to_string(process.join(name)).ok();
    read("comm").is_some_and(|name| name.trim_end() == "kubelet")
        && read("cgroup").is_some_and(|groups| !groups.contains(PODS))
}

/// The command line; a flag and its value are one word there as here.
fn words(process: &Path) -> String {
    let line = fs::read(process.join("cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&line)
        .replace('\0', " ")
        .replace("--network-plugin ", "--network-plugin=")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(proc: &Path, pid: &str, name: &str, group: &str, line: &str) {
        let process = proc.join(pid);
        fs::create_dir(&process).unwrap();
        fs::write(process.join("comm"), format!("{name}\n")).unwrap();
        fs::write(process.join("cgroup"), format!("0::{group}\n")).unwrap();
        fs::write(process.join("cmdline"), line).unwrap();
    }

    #[test]
    fn the_kubelet_says_it_and_nobody_else() {
        let proc = tempfile::tempdir().unwrap();
        let none = Path::new("/there/is/no/file");
        let kubenet = "/kubelet\0--network-plugin\0kubenet\0";
        let pod = "/../../kubepods.slice/kubepods-pod1.slice/cri-1.scope";
        process(proc.path(), "7", "kubelet", pod, kubenet);
        process(proc.path(), "8", "bash", "/user.slice", kubenet);
        let service = "/../../system.slice/kubelet.service";
        process(proc.path(), "9", "kubelet", service, "/kubelet\0--v=2\0");
        assert_eq!(find(none, proc.path()), None);
        let line = "/kubelet\0--network-plugin=kubenet\0--v=2\0";
        process(proc.path(), "10", "kubelet", service, line);
        let found = find(none, proc.path());
        assert_eq!(found.as_deref(), Some("the kubelet's command line"));
    }

    #[test]
    fn the_file_says_it() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("kubelet");
        fs::write(&file, "KUBELET_FLAGS=--network-plugin=azure").unwrap();
        assert_eq!(find(&file, folder.path()), None);
        fs::write(&file, "KUBELET_FLAGS=--network-plugin=kubenet").unwrap();
        assert!(find(&file, folder.path()).is_some());
    }
}
