//! The article as it is meant: an application of several pods, in Python, reads a blob without a secret; a pod without the label cannot.

use std::time::Instant;

use serde_json::{Value, json};

use crate::azure::{BLOB, Storage};
use crate::namespace::{Namespace, bound};
use crate::world::{figure, world};

const PROGRAM: &str = include_str!("../article/read_blob.py");
/// Without this setting the storage client tries a refused credential three times more, within 80 s or so.
const ONE_TRY: &str = r#"{"retry_total": 0}"#;

/// A Deployment of the article's program with a pod on each node, which is ready once it has read the blob.
fn deployment(name: &str) -> Value {
    let run = format!(
        "python3 /article/read_blob.py {} container blob '{ONE_TRY}' >/tmp/blob 2>/tmp/failed; \
         cat /tmp/blob /tmp/failed; exec sleep infinity",
        Storage::url()
    );
    let ready = json!({ "exec": { "command": ["test", "-s", "/tmp/blob"] }, "periodSeconds": 1 });
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": name },
        "spec": { "replicas": 2, "selector": { "matchLabels": { "app": name } }, "template": {
            "metadata": { "labels": { "app": name } },
            "spec": {
                "terminationGracePeriodSeconds": 1,
                "topologySpreadConstraints": [{
                    "maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "DoNotSchedule",
                    "labelSelector": { "matchLabels": { "app": name } },
                }],
                "containers": [{
                    "name": "app", "image": "APP", "command": ["sh", "-c", run], "readinessProbe": ready,
                    "env": [{ "name": "REQUESTS_CA_BUNDLE", "value": "/article/ca.crt" }],
                    "volumeMounts": [{ "name": "article", "mountPath": "/article" }],
                }],
                "volumes": [{ "name": "article", "configMap": { "name": "article" } }],
            },
        } },
    })
}

#[test]
fn the_article_reads_its_blob_on_both_nodes_and_its_neighbour_does_not() {
    let world = world();
    let article = Namespace::new(&world, "article");
    let storage = Storage::start(world.cluster.folder());
    let files = json!({ "read_blob.py": PROGRAM, "ca.crt": storage.authority });
    let files = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "article" }, "data": files });
    let mut myapp = deployment("myapp");
    let template = myapp["spec"]["template"].take();
    myapp["spec"]["template"] = bound(template);
    let started = Instant::now();
    article.apply(&[files, myapp, deployment("neighbour")]);
    article.within(&["rollout", "status", "deployment/myapp"]);
    figure("the article's pods have read their blob", started.elapsed());

    let read = || article.kubectl(&["logs", "--prefix", "-l", "app=myapp"]);
    world.until("both pods print what they have read", || {
        read().matches(BLOB).count() == 2
    });
    let pods = article.get(&["pods", "-l", "app=myapp"]);
    let nodes =
        ["/items/0/spec/nodeName", "/items/1/spec/nodeName"].map(|at| pods.pointer(at).unwrap());
    assert_ne!(nodes[0], nodes[1]);

    let logs = || article.kubectl(&["logs", "--prefix", "--tail=-1", "-l", "app=neighbour"]);
    let refused = |logs: &str| logs.matches("has no label").count() >= 2;
    world.until("both neighbours are told why", || refused(&logs()));
    assert!(!logs().contains(BLOB));
}
