//! Uninstalling by the commands of docs/installation.md, while pods ask: nothing is left on nodes, in Azure and in namespaces.

use std::time::Instant;

use crate::load::Load;
use crate::migration::assignments;
use crate::namespace::{Namespace, bound, pod};
use crate::shell::{Shell, commands};
use crate::traces::Traces;
use crate::world::{NODES, figure, world_without_podid};

#[test]
fn removing_podid_leaves_nothing_and_namespaces_terminate() {
    let world = world_without_podid();
    let shell = Shell::new(&world);
    // They stay, and with them everybody's objects.
    shell.run("podid crds --apply");
    let before = Traces::of(&world);
    world.install(&world.usual());
    let load = Load::start(&world);
    let removed = Namespace::new(&world, "removed");
    removed.start(&[bound(pod("app", "n1"))]);
    world.until("the pod is served", || removed.is_own(&removed.ask("app")));
    let id = removed.identity.id.to_lowercase();
    let attached = || world.azure.control.attached(&world.azure.scale_set);
    assert!(attached().contains(&id) && !assignments(&world).is_empty());

    let blocks = commands("installation.md");
    let removing = blocks
        .iter()
        .find(|block| block.contains("helm uninstall podid"))
        .unwrap();
    let started = Instant::now();
    shell.run(removing);
    figure(
        "podid is withdrawn from two nodes and uninstalled",
        started.elapsed(),
    );
    before.are_all_there_is(&world);
    assert_eq!(assignments(&world), []);
    assert!(
        !attached().contains(&id),
        "mic detaches what it has attached"
    );
    // The node's own metadata service answers from now on.
    load.goes_on();
    for node in NODES {
        // The kernel loses a new connection from a port that podid has just closed one of (docs/interception.md).
        let mut failures = load.failures(node);
        failures.retain(|answer| answer.client == "kept");
        assert!(failures.is_empty(), "{failures:#?}");
    }
    let left = removed.get(&["azureidentities,azureidentitybindings"]);
    assert_eq!(left["items"].as_array().unwrap().len(), 2, "{left}");
    world.kubectl_within(&["delete", "namespace", "load", "removed", "podid"]);
}
