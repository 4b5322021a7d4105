//! A real kube-apiserver with the accounts and roles of the chart, a simulated Azure, and `podid nmi` as its service account.
//! Requests come by loopback, from the addresses that the pods have: which packets reach nmi is no matter of privilege.

use std::net::{IpAddr, Ipv4Addr};
use std::process::Command;
use std::time::Duration;

use kube::Client;
use podid_sim::azure::HostKind;
use podid_testkit::apiserver::ApiServer;
use podid_testkit::ports::free_ports;
use podid_testkit::process::Process;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::cluster::rendered;
use crate::roles::{Roles, kubeconfig, send};
use crate::shared::{self, GROUP, Local};
use crate::world::PODID;

const OURS: &str = "/apis/aadpodidentity.k8s.io/v1/namespaces/default";
/// A token is had in a fraction of a second. Longer is no token: nmi holds a request whose answer may still come.
const GRANTED_WITHIN: Duration = Duration::from_secs(3);
pub const TAINT: &str = "podid.io/agent-not-ready";
/// Whose identity is on the node, and whose is a service principal.
pub const PODS: [(&str, Ipv4Addr); 2] = [
    ("attached", Ipv4Addr::new(127, 0, 7, 1)),
    ("robot", Ipv4Addr::new(127, 0, 7, 2)),
];

pub struct Node {
    api: ApiServer,
    pub roles: Roles,
    client: Client,
    mode: &'static str,
    imds: u16,
    ports: [u16; 3],
    scratch: tempfile::TempDir,
    azure: Local,
}

