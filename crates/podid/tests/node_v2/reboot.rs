//! A node that starts anew while the image of nmi cannot be had: its boot rules keep pods from the metadata service.

use std::time::Instant;

use serde_json::{Value, json};

use crate::machine::{Emulated, NODE, emulated};
use crate::namespace::{Namespace, bound, pod};
use crate::world::{TOKEN, figure};

/// How often the pod asks while nmi cannot start.
const ANSWERS: usize = 5;

/// A pod that asks all the time from its start on, and prints each answer's status; 000 is none.
fn greedy() -> Value {
    let mut greedy = pod("greedy", NODE);
    let ask = format!(
        "while :; do curl -s -m 3 -o /dev/null -w 'status %{{http_code}}\\n' -H Metadata:true '{TOKEN}'; sleep 0.5; done"
    );
    greedy["spec"]["containers"][0]["command"] = json!(["sh", "-c", ask]);
    greedy
}

/// How often a pod's container was started anew.
fn restarts(namespace: &Namespace, pod: &str) -> u64 {
    let status = &namespace.get(&["pod", pod])["status"]["containerStatuses"][0];
    let running = status["state"]["running"].is_object();
    status["restartCount"]
        .as_u64()
        .filter(|_| running)
        .unwrap_or(0)
}

fn answers(namespace: &Namespace) -> Vec<String> {
    let log = namespace.kubectl(&["logs", "greedy", "--tail=-1"]);
    log.lines().map(str::to_owned).collect()
}

/// `ctr` on the images of the kubelet.
fn images(emulated: &Emulated, command: &str) {
    let command = format!("ctr --namespace k8s.io images {command}");
    emulated.machine.run(&command).unwrap();
}

#[test]
fn after_a_power_cut_boot_rules_protect_the_node_until_nmi_runs() {
    let emulated = emulated();
    let world = &emulated.world;
    let reboot = Namespace::new(world, "reboot");
    reboot.start(&[bound(pod("owner", NODE)), greedy()]);
    emulated.until("the owner is served", || {
        reboot.is_own(&reboot.ask("owner"))
    });

    let image = format!("localhost/podid/nmi:{}", world.tag);
    images(&emulated, &format!("tag {image} {image}-kept"));
    images(&emulated, &format!("rm --sync {image}"));
    let before = restarts(&reboot, "greedy");
    // A pod whose network the CNI plugin has noted in a file that the power cut tears cannot be started anew for minutes.
    emulated.machine.run("sync").unwrap();
    let powered_on = Instant::now();
    emulated.machine.power_cycle().unwrap();
    emulated.until("the pod is started anew", || {
        restarts(&reboot, "greedy") > before
    });
    figure(
        "from a power cut until a pod runs again",
        powered_on.elapsed(),
    );
    emulated.until("the image of nmi cannot be had", || {
        let init = &emulated.nmi()[0]["status"]["initContainerStatuses"][0];
        init["state"]["waiting"].to_string().contains("ImagePull")
    });
    let asked = answers(&reboot).len();
    emulated.until("the pod has asked often", || {
        answers(&reboot).len() >= asked + ANSWERS
    });
    let without_nmi = answers(&reboot);
    assert!(
        without_nmi.iter().all(|answer| answer == "status 000"),
        "{without_nmi:?}"
    );
    // The node's own programs are not touched.
    assert!(emulated.ask_from_the_node().contains("subscriptionId"));

    let restored = Instant::now();
    images(&emulated, &format!("tag {image}-kept {image}"));
    emulated.await_podid();
    figure(
        "until nmi is ready once its image can be had",
        restored.elapsed(),
    );
    emulated.until("the owner is served again", || {
        reboot.is_own(&reboot.ask("owner"))
    });
    let all = answers(&reboot);
    let refusals = ["status 000", "status 400", "status 500"];
    assert!(
        all.iter().all(|answer| refusals.contains(&answer.as_str())),
        "{all:?}"
    );
    images(&emulated, &format!("rm {image}-kept"));
}
