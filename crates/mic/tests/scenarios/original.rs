//! The scenarios of AAD Pod Identity's end-to-end tests that concern the controller, by their numbers. Other tests have those of the
//! node agent (6, 20 to 23, 26) and of an installation (S0, 28); the rules in the CustomResourceDefinitions replace the admission
//! controller of 27.

use serde_json::json;

use crate::world::{World, config, names, until};

/// One identity, one binding, one pod, Assigned.
async fn single() -> (World, String, crate::world::Running) {
    let world = World::new().await;
    let set = world.set("pool").await;
    world.bound("one").await;
    let mic = world.start(config("mic-0")).await;
    world.pod("default", "web", "pool-0", "one").await;
    until!("assigned", world.assigned().await == 1);
    (world, set, mic)
}

#[tokio::test(start_paused = true)]
async fn scenario_01_a_pod_gets_its_identity() {
    let (world, set, mic) = single().await;
    assert_eq!(world.on(&set), names(["one"]));
    let name = ("web-default-one".to_owned(), "Assigned".to_owned());
    assert_eq!(world.assignments().await, [name]);
    mic.stop().await;
    world.end().await;
}

#[tokio::test(start_paused = true)]
async fn scenario_02_its_pod_is_deleted() {
    let (world, set, mic) = single().await;
    world.delete("Pod", "default", "web").await;
    until!("gone", world.assignments().await.is_empty());
    until!("detached", world.on(&set).is_empty());
    mic.stop().await;
    world.end().await;
}

#[tokio::test(start_paused = true)]
async fn scenario_03_the_azureidentity_is_deleted() {
    let (world, set, mic) = single().await;
    world.delete("AzureIdentity", "default", "one").await;
    until!("gone", world.assignments().await.is_empty());
    until!("detached", world.on(&set).is_empty());
    mic.stop().await;
    world.end().await;
}

#[tokio::test(start_paused = true)]
async fn scenario_04_the_binding_is_deleted() {
    let (world, set, mic) = single().await;
    world.delete("AzureIdentityBinding", "default", "one").await;
    until!("gone", world.assignments().await.is_empty());
    until!("detached", world.on(&set).is_empty());
    mic.stop().await;
    world.end().await;
}

#[tokio::test(start_paused = true)]
async fn scenario_05_the_azureidentity_is_edited_in_place() {
    let (world, set, mic) = single().await;
    let other = world.azure.create_identity(crate::world::APPS, "other");
    let spec = json!({ "resourceID": other.id, "clientID": other.client_id });
    world
        .patch("AzureIdentity", "default", "one", json!({ "spec": spec }))
        .await;
    until!("the new one", world.on(&set) == names(["other"]));
    until!("assigned", world.assigned().await == 1);
    let object = &world.all("AzureAssignedIdentity").await[0];
    assert_eq!(
        object["spec"]["azureIdentityRef"]["spec"]["clientID"],
        json!(other.client_id)
    );
    mic.stop().await;
    world.end().await;
}

#[tokio::test(start_paused = true)]
async fn scenario_07_a_service_principal_needs_nothing_in_azure() {
    let world = World::new().await;
    let set = world.set("pool").await;
    world
        .create(json!({
            "apiVersion": "aadpodidentity.k8s.io/v1", "kind": "AzureIdentity",
            "metadata": { "namespace": "default", "name": "principal" },
            "spec": {
                "type": 1, "tenantID": "t", "clientID": "6f1c0000-0000-0000-0000-0000000022ab",
                "clientPassword": { "name": "secret", "namespace": "default" },
            },
        }))
        .await;
    world
        .binding("default", "principal", "principal", "principal")
        .await;
    let mic = world.start(config("mic-0")).await;
    world.pod("default", "web", "pool-0", "principal").await;
    until!("assigned", world.assigned().await == 1);
    assert!(world.on(&set).is_empty());
    assert_eq!(world.patches(&set), 0);
    mic.stop().await;
    world.end().await;
}

