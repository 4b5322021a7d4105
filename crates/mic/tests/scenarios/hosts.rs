//! Virtual machines, scale sets, nodes and pods that come and go.

use serde_json::json;

use crate::world::{APPS, World, config, names, until};

#[tokio::test(start_paused = true)]
async fn every_kind_of_host_gets_what_its_pods_need_and_no_other() {
    let world = World::new().await;
    // An instance of a flexible scale set is a virtual machine; its node may have any name.
    let (set, machine) = (world.set("pool").await, world.machine("vm").await);
    let flexible = world.azure.create_host(
        podid_sim::azure::HostKind::VirtualMachine,
        crate::world::NODES,
        "flex_7f3a",
    );
    world
        .node("aks-flex-000001", &format!("azure://{flexible}"))
        .await;
    for name in ["one", "two", "three"] {
        world.bound(name).await;
    }
    let mic = world.start(config("mic-0")).await;
    for (node, name) in [
        ("pool-0", "one"),
        ("vm", "two"),
        ("aks-flex-000001", "three"),
    ] {
        world.pod("default", name, node, name).await;
    }
    until!("all", world.assigned().await == 3);
    assert_eq!(world.on(&set), names(["one"]));
    assert_eq!(world.on(&machine), names(["two"]));
    assert_eq!(world.on(&flexible), names(["three"]));
    mic.stop().await;
    world.end().await;
}

