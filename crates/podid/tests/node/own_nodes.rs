//! Table of docs/own-nodes.md: the nodes of these tests, as they describe themselves.
//!
//! With `PODID_UPDATE=1` a row is written. Without, it must be there; what the machine's own kernel and packages decide may differ.

use parking_lot::Mutex;
use podid_testkit::tools;
use serde_json::Value;

/// Tests that run at the same time write one file.
static PAGE: Mutex<()> = Mutex::new(());
/// So many columns are the same on every machine: the node's name, its network plugin, kube-proxy's mode and Kubernetes' version.
const FIXED: usize = 4;

/// Holds the row of a node to what the node says; `groups` is its version of control groups.
pub fn hold(name: &str, node: &Value, [plugin, proxy]: [&str; 2], groups: &str) {
    let _guard = PAGE.lock();
    let info = |key: &str| node["status"]["nodeInfo"][key].as_str().unwrap().to_owned();
    let runtime = info("containerRuntimeVersion").replace("://", " ");
    let cells = [
        name.to_owned(),
        plugin.to_owned(),
        proxy.to_owned(),
        info("kubeletVersion"),
        groups.to_owned(),
        info("osImage"),
        info("kernelVersion"),
        runtime,
    ];
    let row = format!("| {} |", cells.join(" | "));
    println!("{row}");
    let page = tools::repository().join("docs/own-nodes.md");
    let text = std::fs::read_to_string(&page).unwrap();
    let there = text
        .lines()
        .find(|line| line.starts_with(&format!("| {name} |")));
    let there = there.unwrap_or_else(|| panic!("docs/own-nodes.md has no row of {name}: {row}"));
    if std::env::var_os("PODID_UPDATE").is_some() {
        std::fs::write(&page, text.replace(there, &row)).unwrap();
        return;
    }
    let fixed = |row: &str| {
        row.split(" | ")
            .take(FIXED)
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    assert_eq!(fixed(there), fixed(&row), "run this with PODID_UPDATE=1");
}