#[tokio::test(start_paused = true)]
async fn scenario_08_another_node_of_the_set_uses_the_identity() {
    let (world, set, mic) = single().await;
    let second = podid_sim::azure::Control::provider_id(&set, 1);
    world.node("pool-1", &second).await;
    world.pod("default", "web-2", "pool-1", "one").await;
    until!("both", world.assigned().await == 2);
    world.delete("Pod", "default", "web-2").await;
    until!("one left", world.assignments().await.len() == 1);
    world.wait(600).await;
    assert_eq!(world.on(&set), names(["one"]));
    assert_eq!(world.patches(&set), 1);
    mic.stop().await;
    world.end().await;
}

#[tokio::test(start_paused = true)]
async fn scenario_09_detached_behind_its_back_nothing_gets_stuck() {
    let (world, set, mic) = single().await;
    for id in world.azure.attached(&set) {
        world.azure.detach(&set, &id);
    }
    world.delete("Pod", "default", "web").await;
    until!("gone", world.assignments().await.is_empty());
    mic.stop().await;
    world.end().await;
}

#[tokio::test(start_paused = true)]
async fn scenario_10_the_system_assigned_identity_is_preserved() {
    let world = World::new().await;
    let (set, machine) = (world.set("pool").await, world.machine("vm").await);
    let before = [&set, &machine].map(|host| world.azure.enable_system(host));
    world.bound("one").await;
    let mic = world.start(config("mic-0")).await;
    world.pod("default", "a", "pool-0", "one").await;
    world.pod("default", "b", "vm", "one").await;
    until!("assigned", world.assigned().await == 2);
    let system = || [&set, &machine].map(|host| world.azure.system(host));
    assert_eq!(system(), before);
    world.delete("Pod", "default", "a").await;
    world.delete("Pod", "default", "b").await;
    until!(
        "detached",
        world.on(&set).is_empty() && world.on(&machine).is_empty()
    );
    assert_eq!(system(), before);
    mic.stop().await;
    world.end().await;
}

#[tokio::test(start_paused = true)]
async fn scenario_11_an_identity_of_somebody_else_is_preserved() {
    let world = World::new().await;
    let set = world.set("pool").await;
    let foreign = world.azure.create_identity(crate::world::NODES, "foreign");
    world.azure.attach(&set, &foreign);
    world.bound("one").await;
    let mic = world.start(config("mic-0")).await;
    world.pod("default", "web", "pool-0", "one").await;
    until!("assigned", world.assigned().await == 1);
    assert_eq!(world.on(&set), names(["foreign", "one"]));
    world.delete("Pod", "default", "web").await;
    until!("detached", world.on(&set) == names(["foreign"]));
    mic.stop().await;
    world.end().await;
}

#[tokio::test(start_paused = true)]
async fn scenario_12_an_immutable_identity_stays() {
    let world = World::new().await;
    let set = world.set("pool").await;
    let identity = world.bound("one").await;
    let mut config = config("mic-0");
    let listed = identity.client_id.to_uppercase();
    config
        .immutable
        .client_ids
        .extend(podid_policy::ids::ClientId::parse(&listed));
    let mic = world.start(config).await;
    world.pod("default", "web", "pool-0", "one").await;
    until!("assigned", world.assigned().await == 1);
    world.delete("Pod", "default", "web").await;
    until!("gone", world.assignments().await.is_empty());
    world.wait(600).await;
    assert_eq!(world.on(&set), names(["one"]));
    mic.stop().await;
    world.end().await;
}

#[tokio::test(start_paused = true)]
async fn scenario_13_what_was_detached_behind_its_back_is_attached_again() {
    let (world, set, mic) = single().await;
    for id in world.azure.attached(&set) {
        world.azure.detach(&set, &id);
    }
    let detached = world.now();
    until!("again", world.on(&set) == names(["one"]));
    assert!(
        detached.elapsed().as_secs() < 300,
        "{:?}",
        detached.elapsed()
    );
    until!("assigned", world.assigned().await == 1);
    mic.stop().await;
    world.end().await;
}

