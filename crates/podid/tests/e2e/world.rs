//! A world in which scenarios are played: real processes and a real kube-apiserver around a simulated Azure.

#![allow(dead_code, reason = "not every test needs all of it")]

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use podid_sim::azure::{Config, Control, HostKind, Identity};
use podid_testkit::apiserver::{ApiServer, Options};
use podid_testkit::gate::Gate;
use podid_testkit::net::{METADATA, Net, Wire};
use podid_testkit::process::{Process, run_with_input};
use podid_testkit::tools;
use serde_json::{Value, json};
use tempfile::TempDir;

pub use crate::shared::GROUP;
use crate::shared::{self, Running};

pub const PODID: &str = env!("CARGO_BIN_EXE_podid");
/// Time limit for what a test waits for, on a busy machine.
const CONDITION_TIMEOUT: Duration = Duration::from_secs(120);
const TOKEN: &str = "http://169.254.169.254/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https://vault.azure.net";

/// What differs between worlds.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How many times faster than others' the clocks of podid's processes run.
    pub speed: u32,
    /// Flags of the controllers.
    pub mic: &'static [&'static str],
    /// podid's processes are their pods' service accounts, with the permissions that it ships.
    pub in_cluster: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            speed: 1,
            mic: &[
                "--leader-election-duration=4s",
                "--identity-assignment-reconcile-interval=3s",
                "--linger=1s",
            ],
            in_cluster: false,
        }
    }
}

pub struct World {
    // Processes end before the namespaces and the folder go.
    pub mics: Mutex<Vec<Process>>,
    pub nmi: Mutex<Option<Process>>,
    pub azure: Control,
    _azure_runs: Running,
    /// The way of podid's processes to the API server; everybody else's is another.
    pub gate: Gate,
    pub api: ApiServer,
    pub net: Net,
    kubeconfig: PathBuf,
    settings: Settings,
    folder: TempDir,
    /// The scale set of `node-1` and `node-2`, and that of `node-3`. Pods with a network are on `node-1`.
    pub set: String,
    pub other: String,
    /// An identity on the controllers' list of those that stay.
    pub immutable: Identity,
    addresses: AtomicU8,
}

/// The world, made by the first who asks, and unmade when nobody needs it any more.
pub fn world() -> Arc<World> {
    static SHARED: Mutex<Weak<World>> = Mutex::new(Weak::new());
    let mut shared = SHARED
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some(world) = shared.upgrade() {
        return world;
    }
    let world = Arc::new(World::build(Settings::default()));
    *shared = Arc::downgrade(&world);
    world
}

fn start_azure(net: &Net) -> (Control, Running) {
    let config = Config {
        address: METADATA.into(),
        arm_port: 8081,
        entra_port: 8082,
        patch_latency: Duration::from_millis(300),
        throttle: false,
        ..Config::default()
    };
    shared::start_in_namespace(net, config, "pool1", std::future::pending)
}

impl World {
    pub fn build(settings: Settings) -> Self {
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
        let gate = Gate::open(net.outside, api.port()).unwrap();
        let kubeconfig = api.kubeconfig_by(gate.address()).unwrap();
        let (azure, running) = start_azure(&net);
        let set = azure.host_id(HostKind::ScaleSet, GROUP, "pool1");
        let other = azure.create_host(HostKind::ScaleSet, GROUP, "pool2");
        let immutable = azure.create_identity(GROUP, "immutable");
        write_cloud(&folder, &azure);
        let world = Self {
            mics: Mutex::default(),
            nmi: Mutex::default(),
            azure,
            _azure_runs: running,
            gate,
            api,
            net,
            kubeconfig,
            settings,
            folder,
            set,
            other,
            immutable,
            addresses: AtomicU8::new(10),
        };
        if world.settings.in_cluster {
            world.install();
        }
        *world.mics.lock().unwrap() = (0..2).map(|n| world.mic(n)).collect();
        *world.nmi.lock().unwrap() = Some(world.agent("nmi"));
        world.node("node-1", &world.set, 0);
        world.node("node-2", &world.set, 1);
        world.node("node-3", &world.other, 0);
        world.until_ready();
        world
    }