#[tokio::test(start_paused = true)]
async fn more_than_azure_takes_in_one_patch() {
    let world = World::new().await;
    let set = world.set("pool").await;
    for n in 0..160 {
        let name = format!("id-{n}");
        world.bound(&name).await;
        world.pod("default", &name, "pool-0", &name).await;
    }
    let mic = world.start(config("mic-0")).await;
    until!("all", world.assigned().await == 160);
    assert_eq!(world.on(&set).len(), 160);
    assert_eq!(world.patches(&set), 2);
    mic.stop().await;
    world.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_node_that_is_deleted_takes_its_assignments_along() {
    let world = World::new().await;
    let (set, machine) = (world.set("pool").await, world.machine("vm").await);
    world.bound("one").await;
    let mic = world.start(config("mic-0")).await;
    world.pod("default", "a", "pool-0", "one").await;
    world.pod("default", "b", "vm", "one").await;
    until!("both", world.assigned().await == 2);
    // The virtual machine is deleted in Azure, too; then its pod is garbage collected.
    world.azure.delete_host(&machine);
    world.delete("Node", "", "vm").await;
    world.delete("Pod", "default", "b").await;
    until!("one left", world.assignments().await.len() == 1);
    assert_eq!(world.on(&set), names(["one"]));
    // A pod whose node is not known yet waits for it.
    world.pod("default", "c", "late", "one").await;
    until!("seen", world.assignments().await.len() == 2);
    assert_eq!(world.assigned().await, 1);
    world.machine("late").await;
    until!("assigned", world.assigned().await == 2);
    mic.stop().await;
    world.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_statefulset_pod_moves_to_another_node() {
    let world = World::new().await;
    let (one, two) = (world.set("one").await, world.set("two").await);
    world.bound("id").await;
    let mic = world.start(config("mic-0")).await;
    world.pod("default", "db-0", "one-0", "id").await;
    until!("assigned", world.assigned().await == 1);
    world.delete("Pod", "default", "db-0").await;
    world.pod("default", "db-0", "two-0", "id").await;
    until!(
        "there",
        world.on(&two) == names(["id"]) && world.on(&one).is_empty()
    );
    until!("assigned", world.assigned().await == 1);
    let object = &world.all("AzureAssignedIdentity").await[0];
    assert_eq!(object["spec"]["nodename"], "two-0");
    assert_eq!(object["metadata"]["labels"]["nodename"], "two-0");
    mic.stop().await;
    world.end().await;
}

#[tokio::test(start_paused = true)]
async fn completed_pods_release_their_identity() {
    let world = World::new().await;
    let set = world.set("pool").await;
    world.bound("one").await;
    let mic = world.start(config("mic-0")).await;
    for (pod, phase) in [("done", "Succeeded"), ("crashed", "Failed")] {
        world.pod("default", pod, "pool-0", "one").await;
        until!("assigned", world.assigned().await == 1);
        world
            .report("default", pod, json!({ "phase": phase }))
            .await;
        until!("released", world.assignments().await.is_empty());
        until!("detached", world.on(&set).is_empty());
    }
    mic.stop().await;
    world.end().await;
}

#[tokio::test(start_paused = true)]
async fn pods_that_come_and_go_do_not_reach_azure() {
    let world = World::new().await;
    let set = world.set("pool").await;
    world.bound("one").await;
    let mic = world.start(config("mic-0")).await;
    for round in 0..10 {
        let name = format!("job-{round}");
        world.pod("default", &name, "pool-0", "one").await;
        until!("assigned", world.assigned().await >= 1);
        world.delete("Pod", "default", &name).await;
        world.wait(5).await;
    }
    assert_eq!(world.patches(&set), 1, "it lingers");
    until!("then it goes", world.on(&set).is_empty());
    assert_eq!(world.patches(&set), 2);
    mic.stop().await;
    world.end().await;
}

#[tokio::test(start_paused = true)]
async fn an_identity_that_was_made_anew_is_attached_anew() {
    let world = World::new().await;
    let set = world.set("pool").await;
    let old = world.bound("one").await;
    let mic = world.start(config("mic-0")).await;
    world.pod("default", "web", "pool-0", "one").await;
    until!("assigned", world.assigned().await == 1);
    world.azure.delete_identity(&old.id);
    let new = world.azure.create_identity(APPS, "one");
    assert!(new.client_id != old.client_id && new.id == old.id);
    let spec = json!({ "spec": { "clientID": new.client_id } });
    world.patch("AzureIdentity", "default", "one", spec).await;
    until!(
        "the dead one is taken off, and the new one attached",
        world.patches(&set) == 3
    );
    until!(
        "assigned",
        world.assigned().await == 1 && world.on(&set) == names(["one"])
    );
    let ready = async || {
        let identity = &world.all("AzureIdentity").await[0];
        identity["status"]["conditions"][0]["status"].clone()
    };
    until!("told", ready().await == "True");
    world.wait(3600).await;
    assert_eq!(world.patches(&set), 3, "and no more than once");
    mic.stop().await;
    world.end().await;
}

#[tokio::test(start_paused = true)]
async fn an_identity_that_is_no_more_is_told() {
    let world = World::new().await;
    let set = world.set("pool").await;
    let old = world.bound("one").await;
    let mic = world.start(config("mic-0")).await;
    world.pod("default", "web", "pool-0", "one").await;
    until!("assigned", world.assigned().await == 1);
    world.azure.delete_identity(&old.id);
    let spec = json!({ "spec": { "clientID": "6f1c0000-0000-0000-0000-0000000022ab" } });
    world.patch("AzureIdentity", "default", "one", spec).await;
    let reason = async || {
        let identity = &world.all("AzureIdentity").await[0];
        identity["status"]["conditions"][0]["reason"].clone()
    };
    until!("told", reason().await == "IdentityNotFound");
    assert_eq!(world.patches(&set), 1);
    mic.stop().await;
    world.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_system_assigned_identity_that_came_since_the_last_look_is_preserved() {
    let world = World::new().await;
    let set = world.set("pool").await;
    world.bound("one").await;
    world.bound("two").await;
    let mic = world.start(config("mic-0")).await;
    world.pod("default", "a", "pool-0", "one").await;
    until!("assigned", world.assigned().await == 1);
    let system = world.azure.enable_system(&set);
    assert!(system.is_some());
    world.pod("default", "b", "pool-0", "two").await;
    until!("assigned", world.assigned().await == 2);
    assert_eq!(world.azure.system(&set), system);
    world.delete("Pod", "default", "a").await;
    until!("detached", world.on(&set) == names(["two"]));
    assert_eq!(world.azure.system(&set), system);
    mic.stop().await;
    world.end().await;
}

#[tokio::test(start_paused = true)]
async fn what_somebody_else_attached_since_the_last_look_is_theirs() {
    let world = World::new().await;
    let set = world.set("pool").await;
    world.bound("one").await;
    let theirs = world.bound("theirs").await;
    let mic = world.start(config("mic-0")).await;
    world.pod("default", "a", "pool-0", "one").await;
    until!("assigned", world.assigned().await == 1);
    for (pod, wait) in [("soon", 1), ("late", 100)] {
        world.wait(wait).await;
        world.azure.attach(&set, &theirs);
        world.pod("default", pod, "pool-0", "theirs").await;
        until!("assigned", world.assigned().await == 2);
        world.delete("Pod", "default", pod).await;
        until!("released", world.assignments().await.len() == 1);
        world.wait(300).await;
        assert_eq!(world.on(&set), names(["one", "theirs"]));
        world.azure.detach(&set, &theirs.id);
    }
    mic.stop().await;
    world.end().await;
}
