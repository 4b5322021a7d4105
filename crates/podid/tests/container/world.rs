//! A node and its pods, an API server that has what `podid manifests` prints, and how containers find both.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use podid_sim::azure::{Control, HostKind, Identity};
use podid_testkit::apiserver::{ApiServer, Options};
use podid_testkit::cgroup::PodGroup;
use podid_testkit::container::{Account, Container, Kubelet};
use podid_testkit::net::{AZURE, Net, Wire};
use podid_testkit::process::{Process, run_with_input};
use podid_testkit::tools;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::azure::{self, ARM, ENTRA, ENTRA_TLS};
use crate::shared::{GROUP, Running, controller, write_credentials, write_environment};

const PODID: &str = env!("CARGO_BIN_EXE_podid");
/// Time limit for what a test waits for, on a busy machine.
const CONDITION_TIMEOUT: Duration = Duration::from_secs(60);
const TOKEN: &str = "http://169.254.169.254/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https://vault.azure.net";
/// Where mic finds its credentials by default, and what Azure is like, which only a simulated one needs to be told.
const AZURE_JSON: &str = "etc/kubernetes/azure.json";
const CLOUD_JSON: &str = "/etc/kubernetes/cloud.json";
pub const CERTIFICATES: &str = "/etc/ssl/certs/ca-certificates.crt";
pub const MIC: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 5);

/// The tag of the images of this source.
pub fn tag() -> &'static str {
    static TAG: OnceLock<String> = OnceLock::new();
    TAG.get_or_init(|| tools::images().unwrap())
}

/// What `podid manifests` prints for these images.
pub fn manifests(mode: &str) -> Vec<Value> {
    let mut podid = Command::new(PODID);
    podid.args(["manifests", "--registry=localhost/podid"]);
    podid.args([format!("--mode={mode}"), format!("--tag={}", tag())]);
    let output = podid.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    serde_saphyr::from_multiple(&String::from_utf8(output.stdout).unwrap()).unwrap()
}

/// The template of an object's pods.
pub fn template(objects: &[Value], name: &str) -> Value {
    let is = |object: &&Value| {
        object["metadata"]["name"] == name && object["spec"]["template"].is_object()
    };
    objects.iter().find(is).unwrap()["spec"]["template"].clone()
}

pub struct World {
    // Processes end before the namespaces and the folder go.
    pods: Mutex<BTreeMap<String, Processes>>,
    pub azure: Control,
    _azure_runs: Running,
    /// The file of the authority that signed the certificate of Entra behind TLS.
    pub entra_authority: PathBuf,
    api: ApiServer,
    pub net: Net,
    folder: TempDir,
    pub objects: Vec<Value>,
    pub identity: Identity,
    pub application: String,
}

/// The processes of a pod: one that sleeps, in the control group that a kubelet would put it into. It ends first.
type Processes = (Process, PodGroup);

impl World {
    /// A world with an identity `reader`, to which `reader` selects; in managed mode it is on the node already.
    pub fn build(mode: &str) -> Self {
        let objects = manifests(mode);
        let net = Net::build();
        let folder = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let options = Options {
            addresses: vec![net.outside],
            ..Options::default()
        };
        let api = runtime.block_on(async {
            let api = ApiServer::start_with(options).await.unwrap();
            api.install_crds().await.unwrap();
            api
        });
        let (azure, azure_runs, entra_authority) = azure::start(&net, folder.path());
        let set = azure.host_id(HostKind::ScaleSet, GROUP, "pool");
        let identity = azure.create_identity(GROUP, "reader");
        if mode == "managed" {
            azure.attach(&set, &identity);
        }
        let application = controller(&azure);
        let world = Self {
            pods: Mutex::default(),
            azure,
            _azure_runs: azure_runs,
            entra_authority,
            api,
            net,
            folder,
            objects,
            identity,
            application,
        };
        world.furnish(&set);
        world
    }

    fn furnish(&self, set: &str) {
        for place in ["node-root/run", "node-root/etc/kubernetes"] {
            std::fs::create_dir_all(self.path(place)).unwrap();
        }
        self.write_environment(&format!("http://{AZURE}:{ENTRA}"));
        let file = self.path("node-root").join(AZURE_JSON);
        write_credentials(&file, &self.azure, &self.application);
        // As on a node.
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).unwrap();
        for object in &self.objects {
            self.apply(object);
        }
        self.apply(&json!({
            "apiVersion": "v1", "kind": "Node", "metadata": { "name": "node-1" },
            "spec": { "providerID": Control::provider_id(set, 0) },
        }));
        self.apply(&json!({
            "apiVersion": "aadpodidentity.k8s.io/v1", "kind": "AzureIdentity",
            "metadata": { "name": "reader", "namespace": "default" },
            "spec": { "type": 0, "resourceID": self.identity.id, "clientID": self.identity.client_id },
        }));
        self.apply(&json!({
            "apiVersion": "aadpodidentity.k8s.io/v1", "kind": "AzureIdentityBinding",
            "metadata": { "name": "reader", "namespace": "default" },
            "spec": { "azureIdentity": "reader", "selector": "reader" },
        }));
        // As a network plugin does for pods that go beyond the cluster.
        let nat = "add table ip plugin; add chain ip plugin out { type nat hook postrouting priority 100; }; \
                   add rule ip plugin out oifname outside masquerade";
        let added = self.net.run("node", "nft", &[nat]);
        assert!(added.status.success(), "{added:?}");
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write_environment(&self, entra: &str) {
        let arm = format!("http://{AZURE}:{ARM}");
        write_environment(&self.path("cloud.json"), arm, entra);
    }

