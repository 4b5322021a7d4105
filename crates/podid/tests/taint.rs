//! The startup taint, on the simulated cluster and on a real kube-apiserver.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

use k8s_openapi::api::core::v1::Node;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use podid_cluster::taint::{StartupTaint, remove};
use podid_sim::cluster::{self, Cluster};
use podid_testkit::apiserver::ApiServer;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

#[tokio::test]
async fn on_the_simulated_cluster() {
    let cluster = Cluster::bind(cluster::Config::default()).await.unwrap();
    let url = format!("http://{}", cluster.addr()).parse().unwrap();
    let client = Client::try_from(kube::Config::new(url)).unwrap();
    let stop = CancellationToken::new();
    let task = tokio::spawn(cluster.run(stop.clone()));
    only_the_taint_goes(client).await;
    stop.cancel();
    task.await.unwrap().unwrap();
}

#[tokio::test]
async fn on_a_real_kube_apiserver() {
    let api = ApiServer::start().await.unwrap();
    only_the_taint_goes(api.client().await.unwrap()).await;
}

async fn only_the_taint_goes(client: Client) {
    let nodes: Api<Node> = Api::all(client.clone());
    let taint = |key: &str, effect: &str| json!({ "key": key, "value": "v", "effect": effect });
    let ours = taint("podid.io/agent-not-ready", "NoSchedule");
    let stricter = taint("podid.io/agent-not-ready", "NoExecute");
    let other = taint("gpu", "NoSchedule");
    let node = json!({
        "metadata": { "name": "node" },
        "spec": { "providerID": "azure:///node", "taints": [other, ours, stricter] },
    });
    let node = serde_json::from_value(node).unwrap();
    let created = nodes.create(&PostParams::default(), &node).await.unwrap();
    let at_first = created.spec.unwrap().taints.unwrap().len();
    let stop = CancellationToken::new();

    let exact: StartupTaint = "podid.io/agent-not-ready:NoSchedule".parse().unwrap();
    remove(&client, "node", &exact, &stop).await;
    assert_eq!(taints(&nodes).await, json!([other, stricter]));
    remove(&client, "node", &exact, &stop).await;
    assert_eq!(taints(&nodes).await, json!([other, stricter]));

    // Others write to the node all the time.
    let writer = nodes.clone();
    let writing = tokio::spawn(async move {
        for count in 0..200 {
            let patch = json!({ "metadata": { "annotations": { "count": count.to_string() } } });
            let patch = Patch::Merge(patch);
            writer
                .patch("node", &PatchParams::default(), &patch)
                .await
                .unwrap();
        }
    });
    let any: StartupTaint = "podid.io/agent-not-ready".parse().unwrap();
    remove(&client, "node", &any, &stop).await;
    writing.await.unwrap();
    assert_eq!(taints(&nodes).await, json!([other]));
    let last: StartupTaint = "gpu".parse().unwrap();
    remove(&client, "node", &last, &stop).await;
    assert_eq!(taints(&nodes).await, json!([]));
    let node = nodes.get("node").await.unwrap();
    let spec = node.spec.unwrap();
    assert_eq!(spec.taints.unwrap_or_default().len(), at_first - 3);
    assert_eq!(spec.provider_id.as_deref(), Some("azure:///node"));
    assert_eq!(node.metadata.annotations.unwrap()["count"], "199");
}

/// Those that the test has put there: a real API server adds its own to a new node.
async fn taints(nodes: &Api<Node>) -> Value {
    let taints = nodes.get("node").await.unwrap().spec.unwrap().taints;
    let mut taints = taints.unwrap_or_default();
    taints.retain(|taint| !taint.key.starts_with("node.kubernetes.io/"));
    json!(taints)
}