    /// An instance of a scale set joins the cluster under this name.
    pub fn node(&self, name: &str, set: &str, n: u32) {
        self.apply(&json!({
            "apiVersion": "v1", "kind": "Node", "metadata": { "name": name },
            "spec": { "providerID": Control::provider_id(set, n) },
        }));
    }

    /// Waits until the node agent says that it is ready.
    pub fn until_ready(&self) {
        let probe = ["-sf", "--noproxy", "*", "http://127.0.0.1:8085/readyz"];
        self.until("nmi is ready", || {
            self.net.run("node", "curl", &probe).status.success()
        });
    }

    /// Starts the controller number `n`.
    pub fn mic(&self, n: usize) -> Process {
        let mut command = self.podid("mic");
        command
            .arg("mic")
            .args(self.settings.mic)
            .args([
                format!("--http-probe-port={}", 18_080 + n),
                format!("--prometheus-port={}", 18_880 + n),
            ])
            .arg(format!("--leader-election-instance=mic-{n}"))
            .arg(format!(
                "--immutable-user-msis={}",
                self.immutable.client_id.to_uppercase()
            ))
            .arg(format!("--cloudconfig={}", self.at("azure.json").display()))
            .env("MIC_POD_NAMESPACE", self.namespace());
        Process::spawn(command, &self.at(&format!("mic-{n}.log"))).unwrap()
    }

    /// Starts a node agent, which logs under this name.
    pub fn agent(&self, name: &str) -> Process {
        let mut command = self.podid("nmi");
        command
            // No kubelet puts the pods' processes into control groups here.
            .args([
                "nmi",
                "--node=node-1",
                "--http-probe-port=8085",
                "--attest=address",
                "--assignment-wait=1s",
            ])
            .arg(format!(
                "--handover-socket={}",
                self.at("nmi.sock").display()
            ));
        Process::spawn(command, &self.at(&format!("{name}.log"))).unwrap()
    }

    fn namespace(&self) -> &'static str {
        if self.settings.in_cluster {
            "podid"
        } else {
            "default"
        }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// podid on the node, in a role, with its own clock and its way to the API server.
    fn podid(&self, role: &str) -> Command {
        let mut command = if self.settings.in_cluster {
            let mut command = self.net.command("node", "sh");
            let address = self.gate.address();
            command
                .args(["-c", IN_POD, "sh"])
                .arg(self.account(role))
                .arg(PODID)
                .env("KUBERNETES_SERVICE_HOST", address.ip().to_string())
                .env("KUBERNETES_SERVICE_PORT", address.port().to_string())
                .env_remove("KUBECONFIG");
            command
        } else {
            let mut command = self.net.command("node", PODID);
            command.env("KUBECONFIG", &self.kubeconfig);
            command
        };
        command.env("AZURE_ENVIRONMENT_FILEPATH", self.at("cloud.json"));
        if self.settings.speed > 1 {
            command
                .env("LD_PRELOAD", tools::faketime().unwrap())
                .env("FAKETIME", format!("+0 x{}", self.settings.speed));
        }
        command
    }

    /// podid's own objects, and for each role a pod `first` with its token.
    fn install(&self) {
        let output = Command::new(PODID)
            .args(["manifests", "--registry=example.azurecr.io/podid"])
            .output()
            .unwrap();
        let printed = String::from_utf8(output.stdout).unwrap();
        let applied = self.kubectl("apply -f -", &printed);
        assert!(applied.status.success(), "{applied:?}");
        for role in ["mic", "nmi"] {
            std::fs::create_dir(self.account(role)).unwrap();
            std::fs::write(self.account(role).join("namespace"), "podid").unwrap();
            self.renew_authority(role);
            self.renew_token(role, "first");
        }
    }

    /// What the kubelet shows a role's pod of its service account.
    fn account(&self, role: &str) -> PathBuf {
        self.at(&format!("account-{role}"))
    }

    /// The kubelet shows a role's pod the API server's authority as it is now.
    pub fn renew_authority(&self, role: &str) {
        std::fs::copy(self.api.authority(), self.account(role).join("ca.crt")).unwrap();
    }