    /// Entra is asked behind TLS from now on.
    pub fn use_tls(&self) {
        self.write_environment(&format!("https://{AZURE}:{ENTRA_TLS}"));
    }

    /// What a kubelet knows of a pod of a role: of `mic`, which has a sandbox of this name, or of `nmi` on the node's network.
    pub fn kubelet(&self, role: &str, place: &str) -> Kubelet {
        let fields = [
            ("metadata.namespace", "podid"),
            ("metadata.name", role),
            ("spec.nodeName", "node-1"),
        ];
        let owned = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
        let mut kubelet = Kubelet {
            netns: self.net.name(place),
            root: self.path("node-root"),
            fields: fields.into_iter().map(owned).collect(),
            account: Some(self.account(role)),
            ..Kubelet::default()
        };
        if role == "mic" {
            let variable = ("AZURE_ENVIRONMENT_FILEPATH", CLOUD_JSON);
            kubelet.environment.push(owned(variable));
            let file = (self.path("cloud.json"), CLOUD_JSON.to_owned());
            kubelet.files.push(file);
        }
        kubelet
    }

    /// What is projected into a pod of a role's service account.
    fn account(&self, role: &str) -> Account {
        let folder = self.path(&format!("account-{role}"));
        std::fs::create_dir_all(&folder).unwrap();
        let token = self.says(&["create", "token", &format!("podid-{role}"), "-n", "podid"]);
        std::fs::write(folder.join("token"), token.trim()).unwrap();
        std::fs::write(folder.join("namespace"), "podid").unwrap();
        std::fs::copy(self.api.authority(), folder.join("ca.crt")).unwrap();
        Account {
            folder,
            server: (self.net.outside.to_string(), self.api.port()),
        }
    }

    /// Starts mic in a pod of its own, as the manifests say.
    pub fn mic(&self) -> Container {
        self.net.start_pod("mic", MIC, Wire::Bridge);
        let template = template(&self.objects, "podid-mic");
        Container::start(&template, "mic", &self.kubelet("mic", "mic")).unwrap()
    }

    /// Starts nmi as the manifests say, with arguments more.
    pub fn nmi(&self, more: &[&str]) -> Container {
        self.nmi_of(&template(&self.objects, "podid-nmi"), more)
    }

    pub fn nmi_of(&self, template: &Value, more: &[&str]) -> Container {
        let mut kubelet = self.kubelet("nmi", "node");
        kubelet.arguments = more.iter().map(|word| (*word).to_owned()).collect();
        Container::start(template, "nmi", &kubelet).unwrap()
    }

    /// Waits until the probe by which a template's container becomes ready succeeds, asked from the node.
    pub fn until_ready(&self, template: &Value, at: Ipv4Addr, container: &Container) {
        let container_spec = &template["spec"]["containers"][0];
        let probes =
            ["readinessProbe", "startupProbe"].map(|kind| &container_spec[kind]["httpGet"]);
        let probe = probes.into_iter().find(|probe| !probe.is_null()).unwrap();
        let url = format!(
            "http://{at}:{}{}",
            probe["port"],
            probe["path"].as_str().unwrap()
        );
        self.until("it is ready", container, || {
            assert!(!container.has_ended(), "it ended: {}", container.log());
            let probe = ["-sf", "--noproxy", "*", "--max-time", "5", &url];
            self.net.run("node", "curl", &probe).status.success()
        });
    }

    pub fn until_nmi_ready(&self, nmi: &Container) {
        let template = template(&self.objects, "podid-nmi");
        self.until_ready(&template, Ipv4Addr::LOCALHOST, nmi);
    }

