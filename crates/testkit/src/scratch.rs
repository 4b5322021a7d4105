//! Scratch folders of one test process, and the removal of those that killed ones left behind.

use std::path::Path;

use anyhow::{Context, Result};
use tempfile::TempDir;

const PREFIX: &str = "podid-test-";

/// A new folder that goes with its value; those of processes that are no more are removed first.
pub(crate) fn folder(what: &str) -> Result<TempDir> {
    let base = std::env::temp_dir();
    sweep(&base);
    tempfile::Builder::new()
        .prefix(&format!("{PREFIX}{}-{what}-", std::process::id()))
        .tempdir_in(&base)
        .with_context(|| format!("no folder for {what} in {}", base.display()))
}

fn sweep(base: &Path) {
    let Ok(entries) = std::fs::read_dir(base) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let owner = name
            .to_str()
            .and_then(|name| name.strip_prefix(PREFIX))
            .and_then(|rest| rest.split('-').next())
            .and_then(|pid| pid.parse().ok());
        if owner.is_some_and(is_dead) {
            // Another test process may be sweeping the same folder.
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

/// Whether no process has this id.
pub(crate) fn is_dead(pid: u32) -> bool {
    !Path::new("/proc").join(pid.to_string()).exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_of_dead_processes_are_swept_and_those_of_living_ones_kept() {
        let base = tempfile::tempdir().unwrap();
        let dead = base.path().join(format!("{PREFIX}4294967295-etcd-x"));
        let alive = base
            .path()
            .join(format!("{PREFIX}{}-etcd-x", std::process::id()));
        let other = base.path().join("someone-elses");
        for path in [&dead, &alive, &other] {
            std::fs::create_dir(path).unwrap();
        }
        sweep(base.path());
        assert!(!dead.exists());
        assert!(alive.exists() && other.exists());
    }
}
