//! Watches.

use std::{pin::pin, time::Duration};

use futures::{Stream, StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams},
    runtime::{WatchStreamExt as _, reflector, watcher},
};
use serde_json::json;

use crate::{Subject, objects::config_map};

/// The next event of a watch, as its type and the object's name.
async fn next<S>(events: &mut S) -> (&'static str, String)
where
    S: Stream<Item = kube::Result<WatchEvent<ConfigMap>>> + Unpin,
{
    let event = tokio::time::timeout(Duration::from_secs(10), events.next());
    match event
        .await
        .expect("an event in time")
        .expect("an open watch")
        .unwrap()
    {
        WatchEvent::Added(o) => ("ADDED", o.name_any()),
        WatchEvent::Modified(o) => ("MODIFIED", o.name_any()),
        WatchEvent::Deleted(o) => ("DELETED", o.name_any()),
        WatchEvent::Bookmark(_) => ("BOOKMARK", String::new()),
        WatchEvent::Error(e) => panic!("{e:?}"),
    }
}

pub async fn a_watch_sees_what_happens(s: Subject) {
    let maps: Api<ConfigMap> = Api::namespaced(s.client, &s.namespace);
    let params = PostParams::default();
    maps.create(&params, &config_map("before", json!({"w": "1"})))
        .await
        .unwrap();
    let from = maps.list(&ListParams::default()).await.unwrap();
    let from = from.metadata.resource_version.unwrap();
    let selected = WatchParams::default().labels("w");
    let mut events = pin!(maps.watch(&selected, &from).await.unwrap());
    maps.create(&params, &config_map("new", json!({"w": "1"})))
        .await
        .unwrap();
    assert_eq!(next(&mut events).await, ("ADDED", "new".to_owned()));
    let patch = Patch::Merge(json!({"data": {"x": "y"}}));
    maps.patch("before", &PatchParams::default(), &patch)
        .await
        .unwrap();
    assert_eq!(next(&mut events).await, ("MODIFIED", "before".to_owned()));
    maps.delete("before", &DeleteParams::default())
        .await
        .unwrap();
    assert_eq!(next(&mut events).await, ("DELETED", "before".to_owned()));
    // From the version 0 the present comes first. (With bookmarks, a server on etcd before 3.4.25 refuses this.)
    let selected = selected.disable_bookmarks();
    let mut events = pin!(maps.watch(&selected, "0").await.unwrap());
    assert_eq!(next(&mut events).await, ("ADDED", "new".to_owned()));
}

pub async fn a_selector_decides_what_a_watch_sees(s: Subject) {
    let maps: Api<ConfigMap> = Api::namespaced(s.client, &s.namespace);
    let made = maps
        .create(&PostParams::default(), &config_map("m", json!({})))
        .await
        .unwrap();
    let from = made.resource_version().unwrap();
    let selected = WatchParams::default().labels("in=yes");
    let mut events = pin!(maps.watch(&selected, &from).await.unwrap());
    for (label, expected) in [
        (json!("yes"), "ADDED"),
        (json!("no"), "DELETED"),
        (json!("yes"), "ADDED"),
        (json!(null), "DELETED"),
    ] {
        let patch = Patch::Merge(json!({"metadata": {"labels": {"in": label}}}));
        maps.patch("m", &PatchParams::default(), &patch)
            .await
            .unwrap();
        assert_eq!(next(&mut events).await, (expected, "m".to_owned()));
    }
}

pub async fn a_reflector_keeps_up(s: Subject) {
    let maps: Api<ConfigMap> = Api::namespaced(s.client, &s.namespace);
    for n in 0..3 {
        let map = config_map(&format!("m{n}"), json!({"r": "1"}));
        maps.create(&PostParams::default(), &map).await.unwrap();
    }
    for config in [
        watcher::Config::default().labels("r").page_size(2),
        watcher::Config::default().labels("r").any_semantic(),
    ] {
        let (store, writer) = reflector::store();
        let stream = watcher(maps.clone(), config).reflect(writer);
        let follow = stream.try_for_each(|_| async { Ok(()) });
        let look = async {
            store.wait_until_ready().await.unwrap();
            assert_eq!(store.len(), 3);
            maps.delete("m0", &DeleteParams::default()).await.unwrap();
            while store.len() != 2 {
                tokio::task::yield_now().await;
            }
            maps.create(&PostParams::default(), &config_map("m0", json!({"r": "1"})))
                .await
                .unwrap();
        };
        let both = async {
            tokio::select! {
                result = follow => panic!("the watch ended: {result:?}"),
                () = look => {}
            }
        };
        tokio::time::timeout(Duration::from_secs(20), both)
            .await
            .unwrap();
    }
}
