//! What only the simulated cluster can do: faults on demand.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::time::{Duration, Instant};

use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::{
    Api, Client, Error,
    api::{ListParams, PostParams, WatchEvent, WatchParams},
    config::{KubeConfigOptions, Kubeconfig},
    runtime::{WatchStreamExt as _, reflector, watcher},
};
use podid_sim::cluster::{Cluster, Config, FaultInjector, Secret};
use serde_json::json;
use tokio_util::sync::{CancellationToken, DropGuard};

async fn client(kubeconfig: &str) -> Client {
    let kubeconfig = Kubeconfig::from_yaml(kubeconfig).unwrap();
    let options = KubeConfigOptions::default();
    let mut config = kube::Config::from_custom_kubeconfig(kubeconfig, &options)
        .await
        .unwrap();
    // A fault is to be seen, not retried.
    config.default_retry = false;
    Client::try_from(config).unwrap()
}

async fn start(config: Config) -> (Api<ConfigMap>, FaultInjector, DropGuard) {
    let cluster = Cluster::bind(config).await.unwrap();
    let client = client(&cluster.kubeconfig()).await;
    let faults = cluster.faults();
    let shutdown = CancellationToken::new();
    tokio::spawn(cluster.run(shutdown.clone()));
    (
        Api::default_namespaced(client),
        faults,
        shutdown.drop_guard(),
    )
}

fn map(name: &str) -> ConfigMap {
    serde_json::from_value(json!({"metadata": {"name": name}})).unwrap()
}

#[tokio::test]
async fn requests_fail_as_often_as_asked() {
    let (maps, faults, _guard) = start(Config::default()).await;
    faults.fail_next(1, 503, "POST /api/v1/namespaces/default/configmaps");
    maps.list(&ListParams::default()).await.unwrap();
    let params = PostParams::default();
    match maps.create(&params, &map("a")).await {
        Err(Error::Api(status)) => assert_eq!(
            (status.code, status.reason.as_str()),
            (503, "ServiceUnavailable")
        ),
        other => panic!("{other:?}"),
    }
    maps.create(&params, &map("a")).await.unwrap();
}

#[tokio::test]
async fn answers_are_held_back() {
    let (maps, faults, _guard) = start(Config::default()).await;
    faults.set_latency(Duration::from_millis(80));
    let before = Instant::now();
    maps.list(&ListParams::default()).await.unwrap();
    assert!(before.elapsed() >= Duration::from_millis(80));
}

#[tokio::test]
async fn a_forgotten_version_is_gone() {
    let (maps, faults, _guard) = start(Config::default()).await;
    let from = maps
        .list(&ListParams::default())
        .await
        .unwrap()
        .metadata
        .resource_version
        .unwrap();
    maps.create(&PostParams::default(), &map("a"))
        .await
        .unwrap();
    faults.compact();
    let mut events = std::pin::pin!(maps.watch(&WatchParams::default(), &from).await.unwrap());
    match events.next().await.unwrap().unwrap() {
        WatchEvent::Error(status) => {
            assert_eq!((status.code, status.reason.as_str()), (410, "Expired"))
        }
        other => panic!("{other:?}"),
    }
    assert!(events.next().await.is_none());
}

#[tokio::test]
async fn a_reflector_survives_dropped_watches_and_forgotten_history() {
    let (maps, faults, _guard) = start(Config::default()).await;
    for config in [
        watcher::Config::default(),
        watcher::Config::default().streaming_lists(),
    ] {
        let (store, writer) = reflector::store();
        let stream = watcher(maps.clone(), config)
            .reflect(writer)
            .default_backoff();
        let follow = stream.map(Ok::<_, ()>).try_for_each(|_| async { Ok(()) });
        let look = async {
            store.wait_until_ready().await.unwrap();
            let before = store.len();
            faults.drop_watches();
            maps.create(&PostParams::default(), &map(&format!("map-{before}")))
                .await
                .unwrap();
            faults.compact();
            while store.len() != before + 1 {
                tokio::task::yield_now().await;
            }
        };
        let both = async {
            tokio::select! {
                _ = follow => panic!("the watch ended"),
                () = look => {}
            }
        };
        tokio::time::timeout(Duration::from_secs(20), both)
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn quiet_watches_get_bookmarks_when_they_ask() {
    let config = Config {
        bookmark_interval: Duration::from_millis(10),
        ..Config::default()
    };
    let (maps, _handle, _guard) = start(config).await;
    let mut events = std::pin::pin!(maps.watch(&WatchParams::default(), "0").await.unwrap());
    let event = tokio::time::timeout(Duration::from_secs(10), events.next());
    assert!(matches!(
        event.await.unwrap().unwrap().unwrap(),
        WatchEvent::Bookmark(_)
    ));
}

#[tokio::test]
async fn without_the_token_nobody_enters() {
    let config = Config {
        token: Some(Secret::new("let-me-in")),
        ..Config::default()
    };
    let cluster = Cluster::bind(config).await.unwrap();
    let kubeconfig = cluster.kubeconfig();
    let shutdown = CancellationToken::new();
    let _guard = shutdown.clone().drop_guard();
    tokio::spawn(cluster.run(shutdown));
    let with: Api<Namespace> = Api::all(client(&kubeconfig).await);
    assert_eq!(
        with.list(&ListParams::default()).await.unwrap().items.len(),
        4
    );
    let without: Api<Namespace> = Api::all(client(&kubeconfig.replace("let-me-in", "guess")).await);
    match without.list(&ListParams::default()).await {
        Err(Error::Api(status)) => assert_eq!(status.code, 401),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn other_machines_are_not_served_unless_asked_for() {
    let listen = "0.0.0.0:0".parse().unwrap();
    let config = Config {
        listen,
        ..Config::default()
    };
    let error = Cluster::bind(config).await.unwrap_err();
    assert!(error.to_string().contains("allow_remote"), "{error}");
}
