//! A node with pods in network namespaces, real `podid nmi` on it, a simulated API server and a simulated Azure: everything that
//! an unmodified client meets, without a cluster.

#![allow(dead_code, reason = "not every test needs all of it")]

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use podid_testkit::cgroup::PodGroup;
use podid_testkit::net::{METADATA, Net, Wire};
pub use podid_testkit::process::text;
use podid_testkit::process::{self, Process, run_with_input};
use podid_testkit::tools;
use serde_json::{Value, json};
use tempfile::TempDir;

pub const PODID: &str = env!("CARGO_BIN_EXE_podid");
/// Flags of nmi that a test may give another value: the identities are on the node already, and nmi holds requests for less than curl
/// waits for an answer.
const DEFAULT_FLAGS: [&str; 2] = ["--operation-mode=managed", "--assignment-wait=5s"];
/// Time limit for what a test waits for, on a busy machine.
const CONDITION_TIMEOUT: Duration = Duration::from_secs(60);
/// The name of the node.
pub const NODE: &str = "node-1";
pub const TOKEN: &str = "http://169.254.169.254/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https://vault.azure.net";

/// An identity in the simulated Azure, attached to the node.
#[derive(Debug, Clone)]
pub struct Identity {
    pub name: &'static str,
    pub id: String,
    pub client_id: String,
}

/// A process and its control group; the process ends first.
pub type Running = (Process, PodGroup);

/// Nothing listens at this proxy: a request to the metadata service that goes there fails.
const NO_PROXY_THERE: [(&str, &str); 3] = [
    ("HTTP_PROXY", "http://127.0.0.1:1"),
    ("HTTPS_PROXY", "http://127.0.0.1:1"),
    ("ALL_PROXY", "http://127.0.0.1:1"),
];

/// The pid namespace that nmi's container is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PidNamespace {
    /// With hostPID, on a machine.
    Machine,
    /// With hostPID, on a node that is a container itself (kind, k3d).
    ContainerNode,
    /// Its own, without hostPID.
    Own,
}

pub struct World {
    // Processes end before the namespaces and the folder go.
    pub nmi: Option<Process>,
    nmi_group: Option<PodGroup>,
    /// nsenter(1)'s flag for the pid namespace of a node that is a container.
    pid_namespace: Option<String>,
    cluster: Option<Process>,
    azure: Process,
    pub net: Net,
    pub identities: Vec<Identity>,
    folder: TempDir,
}

