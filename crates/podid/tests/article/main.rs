//! The article's YAML and Python, unmodified, on real packets: real `podid mic` and `podid nmi`, a real kube-apiserver, real
//! nftables and iptables, the Azure SDK for Python, and Azurite as the storage account.
//!
//! Needs root, for network namespaces. `tools/setup` installs the rest.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test"
)]

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::{Duration, Instant};

use podid_testkit::apiserver::{ApiServer, Options};
use podid_testkit::net::{AZURE, METADATA, Net, Wire};
use podid_testkit::process::{Process, text};
use podid_testkit::{certs, tools};
use serde_json::{Value, json};
use tempfile::TempDir;

const PODID: &str = env!("CARGO_BIN_EXE_podid");
const TOKEN: &str = "http://169.254.169.254/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https://storage.azure.com";
const BLOB: &str = "what the article's program reads";
/// Azurite's well-known account, with which the blob is put there.
const ACCOUNT: &str = "devstoreaccount1";
const MYAPP: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 11);
const NEIGHBOUR: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 12);
/// Time limit for what a test waits for, on a busy machine.
const CONDITION_TIMEOUT: Duration = Duration::from_secs(60);
/// Without this setting the storage client tries a refused credential, of whatever status, three times more, within 80 s or so.
const ONE_TRY: &str = r#"{"retry_total": 0}"#;
/// A refused program has ended by then.
const SOON: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread")]
async fn the_article_on_nftables() {
    the_article("nftables").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_article_on_iptables() {
    the_article("iptables").await;
}

async fn the_article(backend: &str) {
    let mut world = World::build(backend).await;
    // As on any node without podid: whoever is on it gets at its identities.
    assert!(
        world.reaches_metadata("neighbour"),
        "the namespaces are not wired"
    );
    world.start_nmi();
    world.deploy().await;

    let read = world.read_blob("myapp", None);
    assert!(read.status.success(), "{}\n{}", text(&read), world.logs());
    assert_eq!(String::from_utf8_lossy(&read.stdout).trim(), BLOB);

    let started = Instant::now();
    let refused = world.read_blob("neighbour", Some(ONE_TRY));
    assert!(!refused.status.success());
    assert!(started.elapsed() < SOON, "{}", text(&refused));
    let said = text(&refused);
    assert!(
        said.contains("Identity not found: pod default/neighbour has no label"),
        "{said}"
    );

    world.kill_nmi();
    world.nobody_gets_through("nmi was killed");
    world.start_nmi();
    assert!(
        world.read_blob("myapp", None).status.success(),
        "{}",
        world.logs()
    );
    world.terminate_nmi();
    world.nobody_gets_through("nmi was terminated");

    let cleanup = world.net.run("node", PODID, &["nmi", "--cleanup"]);
    assert!(cleanup.status.success(), "{}", text(&cleanup));
    assert!(
        world.reaches_metadata("neighbour"),
        "the rules are still there"
    );
}

/// What `podid sim azure` says about itself.
struct Azure {
    scale_set: String,
    tenant: String,
    client: String,
}

struct World {
    // Processes end before the namespaces and the folder go.
    nmi: Option<Process>,
    mic: Process,
    _azurite: Process,
    _azure: Process,
    azure: Azure,
    api: ApiServer,
    net: Net,
    ca: PathBuf,
    kubeconfig: PathBuf,
    backend: String,
    folder: TempDir,
}

impl World {
    async fn build(backend: &str) -> Self {
        let net = Net::build();
        net.start_pod("myapp", MYAPP, Wire::Bridge);
        net.start_pod("neighbour", NEIGHBOUR, Wire::Bridge);
        let folder = tempfile::tempdir().unwrap();
        let options = Options {
            addresses: vec![net.outside],
            ..Options::default()
        };
        let api = ApiServer::start_with(options).await.unwrap();
        api.install_crds().await.unwrap();
        let kubeconfig = api.kubeconfig_at(net.outside).unwrap();
        let (azure_process, azure) = start_azure(&net, folder.path()).await;
        let (azurite, ca) = start_azurite(&net, folder.path()).await;
        let mic = start_mic(&net, folder.path(), &kubeconfig, &azure);
        Self {
            nmi: None,
            mic,
            _azurite: azurite,
            _azure: azure_process,
            azure,
            api,
            net,
            ca,
            kubeconfig,
            backend: backend.to_owned(),
            folder,
        }
    }

    /// As the article says: `az identity create`, `az role assignment create`, `kubectl apply`, and a labelled pod.
    async fn deploy(&self) {
        let identity = self.create_identity();
        let fill = |yaml: &str| {
            yaml.replace("<your_managed_identity_name>", "reader-id")
                .replace(
                    "<your_managed_identity_name from the previous step>",
                    "reader-id",
                )
                .replace(
                    "<the managed identity id returned previously>",
                    identity["id"].as_str().unwrap(),
                )
                .replace(
                    "<the managed identity clientId returned previously>",
                    identity["properties"]["clientId"].as_str().unwrap(),
                )
                .replace("<your_app_selector_name>", "myapp")
        };
        self.apply(&fill(include_str!(
            "../../src/demo/article/aadpodidentity.yaml"
        )))
        .await;
        self.apply(&fill(include_str!(
            "../../src/demo/article/aadpodidentitybinding.yaml"
        )))
        .await;
        let provider = format!("azure://{}/virtualMachines/0", self.azure.scale_set);
        self.apply(&json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": "node-1" }, "spec": { "providerID": provider } }).to_string()).await;
        self.start_pod("myapp", MYAPP, json!({ "aadpodidbinding": "myapp" }))
            .await;
        self.start_pod("neighbour", NEIGHBOUR, json!({})).await;
        self.wait_for_assignment().await;
    }

    async fn apply(&self, yaml: &str) {
        self.kubectl(&["apply", "-f", "-"], yaml).await;
    }

    async fn kubectl(&self, arguments: &[&str], input: &str) -> String {
        let output = self.api.run_kubectl(arguments, input).await.unwrap();
        assert!(
            output.status.success(),
            "kubectl {arguments:?}: {}",
            text(&output)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    /// The kubelet's part is a status.
    async fn start_pod(&self, name: &str, address: Ipv4Addr, labels: Value) {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name, "labels": labels },
            "spec": { "nodeName": "node-1", "containers": [{ "name": "app", "image": "app" }] },
        });
        self.apply(&pod.to_string()).await;
        let status = json!({ "status": { "phase": "Running", "podIP": address, "podIPs": [{ "ip": address }] } });
        let patch = [
            "patch",
            "pod",
            name,
            "--subresource=status",
            "--type=merge",
            "-p",
            &status.to_string(),
        ];
        self.kubectl(&patch, "").await;
    }

    async fn wait_for_assignment(&self) {
        let started = Instant::now();
        let get = [
            "get",
            "azureassignedidentity",
            "myapp-default-reader-id",
            "--ignore-not-found",
            "-o",
            "jsonpath={.status.status}",
        ];
        while self.kubectl(&get, "").await != "Assigned" {
            assert!(
                started.elapsed() < CONDITION_TIMEOUT,
                "not assigned: {}",
                self.mic.log()
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// What `az identity create` sends, by the owner of the subscription.
    fn create_identity(&self) -> Value {
        let subscription = self.azure.scale_set.split('/').nth(2).unwrap();
        let form = format!(
            "grant_type=client_credentials&client_id={}&client_secret=podid-sim-secret&resource=https://management.azure.com/",
            self.azure.client
        );
        let url = format!("http://{METADATA}:8082/{}/oauth2/token", self.azure.tenant);
        let token = self.curl_json(&["--data", &form, &url]);
        let bearer = format!(
            "Authorization: Bearer {}",
            token["access_token"].as_str().unwrap()
        );
        let url = format!(
            "http://{METADATA}:8081/subscriptions/{subscription}/resourceGroups/rg/providers/Microsoft.ManagedIdentity/userAssignedIdentities/reader-id?api-version=2024-11-30"
        );
        self.curl_json(&[
            "-X",
            "PUT",
            "-H",
            &bearer,
            "-H",
            "Content-Type: application/json",
            "--data",
            r#"{"location":"westeurope"}"#,
            &url,
        ])
    }

    fn curl_json(&self, arguments: &[&str]) -> Value {
        let output = self.net.run(
            "node",
            "curl",
            &[&["-sS", "--noproxy", "*"], arguments].concat(),
        );
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("curl: {}", text(&output)))
    }

    fn start_nmi(&mut self) {
        let mut command = self.net.command("node", PODID);
        command
            .args([
                "nmi",
                "--node=node-1",
                "--http-probe-port=8085",
                // No kubelet puts the pods' processes into control groups here.
                "--attest=address",
                "--logtostderr",
            ])
            .arg(format!("--interception={}", self.backend))
            .env("KUBECONFIG", &self.kubeconfig);
        let nmi = Process::spawn(command, &self.folder.path().join("nmi.log")).unwrap();
        let started = Instant::now();
        let ready = || {
            self.net
                .run("node", "curl", &["-sf", "http://127.0.0.1:8085/readyz"])
        };
        while !ready().status.success() {
            assert!(
                started.elapsed() < CONDITION_TIMEOUT && !nmi.has_ended(),
                "nmi is not ready: {}",
                nmi.log()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
        self.nmi = Some(nmi);
    }

    fn kill_nmi(&mut self) {
        self.nmi.take().unwrap().kill();
    }

    fn terminate_nmi(&mut self) {
        let nmi = self.nmi.take().unwrap();
        let pid = nmi.pid().to_string();
        assert!(
            std::process::Command::new("kill")
                .args(["-TERM", &pid])
                .status()
                .unwrap()
                .success()
        );
        let started = Instant::now();
        while !nmi.has_ended() {
            assert!(
                started.elapsed() < CONDITION_TIMEOUT,
                "nmi does not end: {}",
                nmi.log()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The article's program, in a pod.
    fn read_blob(&self, pod: &str, settings: Option<&str>) -> Output {
        let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/article/read_blob.py");
        let account = format!("https://{AZURE}:10000/{ACCOUNT}");
        let mut command = self.net.command(pod, &python());
        command
            .arg(program)
            .args([&account, "container", "blob"])
            .args(settings);
        command.env("REQUESTS_CA_BUNDLE", &self.ca);
        command.output().unwrap()
    }

    /// Whether a pod gets any answer from the metadata address.
    fn reaches_metadata(&self, pod: &str) -> bool {
        let ask = [
            "-s",
            "--noproxy",
            "*",
            "--max-time",
            "3",
            "-o",
            "/dev/null",
            "-H",
            "Metadata: true",
            TOKEN,
        ];
        self.net.run(pod, "curl", &ask).status.success()
    }

    fn nobody_gets_through(&self, when: &str) {
        let before = self.asked();
        for pod in ["myapp", "neighbour"] {
            assert!(
                !self.reaches_metadata(pod),
                "{pod} got an answer after {when}"
            );
        }
        assert_eq!(
            self.asked(),
            before,
            "the metadata service was asked after {when}"
        );
    }

    /// How often the node's own metadata service was asked.
    fn asked(&self) -> usize {
        let journal = self.curl_json(&[&format!("http://{METADATA}:8081/_sim/journal")]);
        let entries = journal.as_array().unwrap();
        entries
            .iter()
            .filter(|entry| entry["service"] == "imds")
            .count()
    }

    fn logs(&self) -> String {
        let nmi = self.nmi.as_ref().map(Process::log).unwrap_or_default();
        format!("mic:\n{}\nnmi:\n{nmi}", self.mic.log())
    }
}

fn python() -> String {
    let found = tools::on_path("python3").expect("python3 is missing; run tools/setup");
    found.to_str().unwrap().to_owned()
}

async fn start_azure(net: &Net, folder: &Path) -> (Process, Azure) {
    let mut command = net.command("azure", PODID);
    let address = METADATA.to_string();
    command.args([
        "sim",
        "azure",
        "--address",
        &address,
        "--imds-port",
        "80",
        "--arm-port",
        "8081",
        "--entra-port",
        "8082",
    ]);
    let process = Process::spawn(command, &folder.join("azure.log")).unwrap();
    let said = process.wait_for_log("service principal").unwrap();
    let after = |label: &str| {
        let line = said
            .lines()
            .find_map(|line| line.strip_prefix(label))
            .unwrap();
        line.split_whitespace().next().unwrap().to_owned()
    };
    let azure = Azure {
        scale_set: after("scale set"),
        tenant: after("Entra").rsplit('/').next().unwrap().to_owned(),
        client: after("service principal"),
    };
    (process, azure)
}

/// Azurite with OAuth, and a blob in it.
async fn start_azurite(net: &Net, folder: &Path) -> (Process, PathBuf) {
    let tls = certs::server(folder, &["localhost"], &[AZURE.into()]).unwrap();
    let azurite = tools::repository().join("tools/azurite/node_modules/.bin/azurite-blob");
    assert!(azurite.is_file(), "Azurite is missing; run tools/setup");
    let mut command = net.command("azure", azurite.to_str().unwrap());
    command
        .args([
            "--oauth",
            "basic",
            "--skipApiVersionCheck",
            "--inMemoryPersistence",
            "--disableTelemetry",
        ])
        .args(["--blobHost", &AZURE.to_string(), "--blobPort", "10000"])
        .arg("--cert")
        .arg(&tls.cert)
        .arg("--key")
        .arg(&tls.key);
    let process = Process::spawn(command, &folder.join("azurite.log")).unwrap();
    process.wait_for_log("successfully").unwrap();
    let put = format!(
        "from azure.storage.blob import BlobServiceClient\n\
         key = 'Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=='\n\
         client = BlobServiceClient('https://{AZURE}:10000/{ACCOUNT}', credential={{'account_name': '{ACCOUNT}', 'account_key': key}})\n\
         client.create_container('container').upload_blob('blob', b\"{BLOB}\")\n"
    );
    let mut python = net.command("azure", &python());
    python.args(["-c", &put]).env("REQUESTS_CA_BUNDLE", &tls.ca);
    let output = python.output().unwrap();
    assert!(
        output.status.success(),
        "{}\n{}",
        text(&output),
        process.log()
    );
    (process, tls.ca)
}

/// With the files and variables that the original is run with.
fn start_mic(net: &Net, folder: &Path, kubeconfig: &Path, azure: &Azure) -> Process {
    let cloud = json!({
        "cloud": "AzureStackCloud", "tenantId": azure.tenant, "aadClientId": azure.client, "aadClientSecret": "podid-sim-secret",
        "useManagedIdentityExtension": false, "userAssignedIdentityID": "",
    });
    let environment = json!({
        "resourceManagerEndpoint": format!("http://{METADATA}:8081/"), "activeDirectoryEndpoint": format!("http://{METADATA}:8082/"),
        "tokenAudience": "https://management.azure.com/",
    });
    let (cloud_file, environment_file) = (folder.join("azure.json"), folder.join("akscustom.json"));
    std::fs::write(&cloud_file, cloud.to_string()).unwrap();
    std::fs::write(&environment_file, environment.to_string()).unwrap();
    let mut command = net.command("node", PODID);
    command
        .args(["mic", "-logtostderr", "-leader-election-instance=mic-0"])
        .arg(format!("--cloudconfig={}", cloud_file.display()))
        .env("AZURE_ENVIRONMENT_FILEPATH", environment_file)
        .env("KUBECONFIG", kubeconfig)
        .env("MIC_POD_NAMESPACE", "default");
    Process::spawn(command, &folder.join("mic.log")).unwrap()
}