    /// The kubelet shows a role's pod a new token, good for as long as a new object `<role>-<of>` lives.
    pub fn renew_token(&self, role: &str, of: &str) {
        let name = format!("{role}-{of}");
        self.apply(&json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name, "namespace": "podid" },
            "spec": {
                "serviceAccountName": format!("podid-{role}"), "containers": [{ "name": "c", "image": "i" }],
            },
        }));
        let token = self.says(&format!(
            "-n podid create token podid-{role} --bound-object-kind=Pod --bound-object-name={name}"
        ));
        std::fs::write(self.account(role).join("token"), token.trim()).unwrap();
    }

    pub fn kubectl(&self, line: &str, input: &str) -> Output {
        let mut command = Command::new(self.api.kubectl());
        command
            .args(line.split(' '))
            .env("KUBECONFIG", self.api.kubeconfig());
        run_with_input(command, input).unwrap()
    }

    /// What kubectl says, which must work.
    pub fn says(&self, line: &str) -> String {
        let output = self.kubectl(line, "");
        assert!(output.status.success(), "kubectl {line}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    pub fn apply(&self, object: &Value) {
        let output = self.kubectl("apply -f -", &object.to_string());
        assert!(output.status.success(), "{object}: {output:?}");
    }

    pub fn until(&self, what: &str, mut holds: impl FnMut() -> bool) {
        let deadline = Instant::now() + CONDITION_TIMEOUT;
        while !holds() {
            if Instant::now() > deadline {
                panic!("never: {what}\n{}", self.logs());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// What podid's processes said last; those that the test looks at already are left out.
    fn logs(&self) -> String {
        let mics = self.mics.try_lock().into_iter();
        let mics = mics.flat_map(|mics| mics.iter().map(Process::log).collect::<Vec<_>>());
        let nmi = self.nmi.try_lock().into_iter();
        let nmi = nmi.filter_map(|nmi| nmi.as_ref().map(Process::log));
        mics.chain(nmi).collect::<Vec<_>>().join("\n")
    }

    /// The names of the identities on a host.
    pub fn on(&self, host: &str) -> Vec<String> {
        let name = |id: String| id.rsplit('/').next().unwrap_or_default().to_owned();
        self.azure.attached(host).into_iter().map(name).collect()
    }
}

fn write_cloud(folder: &TempDir, azure: &Control) {
    let at = |name: &str| folder.path().join(name);
    let (arm, entra) = (
        format!("http://{METADATA}:8081"),
        format!("http://{METADATA}:8082"),
    );
    shared::write_environment(&at("cloud.json"), arm, entra);
    let application = shared::controller(azure);
    shared::write_credentials(&at("azure.json"), azure, &application);
}

/// Shows a process its service account where pods have it, and nobody else.
const IN_POD: &str = "mount -t tmpfs -o mode=755 none /run && mkdir -p /run/secrets/kubernetes.io/serviceaccount \
    && mount --bind \"$1\" /run/secrets/kubernetes.io/serviceaccount && shift && exec \"$@\"";

/// A namespace of a scenario's own.
pub struct Scene {
    pub world: Arc<World>,
    pub namespace: String,
}

impl Scene {
    /// The scene of the scenario of this name, which is at most three letters long.
    pub fn new(name: &str) -> Self {
        Self::within(world(), name)
    }

    /// As [`Scene::new`], in a world of its own.
    pub fn within(world: Arc<World>, name: &str) -> Self {
        world.apply(
            &json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name } }),
        );
        Self {
            world,
            namespace: name.to_owned(),
        }
    }

    pub fn apply(&self, mut object: Value) {
        object["metadata"]["namespace"] = json!(self.namespace);
        self.world.apply(&object);
    }

    /// An identity in Azure, an AzureIdentity and a binding, all by this name.
    pub fn bound(&self, name: &str) -> Identity {
        let identity = self
            .world
            .azure
            .create_identity(GROUP, &format!("{}-{name}", self.namespace));
        self.identity(name, &identity);
        self.binding(name, name, name);
        identity
    }

    pub fn identity(&self, name: &str, identity: &Identity) {
        self.apply(json!({
            "apiVersion": "aadpodidentity.k8s.io/v1", "kind": "AzureIdentity", "metadata": { "name": name },
            "spec": { "type": 0, "resourceID": identity.id, "clientID": identity.client_id },
        }));
    }

    pub fn binding(&self, name: &str, identity: &str, selector: &str) {
        self.apply(json!({
            "apiVersion": "aadpodidentity.k8s.io/v1", "kind": "AzureIdentityBinding", "metadata": { "name": name },
            "spec": { "azureIdentity": identity, "selector": selector },
        }));
    }

    /// A pod as the API server has it, on a node.
    pub fn object(&self, name: &str, node: &str, labels: Value) {
        self.apply(json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name, "labels": labels },
            "spec": { "nodeName": node, "containers": [{ "name": "app", "image": "app" }] },
        }));
    }

    /// A pod on `node-1` with a network, bound by this selector.
    pub fn pod(&self, name: &str, selector: &str) {
        self.labelled(name, json!({ "aadpodidbinding": selector }), "Running");
    }

    pub fn labelled(&self, name: &str, labels: Value, phase: &str) {
        let last = self.world.addresses.fetch_add(1, Ordering::Relaxed);
        let address = Ipv4Addr::new(10, 244, 0, last);
        self.world
            .net
            .start_pod(&self.place(name), address, Wire::Bridge);
        self.object(name, "node-1", labels);
        let status = json!({ "status": { "phase": phase, "podIP": address, "podIPs": [{ "ip": address }] } });
        let line = format!(
            "-n {} patch pod {name} --subresource=status --type=merge -p {status}",
            self.namespace
        );
        self.world.says(&line);
    }

    /// The network namespace of a pod.
    pub fn place(&self, pod: &str) -> String {
        format!("{}{pod}", self.namespace)
    }

    pub fn delete(&self, kind: &str, name: &str) {
        let line = format!(
            "-n {} delete {kind} {name} --grace-period=0 --force",
            self.namespace
        );
        self.world.says(&line);
    }

    /// Name and state of the scenario's AzureAssignedIdentities.
    pub fn assignments(&self) -> Vec<(String, String)> {
        let line = format!("-n {} get azureassignedidentities -o json", self.namespace);
        let listed: Value = serde_json::from_str(&self.world.says(&line)).unwrap();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let of = |o: &Value| (text(&o["metadata"]["name"]), text(&o["status"]["status"]));
        listed["items"].as_array().unwrap().iter().map(of).collect()
    }

    pub fn until_assigned(&self, count: usize) {
        let what = format!("{count} Assigned in {}", self.namespace);
        self.world.until(&what, || {
            let all = self.assignments();
            all.iter().filter(|(_, state)| state == "Assigned").count() == count
        });
    }

    pub fn until_gone(&self) {
        let what = format!("none left in {}", self.namespace);
        self.world.until(&what, || self.assignments().is_empty());
    }

    /// What a pod is answered: the status, the headers, and the body.
    pub fn ask(&self, pod: &str, more: &str) -> (u16, String, Value) {
        let url = format!("{TOKEN}{more}");
        let arguments = [
            "-sS",
            "-i",
            "--noproxy",
            "*",
            "--max-time",
            "10",
            "-H",
            "Metadata: true",
            &url,
        ];
        let output = self.world.net.run(&self.place(pod), "curl", &arguments);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_default();
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
        let body = serde_json::from_str(body).unwrap_or_default();
        (status.unwrap_or(0), head.to_ascii_lowercase(), body)
    }

    /// Whose token a pod gets; `None` when it gets none.
    pub fn whose(&self, pod: &str, more: &str) -> Option<String> {
        let (status, _, body) = self.ask(pod, more);
        let token = body["access_token"].as_str().filter(|_| status == 200)?;
        let claims = URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
        let claims: Value = serde_json::from_slice(&claims).ok()?;
        claims["appid"].as_str().map(str::to_owned)
    }

    /// As the original's validator: by client id, by resource id, and not named, the token is this identity's.
    pub fn validate(&self, pod: &str, identity: &Identity) {
        for name in [
            format!("&client_id={}", identity.client_id),
            format!("&mi_res_id={}", identity.id),
            String::new(),
        ] {
            let what = format!("{pod} of {} gets a token{name}", self.namespace);
            self.world.until(&what, || {
                self.whose(pod, &name).as_deref() == Some(&identity.client_id)
            });
        }
    }

    /// The pod gets no token, named or not.
    pub fn validate_none(&self, pod: &str, identity: &Identity) {
        for name in [format!("&client_id={}", identity.client_id), String::new()] {
            let what = format!("{pod} of {} gets no token{name}", self.namespace);
            self.world.until(&what, || self.ask(pod, &name).0 == 400);
        }
    }
}