impl World {
    /// A world with these identities, in which nmi runs with `flags`.
    pub fn build(identities: &[&'static str], flags: &[&str]) -> Self {
        let net = Net::build();
        let folder = tempfile::tempdir().unwrap();
        let mut command = net.command("azure", PODID);
        command.args(["sim", "azure", "--address", &METADATA.to_string()]);
        command.args([
            "--imds-port",
            "80",
            "--arm-port",
            "8081",
            "--entra-port",
            "8082",
        ]);
        for name in identities {
            command.args(["--identity", name]);
        }
        let azure = Process::spawn(command, &folder.path().join("azure.log")).unwrap();
        let said = azure.wait_for_log("service principal").unwrap();
        let identities = identities
            .iter()
            .map(|name| identity(&said, name))
            .collect();

        let kubeconfig = folder.path().join("kubeconfig");
        let mut command = net.command("node", PODID);
        command
            .args(["sim", "cluster", "--kubeconfig"])
            .arg(&kubeconfig);
        let cluster = Process::spawn(command, &folder.path().join("cluster.log")).unwrap();
        cluster.wait_for_log("API server").unwrap();
        let mut world = Self {
            nmi: None,
            nmi_group: None,
            pid_namespace: None,
            cluster: Some(cluster),
            azure,
            net,
            identities,
            folder,
        };
        let node = json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": NODE } });
        world.apply(&node.to_string());
        world.start_nmi(flags);
        let crds = Command::new(PODID).arg("crds").output().unwrap();
        world.apply(&String::from_utf8(crds.stdout).unwrap());
        world
    }

    fn kubeconfig(&self) -> PathBuf {
        self.folder.path().join("kubeconfig")
    }

    /// Starts nmi, with [`DEFAULT_FLAGS`] where `flags` says nothing else.
    pub fn start_nmi(&mut self, flags: &[&str]) {
        self.nmi = Some(self.spawn_nmi("nmi", flags));
    }

    /// Another nmi, which logs to a file of its own.
    pub fn spawn_nmi(&self, name: &str, flags: &[&str]) -> Process {
        self.spawn_program(Path::new(PODID), name, flags)
    }

    /// As [`World::spawn_nmi`], with a podid of another version.
    pub fn spawn_program(&self, podid: &Path, name: &str, flags: &[&str]) -> Process {
        let mut command = self.net.command("node", podid.to_str().unwrap());
        self.pass(&mut command, flags);
        if podid != Path::new(PODID) {
            for (name, _) in NO_PROXY_THERE {
                command.env_remove(name);
            }
        }
        let log = self.folder.path().join(format!("{name}.log"));
        Process::spawn(command, &log).unwrap()
    }

    /// nmi's arguments and environment.
    fn pass(&self, command: &mut Command, flags: &[&str]) {
        let is_given = |default: &&str| {
            let name = default.split('=').next().unwrap();
            flags.iter().any(|flag| flag.starts_with(name))
        };
        command
            .args(["nmi", &format!("--node={NODE}"), "--http-probe-port=8085"])
            .args(DEFAULT_FLAGS.iter().filter(|default| !is_given(default)))
            .args(flags)
            .env("KUBECONFIG", self.kubeconfig())
            .envs(NO_PROXY_THERE);
    }

    /// Starts nmi as a container runtime does on a node whose control groups are of version 2: in its pod's group, beyond which
    /// its cgroup namespace shows no names, so that of its own pod it sees no uid. It has the mounts and capabilities that the
    /// chart gives it for `nmi.interceptHostNetwork=pods`.
    pub fn start_contained_nmi(&mut self, pids: PidNamespace, flags: &[&str]) {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let uid = format!("3f2504e0-4f89-41d3-9a0c-{count:012}");
        let group = PodGroup::of_container(&uid, "nmi").unwrap();
        let netns = self.net.name("node");
        let enter = format!(
            "{} && exec ip netns exec {netns} sh -c '{MOUNTS} && exec unshare --cgroup {CONFINED} \"$0\" \"$@\"' \"$0\" \"$@\"",
            join(&group)
        );
        let mut command = process::command(None, "unshare");
        let own = "--pid --fork --kill-child --mount-proc".split(' ');
        match pids {
            PidNamespace::Machine => &mut command,
            PidNamespace::Own => command.args(own),
            // This shell is the runtime's: the container's parent, and outside its group.
            PidNamespace::ContainerNode => {
                command.args(own).args(["sh", "-c", "\"$@\" & wait", "sh"])
            }
        };
        command.args(["sh", "-c", &enter, PODID]);
        self.pass(&mut command, flags);
        let nmi = Process::spawn(command, &self.folder.path().join("contained.log")).unwrap();
        self.pid_namespace = (pids == PidNamespace::ContainerNode)
            .then(|| format!("--pid=/proc/{}/ns/pid_for_children", nmi.pid()));
        self.nmi = Some(nmi);
        self.nmi_group = Some(group);
    }

    /// The API server goes away.
    pub fn stop_cluster(&mut self) {
        self.cluster.take();
    }

    /// Waits until nmi says that it is ready.
    pub fn wait_until_ready(&self) {
        let probe = ["-sf", "--noproxy", "*", "http://127.0.0.1:8085/readyz"];
        self.wait_until("nmi is ready", || {
            self.net.run("node", "curl", &probe).status.success()
        });
    }

    pub fn wait_until(&self, what: &str, mut holds: impl FnMut() -> bool) {
        let started = Instant::now();
        while !holds() {
            assert!(
                started.elapsed() < CONDITION_TIMEOUT,
                "never: {what}\n{}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn log(&self) -> String {
        self.nmi.as_ref().map(Process::log).unwrap_or_default()
    }

    pub fn identity(&self, name: &str) -> &Identity {
        self.identities
            .iter()
            .find(|identity| identity.name == name)
            .unwrap()
    }

    /// `kubectl apply -f -` on the node.
    pub fn apply(&self, yaml: &str) {
        self.kubectl(&["apply", "-f", "-"], yaml);
    }

    /// Real kubectl, as on the node.
    pub fn kubectl(&self, arguments: &[&str], input: &str) -> String {
        let kubectl = tools::Kubernetes::find().unwrap().kubectl;
        let mut command = self.net.command("node", kubectl.to_str().unwrap());
        command.args(arguments).env("KUBECONFIG", self.kubeconfig());
        let output = run_with_input(command, input).unwrap();
        assert!(
            output.status.success(),
            "kubectl {arguments:?}: {}",
            text(&output)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    /// An AzureIdentity and an AzureIdentityBinding with the selector `selector`.
    pub fn grant(&self, name: &str, selector: &str, weight: i32) {
        let Identity { id, client_id, .. } = self.identity(name);
        let identity = json!({
            "apiVersion": "aadpodidentity.k8s.io/v1", "kind": "AzureIdentity",
            "metadata": { "name": name, "namespace": "default" },
            "spec": { "type": 0, "resourceID": id, "clientID": client_id },
        });
        let binding = json!({
            "apiVersion": "aadpodidentity.k8s.io/v1", "kind": "AzureIdentityBinding",
            "metadata": { "name": format!("{selector}-{name}"), "namespace": "default" },
            "spec": { "azureIdentity": name, "selector": selector, "weight": weight },
        });
        self.apply(&format!("{identity}\n---\n{binding}"));
    }

    /// A pod as the API server has it: the kubelet's part is a status. Gives its uid.
    pub fn register(&self, name: &str, address: Ipv4Addr, fields: &Value) -> String {
        let uid = self.schedule(name, fields);
        self.report_address(name, address);
        uid
    }

    /// A pod of this node of which the kubelet has reported nothing yet. Gives its uid.
    pub fn schedule(&self, name: &str, fields: &Value) -> String {
        let mut pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name, "namespace": "default" },
            "spec": { "nodeName": NODE, "containers": [{ "name": "app", "image": "app" }] },
        });
        merge(&mut pod, fields);
        self.apply(&pod.to_string());
        self.kubectl(&["get", "pod", name, "-o", "jsonpath={.metadata.uid}"], "")
    }

    /// The kubelet reports that the pod runs, and where.
    pub fn report_address(&self, pod: &str, address: Ipv4Addr) {
        self.report(
            pod,
            &json!({ "phase": "Running", "podIP": address, "podIPs": [{ "ip": address }] }),
        );
    }

    /// What the kubelet reports.
    pub fn report(&self, pod: &str, status: &Value) {
        let patch = json!({ "status": status }).to_string();
        self.kubectl(
            &[
                "patch",
                "pod",
                pod,
                "--subresource=status",
                "--type=merge",
                "-p",
                &patch,
            ],
            "",
        );
    }

    /// A pod with a sandbox, known to the API server, with the label `aadpodidbinding: <selector>` if there is one.
    pub fn start_pod(&self, name: &str, address: Ipv4Addr, selector: &str) -> String {
        self.net.start_pod(name, address, Wire::Bridge);
        self.register(
            name,
            address,
            &json!({ "metadata": { "labels": { "aadpodidbinding": selector } } }),
        )
    }

    /// The processes of a pod, as far as the node's kernel sees it: one that sleeps, in the pod's control group.
    pub fn run_pod(&self, name: &str, uid: &str) -> Running {
        let group = PodGroup::new(uid).unwrap();
        let mut command = process::command(None, "sh");
        if let Some(namespace) = &self.pid_namespace {
            command = process::command(None, "nsenter");
            command.args([namespace, "setpriv", "--pdeathsig", "KILL", "sh"]);
        }
        let netns = self.net.name(name);
        let sleep = format!("{} && exec ip netns exec {netns} sleep 600", join(&group));
        command.args(["-c", &sleep]);
        let log = self.folder.path().join(format!("{name}.log"));
        (Process::spawn(command, &log).unwrap(), group)
    }

    /// A program in a pod.
    pub fn command(&self, pod: &str, program: &str) -> Command {
        self.net.command(pod, program)
    }

    /// What a pod is answered with: the status and the body.
    pub fn ask(&self, pod: &str, more: &[&str]) -> (u16, Value) {
        let basic = [
            "-sS",
            "--noproxy",
            "*",
            "--max-time",
            "10",
            "-w",
            "\n%{http_code}",
            "-H",
            "Metadata: true",
            TOKEN,
        ];
        answer(&self.net.run(pod, "curl", &[&basic, more].concat()))
    }

    /// As [`World::ask`], from another pod of nmi's kubelet that is on the host's network.
    pub fn ask_on_host_network(&self, uid: &str) -> (u16, Value) {
        let group = self.nmi_group.as_ref().unwrap().beside(uid).unwrap();
        let netns = self.net.name("node");
        let line = format!(
            "{} && exec ip netns exec {netns} curl -sS --noproxy '*' --max-time 10 -w '\n%{{http_code}}' -H 'Metadata: true' '{TOKEN}'",
            join(&group)
        );
        let mut enter = process::command(None, "sh");
        answer(&enter.args(["-c", &line]).output().unwrap())
    }

    /// How often the node's own metadata service was asked.
    pub fn asked(&self) -> usize {
        let url = format!("http://{METADATA}:8081/_sim/journal");
        let output = self
            .net
            .run("azure", "curl", &["-sS", "--noproxy", "*", &url]);
        let journal: Value = serde_json::from_slice(&output.stdout).unwrap();
        journal
            .as_array()
            .unwrap()
            .iter()
            .filter(|entry| entry["service"] == "imds")
            .count()
    }
}

impl World {
    /// The object id of an identity's service principal, as the node's own metadata service says it in a token.
    pub fn object_id(&self, name: &str) -> String {
        let id = &self.identity(name).client_id;
        let url = format!("{TOKEN}&client_id={id}");
        let output = self.net.run(
            "azure",
            "curl",
            &["-sS", "--noproxy", "*", "-H", "Metadata: true", &url],
        );
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
        claims(answer["access_token"].as_str().unwrap())["oid"]
            .as_str()
            .unwrap()
            .to_owned()
    }
}

/// The client id in a token of the simulated Azure, by whose claims an application would be known.
pub fn whose(token: &str) -> String {
    claims(token)["appid"].as_str().unwrap().to_owned()
}

fn claims(token: &str) -> Value {
    use base64::Engine as _;
    let claims = token.split('.').nth(1).unwrap_or_default();
    let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD
        .decode(claims)
        .unwrap_or_default();
    serde_json::from_slice(&bytes).unwrap()
}

/// The node's control groups of version 2, and a bpf file system.
const MOUNTS: &str = "mount -t cgroup2 none /sys/fs/cgroup && mount -t bpf none /sys/fs/bpf";
/// What the chart lets nmi do.
const CONFINED: &str =
    "setpriv --no-new-privs --bounding-set=-all,+net_admin,+net_bind_service,+net_raw,+bpf";

/// curl's answer with its status in the last line.
fn answer(output: &Output) -> (u16, Value) {
    let text = String::from_utf8_lossy(&output.stdout);
    let (body, status) = text.rsplit_once('\n').unwrap_or_default();
    (
        status.parse().unwrap_or(0),
        serde_json::from_str(body).unwrap_or_default(),
    )
}

/// The shell's words by which it joins a control group.
fn join(group: &PodGroup) -> String {
    let procs = group.procs();
    let lines: Vec<String> = procs
        .map(|procs| format!("echo 0 > {}", procs.display()))
        .collect();
    lines.join(" && ")
}

fn merge(into: &mut Value, from: &Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (name, value) in from {
                merge(into.entry(name.clone()).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from.clone(),
    }
}

fn identity(said: &str, name: &'static str) -> Identity {
    let ends = format!("/{name}");
    let words = said.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        words
            .get(1)
            .is_some_and(|id| id.ends_with(&ends))
            .then_some(words)
    });
    let words = words.unwrap();
    Identity {
        name,
        id: words[1].to_owned(),
        client_id: words.last().unwrap().to_string(),
    }
}
