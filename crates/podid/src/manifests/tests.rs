//! `deploy/*.yaml` and the chart's copies, made from the same objects.

use super::*;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

fn install(mode: Mode) -> Install {
    Install {
        mode,
        namespace: NAME.to_owned(),
        registry: "registry.example.com/podid".to_owned(),
        tag: concat!("v", env!("CARGO_PKG_VERSION")).to_owned(),
        boot_rules: false,
        broker: false,
    }
}

fn page(mode: &str, objects: &[Value]) -> String {
    format!(
        "# podid manifests --mode={mode} --registry=registry.example.com/podid\n{}",
        yaml(objects).unwrap()
    )
}

fn is_written(path: &str, wanted: &str) {
    let path = format!("{ROOT}/{path}");
    if std::env::var_os("PODID_UPDATE").is_some() {
        std::fs::write(&path, wanted).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        written == wanted,
        "{path} is out of date; run PODID_UPDATE=1 cargo test -p podid --bin podid manifests"
    );
}

/// `PODID_UPDATE=1 cargo test -p podid --bin podid manifests` writes the files anew.
#[test]
fn the_files_are_as_the_command_prints_them() {
    for (mode, name) in [
        (Mode::Standard, "standard"),
        (Mode::Managed, "managed"),
        (Mode::Cleanup, "cleanup"),
    ] {
        let objects = install(mode).objects();
        is_written(&format!("deploy/{name}.yaml"), &page(name, &objects));
    }
}

#[test]
fn the_definitions_are_this_builds() {
    is_written("deploy/crds.yaml", &podid_api::crds::yaml().unwrap());
    for crd in podid_api::crds::all().unwrap() {
        let name = crd.spec.names.plural.clone();
        let object = serde_json::to_value(crd).unwrap();
        is_written(
            &format!("charts/podid/crds/{name}.yaml"),
            &yaml(&[object]).unwrap(),
        );
    }
}

#[test]
fn a_namespace_that_every_cluster_has_is_left_as_it_is() {
    for namespace in ["default", "kube-system"] {
        let install = Install {
            namespace: namespace.to_owned(),
            ..install(Mode::Standard)
        };
        let objects = install.objects();
        let made = objects
            .iter()
            .filter(|object| object["kind"] == "Namespace");
        let made: Vec<_> = made.map(|object| &object["metadata"]["name"]).collect();
        assert_eq!(made, ["podid-identities"]);
    }
    let objects = install(Mode::Standard).objects();
    assert_eq!(objects[0]["metadata"]["name"], "podid");
}

#[test]
fn managed_mode_has_nothing_of_the_controller() {
    let text = yaml(&install(Mode::Managed).objects()).unwrap();
    assert!(!text.contains("podid-mic") && !text.contains("Deployment"));
    assert!(text.contains("--operation-mode=managed"));
}

/// The cleanup does what both of its init containers do.
#[test]
fn boot_rules_are_removed_where_they_were_asked_for() {
    let with = |boot_rules| Install {
        boot_rules,
        ..install(Mode::Cleanup)
    };
    let names = |boot_rules| {
        let objects = with(boot_rules).objects();
        let pod = objects.last().unwrap()["spec"]["template"]["spec"].clone();
        let containers = pod["initContainers"].as_array().unwrap().clone();
        let names = containers.iter().map(|container| {
            container["command"]
                .as_array()
                .map_or("nmi", |command| command.last().unwrap().as_str().unwrap())
                .to_owned()
        });
        (
            names.collect::<Vec<_>>(),
            pod["volumes"].as_array().unwrap().len(),
        )
    };
    assert_eq!(names(false), (vec!["nmi".to_owned()], 1));
    let both = vec!["nmi".to_owned(), "--remove=/host/etc".to_owned()];
    assert_eq!(names(true), (both, 3));
}

/// A read-only `/etc` has no folder made in it, and a virtual node never runs the pod that a rollout would wait for.
#[test]
fn the_node_agent_starts_on_every_node_that_runs_a_daemon_set() {
    let objects = install(Mode::Standard).objects();
    let agent = objects.iter().find(|object| object["kind"] == "DaemonSet");
    let pod = &agent.unwrap()["spec"]["template"]["spec"];
    let volumes = pod["volumes"].as_array().unwrap();
    for volume in volumes {
        let path = volume["hostPath"]["path"].as_str().unwrap();
        assert!(!path.starts_with("/etc"), "{path}");
    }
    let affinity =
        &pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
    let left_out = &affinity["nodeSelectorTerms"][0]["matchExpressions"][0];
    let virtual_nodes =
        json!({ "key": "type", "operator": "NotIn", "values": ["virtual-kubelet"] });
    assert_eq!(left_out, &virtual_nodes);
}
