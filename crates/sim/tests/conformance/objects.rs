//! Objects of the built-in kinds.

use k8s_openapi::api::{
    coordination::v1::Lease,
    core::v1::{ConfigMap, Pod},
};
use kube::{
    Api, Error, ResourceExt as _,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use crate::Subject;

pub fn config_map(name: &str, labels: Value) -> ConfigMap {
    serde_json::from_value(
        json!({"metadata": {"name": name, "labels": labels}, "data": {"a": "1"}}),
    )
    .unwrap()
}

fn pod(name: &str, node: Option<&str>) -> Pod {
    serde_json::from_value(json!({
        "metadata": {"name": name, "labels": {"aadpodidbinding": "myapp"}},
        "spec": {"nodeName": node, "containers": [{"name": "c", "image": "example/app:1"}]},
    }))
    .unwrap()
}

/// The status code, reason and message of a refusal.
pub fn refusal<T: std::fmt::Debug>(result: kube::Result<T>) -> (u16, String, String) {
    match result {
        Err(Error::Api(status)) => (status.code, status.reason, status.message),
        other => panic!("expected a refusal, got {other:?}"),
    }
}

pub async fn an_object_is_created_read_and_deleted(s: Subject) {
    let maps: Api<ConfigMap> = Api::namespaced(s.client, &s.namespace);
    let made = maps
        .create(&PostParams::default(), &config_map("one", json!({})))
        .await
        .unwrap();
    assert!(made.uid().is_some() && made.resource_version().is_some());
    assert!(made.creation_timestamp().is_some());
    assert_eq!(made.metadata.generation, None);
    assert_eq!(maps.get("one").await.unwrap().data, made.data);
    let again = maps
        .create(&PostParams::default(), &config_map("one", json!({})))
        .await;
    let expected = (
        409,
        "AlreadyExists".to_owned(),
        "configmaps \"one\" already exists".to_owned(),
    );
    assert_eq!(refusal(again), expected);
    let gone = maps.delete("one", &DeleteParams::default()).await.unwrap();
    let status = gone.right().expect("a Status");
    assert_eq!(status.details.unwrap().uid, made.uid().unwrap());
    let expected = (
        404,
        "NotFound".to_owned(),
        "configmaps \"one\" not found".to_owned(),
    );
    assert_eq!(refusal(maps.get("one").await), expected);
}

pub async fn a_stale_write_is_a_conflict(s: Subject) {
    let maps: Api<ConfigMap> = Api::namespaced(s.client, &s.namespace);
    let made = maps
        .create(&PostParams::default(), &config_map("one", json!({})))
        .await
        .unwrap();
    let mut newer = made.clone();
    newer.data = Some([("a".to_owned(), "2".to_owned())].into());
    let newer = maps
        .replace("one", &PostParams::default(), &newer)
        .await
        .unwrap();
    let unchanged = maps
        .replace("one", &PostParams::default(), &newer)
        .await
        .unwrap();
    assert_eq!(unchanged.resource_version(), newer.resource_version());
    let (code, reason, message) = refusal(maps.replace("one", &PostParams::default(), &made).await);
    assert_eq!((code, reason.as_str()), (409, "Conflict"));
    assert_eq!(
        message,
        "Operation cannot be fulfilled on configmaps \"one\": the object has been modified; please apply your changes \
         to the latest version and try again"
    );
    let stale =
        json!({"metadata": {"resourceVersion": made.resource_version()}, "data": {"b": "1"}});
    let patched = maps
        .patch("one", &PatchParams::default(), &Patch::Merge(&stale))
        .await;
    assert_eq!(refusal(patched).0, 409);
    let stale = DeleteParams::default().preconditions(kube::api::Preconditions {
        resource_version: made.resource_version(),
        uid: None,
    });
    assert_eq!(refusal(maps.delete("one", &stale).await).0, 409);
}

pub async fn a_merge_patch_and_a_strategic_patch_differ(s: Subject) {
    let pods: Api<Pod> = Api::namespaced(s.client, &s.namespace);
    pods.create(&PostParams::default(), &pod("p", None))
        .await
        .unwrap();
    let condition = |kind: &str, status: &str| json!({"status": {"conditions": [{"type": kind, "status": status}]}});
    let params = PatchParams::default();
    for (kind, status) in [("A", "False"), ("B", "True"), ("A", "True")] {
        let patch = condition(kind, status);
        pods.patch_status("p", &params, &Patch::Strategic(&patch))
            .await
            .unwrap();
    }
    let conditions = |pod: Pod| -> Vec<(String, String)> {
        let conditions = pod.status.unwrap().conditions.unwrap();
        let mut all: Vec<_> = conditions
            .into_iter()
            .map(|c| (c.type_, c.status))
            .collect();
        all.sort();
        all
    };
    let yes = |kind: &str| (kind.to_owned(), "True".to_owned());
    assert_eq!(
        conditions(pods.get("p").await.unwrap()),
        [yes("A"), yes("B")]
    );
    let patch = condition("C", "True");
    let merged = pods
        .patch_status("p", &params, &Patch::Merge(&patch))
        .await
        .unwrap();
    assert_eq!(conditions(merged), [yes("C")]);
}

pub async fn a_json_patch_tests_first(s: Subject) {
    let maps: Api<ConfigMap> = Api::namespaced(s.client, &s.namespace);
    maps.create(&PostParams::default(), &config_map("one", json!({})))
        .await
        .unwrap();
    let patch = |expected: &str| -> Patch<ConfigMap> {
        let patch = json!([
            {"op": "test", "path": "/data/a", "value": expected},
            {"op": "add", "path": "/data/b", "value": "2"},
        ]);
        Patch::Json(serde_json::from_value(patch).unwrap())
    };
    let params = PatchParams::default();
    let refused = refusal(maps.patch("one", &params, &patch("other")).await);
    assert_eq!((refused.0, refused.1.as_str()), (422, "Invalid"));
    let patched = maps.patch("one", &params, &patch("1")).await.unwrap();
    assert_eq!(patched.data.unwrap()["b"], "2");
}

pub async fn a_finalizer_holds_a_deletion(s: Subject) {
    let maps: Api<ConfigMap> = Api::namespaced(s.client, &s.namespace);
    let mut held = config_map("held", json!({}));
    held.metadata.finalizers = Some(vec!["podid.test/hold".to_owned()]);
    maps.create(&PostParams::default(), &held).await.unwrap();
    let deleted = maps.delete("held", &DeleteParams::default()).await.unwrap();
    let deleted = deleted.left().expect("the object, still there");
    assert!(deleted.metadata.deletion_timestamp.is_some());
    let another = json!({"metadata": {"finalizers": ["podid.test/hold", "podid.test/late"]}});
    let params = PatchParams::default();
    let refused = refusal(maps.patch("held", &params, &Patch::Merge(&another)).await);
    assert_eq!(refused.0, 422);
    assert!(
        refused.2.contains("no new finalizers can be added"),
        "{}",
        refused.2
    );
    let free = json!({"metadata": {"finalizers": null}});
    maps.patch("held", &params, &Patch::Merge(&free))
        .await
        .unwrap();
    assert!(maps.get_opt("held").await.unwrap().is_none());
}

pub async fn a_pod_has_a_status_of_its_own(s: Subject) {
    let pods: Api<Pod> = Api::namespaced(s.client, &s.namespace);
    let mut wanted = pod("p", None);
    wanted.status = serde_json::from_value(json!({"phase": "Running"})).unwrap();
    let made = pods.create(&PostParams::default(), &wanted).await.unwrap();
    assert_eq!(made.status.unwrap().phase.as_deref(), Some("Pending"));
    let running = json!({"status": {"phase": "Running", "podIP": "127.0.0.9"}});
    let params = PatchParams::default();
    pods.patch("p", &params, &Patch::Merge(&running))
        .await
        .unwrap();
    assert_eq!(pods.get("p").await.unwrap().status.unwrap().pod_ip, None);
    pods.patch_status("p", &params, &Patch::Merge(&running))
        .await
        .unwrap();
    let spec = json!({"spec": {"hostNetwork": true}});
    let refused = refusal(pods.patch("p", &params, &Patch::Merge(&spec)).await);
    assert!(
        refused
            .2
            .contains("pod updates may not change fields other than"),
        "{}",
        refused.2
    );
    let read = pods.get("p").await.unwrap();
    assert_eq!(read.status.unwrap().pod_ip.as_deref(), Some("127.0.0.9"));
    let spec = read.spec.unwrap();
    assert_eq!(spec.restart_policy.as_deref(), Some("Always"));
    assert_eq!(
        spec.containers[0].image_pull_policy.as_deref(),
        Some("IfNotPresent")
    );
    let phase = ListParams::default().fields("status.phase=Running");
    assert_eq!(pods.list(&phase).await.unwrap().items.len(), 1);
}

pub async fn a_pod_on_a_node_stops_in_its_own_time(s: Subject) {
    let pods: Api<Pod> = Api::namespaced(s.client, &s.namespace);
    pods.create(&PostParams::default(), &pod("waiting", None))
        .await
        .unwrap();
    let placed = pod("placed", Some("node-1"));
    pods.create(&PostParams::default(), &placed).await.unwrap();
    pods.delete("waiting", &DeleteParams::default())
        .await
        .unwrap();
    assert!(pods.get_opt("waiting").await.unwrap().is_none());
    pods.delete("placed", &DeleteParams::default())
        .await
        .unwrap();
    let stopping = pods.get("placed").await.unwrap().metadata;
    assert!(stopping.deletion_timestamp.is_some());
    assert_eq!(stopping.deletion_grace_period_seconds, Some(30));
    pods.delete("placed", &DeleteParams::default().grace_period(0))
        .await
        .unwrap();
    assert!(pods.get_opt("placed").await.unwrap().is_none());
}

pub async fn selectors_select(s: Subject) {
    let maps: Api<ConfigMap> = Api::namespaced(s.client, &s.namespace);
    for (name, labels) in [
        ("a", json!({"app": "web", "tier": "front"})),
        ("b", json!({"app": "api"})),
        ("c", json!({})),
    ] {
        maps.create(&PostParams::default(), &config_map(name, labels))
            .await
            .unwrap();
    }
    for (selector, expected) in [
        ("app=web", vec!["a"]),
        ("app", vec!["a", "b"]),
        ("!app", vec!["c"]),
        ("app!=web", vec!["b", "c"]),
        ("app in (web,api),!tier", vec!["b"]),
        ("app notin (web)", vec!["b", "c"]),
    ] {
        let params = ListParams::default().labels(&format!("{selector},!absent"));
        let found = maps.list(&params).await.unwrap();
        // A real cluster's own controller may put kube-root-ca.crt here.
        let names: Vec<String> = found
            .iter()
            .map(kube::ResourceExt::name_any)
            .filter(|n| n.len() == 1)
            .collect();
        assert_eq!(names, expected, "{selector}");
    }
    let one = ListParams::default().fields("metadata.name=b");
    assert_eq!(maps.list(&one).await.unwrap().items.len(), 1);
    let refused = refusal(maps.list(&ListParams::default().fields("data.a=1")).await);
    assert_eq!((refused.0, refused.1.as_str()), (400, "BadRequest"));
}

pub async fn lists_come_in_pages(s: Subject) {
    let maps: Api<ConfigMap> = Api::namespaced(s.client, &s.namespace);
    for n in 0..5 {
        let labels = json!({"page": "yes"});
        let map = config_map(&format!("map-{n}"), labels);
        maps.create(&PostParams::default(), &map).await.unwrap();
    }
    let pages = ListParams::default().labels("page").limit(2);
    let first = maps.list(&pages).await.unwrap();
    assert_eq!(first.items.len(), 2);
    // What happens between the pages is not in them.
    maps.delete("map-4", &DeleteParams::default())
        .await
        .unwrap();
    let mut names: Vec<String> = first.iter().map(kube::ResourceExt::name_any).collect();
    let mut token = first.metadata.continue_.clone();
    while let Some(next) = token.filter(|t| !t.is_empty()) {
        let page = maps
            .list(&pages.clone().continue_token(&next))
            .await
            .unwrap();
        assert_eq!(
            page.metadata.resource_version,
            first.metadata.resource_version
        );
        names.extend(page.iter().map(kube::ResourceExt::name_any));
        token = page.metadata.continue_;
    }
    assert_eq!(names, ["map-0", "map-1", "map-2", "map-3", "map-4"]);
}

pub async fn what_is_wrong_is_said(s: Subject) {
    let maps: Api<ConfigMap> = Api::namespaced(s.client.clone(), &s.namespace);
    let params = PostParams::default();
    let refused = refusal(maps.create(&params, &config_map("Upper", json!({}))).await);
    assert_eq!((refused.0, refused.1.as_str()), (422, "Invalid"));
    assert!(refused.2.starts_with("ConfigMap \"Upper\" is invalid: metadata.name: Invalid value: \"Upper\": a lowercase RFC 1123 subdomain must"), "{}", refused.2);
    let refused = refusal(
        maps.create(&params, &config_map("x", json!({"a": "b c"})))
            .await,
    );
    assert!(
        refused
            .2
            .contains("metadata.labels: Invalid value: \"b c\": a valid label must"),
        "{}",
        refused.2
    );
    let pods: Api<Pod> = Api::namespaced(s.client.clone(), &s.namespace);
    let empty: Pod =
        serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": {"containers": []}}))
            .unwrap();
    let refused = refusal(pods.create(&params, &empty).await);
    assert!(
        refused
            .2
            .contains("Pod \"p\" is invalid: spec.containers: Required value"),
        "{}",
        refused.2
    );
    let elsewhere: Api<ConfigMap> = Api::namespaced(s.client, "no-such-namespace");
    let refused = refusal(elsewhere.create(&params, &config_map("x", json!({}))).await);
    assert_eq!(
        refused,
        (
            404,
            "NotFound".to_owned(),
            "namespaces \"no-such-namespace\" not found".to_owned()
        )
    );
}

pub async fn a_lease_is_taken_by_update(s: Subject) {
    let leases: Api<Lease> = Api::namespaced(s.client, &s.namespace);
    let lease = json!({
        "metadata": {"name": "leader"},
        "spec": {"holderIdentity": "a", "leaseDurationSeconds": 15, "renewTime": "2026-01-02T03:04:05.000006Z"},
    });
    let lease: Lease = serde_json::from_value(lease).unwrap();
    let params = PostParams::default();
    let mut held = leases.create(&params, &lease).await.unwrap();
    assert_eq!(
        held.spec.as_ref().unwrap().renew_time,
        lease.spec.unwrap().renew_time
    );
    if let Some(spec) = held.spec.as_mut() {
        spec.holder_identity = Some("b".to_owned());
    }
    let taken = leases.replace("leader", &params, &held).await.unwrap();
    assert_eq!(
        taken.spec.as_ref().unwrap().holder_identity.as_deref(),
        Some("b")
    );
    assert_eq!(
        refusal(leases.replace("leader", &params, &held).await).0,
        409
    );
    let mut blind = taken;
    blind.metadata.resource_version = None;
    let refused = refusal(leases.replace("leader", &params, &blind).await);
    assert!(
        refused.2.contains("must be specified for an update"),
        "{}",
        refused.2
    );
}
