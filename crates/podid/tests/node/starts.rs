//! Pods at their start and at their end: those that ask at once, init containers, Jobs, and pods that are being deleted.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::namespace::{Namespace, bound, pod};
use crate::world::{TOKEN, text, world};

/// How many pods ask at their start, and how many of them start at once.
const EAGER: usize = 100;
const AT_ONCE: usize = 10;
/// They take a minute on two idle processors, and longer beside other tests.
const EAGER_TIMEOUT: &str = "--timeout=240s";

/// Asks until it is given a token, and says for each answer when it came and what it was.
fn asks() -> String {
    format!(
        "echo started $(date +%s.%N); \\
         for n in $(seq 100); do \\
           status=$(curl -s -o /tmp/answer -m 20 -w '%{{http_code}}' -H Metadata:true '{TOKEN}'); \\
           echo answered $(date +%s.%N) $status $(test $status = 200 || head -c 300 /tmp/answer | tr -dc \"[:alnum:] .,:_-\"); \\
           test $status != 200 || exit 0; \\
           sleep 0.1; \\
         done; exit 1"
    )
}

/// A Job of so many pods that ask at their start.
fn job(name: &str, pods: usize, at_once: usize) -> Value {
    json!({
        "apiVersion": "batch/v1", "kind": "Job", "metadata": { "name": name },
        "spec": { "completions": pods, "parallelism": at_once, "backoffLimit": 0, "template": {
            "metadata": { "labels": { "aadpodidbinding": "myapp" } },
            "spec": {
                "restartPolicy": "Never", "terminationGracePeriodSeconds": 1,
                "containers": [{ "name": "app", "image": "APP", "command": ["sh", "-c", asks()] }],
            },
        } },
    })
}

#[test]
fn pods_that_ask_at_their_start_are_given_a_token() {
    let world = world();
    let eager = Namespace::new(&world, "eager");
    // The identity is on the nodes already: what is measured is how soon a pod is known.
    eager.start(&[bound(pod("first", "n1"))]);
    world.until("the first is served", || eager.is_own(&eager.ask("first")));

    let watched = Watch::start(&eager);
    eager.apply(&[job("eager", EAGER, AT_ONCE)]);
    eager.kubectl(&[
        "wait",
        "--for=condition=Complete",
        "job/eager",
        EAGER_TIMEOUT,
    ]);
    let times = watched.end();
    let logs = eager.kubectl(&[
        "logs",
        "--prefix",
        "--tail=-1",
        "--max-log-requests=200",
        "-l",
        "job-name=eager",
    ]);
    let runs = runs(&logs);
    assert_eq!(runs.len(), EAGER, "{logs}");
    report(&runs, &times);
    let refused: usize = runs.values().map(|run| run.refused.len()).sum();
    let pods = runs.values().filter(|run| !run.refused.is_empty()).count();
    println!("{refused} refusals at {pods} of {EAGER} pods");
    let answers: Vec<_> = runs.values().flat_map(|run| &run.refused).collect();
    assert_eq!(refused, 0, "{answers:?}");
}

/// What a pod has said: the seconds since 1970 at which it ran and had its token, and what it was told before.
#[derive(Default)]
struct Run {
    started: f64,
    served: f64,
    refused: Vec<String>,
}

/// By pod, from lines such as `[pod/NAME/app] answered SECONDS STATUS`.
fn runs(logs: &str) -> BTreeMap<String, Run> {
    let mut runs = BTreeMap::<String, Run>::new();
    for line in logs.lines() {
        let (prefix, said) = line.split_once("] ").unwrap();
        let pod = prefix.split('/').nth(1).unwrap();
        let run = runs.entry(pod.to_owned()).or_default();
        let mut words = said.splitn(3, ' ');
        let (what, at) = (
            words.next().unwrap(),
            words.next().unwrap().parse().unwrap(),
        );
        match (what, words.next()) {
            ("started", _) => run.started = at,
            (_, Some("200")) => run.served = at,
            (_, answer) => run.refused.push(answer.unwrap_or_default().to_owned()),
        }
    }
    runs
}

/// When the API server first told of a pod, of its node, and of its address: seconds since 1970.
#[derive(Default, Clone)]
struct Told {
    created: f64,
    scheduled: Option<f64>,
    address: Option<f64>,
}

/// Watches the pods of a namespace.
struct Watch {
    kubectl: Child,
    reader: JoinHandle<()>,
    told: Arc<Mutex<BTreeMap<String, Told>>>,
}

impl Watch {
    fn start(namespace: &Namespace) -> Self {
        let mut kubectl = namespace.world.cluster.kubectl();
        let columns = "-o=custom-columns=:metadata.name,:spec.nodeName,:status.podIP";
        kubectl.args([
            "-n",
            &namespace.name,
            "get",
            "pods",
            "--watch",
            "--no-headers",
            columns,
        ]);
        let mut kubectl = kubectl.stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(kubectl.stdout.take().unwrap()).lines();
        let told = Arc::<Mutex<BTreeMap<String, Told>>>::default();
        let keeps = told.clone();
        let reader = std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let now = SystemTime::now()
                    .duration_since(UNIX_EPOCH)
                    .unwrap()
                    .as_secs_f64();
                let mut words = line.split_whitespace();
                let Some(name) = words.next() else { continue };
                let mut told = keeps.lock();
                let pod = told.entry(name.to_owned()).or_insert_with(|| Told {
                    created: now,
                    ..Told::default()
                });
                for place in [&mut pod.scheduled, &mut pod.address] {
                    if words.next().is_some_and(|value| value != "<none>") {
                        place.get_or_insert(now);
                    }
                }
            }
        });
        Self {
            kubectl,
            reader,
            told,
        }
    }

    fn end(mut self) -> BTreeMap<String, Told> {
        self.kubectl.kill().unwrap();
        self.kubectl.wait().unwrap();
        self.reader.join().unwrap();
        std::mem::take(&mut *self.told.lock())
    }
}

