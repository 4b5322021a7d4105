//! One or a few identities and pods.

use serde_json::json;

use crate::world::{GROUP, Scene};

/// One identity, one binding, one pod that gets its token.
fn single(name: &str) -> (Scene, podid_sim::azure::Identity) {
    let scene = Scene::new(name);
    let identity = scene.bound("one");
    scene.pod("web", "one");
    scene.until_assigned(1);
    scene.validate("web", &identity);
    (scene, identity)
}

#[test]
fn scenario_01_validation() {
    single("s01");
}

#[test]
fn scenario_02_pod_deleted() {
    let (scene, _) = single("s02");
    scene.delete("pod", "web");
    scene.until_gone();
}

#[test]
fn scenario_03_azureidentity_deleted() {
    let (scene, identity) = single("s03");
    scene.world.says("-n s03 delete azureidentity one");
    scene.until_gone();
    scene.validate_none("web", &identity);
}

#[test]
fn scenario_04_binding_deleted() {
    let (scene, identity) = single("s04");
    scene.world.says("-n s04 delete azureidentitybinding one");
    scene.until_gone();
    scene.validate_none("web", &identity);
}

#[test]
fn scenario_05_azureidentity_updated_in_place() {
    let (scene, before) = single("s05");
    let other = scene.world.azure.create_identity(GROUP, "s05-other");
    scene.identity("one", &other);
    scene.validate("web", &other);
    scene.until_assigned(1);
    let old = format!("&client_id={}", before.client_id);
    scene.world.until("the former one is refused", || {
        scene.ask("web", &old).0 == 400
    });
}

#[test]
fn scenario_06_each_name_gets_its_own_and_no_other() {
    let (scene, one) = single("s06");
    let two = scene.world.azure.create_identity(GROUP, "s06-two");
    scene.identity("two", &two);
    scene.binding("two", "two", "one");
    let unbound = scene.world.azure.create_identity(GROUP, "s06-unbound");
    scene.world.azure.attach(&scene.world.set, &unbound);
    scene.until_assigned(2);
    for identity in [&one, &two] {
        let name = format!("&client_id={}", identity.client_id);
        scene.world.until("its own", || {
            scene.whose("web", &name).as_deref() == Some(&identity.client_id)
        });
    }
    // On the node, and not bound to the pod.
    assert_eq!(
        scene
            .ask("web", &format!("&client_id={}", unbound.client_id))
            .0,
        400
    );
}

#[test]
fn scenario_07_service_principal() {
    let scene = Scene::new("s07");
    let (client, _) = scene.world.azure.create_application("s07-secret");
    scene.apply(json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "principal" }, "stringData": { "clientSecret": "s07-secret" },
    }));
    scene.apply(json!({
        "apiVersion": "aadpodidentity.k8s.io/v1", "kind": "AzureIdentity", "metadata": { "name": "one" },
        "spec": {
            "type": 1, "tenantID": scene.world.azure.tenant(), "clientID": client,
            "clientPassword": { "name": "principal", "namespace": "s07" },
        },
    }));
    scene.binding("one", "one", "one");
    scene.pod("web", "one");
    scene.until_assigned(1);
    let name = format!("&client_id={client}");
    scene.world.until("a token", || {
        scene.whose("web", &name).as_deref() == Some(&client)
    });
}

#[test]
fn scenario_15_five_come_and_go() {
    let scene = Scene::new("s15");
    let names = ["a", "b", "c", "d", "e"];
    let identities = names.map(|name| scene.bound(name));
    for (count, name) in (1..).zip(names) {
        scene.pod(name, name);
        scene.until_assigned(count);
    }
    for (left, gone) in [(4, 2), (3, 0), (2, 4), (1, 1)] {
        scene.delete("pod", names[gone]);
        scene
            .world
            .until("one less", || scene.assignments().len() == left);
        let gone = format!("{}-s15-{}", names[gone], names[gone]);
        assert!(scene.assignments().iter().all(|(name, _)| *name != gone));
        scene.validate("d", &identities[3]);
    }
    scene.delete("pod", "d");
    scene.until_gone();
}

#[test]
fn scenario_16_forty_pods_over_five_bindings() {
    let scene = Scene::new("s16");
    let names = ["a", "b", "c", "d", "e"];
    let identities = names.map(|name| scene.bound(name));
    for n in 0..35 {
        let labels = json!({ "aadpodidbinding": names[n % 5] });
        scene.object(&format!("o{n}"), ["node-1", "node-2"][n % 2], labels);
    }
    // Five of them with a network.
    for name in names {
        scene.pod(name, name);
    }
    scene.until_assigned(40);
    for (name, identity) in names.into_iter().zip(&identities) {
        scene.validate(name, identity);
    }
}

#[test]
fn scenario_17_pod_label_changed() {
    let (scene, before) = single("s17");
    let two = scene.bound("two");
    scene
        .world
        .says("-n s17 label pod web aadpodidbinding=two --overwrite");
    scene.validate("web", &two);
    let old = format!("&client_id={}", before.client_id);
    scene.world.until("the former one is refused", || {
        scene.ask("web", &old).0 == 400
    });
    scene.until_assigned(1);
}

#[test]
fn scenario_18_a_batch_with_invalid_identities() {
    let scene = Scene::new("s18");
    let real = scene.bound("real");
    for name in ["fakea", "fakeb"] {
        let fake = scene.bound(name);
        scene.world.azure.delete_identity(&fake.id);
        scene.object(name, "node-1", json!({ "aadpodidbinding": name }));
    }
    scene.pod("web", "real");
    scene.until_assigned(1);
    scene.validate("web", &real);
    let created = scene
        .assignments()
        .iter()
        .filter(|(_, state)| state == "Created")
        .count();
    assert_eq!(created, 2);
}

