//! A real kube-apiserver, real helm, and as much of Kubernetes' controllers as the chart's hooks need: a Job's command is run, as
//! its own service account, and what is deployed counts as rolled out.

use std::path::PathBuf;
use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, ListParams, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt as _};
use podid_testkit::apiserver::ApiServer;
pub use podid_testkit::process::text;
use podid_testkit::tools;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::Command;
use tokio::task::JoinSet;

pub const PODID: &str = env!("CARGO_BIN_EXE_podid");
/// What is always given, as there is no registry to default to.
pub const IMAGES: &str = "image.repository=example.azurecr.io/podid";

pub struct Cluster {
    pub api: ApiServer,
    folder: TempDir,
    broken: Arc<AtomicBool>,
    _jobs: JoinSet<()>,
}

impl Cluster {
    pub async fn start() -> Self {
        let api = ApiServer::start().await.unwrap();
        let broken = Arc::new(AtomicBool::new(false));
        let mut jobs = JoinSet::new();
        let (client, kubeconfig) = (api.client().await.unwrap(), api.kubeconfig());
        jobs.spawn(run_jobs(client.clone(), kubeconfig, broken.clone()));
        jobs.spawn(roll_out(client.clone()));
        jobs.spawn(end_namespaces(client));
        Self {
            api,
            folder: tempfile::tempdir().unwrap(),
            broken,
            _jobs: jobs,
        }
    }

    /// From now on Jobs fail, or no longer.
    pub fn break_jobs(&self, broken: bool) {
        self.broken.store(broken, Ordering::Relaxed);
    }

    /// helm, as a user of the release `podid` in the namespace `podid`.
    pub async fn helm(&self, arguments: &[&str]) -> Output {
        let kubeconfig = self.api.kubeconfig();
        let mut command = helm(&self.folder);
        command
            .args(arguments)
            .args(["--namespace", "podid"])
            .env("KUBECONFIG", kubeconfig);
        command.output().await.unwrap()
    }

    /// As [`Cluster::helm`], where it must succeed.
    pub async fn helms(&self, arguments: &[&str]) -> String {
        let output = self.helm(arguments).await;
        assert!(
            output.status.success(),
            "helm {arguments:?}: {}",
            text(&output)
        );
        text(&output)
    }

    /// `helm upgrade --install` of the chart.
    pub async fn upgrade(&self, more: &[&str]) -> Output {
        let chart = chart();
        let basic = ["upgrade", "--install", "podid", chart.to_str().unwrap()];
        let rest = ["--create-namespace", "--timeout", "60s"];
        self.helm(&[&basic[..], &rest, more].concat()).await
    }

    pub async fn upgrades(&self, more: &[&str]) -> String {
        let output = self.upgrade(more).await;
        assert!(output.status.success(), "{more:?}: {}", text(&output));
        text(&output)
    }

    pub async fn kubectl(&self, arguments: &[&str], input: &str) -> String {
        let output = self.api.run_kubectl(arguments, input).await.unwrap();
        assert!(
            output.status.success(),
            "kubectl {arguments:?}: {}",
            text(&output)
        );
        text(&output)
    }

    /// An object as the API server has it; null when it is not there.
    pub async fn get(&self, kind: &str, namespace: &str, name: &str) -> Value {
        let arguments = [
            "-n",
            namespace,
            "get",
            kind,
            name,
            "--ignore-not-found",
            "-o",
            "json",
        ];
        let said = self.kubectl(&arguments, "").await;
        serde_json::from_str(&said).unwrap_or_default()
    }
}

fn helm(folder: &TempDir) -> Command {
    let mut command = Command::new(tools::helm().unwrap());
    for (variable, name) in [
        ("HELM_CACHE_HOME", "cache"),
        ("HELM_CONFIG_HOME", "config"),
        ("HELM_DATA_HOME", "data"),
    ] {
        command.env(variable, folder.path().join(name));
    }
    command.kill_on_drop(true);
    command
}

/// What `helm template` says, without a cluster.
pub async fn template(more: &[&str]) -> Output {
    let folder = tempfile::tempdir().unwrap();
    let mut command = helm(&folder);
    let version = ["--kube-version", "1.34.2", "--namespace", "podid"];
    command.args(["template", "podid"]).arg(chart());
    command.args(version).args(more).output().await.unwrap()
}

/// The objects that the chart renders.
pub async fn rendered(more: &[&str]) -> Vec<Value> {
    let output = template(more).await;
    assert!(output.status.success(), "{more:?}: {}", text(&output));
    objects(&String::from_utf8(output.stdout).unwrap())
}

/// The objects of a YAML stream.
pub fn objects(yaml: &str) -> Vec<Value> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(yaml).unwrap();
    documents.into_iter().filter(|d| !d.is_null()).collect()
}

/// The object of that kind and name.
pub fn find<'a>(objects: &'a [Value], kind: &str, name: &str) -> Option<&'a Value> {
    objects
        .iter()
        .find(|object| object["kind"] == kind && object["metadata"]["name"] == name)
}

pub fn chart() -> PathBuf {
    tools::repository().join("charts/podid")
}

/// A file of values beside this one.
pub fn values(name: &str) -> String {
    let folder = tools::repository().join("crates/podid/tests/chart");
    folder.join(name).to_str().unwrap().to_owned()
}