#[tokio::test(start_paused = true)]
async fn scenario_14_the_clusters_own_identity_stays() {
    let world = World::new().await;
    let set = world.set("pool").await;
    // AKS has attached it long before podid, and somebody binds pods to it.
    let kubelet = world
        .azure
        .create_identity(crate::world::NODES, "cluster-agentpool");
    world.azure.attach(&set, &kubelet);
    world.identity("default", "kubelet", &kubelet).await;
    world
        .binding("default", "kubelet", "kubelet", "kubelet")
        .await;
    let mic = world.start(config("mic-0")).await;
    world.pod("default", "web", "pool-0", "kubelet").await;
    until!("assigned", world.assigned().await == 1);
    world.delete("Pod", "default", "web").await;
    until!("gone", world.assignments().await.is_empty());
    world.wait(600).await;
    assert_eq!(world.on(&set), names(["cluster-agentpool"]));
    assert_eq!(world.patches(&set), 0);
    mic.stop().await;
    world.end().await;
}

#[tokio::test(start_paused = true)]
async fn scenario_15_five_come_and_go_one_by_one() {
    let world = World::new().await;
    let set = world.set("pool").await;
    let all = ["one", "two", "three", "four", "five"];
    for name in all {
        world.bound(name).await;
    }
    let mic = world.start(config("mic-0")).await;
    for (count, name) in (1..).zip(all) {
        world.pod("default", name, "pool-0", name).await;
        until!("one more", world.assigned().await == count);
    }
    assert_eq!(world.on(&set), names(all));
    for (left, name) in [
        (4, "three"),
        (3, "one"),
        (2, "five"),
        (1, "two"),
        (0, "four"),
    ] {
        world.delete("Pod", "default", name).await;
        until!(
            "one less",
            world.assignments().await.len() == left && !world.on(&set).contains(name)
        );
        assert_eq!(world.assigned().await, left);
        assert_eq!(world.on(&set).len(), left);
    }
    mic.stop().await;
    world.end().await;
}

#[tokio::test(start_paused = true)]
async fn scenario_16_forty_pods_of_five_identities_cost_two_patches() {
    let world = World::new().await;
    let set = world.set("pool").await;
    let all = ["one", "two", "three", "four", "five"];
    for name in all {
        world.bound(name).await;
    }
    let mic = world.start(config("mic-0")).await;
    for pod in 0..40 {
        world
            .pod("default", &format!("p{pod}"), "pool-0", all[pod % 5])
            .await;
    }
    let created = world.now();
    until!("all", world.assigned().await == 40);
    assert!(created.elapsed().as_secs() < 150, "{:?}", created.elapsed());
    assert_eq!(world.on(&set), names(all));
    assert!(world.patches(&set) <= 2, "{}", world.patches(&set));
    for pod in 0..40 {
        world.delete("Pod", "default", &format!("p{pod}")).await;
    }
    until!("none", world.assignments().await.is_empty());
    assert!(world.on(&set).is_empty());
    assert!(world.patches(&set) <= 4, "{}", world.patches(&set));
    mic.stop().await;
    world.end().await;
}

#[tokio::test(start_paused = true)]
async fn scenario_17_a_pods_label_is_changed() {
    let (world, set, mic) = single().await;
    world.bound("two").await;
    let labels = json!({ "metadata": { "labels": { "aadpodidbinding": "two" } } });
    world.patch("Pod", "default", "web", labels).await;
    until!("the other", world.on(&set) == names(["two"]));
    let name = ("web-default-two".to_owned(), "Assigned".to_owned());
    until!("alone", world.assignments().await == [name.clone()]);
    mic.stop().await;
    world.end().await;
}

