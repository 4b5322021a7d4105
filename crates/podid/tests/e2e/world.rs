//! The world of all scenarios.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, Weak, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use podid_sim::azure::{Azure, Handle, HostKind, Identity, Role};
use podid_testkit::apiserver::{ApiServer, Options};
use podid_testkit::net::{METADATA, Net, Wire};
use podid_testkit::process::Process;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

pub const PODID: &str = env!("CARGO_BIN_EXE_podid");
const PATIENCE: Duration = Duration::from_secs(120);
pub const GROUP: &str = "nodes";
const TOKEN: &str = "http://169.254.169.254/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https://vault.azure.net";

pub struct World {
    // Processes end before the namespaces and the folder go.
    pub mics: Mutex<Vec<Process>>,
    pub nmi: Process,
    pub azure: Handle,
    _azure_runs: Running,
    pub api: ApiServer,
    pub net: Net,
    kubeconfig: PathBuf,
    folder: TempDir,
    /// The scale set of `node-1` and `node-2`, and that of `node-3`. Pods with a network are on `node-1`.
    pub set: String,
    pub other: String,
    /// An identity on the controllers' list of those that stay.
    pub immutable: Identity,
    addresses: AtomicU8,
}

/// The simulated Azure, on a thread in its own network namespace.
struct Running(CancellationToken, Option<JoinHandle<()>>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.cancel();
        if let Some(thread) = self.1.take() {
            let _ = thread.join();
        }
    }
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
    let world = Arc::new(World::build());
    *shared = Arc::downgrade(&world);
    world
}

