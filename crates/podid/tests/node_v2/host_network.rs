//! Pods on the host's network: they are told apart from the node's own processes by eBPF, and nmi is ready
//! only when a connection of its own was caught.

use serde_json::json;

use crate::machine::{NODE, emulated};
use crate::namespace::{Namespace, bound, pod, reaches_node};

#[test]
fn pods_on_the_hosts_network_are_intercepted_and_the_node_is_not() {
    let emulated = emulated();
    let world = &emulated.world;
    let host = Namespace::new(world, "host");
    let mut on_host = bound(pod("host", NODE));
    on_host["spec"]["hostNetwork"] = json!(true);
    host.start(&[on_host]);
    assert!(reaches_node(&host, "host"), "it is off");

    let mut values = emulated.usual();
    values.push("nmi.interceptHostNetwork=pods".to_owned());
    values.push("nmi.ipTableUpdateTimeIntervalInSeconds=5".to_owned());
    world.install(&values);
    emulated.await_podid();
    let (status, body) = host.ask("host");
    assert_eq!(status, 400, "{body}\n{}", world.explain());
    assert!(!reaches_node(&host, "host"));
    assert!(emulated.ask_from_the_node().contains("subscriptionId"));

    // The rules of the host's network no longer match: nmi notices, and repairs them.
    let pinned = emulated.machine.run("ls /sys/fs/bpf/podid").unwrap();
    assert_eq!(pinned.lines().count(), 2, "{pinned}");
    emulated.machine.run("rm /sys/fs/bpf/podid/*").unwrap();
    emulated.until("the programs are back", || {
        host.ask("host").0 == 400 && !reaches_node(&host, "host")
    });
    assert_eq!(
        emulated.machine.run("ls /sys/fs/bpf/podid").unwrap(),
        pinned
    );
}
