//! The node agent's doors and rules, probes, and what happens to nodes and leaders.

use serde_json::json;

use crate::world::{PODID, Scene, world};

fn curl(line: &str) -> (u16, String) {
    let world = world();
    let arguments: Vec<&str> = ["-sS", "--noproxy", "*", "-w", "\n%{http_code}"]
        .into_iter()
        .chain(line.split(' '))
        .collect();
    let output = world.net.run("node", "curl", &arguments);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (body, status) = text.rsplit_once('\n').unwrap_or_default();
    (status.parse().unwrap_or(0), body.to_owned())
}

#[test]
fn scenario_s0_the_rules_are_there() {
    let world = world();
    let rules = world
        .net
        .run("node", "nft", &["list", "table", "inet", "podid"]);
    let text = String::from_utf8_lossy(&rules.stdout).into_owned();
    assert!(text.contains("169.254.169.254"), "{rules:?}");
    // And gone after the removal, which is an act of its own: on another node, so that nobody here notices.
    let net = podid_testkit::net::Net::build();
    let cleanup = net.run("node", PODID, &["nmi", "--cleanup"]);
    assert!(cleanup.status.success(), "{cleanup:?}");
    let left = net.run("node", "nft", &["list", "ruleset"]);
    assert!(!String::from_utf8_lossy(&left.stdout).contains("podid"));
}

#[test]
fn scenario_22_liveness() {
    let world = world();
    world.until("one leads and the other does not", || {
        let mut said =
            [18_080, 18_081].map(|port| curl(&format!("http://127.0.0.1:{port}/healthz")).1);
        said.sort();
        said == ["Active", "Not Active"]
    });
    assert_eq!(
        curl("http://127.0.0.1:8085/healthz"),
        (200, "Active".to_owned())
    );
}

#[test]
fn scenario_23_the_doors() {
    let _world = world();
    let nmi = "http://127.0.0.1:2579";
    // Where the original passes on what it does not know, podid refuses it.
    let (status, body) = curl(&format!("-H Metadata:true {nmi}/metadata/somewhere"));
    assert!(matches!(status, 403 | 404), "{status} {body}");
    let (status, body) = curl(&format!(
        "{nmi}/metadata/identity/oauth2/token?api-version=2018-02-01&resource=x"
    ));
    assert!(
        status == 400 && body.contains("Required metadata header not specified"),
        "{status} {body}"
    );
    let (status, body) = curl(&format!(
        "-H Metadata:true {nmi}/metadata/instance?api-version=2021-02-01"
    ));
    assert_eq!(status, 403, "{body}");
}

#[test]
fn scenario_24_the_leader_is_killed() {
    let scene = Scene::new("s24");
    let world = &scene.world;
    let leader = || {
        let line = "get lease aad-pod-identity-mic -o jsonpath={.spec.holderIdentity}";
        world
            .says(line)
            .strip_prefix("mic-")
            .and_then(|n| n.parse::<usize>().ok())
    };
    world.until("a leader", || leader().is_some());
    let killed = leader().unwrap();
    world.mics.lock().unwrap()[killed].kill();
    let identity = scene.bound("one");
    scene.pod("web", "one");
    scene.until_assigned(1);
    scene.validate("web", &identity);
    world.until("another leads", || leader().is_some_and(|n| n != killed));
    let again = world.mic(killed);
    world.mics.lock().unwrap()[killed] = again;
}

#[test]
fn scenario_29_the_node_is_drained() {
    let scene = Scene::new("s29");
    scene.bound("one");
    scene.object("web", "node-1", json!({ "aadpodidbinding": "one" }));
    scene.until_assigned(1);
    let output = scene.world.kubectl(
        "-n s29 delete pod web --wait=false --grace-period=0 --force",
        "",
    );
    assert!(output.status.success());
    scene.object("again", "node-3", json!({ "aadpodidbinding": "one" }));
    scene.world.until("there and not here", || {
        let there = scene
            .world
            .on(&scene.world.other)
            .contains(&"s29-one".to_owned());
        there
            && !scene
                .world
                .on(&scene.world.set)
                .contains(&"s29-one".to_owned())
    });
    scene.until_assigned(1);
    assert_eq!(scene.assignments()[0].0, "again-s29-one");
}
