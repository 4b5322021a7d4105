//! The whole node agent while the API server and the metadata service fail, come back and change.

mod common;

use common::client::get;
use common::objects::WEB;
use common::{PATH, TEST_TIMEOUT, rig, rig_that_waits};

#[tokio::test]
async fn an_api_server_that_is_away_is_waited_for_and_later_done_without() {
    let rig = rig_that_waits(false, |_| {}).await;
    let answer = rig.token(WEB, "r").await;
    assert_eq!(answer.status, 500, "{answer:?}");
    assert_eq!(answer.header("retry-after"), Some("1"));
    assert!(answer.json()["error"].is_string());
    let probe = get(WEB, rig.listener, PATH, "").await;
    assert_eq!(probe.status, 400, "a probe needs nothing");
    rig.active.send_replace(true);
    assert_eq!(rig.ready().await, 503);

    rig.api.up.send_replace(true);
    rig.until(200).await;
    assert_eq!(rig.ready().await, 200);

    rig.api.up.send_replace(false);
    assert_eq!(rig.token(WEB, "until").await.status, 200, "from memory");
    let new = rig.token(WEB, "other").await.status;
    assert_eq!(new, 200, "and what was never asked for");
    assert_eq!(rig.ready().await, 200);

    // What was deleted while no watch ran is removed by the next complete list.
    rig.api.delete("azureidentitybindings");
    rig.api.up.send_replace(true);
    rig.until(400).await;
    rig.end().await;
}

#[tokio::test]
async fn a_grant_ends_when_the_watch_says_so() {
    for kind in ["azureidentitybindings", "azureidentities", "pods"] {
        let rig = rig(|_| {}).await;
        // An event before the watch begins would be lost.
        let told = async {
            while rig.api.events.receiver_count() < 5 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(TEST_TIMEOUT, told).await.unwrap();
        rig.api.delete(kind);
        rig.until(400).await;
        rig.end().await;
    }
}

/// At a takeover the new node agent answers the kubelet's probes of both pods, and its rules are in place a moment later.
#[tokio::test]
async fn a_readiness_probe_waits_for_what_is_about_to_be_ready() {
    let rig = rig_that_waits(false, |_| {}).await;
    let (status, ()) = tokio::join!(rig.ready(), async {
        rig.api.up.send_replace(true);
        rig.until(200).await;
        rig.active.send_replace(true);
    });
    assert_eq!(status, 200);
    rig.end().await;
}

#[tokio::test]
async fn probes_and_metrics_are_served_under_the_names_that_are_known() {
    let rig = rig(|_| {}).await;
    let answer = get(WEB, rig.probe, "/healthz", "").await;
    assert_eq!((answer.status, &*answer.body), (200, "Not Active"));
    assert_eq!(rig.ready().await, 503, "requests are not intercepted");
    rig.active.send_replace(true);
    let answer = get(WEB, rig.probe, "/healthz", "").await;
    assert_eq!(answer.body, "Active");
    let text = get(WEB, rig.metrics, "/metrics", "").await.body;
    for name in [
        "aadpodidentity_nmi_operations_duration_seconds_bucket{",
        "status_code=\"200\",namespace=\"shop\"",
        "podid_nmi_watch_synced{kind=\"Pod\"} 1",
        "aadpodidentity_imds_operations_duration_seconds_count{operation_type=\"adal_token_msi_userassignedid\"}",
        "podid_nmi_interception_in_place 1",
        "podid_build_info{version=",
    ] {
        assert!(text.contains(name), "{name} is not in {text}");
    }
    assert!(!text.contains("eyJ"), "no token in metrics");
    rig.end().await;
}

#[tokio::test]
async fn tokens_are_there_before_they_are_asked_for() {
    let resource = "https://vault.azure.net";
    let rig = rig_that_waits(true, |config| config.prefetch = vec![resource.to_owned()]).await;
    // Of reader, writer and robot; late is not on the node, and nobody is granted the rest.
    rig.when(|rig| rig.upstream.tokens() >= 3).await;
    rig.until(200).await;
    let fetched = rig.upstream.tokens();
    assert_eq!(rig.token(WEB, resource).await.status, 200);
    assert_eq!(rig.upstream.tokens(), fetched, "from memory");
    rig.end().await;
}