/// Prints how long after its creation each phase of a pod was reached.
fn report(runs: &BTreeMap<String, Run>, told: &BTreeMap<String, Told>) {
    let mut phases: [(&str, Vec<f64>); 5] = [
        ("scheduled", Vec::new()),
        ("container running", Vec::new()),
        ("podIP written", Vec::new()),
        ("first token", Vec::new()),
        ("first token after the container runs", Vec::new()),
    ];
    for (name, run) in runs {
        let Some(pod) = told.get(name) else { continue };
        let values = [
            pod.scheduled,
            Some(run.started),
            pod.address,
            Some(run.served),
        ];
        for (phase, value) in phases.iter_mut().zip(values) {
            phase.1.extend(value.map(|value| value - pod.created));
        }
        phases[4].1.push(run.served - run.started);
    }
    println!(
        "seconds after a pod's creation, {} pods, {AT_ONCE} at once:",
        runs.len()
    );
    for (phase, mut values) in phases {
        values.sort_by(f64::total_cmp);
        let at = |part: usize| {
            values.get((values.len() * part / 100).min(values.len().saturating_sub(1)))
        };
        let [Some(median), Some(most)] = [at(50), at(95)] else {
            continue;
        };
        println!("{phase:>38}: p50 {median:.2}, p95 {most:.2}");
    }
}

#[test]
fn init_containers_ask_first_and_pods_that_end_ask_last() {
    let world = world();
    let ends = Namespace::new(&world, "ends");
    for node in ["n1", "n2"] {
        let name = format!("brief-{node}");
        let mut brief = bound(pod(&name, node));
        let last = format!(
            "trap 'echo last; {}' TERM; echo up; while :; do sleep 0.1; done",
            asks().replace('\'', "\"")
        );
        brief["spec"]["initContainers"] =
            json!([{ "name": "init", "image": "APP", "command": ["sh", "-c", asks()] }]);
        brief["spec"]["containers"][0]["command"] = json!(["sh", "-c", last]);
        brief["spec"]["terminationGracePeriodSeconds"] = json!(10);
        // Its init container has ended well by then.
        ends.start(&[brief]);
        let mut follow = world.cluster.kubectl();
        follow.args(["-n", &ends.name, "logs", "--follow", &name, "-c", "app"]);
        let follow = follow.stdout(Stdio::piped()).spawn().unwrap();
        ends.within(&["delete", "pod", &name]);
        let said = text(&follow.wait_with_output().unwrap());
        let last = said.split("last\n").nth(1);
        let answers: Vec<&str> = last
            .unwrap_or_else(|| panic!("{said}"))
            .lines()
            .filter(|line| line.starts_with("answered"))
            .collect();
        assert!(answers.len() == 1 && answers[0].ends_with(" 200"), "{said}");
    }
}