#[test]
fn scenario_19_later_invalid_ones_break_nothing() {
    let (scene, real) = single("s19");
    for name in ["fakea", "fakeb"] {
        let fake = scene.bound(name);
        scene.world.azure.delete_identity(&fake.id);
        scene.object(name, "node-1", json!({ "aadpodidbinding": name }));
    }
    scene.world.until("told", || {
        scene
            .world
            .says("-n s19 get azureidentity")
            .matches("IdentityNotFound")
            .count()
            == 2
    });
    scene.until_assigned(1);
    scene.validate("web", &real);
}

#[test]
fn scenario_20_an_init_container_gets_a_token() {
    let scene = Scene::new("s20");
    let identity = scene.bound("one");
    // While init containers run the pod is Pending, and has its address.
    scene.labelled("web", json!({ "aadpodidbinding": "one" }), "Pending");
    scene.validate("web", &identity);
}

#[test]
fn scenario_21_an_exception() {
    let scene = Scene::new("s21");
    let foreign = scene.world.azure.create_identity(GROUP, "s21-foreign");
    scene.world.azure.attach(&scene.world.set, &foreign);
    scene.world.azure.enable_system(&scene.world.set);
    scene.apply(json!({
        "apiVersion": "aadpodidentity.k8s.io/v1", "kind": "AzurePodIdentityException", "metadata": { "name": "one" },
        "spec": { "podLabels": { "thispod": "shouldexcept" } },
    }));
    scene.labelled("web", json!({ "thispod": "shouldexcept" }), "Running");
    scene.labelled("not", json!({ "thispod": "other" }), "Running");
    let name = format!("&client_id={}", foreign.client_id);
    scene.world.until("the node's own answer", || {
        scene.whose("web", &name).as_deref() == Some(&foreign.client_id)
    });
    scene
        .world
        .until("system-assigned", || scene.whose("web", "").is_some());
    assert_eq!(scene.ask("not", &name).0, 400);
}

#[test]
fn scenario_25_the_same_names_in_two_namespaces() {
    let scenes = ["s25", "t25"].map(Scene::new);
    for scene in &scenes {
        let identity = scene.bound("same");
        scene.pod("web", "same");
        scene.until_assigned(1);
        scene.validate("web", &identity);
        let line = format!(
            "-n {0} get azureassignedidentity web-{0}-same -o jsonpath={{.spec.azureIdentityRef.metadata.namespace}}/{{.spec.azureBindingRef.metadata.namespace}}",
            scene.namespace
        );
        assert_eq!(scene.world.says(&line), format!("{0}/{0}", scene.namespace));
    }
}

#[test]
fn scenario_26_not_yet_says_when_to_come_back() {
    let scene = Scene::new("s26");
    let fake = scene.bound("one");
    scene.world.azure.delete_identity(&fake.id);
    scene.pod("web", "one");
    scene
        .world
        .until("known", || scene.assignments().len() == 1);
    scene.world.until("500 with Retry-After", || {
        let (status, head, body) = scene.ask("web", "");
        status == 500 && head.contains("\r\nretry-after: ") && body["error_description"].is_string()
    });
    let again = scene.world.azure.create_identity(GROUP, "s26-one");
    scene.identity("one", &again);
    scene.validate("web", &again);
}

#[test]
fn scenario_27_malformed_objects_are_refused_by_their_definition() {
    let scene = Scene::new("s27");
    let refused = |spec: serde_json::Value, why: &str| {
        let object = json!({
            "apiVersion": "aadpodidentity.k8s.io/v1", "kind": "AzureIdentity",
            "metadata": { "name": "bad", "namespace": "s27" }, "spec": spec,
        });
        let output = scene.world.kubectl("apply -f -", &object.to_string());
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(why), "{said}");
    };
    let client = "6f1c0000-0000-0000-0000-0000000022ab";
    refused(
        json!({ "type": 0, "clientID": client }),
        "spec.resourceID is required",
    );
    refused(
        json!({ "type": 0, "resourceID": "x" }),
        "spec.clientID is required",
    );
    refused(
        json!({ "type": 0, "resourceId": "x", "clientID": client }),
        "misspelt",
    );
    refused(
        json!({ "type": 0, "clientID": client, "resourceID": "/subscriptions/s/resourcegroup/rg/providers/Microsoft.ManagedIdentity/userAssignedIdentities/x" }),
        "spec.resourceID: Invalid value",
    );
}

#[test]
fn scenario_28_objects_in_the_old_spelling() {
    let scene = Scene::new("s28");
    let identity = scene.world.azure.create_identity(GROUP, "s28-one");
    scene.apply(json!({
        "apiVersion": "aadpodidentity.k8s.io/v1", "kind": "AzureIdentity", "metadata": { "name": "one" },
        "spec": { "type": 0, "ResourceID": identity.id, "ClientID": identity.client_id },
    }));
    scene.apply(json!({
        "apiVersion": "aadpodidentity.k8s.io/v1", "kind": "AzureIdentityBinding", "metadata": { "name": "one" },
        "spec": { "AzureIdentity": "one", "Selector": "one" },
    }));
    scene.pod("web", "one");
    scene.until_assigned(1);
    scene.validate("web", &identity);
    let line = "-n s28 get azureidentity,azureidentitybinding -o jsonpath={.items[*].spec}";
    scene.world.until("rewritten", || {
        let spec = scene.world.says(line);
        spec.contains("\"resourceID\"")
            && spec.contains("\"selector\"")
            && !spec.contains("\"ResourceID\"")
            && !spec.contains("\"Selector\"")
    });
    scene.validate("web", &identity);
}
