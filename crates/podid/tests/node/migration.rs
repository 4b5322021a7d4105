//! Take-over from AAD Pod Identity and hand-back by the commands of docs/take-over.md, while pods ask; what podid leaves behind is nothing.

use std::time::Instant;

use serde_json::Value;

use crate::load::{self, Answer, Load, now};
use crate::namespace::{bound, pod};
use crate::original::{ORIGINALS, Original};
use crate::shell::{Shell, commands};
use crate::traces::Traces;
use crate::world::{NODES, TOKEN, World, figure, text, world_without_podid};

/// Name and uid of each AzureAssignedIdentity.
pub fn assignments(world: &World) -> Vec<(String, String)> {
    let listed = world.get(&["azureassignedidentities", "-A"]);
    let of = |object: &Value| {
        let text = |field: &str| object["metadata"][field].as_str().unwrap().to_owned();
        (text("name"), text("uid"))
    };
    let mut all: Vec<_> = listed["items"].as_array().unwrap().iter().map(of).collect();
    all.sort();
    all
}

fn leader(world: &World) -> String {
    let lock = world.get(&["endpoints", "aad-pod-identity-mic"]);
    let record = &lock["metadata"]["annotations"]["control-plane.alpha.kubernetes.io/leader"];
    let record: Value = serde_json::from_str(record.as_str().unwrap()).unwrap();
    record["holderIdentity"].as_str().unwrap().to_owned()
}

/// Waits until new connections of the pods' are all answered by one of the two.
fn who_answers(world: &World, load: &Load, client_id: &str) {
    for node in NODES {
        world.until(&format!("{client_id} answers on {node}"), || {
            let mut answers = load.answers(node, now() - 1.0);
            // A connection that is kept stays where it is.
            answers.retain(|answer| answer.client == "fresh");
            let by = |answer: &Answer| answer.outcome.as_deref() == Ok(client_id);
            answers.len() > 5 && answers.iter().all(by)
        });
    }
}

#[test]
fn the_original_hands_over_and_is_given_its_cluster_back() {
    let commands = commands("take-over.md").try_into();
    let [beside, status, stop, leads, agent, back, gone]: [String; 7] = commands.unwrap();
    let world = world_without_podid();
    let own = world.load.client_id.as_str();
    let _original = Original::install(&world);
    let load = Load::of(&world);
    who_answers(&world, &load, ORIGINALS);
    let (before, traces) = (assignments(&world), Traces::of(&world));
    assert_eq!(before.len(), 2);
    let shell = Shell::new(&world);

    let started = Instant::now();
    shell.run(&beside);
    who_answers(&world, &load, own);
    figure("podid answers beside the original", started.elapsed());
    let said = shell.run(&status);
    assert!(said.contains("of AAD Pod Identity leads"), "{said}");
    let started = Instant::now();
    shell.run(&stop);
    shell.run(&leads);
    figure(
        "podid's controller leads in place of the original's",
        started.elapsed(),
    );
    assert_eq!(assignments(&world), before, "nothing is made anew");
    shell.run(&agent);
    load::apply(&world, &[bound(pod("later", "n1"))]);
    let asked = [
        "-n",
        "load",
        "exec",
        "later",
        "--",
        "curl",
        "-sS",
        "-H",
        "Metadata:true",
        TOKEN,
    ];
    let served = || text(&world.cluster.run_kubectl(&asked, "").unwrap()).contains(own);
    world.until("a new pod is served", served);

    shell.run(&back);
    world.until("the original's controller leads", || {
        leader(&world).starts_with("aad-pod-identity-mic-")
    });
    let started = Instant::now();
    shell.run(&gone);
    figure(
        "podid has left two nodes, one after the other",
        started.elapsed(),
    );
    who_answers(&world, &load, ORIGINALS);
    traces.are_all_there_is(&world);
    let after = assignments(&world);
    assert!(
        before.iter().all(|object| after.contains(object)),
        "{after:?}"
    );
    let attached = world.azure.control.attached(&world.azure.scale_set);
    assert!(
        attached.contains(&world.load.id.to_lowercase()),
        "{attached:?}"
    );
    let identity = world.get(&["-n", "load", "azureidentity", "load"]);
    assert_eq!(identity["spec"]["resourceID"], world.load.id.as_str());
    load.noticed_nothing("from take-over to hand-back", &[own, ORIGINALS]);
}