/// Ends namespaces that are deleted, as Kubernetes' controller does once they are empty.
pub async fn end_namespaces(client: Client) {
    let api: Api<Namespace> = Api::all(client.clone());
    loop {
        tokio::time::sleep(Duration::from_millis(100)).await;
        for mut namespace in api.list(&ListParams::default()).await.into_iter().flatten() {
            if namespace.metadata.deletion_timestamp.is_none() {
                continue;
            }
            let path = format!("/api/v1/namespaces/{}/finalize", namespace.name_any());
            namespace.spec = None;
            let body = serde_json::to_vec(&namespace).unwrap();
            let request = http::Request::put(path).header("Content-Type", "application/json");
            // It may have gone meanwhile.
            let _ = client.request::<Value>(request.body(body).unwrap()).await;
        }
    }
}

/// Runs what Jobs say until the end of the test.
pub async fn run_jobs(client: Client, kubeconfig: PathBuf, broken: Arc<AtomicBool>) {
    let api: Api<Job> = Api::all(client.clone());
    loop {
        tokio::time::sleep(Duration::from_millis(100)).await;
        for job in api.list(&ListParams::default()).await.into_iter().flatten() {
            if job.status.as_ref().is_none_or(|s| s.conditions.is_none()) {
                let done = !broken.load(Ordering::Relaxed) && run(&client, &job, &kubeconfig).await;
                report(&client, &job, done).await;
            }
        }
    }
}

/// Runs the command of a Job's container with a token of the Job's service account.
async fn run(client: &Client, job: &Job, admin: &PathBuf) -> bool {
    let namespace = job.namespace().unwrap();
    let pod = job.spec.as_ref().unwrap().template.spec.clone().unwrap();
    let account = pod.service_account_name.unwrap();
    let token = token(client, &namespace, &account).await;
    let mut config: Value = serde_json::from_slice(&std::fs::read(admin).unwrap()).unwrap();
    config["users"][0]["user"] = json!({ "token": token });
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), config.to_string()).unwrap();
    let command = pod.containers[0].command.clone().unwrap();
    assert_eq!(command[0], "/podid");
    let mut podid = Command::new(PODID);
    let output = podid.args(&command[1..]).env("KUBECONFIG", file.path());
    let output = output.output().await.unwrap();
    assert!(output.status.success(), "{}", text(&output));
    true
}

/// A token of a service account, as the kubelet would ask for it.
pub async fn token(client: &Client, namespace: &str, account: &str) -> String {
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), namespace);
    let request = TokenRequest {
        spec: TokenRequestSpec::default(),
        ..TokenRequest::default()
    };
    let made = accounts
        .create_token_request(account, &PostParams::default(), &request)
        .await
        .unwrap();
    made.status.unwrap().token
}

async fn report(client: &Client, job: &Job, done: bool) {
    let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let conditions = if done {
        ["SuccessCriteriaMet", "Complete"]
    } else {
        ["FailureTarget", "Failed"]
    };
    let conditions = conditions.map(|name| {
        json!({ "type": name, "status": "True", "reason": "Test", "lastTransitionTime": now, "lastProbeTime": now })
    });
    let mut status = json!({ "startTime": now, "conditions": conditions });
    if done {
        status["completionTime"] = json!(now);
        status["succeeded"] = json!(1);
    } else {
        status["failed"] = json!(1);
    }
    let api: Api<Job> = Api::namespaced(client.clone(), &job.namespace().unwrap());
    let patch = Patch::Merge(json!({ "status": status }));
    api.patch_status(&job.name_any(), &PatchParams::default(), &patch)
        .await
        .unwrap();
}

/// Every DaemonSet and Deployment is rolled out at once.
pub async fn roll_out(client: Client) {
    let sets: Api<DaemonSet> = Api::all(client.clone());
    let deployments: Api<Deployment> = Api::all(client.clone());
    loop {
        tokio::time::sleep(Duration::from_millis(200)).await;
        for set in sets
            .list(&ListParams::default())
            .await
            .into_iter()
            .flatten()
        {
            let status = json!({
                "observedGeneration": set.metadata.generation, "desiredNumberScheduled": 1, "currentNumberScheduled": 1,
                "updatedNumberScheduled": 1, "numberReady": 1, "numberAvailable": 1, "numberMisscheduled": 0,
            });
            let api: Api<DaemonSet> = Api::namespaced(client.clone(), &set.namespace().unwrap());
            let patch = Patch::Merge(json!({ "status": status }));
            let _ = api
                .patch_status(&set.name_any(), &PatchParams::default(), &patch)
                .await;
        }
        for deployment in deployments
            .list(&ListParams::default())
            .await
            .into_iter()
            .flatten()
        {
            let count = deployment
                .spec
                .as_ref()
                .and_then(|s| s.replicas)
                .unwrap_or(1);
            let status = json!({
                "observedGeneration": deployment.metadata.generation, "replicas": count, "updatedReplicas": count,
                "readyReplicas": count, "availableReplicas": count,
            });
            let api: Api<Deployment> =
                Api::namespaced(client.clone(), &deployment.namespace().unwrap());
            let patch = Patch::Merge(json!({ "status": status }));
            let _ = api
                .patch_status(&deployment.name_any(), &PatchParams::default(), &patch)
                .await;
        }
    }
}