fn start_azure(net: &Net) -> (Handle, Running) {
    let place = std::fs::File::open(format!("/run/netns/{}", net.name("azure"))).unwrap();
    let stop = CancellationToken::new();
    let (ready, handle) = mpsc::channel();
    let told = stop.clone();
    let thread = std::thread::spawn(move || {
        nix::sched::setns(place, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        runtime.unwrap().block_on(async {
            let azure = Azure::bind(podid_sim::azure::Config {
                address: METADATA.into(),
                arm_port: 8081,
                entra_port: 8082,
                patch_latency: Duration::from_millis(300),
                throttle: false,
                ..podid_sim::azure::Config::default()
            });
            let azure = azure.await.unwrap();
            let handle = azure.handle();
            let set = handle.create_host(HostKind::ScaleSet, GROUP, "pool1");
            let imds = SocketAddr::from((METADATA, 80));
            handle.serve_imds(&set, Some(0), imds).await.unwrap();
            ready.send(handle).unwrap();
            azure.run(told).await.unwrap();
        });
    });
    (handle.recv().unwrap(), Running(stop, Some(thread)))
}

impl World {
    fn build() -> Self {
        let net = Net::build();
        let folder = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let options = Options {
            addresses: vec![net.outside],
        };
        let api = runtime.block_on(async {
            let api = ApiServer::start_with(options).await.unwrap();
            api.install_crds().await.unwrap();
            api
        });
        let kubeconfig = api.kubeconfig_at(net.outside).unwrap();
        let (azure, running) = start_azure(&net);
        let set = azure.host_id(HostKind::ScaleSet, GROUP, "pool1");
        let other = azure.create_host(HostKind::ScaleSet, GROUP, "pool2");
        let immutable = azure.create_identity(GROUP, "immutable");
        write_cloud(&folder, &azure);
        let mics = (0..2).map(|n| start_mic(&net, &folder, &kubeconfig, n, &immutable));
        let mics = mics.collect();
        let nmi = start_nmi(&net, &folder, &kubeconfig);
        let world = Self {
            mics: Mutex::new(mics),
            nmi,
            azure,
            _azure_runs: running,
            api,
            net,
            kubeconfig,
            folder,
            set,
            other,
            immutable,
            addresses: AtomicU8::new(10),
        };
        for (node, set, n) in [
            ("node-1", &world.set, 0),
            ("node-2", &world.set, 1),
            ("node-3", &world.other, 0),
        ] {
            world.apply(&json!({
                "apiVersion": "v1", "kind": "Node", "metadata": { "name": node },
                "spec": { "providerID": Handle::provider_id(set, n) },
            }));
        }
        let probe = ["-sf", "--noproxy", "*", "http://127.0.0.1:8085/readyz"];
        world.until("nmi is ready", || {
            world.net.run("node", "curl", &probe).status.success()
        });
        world
    }

    pub fn mic(&self, n: usize) -> Process {
        start_mic(
            &self.net,
            &self.folder,
            &self.kubeconfig,
            n,
            &self.immutable,
        )
    }

    pub fn kubectl(&self, line: &str, input: &str) -> Output {
        use std::io::Write as _;
        let mut command = Command::new(self.api.kubectl());
        command
            .args(line.split(' '))
            .env("KUBECONFIG", self.api.kubeconfig());
        command.stdin(std::process::Stdio::piped());
        command
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped());
        let mut child = command.spawn().unwrap();
        // A kubectl that does not read its input has nothing to be told.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        child.wait_with_output().unwrap()
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
        let deadline = Instant::now() + PATIENCE;
        while !holds() {
            if Instant::now() > deadline {
                let mics: Vec<String> =
                    self.mics.lock().unwrap().iter().map(Process::log).collect();
                panic!("never: {what}\n{}\n{}", mics.join("\n"), self.nmi.log());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// The names of the identities on a host.
    pub fn on(&self, host: &str) -> Vec<String> {
        let name = |id: String| id.rsplit('/').next().unwrap_or_default().to_owned();
        self.azure.attached(host).into_iter().map(name).collect()
    }
}

fn write_cloud(folder: &TempDir, azure: &Handle) {
    let (application, principal) = azure.create_application("secret");
    let scope = format!("/subscriptions/{}", azure.subscription());
    azure.assign_role(&principal, Role::Owner, &scope);
    let write = |name: &str, value: Value| {
        std::fs::write(folder.path().join(name), value.to_string()).unwrap();
    };
    write(
        "cloud.json",
        json!({
            "resourceManagerEndpoint": format!("http://{METADATA}:8081/"),
            "activeDirectoryEndpoint": format!("http://{METADATA}:8082/"),
            "tokenAudience": "https://management.azure.com/",
        }),
    );
    write(
        "azure.json",
        json!({
            "cloud": "AzureStackCloud", "tenantId": azure.tenant(),
            "aadClientId": application, "aadClientSecret": "secret",
        }),
    );
}

fn start_mic(
    net: &Net,
    folder: &TempDir,
    kubeconfig: &PathBuf,
    n: usize,
    immutable: &Identity,
) -> Process {
    let mut command = net.command("node", PODID);
    command
        .args([
            "mic",
            "--leader-election-duration=4s",
            "--identity-assignment-reconcile-interval=3s",
            "--linger=1s",
        ])
        .args([
            format!("--http-probe-port={}", 18_080 + n),
            format!("--prometheus-port={}", 18_880 + n),
        ])
        .arg(format!("--leader-election-instance=mic-{n}"))
        .arg(format!(
            "--immutable-user-msis={}",
            immutable.client_id.to_uppercase()
        ))
        .arg(format!(
            "--cloudconfig={}",
            folder.path().join("azure.json").display()
        ))
        .env(
            "AZURE_ENVIRONMENT_FILEPATH",
            folder.path().join("cloud.json"),
        )
        .env("MIC_POD_NAMESPACE", "default")
        .env("KUBECONFIG", kubeconfig);
    Process::spawn(command, &folder.path().join(format!("mic-{n}.log"))).unwrap()
}

fn start_nmi(net: &Net, folder: &TempDir, kubeconfig: &PathBuf) -> Process {
    let mut command = net.command("node", PODID);
    command
        // No kubelet puts the pods' processes into control groups here.
        .args([
            "nmi",
            "--node=node-1",
            "--http-probe-port=8085",
            "--attest=address",
            "--assignment-wait=1s",
        ])
        .env(
            "AZURE_ENVIRONMENT_FILEPATH",
            folder.path().join("cloud.json"),
        )
        .env("KUBECONFIG", kubeconfig);
    Process::spawn(command, &folder.path().join("nmi.log")).unwrap()
}

/// A namespace of a scenario's own.
pub struct Scene {
    pub world: Arc<World>,
    pub namespace: String,
}

impl Scene {
    /// The scene of the scenario of this name, which is at most three letters long.
    pub fn new(name: &str) -> Self {
        let world = world();
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
