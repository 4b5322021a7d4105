//! Load: a pod on each node that asks for a token all the time, and what it was answered.
//!
//! It writes to its node's disk, where this reads it: no kubelet is needed, and a power cut loses nothing.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::namespace::{bound, pod};
use crate::world::{NODES, World, note};

const NAMESPACE: &str = "load";
const PROGRAM: &str = include_str!("load.py");
/// On each node.
const FOLDER: &str = "/var/lib/load";
const CLIENTS: [&str; 2] = ["fresh", "kept"];
/// A load that goes on has so many more answers for each client.
const MORE: usize = 10;

/// One request.
#[derive(Debug, Clone)]
pub struct Answer {
    /// When it was sent and when it was answered: seconds since 1970.
    pub sent: f64,
    pub answered: f64,
    pub client: String,
    /// The client id of the identity whose token it was, or what was said instead.
    pub outcome: Result<String, String>,
}

/// Pods that ask from now on. They go on when this is dropped.
pub struct Load<'a> {
    world: &'a World,
    since: f64,
}

pub fn now() -> f64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    now.as_secs_f64()
}

/// The namespace of the pods.
pub fn namespace(world: &World) {
    let metadata = json!({ "name": NAMESPACE });
    let created = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": metadata });
    world.apply_yaml("default", &created.to_string());
    let account = "-n load wait --for=create serviceaccount/default";
    world.kubectl_within(&account.split(' ').collect::<Vec<_>>());
}

/// What they have an identity by.
fn grant(world: &World) {
    let ours = "aadpodidentity.k8s.io/v1";
    let identity = &world.load;
    apply(
        world,
        &[
            json!({
                "apiVersion": ours, "kind": "AzureIdentity", "metadata": { "name": "load" },
                "spec": { "type": 0, "resourceID": identity.id, "clientID": identity.client_id },
            }),
            json!({
                "apiVersion": ours, "kind": "AzureIdentityBinding", "metadata": { "name": "load" },
                "spec": { "azureIdentity": "load", "selector": "myapp" },
            }),
        ],
    );
}

/// The pods.
pub fn pods(world: &World) {
    let program = json!({ "load.py": PROGRAM });
    let program = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "load" }, "data": program });
    let [one, two] = NODES.map(asker);
    apply(world, &[program, one, two]);
}

fn asker(node: &str) -> Value {
    let mut asker = bound(pod(&format!("load-{node}"), node));
    let container = &mut asker["spec"]["containers"][0];
    container["command"] = json!(["python3", "/program/load.py", format!("{FOLDER}/answers")]);
    container["volumeMounts"] = json!([
        { "name": "program", "mountPath": "/program" }, { "name": "answers", "mountPath": FOLDER },
    ]);
    asker["spec"]["volumes"] = json!([
        { "name": "program", "configMap": { "name": "load" } },
        { "name": "answers", "hostPath": { "path": FOLDER, "type": "DirectoryOrCreate" } },
    ]);
    asker
}

/// Makes objects in the namespace.
pub fn apply(world: &World, objects: &[Value]) {
    let list = json!({ "apiVersion": "v1", "kind": "List", "items": objects }).to_string();
    world.apply_yaml(
        NAMESPACE,
        &list.replace("\"APP\"", &format!("\"{}\"", world.app)),
    );
}

impl<'a> Load<'a> {
    /// Has the pods ask where they do not yet. All of them are served.
    pub fn start(world: &'a World) -> Self {
        namespace(world);
        grant(world);
        pods(world);
        Self::of(world)
    }

    /// Of pods that are there already, from when they are served.
    pub fn of(world: &'a World) -> Self {
        let load = Self {
            world,
            since: now(),
        };
        load.goes_on();
        Self {
            world,
            since: now(),
        }
    }

    /// Waits until each client has had further tokens.
    pub fn goes_on(&self) {
        let since = now();
        for node in NODES {
            self.serves(node, since);
        }
    }

