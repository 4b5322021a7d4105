//! Pods at their start: those that ask at once see no error.

use serde_json::{Value, json};

use crate::machine::{NODE, emulated};
use crate::namespace::{Namespace, bound, pod};
use crate::world::TOKEN;

/// How many pods ask at their start; an emulated machine takes some seconds for each.
const EAGER: usize = 4;

/// Asks once. An answer that is no token fails the container.
fn asks() -> Value {
    let ask = format!(
        "curl -sS -m 60 -o /tmp/answer -w '%{{http_code}}\\n' -H Metadata:true '{TOKEN}' | tee /tmp/status; \
         grep -qx 200 /tmp/status || {{ cat /tmp/answer; exit 1; }}"
    );
    json!(["sh", "-c", ask])
}

#[test]
fn none_of_the_pods_that_ask_at_their_start_sees_an_error() {
    let emulated = emulated();
    let eager = Namespace::new(&emulated.world, "eager");
    // The identity is on the node already: what is tested is how soon a pod is known.
    eager.start(&[bound(pod("first", NODE))]);
    emulated.until("the first is served", || eager.is_own(&eager.ask("first")));
    eager.apply(&[json!({
        "apiVersion": "batch/v1", "kind": "Job", "metadata": { "name": "eager" },
        "spec": { "completions": EAGER, "parallelism": EAGER / 2, "backoffLimit": 0, "template": {
            "metadata": { "labels": { "aadpodidbinding": "myapp" } },
            "spec": {
                "restartPolicy": "Never", "terminationGracePeriodSeconds": 1,
                "nodeSelector": { "kubernetes.io/hostname": NODE },
                "initContainers": [{ "name": "init", "image": "APP", "command": asks() }],
                "containers": [{ "name": "app", "image": "APP", "command": asks() }],
            },
        } },
    })]);
    emulated.until("the Job has ended", || {
        let job = eager.get(&["job", "eager"]);
        let conditions = job["status"]["conditions"].to_string();
        conditions.contains("Complete") || conditions.contains("Failed")
    });
    let all = [
        "logs",
        "--prefix",
        "--tail=-1",
        "--max-log-requests=100",
        "--all-containers",
        "-l",
        "job-name=eager",
    ];
    let logs = eager.kubectl(&all);
    let answers = logs.lines().filter(|line| line.ends_with("] 200")).count();
    assert_eq!(answers, 2 * EAGER, "{logs}");
}