    pub fn until(&self, what: &str, container: &Container, mut holds: impl FnMut() -> bool) {
        let deadline = Instant::now() + CONDITION_TIMEOUT;
        while !holds() {
            assert!(
                Instant::now() < deadline,
                "never: {what}\n{}",
                container.log()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// A pod on `node-1`, selected by `reader`, that runs as somebody else than root.
    pub fn pod(&self, name: &str, address: Ipv4Addr) {
        self.net.start_pod(name, address, Wire::Bridge);
        self.apply(&json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": name, "namespace": "default", "labels": { "aadpodidbinding": "reader" } },
            "spec": { "nodeName": "node-1", "containers": [{ "name": "app", "image": "app" }] },
        }));
        let uid = self.says(&["get", "pod", name, "-o", "jsonpath={.metadata.uid}"]);
        let mut sleep = self.net.command(name, "setpriv");
        let line = "--reuid 1000 --regid 1000 --clear-groups --pdeathsig KILL sleep 600";
        sleep.args(line.split(' '));
        let process = Process::spawn(sleep, &self.path(&format!("{name}.log"))).unwrap();
        let group = PodGroup::new(&uid).unwrap();
        group.add(process.pid()).unwrap();
        self.pods.lock().insert(name.to_owned(), (process, group));
        let status = json!({ "status": { "phase": "Running", "podIP": address, "podIPs": [{ "ip": address }] } });
        let status = status.to_string();
        let patch = "patch pod --subresource=status --type=merge -p";
        let patch: Vec<&str> = patch.split(' ').chain([status.as_str(), name]).collect();
        self.says(&patch);
    }

    /// The pod is gone, and the API server has not heard of it.
    pub fn end_pod(&self, name: &str) {
        drop(self.pods.lock().remove(name));
        self.net.end_pod(name);
    }

    /// Whether the pod's AzureAssignedIdentity says Assigned.
    pub fn is_assigned(&self, pod: &str) -> bool {
        let name = format!("{pod}-default-reader");
        let path = "jsonpath={.status.status}";
        let get = ["get", "azureassignedidentity", &name, "-o", path];
        self.kubectl(&get, "").stdout == b"Assigned"
    }

    /// What a pod is answered: the status, 0 for no answer, and the body.
    pub fn ask(&self, pod: &str) -> (u16, Value) {
        let arguments = "-sS --noproxy * --max-time 10 -w \\n%{http_code} -H Metadata:true";
        let arguments: Vec<&str> = arguments.split(' ').chain([TOKEN]).collect();
        let output = self.net.run(pod, "curl", &arguments);
        let text = String::from_utf8_lossy(&output.stdout);
        let (body, status) = text.rsplit_once('\n').unwrap_or_default();
        let body = serde_json::from_str(body).unwrap_or_default();
        (status.parse().unwrap_or(0), body)
    }

    /// Whether a pod is given a token of `reader`'s.
    pub fn is_served(&self, pod: &str) -> bool {
        let (_, body) = self.ask(pod);
        let claims = body["access_token"]
            .as_str()
            .and_then(|token| self.azure.claims(token));
        claims.is_some_and(|claims| claims["appid"] == self.identity.client_id)
    }

    pub fn until_served(&self, pod: &str, nmi: &Container) {
        self.until("the pod is given its token", nmi, || self.is_served(pod));
    }

    pub fn apply(&self, object: &Value) {
        let output = self.kubectl(&["apply", "-f", "-"], &object.to_string());
        assert!(output.status.success(), "{object}: {output:?}");
    }

    fn says(&self, arguments: &[&str]) -> String {
        let output = self.kubectl(arguments, "");
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn kubectl(&self, arguments: &[&str], input: &str) -> Output {
        let mut kubectl = Command::new(self.api.kubectl());
        kubectl
            .args(arguments)
            .env("KUBECONFIG", self.api.kubeconfig());
        run_with_input(kubectl, input).unwrap()
    }
}

/// What the kernel says that a process may do.
#[derive(Debug, PartialEq, Eq)]
pub struct Confinement {
    pub user: u32,
    /// Effective, permitted, bounding, inheritable and ambient: no other may be had in any way.
    pub capabilities: [u64; 5],
    pub no_new_privileges: bool,
    pub seccomp_filter: bool,
    pub writable_root: bool,
}

/// As `/proc/PID/status` and a write say it.
pub fn confinement(container: &Container) -> Confinement {
    let process = Path::new("/proc").join(container.pid().unwrap().to_string());
    let status = std::fs::read_to_string(process.join("status")).unwrap();
    let fields: BTreeMap<&str, &str> = status
        .lines()
        .filter_map(|line| line.split_once(":\t"))
        .collect();
    let set = |name| u64::from_str_radix(fields[name], 16).unwrap();
    let user = fields["Uid"].split('\t').next().unwrap().parse().unwrap();
    let written = std::fs::write(process.join("root/written"), "");
    Confinement {
        user,
        capabilities: ["CapEff", "CapPrm", "CapBnd", "CapInh", "CapAmb"].map(set),
        no_new_privileges: fields["NoNewPrivs"] == "1",
        // seccomp(2): 2 is a filter.
        seccomp_filter: fields["Seccomp"] == "2",
        writable_root: written.is_ok(),
    }
}
