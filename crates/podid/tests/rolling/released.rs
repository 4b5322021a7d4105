//! Takeover between versions: the node agent of an earlier commit (`tools/released/build`) hands its sockets to this one under load,
//! and takes them back.

use std::path::Path;

use podid_testkit::tools;

use crate::Node;
use crate::world::PODID;

/// What every version logs once its rules are there.
const IN_PLACE: &str = "interception is in place";

/// As in a rolling update to this version. The way back is not promised to be unnoticed: the earlier version does not know the listener
/// to which this one's connections come.
#[test]
fn no_request_fails_while_this_version_follows_an_earlier_one() {
    let released = tools::released().unwrap();
    for interception in ["nftables", "iptables"] {
        let mut node = Node::build(interception);
        follow(&mut node, &released);
        // Its rules replace this version's a moment after it serves.
        node.until("its rules are in place", &node.running, IN_PLACE);
        let load = node.load();
        node.serves(&load);
        follow(&mut node, Path::new(PODID));
        node.serves(&load);
        let failures = load.failures();
        assert!(failures.is_empty(), "{interception}: {failures:#?}");
    }
}

/// Has a node agent of this program take over from the one that runs, and that one end.
fn follow(node: &mut Node, next: &Path) {
    let old = node.start_program(next);
    node.until("the old one stands by", &old, "standing by");
    let program = std::fs::read_link(format!("/proc/{}/exe", node.running.pid()));
    assert_eq!(program.unwrap(), next);
    node.terminate(&old);
}
