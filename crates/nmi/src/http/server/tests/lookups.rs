//! Callers that the watch has not told of.

use super::*;

/// What the API server lists when the watch has not told of the caller yet.
fn listed() -> serde_json::Value {
    serde_json::json!({
        "metadata": { "namespace": "shop", "name": "web", "uid": "u", "labels": { "aadpodidbinding": "app" } },
        "spec": { "nodeName": "node", "containers": [] },
        "status": { "phase": "Running", "podIP": "127.0.0.1" },
    })
}

/// Everything that a caller needs but the pod.
async fn without_pod() -> Rig {
    let rig = served().await;
    rig.context.change(|index| index.delete_pod(&pod().key));
    rig
}

#[tokio::test]
async fn a_caller_that_the_watch_has_not_told_of_is_asked_for_once() {
    let rig = without_pod().await;
    *rig.api.pods.lock() = vec![listed()];
    let answers = futures::future::join_all((0..10).map(|_| rig.get(TOKEN))).await;
    for answer in answers {
        assert_eq!(answer.status, 200, "{}", answer.body);
    }
    assert_eq!(rig.api.asked.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn nobody_is_taken_for_a_pod_that_is_finished_elsewhere_or_on_the_host_network() {
    let finished = serde_json::json!({ "status": { "phase": "Succeeded" } });
    let host = serde_json::json!({ "spec": { "hostNetwork": true } });
    let elsewhere = serde_json::json!({ "status": { "podIP": "10.0.0.9" } });
    for change in [finished, host, elsewhere] {
        let rig = without_pod().await;
        let mut pod = listed();
        for (part, fields) in change.as_object().unwrap() {
            for (name, value) in fields.as_object().unwrap() {
                pod[part][name] = value.clone();
            }
        }
        *rig.api.pods.lock() = vec![pod];
        assert_eq!(rig.get(TOKEN).await.status, 400, "{change}");
    }
}

#[tokio::test]
async fn two_pods_that_the_api_server_lists_at_one_address_get_nothing() {
    let rig = without_pod().await;
    let mut other = listed();
    other["metadata"]["name"] = "other".into();
    *rig.api.pods.lock() = vec![listed(), other];
    assert_eq!(rig.get(TOKEN).await.status, 500);
}

#[tokio::test]
async fn a_stranger_does_not_make_the_api_server_busy_and_its_absence_is_no_verdict() {
    let rig = without_pod().await;
    for _ in 0..20 {
        assert_eq!(rig.get(TOKEN).await.status, 400);
    }
    let asked = rig.api.asked.load(Ordering::SeqCst);
    assert!(asked <= 2, "asked {asked} times");

    let rig = without_pod().await;
    rig.api.is_away.store(true, Ordering::SeqCst);
    let answer = rig.get(TOKEN).await;
    assert_eq!(answer.status, 500, "{}", answer.body);
}