#[tokio::test(start_paused = true)]
async fn scenario_18_invalid_ones_in_a_batch_hold_nothing_up() {
    let world = World::new().await;
    let set = world.set("pool").await;
    for name in ["real", "fake-1", "fake-2"] {
        let identity = world.bound(name).await;
        if name != "real" {
            world.azure.delete_identity(&identity.id);
        }
    }
    let mic = world.start(config("mic-0")).await;
    for name in ["real", "fake-1", "fake-2"] {
        world.pod("default", name, "pool-0", name).await;
    }
    until!("the real one", world.assigned().await == 1);
    assert_eq!(world.on(&set), names(["real"]));
    world.wait(120).await;
    let states = world.assignments().await;
    let states: Vec<&str> = states.iter().map(|(_, state)| state.as_str()).collect();
    assert_eq!(states, ["Created", "Created", "Assigned"]);
    mic.stop().await;
    world.end().await;
}

#[tokio::test(start_paused = true)]
async fn scenario_19_later_invalid_ones_disturb_nothing() {
    let (world, set, mic) = single().await;
    for name in ["fake-1", "fake-2"] {
        let identity = world.bound(name).await;
        world.azure.delete_identity(&identity.id);
        world.pod("default", name, "pool-0", name).await;
    }
    until!("seen", world.assignments().await.len() == 3);
    world.wait(120).await;
    assert_eq!(world.assigned().await, 1);
    assert_eq!(world.on(&set), names(["one"]));
    mic.stop().await;
    world.end().await;
}

#[tokio::test(start_paused = true)]
async fn scenario_24_the_leader_is_killed_while_a_pod_comes() {
    let world = World::new().await;
    let set = world.set("pool").await;
    let first = world.start(config("mic-0")).await;
    let second = world.start(config("mic-1")).await;
    let holder = async || {
        let leases = world.all("Lease").await;
        let lease = leases.first()?;
        lease["spec"]["holderIdentity"].as_str().map(str::to_owned)
    };
    until!("a leader", holder().await.is_some());
    let (leader, other) = match holder().await.as_deref() {
        Some("mic-0") => (first, second),
        _ => (second, first),
    };
    world.bound("one").await;
    let (killed, ()) = tokio::join!(leader.kill(), world.pod("default", "web", "pool-0", "one"));
    let () = killed;
    until!("assigned", world.assigned().await == 1);
    assert_eq!(world.on(&set), names(["one"]));
    assert!(!other.has_ended());
    other.stop().await;
    world.end().await;
}

#[tokio::test(start_paused = true)]
async fn scenario_25_the_same_names_in_two_namespaces() {
    let world = World::new().await;
    let set = world.set("pool").await;
    let mic = world.start(config("mic-0")).await;
    for namespace in ["ns1", "ns2"] {
        world.namespace(namespace).await;
        let identity = world.azure.create_identity(crate::world::APPS, namespace);
        world.identity(namespace, "same", &identity).await;
        world.binding(namespace, "same", "same", "same").await;
        world.pod(namespace, "web", "pool-0", "same").await;
    }
    until!("both", world.assigned().await == 2);
    assert_eq!(world.on(&set), names(["ns1", "ns2"]));
    for object in world.all("AzureAssignedIdentity").await {
        let spec = &object["spec"];
        let namespace = &spec["podNamespace"];
        assert_eq!(
            &spec["azureIdentityRef"]["metadata"]["namespace"],
            namespace
        );
        assert_eq!(&spec["azureBindingRef"]["metadata"]["namespace"], namespace);
        assert_eq!(&object["metadata"]["namespace"], namespace);
    }
    world.delete("Pod", "ns1", "web").await;
    until!("the other stays", world.on(&set) == names(["ns2"]));
    mic.stop().await;
    world.end().await;
}

#[tokio::test(start_paused = true)]
async fn scenario_29_the_node_is_drained() {
    let (world, set, mic) = single().await;
    let other = world.set("other").await;
    world.delete("Pod", "default", "web").await;
    world.pod("default", "web-again", "other-0", "one").await;
    until!("on the other", world.on(&other) == names(["one"]));
    let name = ("web-again-default-one".to_owned(), "Assigned".to_owned());
    until!("alone", world.assignments().await == [name.clone()]);
    until!("off the first", world.on(&set).is_empty());
    mic.stop().await;
    world.end().await;
}
