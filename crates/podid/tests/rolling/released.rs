//! Takeover between versions: the node agent of an earlier commit (`tools/released/build`) and this one hand each other their
//! sockets, in both directions, under load.

use std::path::Path;

use podid_testkit::tools;

use crate::Node;
use crate::world::PODID;

/// As in a rolling update to this version, back to the earlier one, and forth again.
#[test]
fn no_request_fails_while_an_earlier_version_and_this_one_follow_each_other() {
    let released = tools::released().unwrap();
    for interception in ["nftables", "iptables"] {
        let mut node = Node::build(interception);
        let load = node.load();
        for next in [&*released, Path::new(PODID), &*released, Path::new(PODID)] {
            let old = node.start_program(next);
            node.until("the old one stands by", &old, "standing by");
            let program = std::fs::read_link(format!("/proc/{}/exe", node.running.pid()));
            assert_eq!(program.unwrap(), next);
            node.serves(&load);
            node.terminate(&old);
            node.serves(&load);
        }
        let failures = load.failures();
        assert!(failures.is_empty(), "{interception}: {failures:#?}");
    }
}
