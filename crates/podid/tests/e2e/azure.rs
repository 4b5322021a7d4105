//! What else is on the node's scale set, and what others do to it.

use serde_json::json;

use crate::world::{GROUP, Scene};

#[test]
fn scenario_08_identity_in_use_on_another_node() {
    let scene = Scene::new("s08");
    let identity = scene.bound("one");
    scene.pod("web", "one");
    scene.object("far", "node-2", json!({ "aadpodidbinding": "one" }));
    scene.until_assigned(2);
    scene.delete("pod", "far");
    scene
        .world
        .until("one left", || scene.assignments().len() == 1);
    assert!(
        scene
            .world
            .on(&scene.world.set)
            .contains(&"s08-one".to_owned())
    );
    scene.validate("web", &identity);
}

#[test]
fn scenario_09_unassigned_behind_its_back() {
    let scene = Scene::new("s09");
    let identity = scene.bound("one");
    scene.pod("web", "one");
    scene.until_assigned(1);
    scene.world.azure.detach(&scene.world.set, &identity.id);
    scene.delete("pod", "web");
    scene.until_gone();
}

#[test]
fn scenario_10_system_assigned_is_preserved() {
    let scene = Scene::new("s10");
    let system = scene.world.azure.enable_system(&scene.world.set);
    let identity = scene.bound("one");
    scene.pod("web", "one");
    scene.until_assigned(1);
    scene.validate("web", &identity);
    assert_eq!(scene.world.azure.system(&scene.world.set), system);
    scene.delete("pod", "web");
    scene.until_gone();
    assert_eq!(scene.world.azure.system(&scene.world.set), system);
}

#[test]
fn scenario_11_a_foreign_identity_is_preserved() {
    let scene = Scene::new("s11");
    let foreign = scene.world.azure.create_identity(GROUP, "s11-foreign");
    scene.world.azure.attach(&scene.world.other, &foreign);
    scene.bound("one");
    scene.object("web", "node-3", json!({ "aadpodidbinding": "one" }));
    scene.until_assigned(1);
    let on = || scene.world.on(&scene.world.other);
    assert!(on().contains(&"s11-foreign".to_owned()) && on().contains(&"s11-one".to_owned()));
    scene.delete("pod", "web");
    scene.until_gone();
    assert!(on().contains(&"s11-foreign".to_owned()) && !on().contains(&"s11-one".to_owned()));
}

#[test]
fn scenario_12_an_immutable_identity_stays() {
    let scene = Scene::new("s12");
    let identity = scene.world.immutable.clone();
    scene.identity("one", &identity);
    scene.binding("one", "one", "one");
    scene.object("web", "node-3", json!({ "aadpodidbinding": "one" }));
    scene.until_assigned(1);
    scene.delete("pod", "web");
    scene.until_gone();
    // It would have gone with the next change of the set.
    scene.bound("next");
    scene.object("next", "node-3", json!({ "aadpodidbinding": "next" }));
    scene.until_assigned(1);
    scene.delete("pod", "next");
    scene.until_gone();
    assert!(
        scene
            .world
            .on(&scene.world.other)
            .contains(&"immutable".to_owned())
    );
}

#[test]
fn scenario_13_what_was_unassigned_is_assigned_again() {
    let scene = Scene::new("s13");
    let identity = scene.bound("one");
    scene.pod("web", "one");
    scene.until_assigned(1);
    scene.validate("web", &identity);
    scene.world.azure.detach(&scene.world.set, &identity.id);
    let there = || {
        scene
            .world
            .on(&scene.world.set)
            .contains(&"s13-one".to_owned())
    };
    scene.world.until("again", there);
    scene.until_assigned(1);
    scene.validate("web", &identity);
}

#[test]
fn scenario_14_the_clusters_identity_stays() {
    let scene = Scene::new("s14");
    let kubelet = scene.world.azure.create_identity(GROUP, "s14-agentpool");
    scene.world.azure.attach(&scene.world.other, &kubelet);
    scene.identity("one", &kubelet);
    scene.binding("one", "one", "one");
    scene.object("web", "node-3", json!({ "aadpodidbinding": "one" }));
    scene.until_assigned(1);
    scene.delete("pod", "web");
    scene.until_gone();
    scene.bound("next");
    scene.object("next", "node-3", json!({ "aadpodidbinding": "next" }));
    scene.until_assigned(1);
    assert!(
        scene
            .world
            .on(&scene.world.other)
            .contains(&"s14-agentpool".to_owned())
    );
}
