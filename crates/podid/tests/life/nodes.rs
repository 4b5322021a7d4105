//! What happens to nodes.

use podid_sim::azure::HostKind;
use serde_json::json;

use crate::served::Served;
use crate::world::{GROUP, Scene, Settings};

fn bound() -> serde_json::Value {
    json!({ "aadpodidbinding": "one" })
}

/// A pod needs another identity on another node, has it, and goes; the identity is detached. By then everything that was due
/// before has happened.
fn a_while_later(scene: &Scene, round: usize) {
    let (world, name) = (&scene.world, format!("later-{round}"));
    scene.bound(&name);
    scene.object(&name, "node-3", json!({ "aadpodidbinding": name }));
    let attached = format!("{}-{name}", scene.namespace);
    world.until("attached", || world.on(&world.other).contains(&attached));
    scene.delete("pod", &name);
    world.until("detached", || !world.on(&world.other).contains(&attached));
}

#[test]
fn nodes_come_are_drained_renamed_and_go() {
    let served = Served::new("nod", Settings::default());
    let (scene, world) = (&served.scene, &served.scene.world);
    let needed = "nod-one".to_owned();

    // A node is added, of which the controller hears after the first pod on it.
    let pool = world.azure.create_host(HostKind::ScaleSet, GROUP, "pool3");
    scene.object("early", "node-4", bound());
    world.node("node-4", &pool, 0);
    scene.until_assigned(2);
    assert_eq!(world.on(&pool), [&*needed]);

    // It is drained: the pod goes and is somewhere else afterwards.
    world.says("drain node-4 --force --grace-period=0 --timeout=60s");
    scene.object("moved", "node-2", bound());
    world.until("detached from the drained node", || {
        world.on(&pool).is_empty()
    });
    scene.until_assigned(2);

    // A node is renamed: it goes, and is back by another name with the same machine; its pods are replaced.
    world.says("delete node node-2");
    world.node("node-2-again", &world.set, 1);
    scene.object("again", "node-2-again", bound());
    scene.delete("pod", "moved");
    scene.until_assigned(2);
    let left = scene.assignments();
    assert!(
        left.iter().any(|(name, _)| name == "again-nod-one"),
        "{left:?}"
    );

    // A node keeps its name and is another machine.
    world.says("delete node node-4");
    scene.object("anew", "node-4", bound());
    let replaced = world.azure.create_host(HostKind::ScaleSet, GROUP, "pool4");
    world.node("node-4", &replaced, 0);
    world.until("attached to the new one", || {
        world.on(&replaced).contains(&needed)
    });
    scene.until_assigned(3);
    served.goes_on();
    served.nothing_failed();
}

#[test]
fn a_node_is_deleted_before_its_pods_and_before_its_machine() {
    let served = Served::new("del", Settings::default());
    let (scene, world) = (&served.scene, &served.scene.world);
    let machine = world
        .azure
        .create_host(HostKind::VirtualMachine, GROUP, "vm1");
    world.apply(&json!({
        "apiVersion": "v1", "kind": "Node", "metadata": { "name": "vm-1" },
        "spec": { "providerID": format!("azure://{machine}") },
    }));
    scene.object("app", "vm-1", bound());
    scene.until_assigned(2);

    // By mistake, say: the pod runs on, and has what it needs.
    world.says("delete node vm-1");
    a_while_later(scene, 1);
    assert_eq!(world.on(&machine), ["del-one"]);
    scene.until_assigned(2);

    // The machine goes too, and then the pod: nothing is left of either.
    world.azure.delete_host(&machine);
    scene.delete("pod", "app");
    scene.until_assigned(1);
    world.until("no AzureAssignedIdentity of it", || {
        scene.assignments().len() == 1
    });
    a_while_later(scene, 2);
    served.goes_on();
    served.nothing_failed();
}