    /// Waits until each client of a node's pod has had tokens for requests that it sent from then on. Gives the time of the first.
    pub fn serves(&self, node: &'static str, since: f64) -> f64 {
        let mut first = since;
        self.world
            .until(&format!("the load on {node} is served"), || {
                let answers = self.answers(node, since);
                let served = answers.iter().filter(|answer| answer.outcome.is_ok());
                first = served
                    .clone()
                    .map(|answer| answer.answered)
                    .fold(f64::MAX, f64::min);
                CLIENTS.iter().all(|client| {
                    served
                        .clone()
                        .filter(|answer| answer.client == *client)
                        .count()
                        >= MORE
                })
            });
        first
    }

    /// What the pod on a node was answered to requests that it sent since then.
    pub fn answers(&self, node: &'static str, since: f64) -> Vec<Answer> {
        let named = |other: &&podid_testkit::cluster::Node| other.name() == node;
        let disk = self.world.cluster.nodes.iter().find(named).unwrap();
        let lines = std::fs::read_to_string(disk.disk(&format!("{FOLDER}/answers")));
        // It is not there before the pod's first answer, and its last line may be half there.
        let lines = lines.unwrap_or_default();
        let whole = &lines[..lines.rfind('\n').unwrap_or_default()];
        let answers = whole.lines().filter_map(answer);
        answers.filter(|answer| answer.sent >= since).collect()
    }

    /// All requests since this began that failed.
    pub fn failures(&self, node: &'static str) -> Vec<Answer> {
        let mut answers = self.answers(node, self.since);
        answers.retain(|answer| answer.outcome.is_err());
        answers
    }

    /// Asserts that no request has failed since this began, none after it either, and that all tokens were those of these client ids.
    pub fn noticed_nothing(&self, what: &str, allowed: &[&str]) {
        self.goes_on();
        for node in NODES {
            self.noticed_nothing_on(node, what, allowed);
        }
    }

    /// As [`Load::noticed_nothing`], of the pod on one node, and without waiting.
    pub fn noticed_nothing_on(&self, node: &'static str, what: &str, allowed: &[&str]) {
        let failures = self.failures(node);
        assert!(
            failures.is_empty(),
            "{what}: {failures:#?}\n{}",
            self.world.explain()
        );
        let answers = self.answers(node, self.since);
        let slowest = answers.iter().map(|answer| answer.answered - answer.sent);
        let slowest = slowest.fold(0.0, f64::max);
        note(&format!(
            "{:>8}    requests on {node}, 0 failed, the slowest took {slowest:.2} s: {what}",
            answers.len()
        ));
        self.tokens_are(node, allowed);
    }

    /// Asserts that all tokens that a node's pod was given are those of these client ids.
    pub fn tokens_are(&self, node: &'static str, allowed: &[&str]) {
        let answers = self.answers(node, self.since);
        let strange = |answer: &&Answer| {
            let given = answer.outcome.as_ref();
            given.is_ok_and(|id| !allowed.contains(&id.as_str()))
        };
        let strange: Vec<_> = answers.iter().filter(strange).take(3).collect();
        assert!(strange.is_empty(), "{strange:#?}");
    }
}

/// From a line of the program's.
fn answer(line: &str) -> Option<Answer> {
    let mut words = line.splitn(5, ' ');
    let mut next = || words.next();
    let (sent, took): (f64, f64) = (next()?.parse().ok()?, next()?.parse().ok()?);
    let (client, outcome, said) = (next()?.to_owned(), next()?, next()?.to_owned());
    let outcome = if outcome == "token" {
        Ok(said)
    } else {
        Err(said)
    };
    Some(Answer {
        sent,
        answered: sent + took,
        client,
        outcome,
    })
}

/// How long requests failed: from then until the answer of the last that failed.
pub fn refused_for(failures: &[Answer], since: f64) -> Duration {
    let last = failures
        .iter()
        .map(|answer| answer.answered)
        .fold(since, f64::max);
    Duration::from_secs_f64(last - since)
}