impl Node {
    /// With the accounts and roles that the chart renders with these values.
    pub async fn build(mode: &'static str, values: &[&str]) -> Self {
        let azure = shared::start(podid_sim::azure::Config::default()).await;
        let set = azure.control.create_host(HostKind::ScaleSet, GROUP, "pool");
        let anywhere = "127.0.0.1:0".parse().unwrap();
        let imds = azure
            .control
            .serve_imds(&set, Some(0), anywhere)
            .await
            .unwrap();
        let api = ApiServer::start().await.unwrap();
        api.install_crds().await.unwrap();
        let mode_value = format!("operationMode={mode}");
        let image = ["--set", crate::cluster::IMAGES, "--set", &mode_value];
        let mut objects = rendered(&[&image[..], values].concat()).await;
        objects.retain(|object| {
            let kind = object["kind"].as_str().unwrap_or_default();
            let hook = object["metadata"]["annotations"]["helm.sh/hook"].is_string();
            !hook && (kind == "Namespace" || kind == "ServiceAccount" || kind.contains("Role"))
        });
        let client = api.client().await.unwrap();
        let roles = Roles::of("podid-nmi", &client, objects.clone());
        objects.insert(
            0,
            json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "podid" } }),
        );
        let list = json!({ "apiVersion": "v1", "kind": "List", "items": objects }).to_string();
        let applied = api.run_kubectl(&["apply", "-f", "-"], &list).await.unwrap();
        assert!(applied.status.success(), "{applied:?}");
        let scratch = tempfile::tempdir().unwrap();
        let node = Self {
            ports: free_ports().unwrap(),
            imds: imds.port(),
            api,
            roles,
            client,
            mode,
            scratch,
            azure,
        };
        let config = kubeconfig(&node.api, "podid-nmi").await;
        node.azure
            .write_environment(&node.scratch.path().join("cloud.json"));
        node.write("kubeconfig", &config);
        node.furnish(&set).await;
        node
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.scratch.path().join(name), text).unwrap();
    }

    async fn furnish(&self, set: &str) {
        let azure = &self.azure.control;
        let identity = azure.create_identity(GROUP, "attached");
        azure.attach(set, &identity);
        let (application, _) = azure.create_application("secret");
        let password = json!({ "name": "robot", "namespace": "default" });
        for ((name, address), spec) in PODS.into_iter().zip([
            json!({ "type": 0, "resourceID": identity.id, "clientID": identity.client_id }),
            json!({
                "type": 1, "tenantID": azure.tenant(), "clientID": application, "clientPassword": password,
            }),
        ]) {
            let ours = |kind: &str, name: &str, spec: &Value| {
                json!({
                    "apiVersion": "aadpodidentity.k8s.io/v1", "kind": kind, "metadata": { "name": name, "namespace": "default" },
                    "spec": spec,
                })
            };
            let identity = ours("AzureIdentity", name, &spec);
            let bound = json!({ "azureIdentity": name, "selector": name });
            let binding = ours("AzureIdentityBinding", name, &bound);
            self.create(&format!("{OURS}/azureidentities"), &identity)
                .await;
            self.create(&format!("{OURS}/azureidentitybindings"), &binding)
                .await;
            self.pod(name, name, address).await;
            let assigned = format!("{name}-default-{name}");
            let mut assigned = ours(
                "AzureAssignedIdentity",
                &assigned,
                &json!({
                    "pod": name, "podNamespace": "default", "nodename": "n1", "replicas": 1,
                    "azureIdentityRef": identity, "azureBindingRef": binding,
                }),
            );
            assigned["metadata"]["labels"] = json!({ "nodename": "n1" });
            assigned["status"] = json!({ "status": "Assigned", "availableReplicas": 1 });
            self.create(&format!("{OURS}/azureassignedidentities"), &assigned)
                .await;
        }
        self.put_secret().await;
        let node = json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": "n1" } });
        self.create("/api/v1/nodes", &node).await;
    }

    /// A pod with this address, as the kubelet reports it.
    pub async fn pod(&self, name: &str, label: &str, address: Ipv4Addr) {
        let pods = "/api/v1/namespaces/default/pods";
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name, "labels": { "aadpodidbinding": label } },
            "spec": { "nodeName": "n1", "containers": [{ "name": "app", "image": "app" }] },
        });
        let mut pod = self.create(pods, &pod).await;
        pod["status"] =
            json!({ "phase": "Running", "podIP": address, "podIPs": [{ "ip": address }] });
        let path = format!("{pods}/{name}/status");
        self.send("PUT", &path, Some(&pod)).await;
    }

    pub async fn put_secret(&self) {
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "robot" }, "stringData": { "clientSecret": "secret" },
        });
        self.create("/api/v1/namespaces/default/secrets", &secret)
            .await;
    }

    pub async fn delete_secret(&self) {
        let path = "/api/v1/namespaces/default/secrets/robot";
        self.send("DELETE", path, None).await;
    }

    pub async fn taint(&self) {
        let mut node = self.send("GET", "/api/v1/nodes/n1", None).await;
        node["spec"]["taints"] = json!([{ "key": TAINT, "effect": "NoSchedule" }]);
        self.send("PUT", "/api/v1/nodes/n1", Some(&node)).await;
    }

    pub async fn is_tainted(&self) -> bool {
        let node = self.send("GET", "/api/v1/nodes/n1", None).await;
        node["spec"]["taints"].to_string().contains(TAINT)
    }

    /// nmi, with a log of its own.
    pub fn start(&self, log: &str) -> Process {
        let at = |name: &str| self.scratch.path().join(name);
        let [door, probe, metrics] = self.ports;
        let mut command = Command::new(PODID);
        command
            .args([
                "nmi",
                "--node=n1",
                "--interception=none",
                "--log-format=json",
            ])
            .args([
                "--attest=address",
                "--handover-socket=",
                "--metadata-ip=127.0.0.1",
            ])
            .arg(format!("--operation-mode={}", self.mode))
            .arg(format!("--startup-taint={TAINT}:NoSchedule"))
            .arg(format!("--metadata-port={}", self.imds))
            .arg(format!("--nmi-port={door}"))
            .arg(format!("--http-probe-port={probe}"))
            .arg(format!("--prometheus-port={metrics}"))
            .arg(format!("--kubeconfig={}", at("kubeconfig").display()))
            .env("AZURE_ENVIRONMENT_FILEPATH", at("cloud.json"));
        Process::spawn(command, &at(log)).unwrap()
    }

    pub async fn until(&self, nmi: &Process, what: &str, holds: impl AsyncFn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !holds().await {
            assert!(
                Instant::now() < deadline && !nmi.has_ended(),
                "never: {what}\n{}",
                nmi.log()
            );
            sleep(Duration::from_millis(50)).await;
        }
    }

    pub async fn is_ready(&self) -> bool {
        let url = format!("http://127.0.0.1:{}/readyz", self.ports[1]);
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let answer = client.get(url).send().await;
        answer.is_ok_and(|answer| answer.status() == 200)
    }

    /// What the pod at this address is answered.
    pub async fn ask(&self, address: Ipv4Addr) -> (u16, Value) {
        let url = format!(
            "http://127.0.0.1:{}/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https://vault.azure.net",
            self.ports[0]
        );
        let client = reqwest::Client::builder()
            .no_proxy()
            .local_address(IpAddr::V4(address))
            .timeout(GRANTED_WITHIN)
            .build()
            .unwrap();
        match client.get(url).header("Metadata", "true").send().await {
            Ok(answer) => (
                answer.status().as_u16(),
                answer.json().await.unwrap_or_default(),
            ),
            Err(_) => (0, Value::Null),
        }
    }

    /// What the account may do to resources in a namespace, by the API server's own word: resource and verb, but for what everybody may.
    pub async fn may(&self, namespace: &str) -> Vec<(String, String)> {
        let config: Value =
            serde_json::from_slice(&std::fs::read(self.scratch.path().join("kubeconfig")).unwrap())
                .unwrap();
        let config = serde_json::from_value(config).unwrap();
        let options = kube::config::KubeConfigOptions::default();
        let config = kube::Config::from_custom_kubeconfig(config, &options)
            .await
            .unwrap();
        let client = Client::try_from(config).unwrap();
        let review = json!({
            "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectRulesReview", "spec": { "namespace": namespace },
        });
        let path = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews";
        let said = send(&client, "POST", path, Some(&review)).await.unwrap();
        assert_eq!(said["status"]["incomplete"], false, "{said}");
        let words = |value: &Value| -> Vec<String> {
            serde_json::from_value(value.clone()).unwrap_or_default()
        };
        let mut may = Vec::new();
        for rule in said["status"]["resourceRules"].as_array().unwrap() {
            for resource in words(&rule["resources"]) {
                for verb in words(&rule["verbs"]) {
                    may.push((resource.clone(), verb));
                }
            }
        }
        may.retain(|(resource, _)| !resource.starts_with("selfsubject"));
        may.sort();
        may.dedup();
        may
    }

    async fn create(&self, path: &str, object: &Value) -> Value {
        self.send("POST", path, Some(object)).await
    }

    /// As the administrator.
    async fn send(&self, method: &str, path: &str, body: Option<&Value>) -> Value {
        send(&self.client, method, path, body).await.unwrap()
    }
}
