//! The controller against the simulated cluster over HTTP, in real time: schemas, finalizers and broken watches.

use kube::api::{DeleteParams, DynamicObject, ListParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::{ApiResource, GroupVersionKind};
use kube::{Api, Client};
use podid_sim::cluster::{Cluster, Config as ClusterConfig};

use super::*;

struct Real(Client);

impl Real {
    fn api(
        &self,
        group: &str,
        kind: &str,
        plural: &str,
        namespace: Option<&str>,
    ) -> Api<DynamicObject> {
        let version = GroupVersionKind::gvk(group, "v1", kind);
        let resource = ApiResource::from_gvk_with_plural(&version, plural);
        match namespace {
            Some(namespace) => Api::namespaced_with(self.0.clone(), namespace, &resource),
            None => Api::all_with(self.0.clone(), &resource),
        }
    }

    fn ours(&self, kind: &str, plural: &str) -> Api<DynamicObject> {
        self.api("aadpodidentity.k8s.io", kind, plural, Some("default"))
    }

    fn assigned(&self) -> Api<DynamicObject> {
        self.ours("AzureAssignedIdentity", "azureassignedidentities")
    }

    async fn status_of(&self, name: &str) -> Option<Value> {
        let object = self.assigned().get_opt(name).await.unwrap()?;
        Some(object.data["status"]["status"].clone())
    }

    async fn until_status(&self, name: &str, wanted: Option<&str>) {
        let deadline = Instant::now() + Duration::from_secs(30);
        let wanted = wanted.map(|text| json!(text));
        while self.status_of(name).await != wanted {
            assert!(Instant::now() < deadline, "{name} never became {wanted:?}");
            sleep(Duration::from_millis(30)).await;
        }
    }
}

async fn create(api: &Api<DynamicObject>, object: Value) {
    let object = serde_json::from_value(object).unwrap();
    api.create(&PostParams::default(), &object).await.unwrap();
}

async fn client(cluster: &Cluster) -> Client {
    let kubeconfig = Kubeconfig::from_yaml(&cluster.kubeconfig()).unwrap();
    let options = KubeConfigOptions::default();
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &options);
    Client::try_from(config.await.unwrap()).unwrap()
}

async fn furnish(real: &Real) {
    let crds = real.api(
        "apiextensions.k8s.io",
        "CustomResourceDefinition",
        "customresourcedefinitions",
        None,
    );
    for crd in podid_api::crds::all().unwrap() {
        create(&crds, serde_json::to_value(crd).unwrap()).await;
    }
    create(
        &real.api("", "Node", "nodes", None),
        json!({
            "apiVersion": "v1", "kind": "Node", "metadata": { "name": "n1" },
            "spec": { "providerID": provider_id(1, 0) },
        }),
    )
    .await;
    create(
        &real.ours("AzureIdentity", "azureidentities"),
        json!({
            "apiVersion": "aadpodidentity.k8s.io/v1", "kind": "AzureIdentity",
            "metadata": { "namespace": "default", "name": "reader-id" },
            "spec": { "type": 0, "ResourceID": id(1).as_str(), "ClientID": client_id(1) },
        }),
    )
    .await;
    create(
        &real.ours("AzureIdentityBinding", "azureidentitybindings"),
        json!({
            "apiVersion": "aadpodidentity.k8s.io/v1", "kind": "AzureIdentityBinding",
            "metadata": { "namespace": "default", "name": "binding" },
            "spec": { "AzureIdentity": "reader-id", "Selector": "myapp" },
        }),
    )
    .await;
}

async fn pod(real: &Real, name: &str) {
    create(&real.api("", "Pod", "pods", Some("default")), json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "namespace": "default", "name": name, "labels": { "aadpodidbinding": "myapp" } },
        "spec": { "nodeName": "n1", "containers": [{ "name": "app", "image": "app" }] },
    }))
    .await;
}

#[tokio::test]
async fn assignments_come_and_go_however_often_the_watches_break() {
    let stop = CancellationToken::new();
    let cluster = Cluster::bind(ClusterConfig::default()).await.unwrap();
    let (real, disturb) = (Real(client(&cluster).await), cluster.faults());
    let running = tokio::spawn(cluster.run(stop.clone()));
    furnish(&real).await;
    let azure = FakeAzure::default();
    let mut config = config("mic-0");
    config.namespace = "default".to_owned();
    config.linger = Duration::ZERO;
    config.settle = Duration::from_millis(20);
    let mic = Mic::new(config, real.0.clone(), Arc::new(azure.clone()));
    let listeners = mic.bind().await.unwrap();
    let mic = tokio::spawn(mic.run(listeners, stop.clone()));

    for round in 0..2 {
        let name = format!("web-{round}");
        pod(&real, &name).await;
        real.until_status(&format!("{name}-default-reader-id"), Some("Assigned"))
            .await;
        disturb.compact();
        disturb.drop_watches();
    }
    assert_eq!(azure.attached(&host(1)), only(&[1]));
    let listed = ListParams::default().labels("nodename=n1");
    assert_eq!(real.assigned().list(&listed).await.unwrap().items.len(), 2);
    for round in 0..2 {
        let pods = real.api("", "Pod", "pods", Some("default"));
        let now = DeleteParams {
            grace_period_seconds: Some(0),
            ..DeleteParams::default()
        };
        pods.delete(&format!("web-{round}"), &now).await.unwrap();
        disturb.drop_watches();
        real.until_status(&format!("web-{round}-default-reader-id"), None)
            .await;
    }
    assert!(azure.attached(&host(1)).is_empty());
    stop.cancel();
    mic.await.unwrap().unwrap();
    running.await.unwrap().unwrap();
}
