//! Containers of pods, run by a real container engine as their template says, from the images of `tools/image/build`.
//!
//! What a template has that is not known here is refused: nothing in a manifest goes untested because nobody looked.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::process::{Process, command};
use crate::scratch;
use crate::tools::engine;

const STARTS_WITHIN: Duration = Duration::from_secs(60);
/// Where a pod's service account is, in every pod.
const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// What a kubelet knows of a pod besides its template.
#[derive(Debug, Clone, Default)]
pub struct Kubelet {
    /// The network namespace of the node for a pod on the host's network, else the pod's own.
    pub netns: String,
    /// What the node's root is to `hostPath` volumes.
    pub root: PathBuf,
    /// Fields of the pod, by path, for `fieldRef`.
    pub fields: BTreeMap<String, String>,
    /// Secrets of the pod's namespace: by name, their keys and values.
    pub secrets: BTreeMap<String, BTreeMap<String, String>>,
    /// How the pod's service account reaches the API server. Not needed where the template declines it.
    pub account: Option<Account>,
    /// Arguments after the template's.
    pub arguments: Vec<String>,
    /// Variables after the template's, and files of this machine's that it sees at a path: for what only a simulated Azure needs.
    pub environment: Vec<(String, String)>,
    /// See above; read-only.
    pub files: Vec<(PathBuf, String)>,
}

/// What is mounted into every pod that has a service account.
#[derive(Debug, Clone)]
pub struct Account {
    /// A folder with `token`, `ca.crt` and `namespace`.
    pub folder: PathBuf,
    /// The API server's address and port.
    pub server: (String, u16),
}

/// A running container. Removed on drop, and when the test process ends, however it does.
#[derive(Debug)]
pub struct Container {
    name: String,
    pid_file: PathBuf,
    // Declared before the process, so that the engine is asked first.
    remover: Remover,
    process: Process,
    _folder: tempfile::TempDir,
}

impl Container {
    /// Starts the container of this name of a pod's template (`spec.template` of a Deployment or DaemonSet).
    ///
    /// # Errors
    /// When the template has something that is not known here, or the engine does not start.
    pub fn start(template: &Value, name: &str, kubelet: &Kubelet) -> Result<Self> {
        static SWEPT: Once = Once::new();
        SWEPT.call_once(sweep);
        let folder = scratch::folder("container")?;
        let own = unique_name(name);
        let pid_file = folder.path().join("pid");
        let mut run = command(None, engine());
        run.args(["run", "--name", &own, "--log-driver=none", "--pull=never"]);
        // Without what the engine adds of its own: writable folders, the tester's proxy, its names of hosts.
        run.args(["--read-only-tmpfs=false", "--http-proxy=false"]);
        // As kubelets do where control groups are of version 2.
        run.args(["--no-hosts", "--cgroupns=private"]);
        run.arg(format!("--pidfile={}", pid_file.display()));
        run.args(arguments(template, name, kubelet)?);
        let remover = Remover::new(&own)?;
        let process = Process::spawn(run, &folder.path().join("log"))?;
        Ok(Self {
            name: own,
            pid_file,
            remover,
            process,
            _folder: folder,
        })
    }

    /// The process id of its first process, on this machine.
    ///
    /// # Errors
    /// When it is not started in time, or has ended; with what it said.
    pub fn pid(&self) -> Result<u32> {
        let deadline = Instant::now() + STARTS_WITHIN;
        loop {
            if let Some(pid) = fs::read_to_string(&self.pid_file)
                .ok()
                .and_then(|text| text.trim().parse().ok())
            {
                return Ok(pid);
            }
            ensure!(
                Instant::now() < deadline && !self.has_ended(),
                "the container does not start: {}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Runs a program of the image's in it.
    ///
    /// # Errors
    /// When the engine does not start.
    pub fn exec(&self, words: &[&str]) -> Result<Output> {
        let mut exec = command(None, engine());
        exec.args(["exec", &self.name]).args(words);
        Ok(exec.output()?)
    }

    /// Ends it as a kubelet does: asks, and waits.
    ///
    /// # Errors
    /// When it does not end within the time that a pod has.
    pub fn stop(&self) -> Result<()> {
        let mut stop = command(None, engine());
        let output = stop
            .args(["stop", "--time=30", &self.name])
            .output()
            .context("the engine does not start")?;
        ensure!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    }

    /// Whether it ended by itself.
    pub fn has_ended(&self) -> bool {
        self.process.has_ended()
    }

    /// Waits for its end, and says whether that was a success.
    ///
    /// # Errors
    /// When it does not end in time.
    pub fn wait(&self, within: Duration) -> Result<bool> {
        let deadline = Instant::now() + within;
        while !self.has_ended() {
            ensure!(
                Instant::now() < deadline,
                "the container does not end: {}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        let format = ["--format", "{{.State.ExitCode}}"];
        let mut inspect = command(None, engine());
        let output = inspect
            .args(["container", "inspect"])
            .args(format)
            .arg(&self.name)
            .output()?;
        Ok(output.stdout.trim_ascii() == b"0")
    }

    /// The end of what it has printed so far.
    pub fn log(&self) -> String {
        self.process.log()
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        self.remover.remove();
    }
}

/// A process that removes a container as soon as this one lets go of it, if only by dying.
#[derive(Debug)]
struct Remover(Child);

impl Remover {
    fn new(container: &str) -> Result<Self> {
        const WAIT_AND_REMOVE: &str =
            "cat >/dev/null; exec \"$0\" rm --force --ignore --time 0 \"$1\" >/dev/null 2>&1";
        let child = Command::new("sh")
            .args(["-c", WAIT_AND_REMOVE])
            .arg(engine())
            .arg(container)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // A terminal's interrupt is for the test, not for what cleans up after it.
            .process_group(0)
            .spawn()
            .context("sh does not start")?;
        Ok(Self(child))
    }

    fn remove(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// Removes the containers of test processes that are no more.
fn sweep() {
    let mut list = command(None, engine());
    let Ok(listed) = list.args(["ps", "--all", "--format={{.Names}}"]).output() else {
        return;
    };
    for name in String::from_utf8_lossy(&listed.stdout).lines() {
        let owner = name.strip_prefix("podid-test-");
        let owner = owner.and_then(|rest| rest.split('-').next()?.parse().ok());
        if owner.is_some_and(scratch::is_dead) {
            let mut remove = command(None, engine());
            let _ = remove.args(["rm", "--force", "--time=0", name]).output();
        }
    }
}

fn unique_name(name: &str) -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("podid-test-{}-{count}-{name}", std::process::id())
}

/// The engine's arguments for a container of a template.
fn arguments(template: &Value, name: &str, kubelet: &Kubelet) -> Result<Vec<String>> {
    let pod = &template["spec"];
    // Where a pod runs and who may have it run is not the engine's.
    only(
        pod,
        "serviceAccountName automountServiceAccountToken priorityClassName hostNetwork hostPID dnsPolicy nodeSelector \
         tolerations affinity topologySpreadConstraints restartPolicy securityContext containers initContainers volumes",
    )?;
    let container = ["initContainers", "containers"]
        .iter()
        .flat_map(|kind| list(&pod[kind]))
        .find(|container| container["name"] == name)
        .with_context(|| format!("no container {name}"))?;
    // Ports are a declaration; probes are the test's to ask.
    only(
        container,
        "name image imagePullPolicy command args env ports livenessProbe readinessProbe startupProbe resources securityContext volumeMounts",
    )?;
    let mut arguments = vec![format!("--network=ns:/run/netns/{}", kubelet.netns)];
    if pod["hostPID"] == true {
        arguments.push("--pid=host".to_owned());
    }
    arguments.extend(security(pod, container)?);
    arguments.extend(resources(&container["resources"])?);
    for (volume, mount) in volumes(pod, container, kubelet)? {
        arguments.push(format!("--volume={}:{mount}", volume.display()));
    }
    for (file, path) in &kubelet.files {
        arguments.push(format!("--volume={}:{path}:ro", file.display()));
    }
    let mut variables = variables(container, kubelet)?;
    if pod["automountServiceAccountToken"] != false {
        let account = kubelet.account.as_ref();
        let account = account.context("the pod has a service account")?;
        arguments.push(format!(
            "--volume={}:{ACCOUNT}:ro",
            account.folder.display()
        ));
        let (host, port) = &account.server;
        variables.insert("KUBERNETES_SERVICE_HOST".to_owned(), host.clone());
        variables.insert("KUBERNETES_SERVICE_PORT".to_owned(), port.to_string());
    }
    variables.extend(kubelet.environment.iter().cloned());
    for (name, value) in &variables {
        arguments.push(format!("--env={name}={value}"));
    }
    let mut words = strings(&container["args"])?;
    words.extend(kubelet.arguments.iter().cloned());
    let program = strings(&container["command"])?;
    if let Some((first, rest)) = program.split_first() {
        arguments.push(format!("--entrypoint={first}"));
        words.splice(0..0, rest.iter().cloned());
    }
    arguments.push(text(&container["image"])?);
    arguments.extend(words.iter().map(|word| expand(word, &variables)));
    Ok(arguments)
}

/// What keeps a container from doing more than it is meant to.
fn security(pod: &Value, container: &Value) -> Result<Vec<String>> {
    only(&pod["securityContext"], "seccompProfile")?;
    let own = &container["securityContext"];
    only(
        own,
        "runAsUser runAsNonRoot allowPrivilegeEscalation readOnlyRootFilesystem capabilities",
    )?;
    only(&own["capabilities"], "add drop")?;
    let mut arguments = Vec::new();
    match pod["securityContext"]["seccompProfile"]["type"].as_str() {
        // The engine's own, unless told otherwise.
        Some("RuntimeDefault") => {}
        None => arguments.push("--security-opt=seccomp=unconfined".to_owned()),
        Some(other) => bail!("the seccomp profile {other} is not known here"),
    }
    if let Some(user) = own["runAsUser"].as_u64() {
        ensure!(user != 0 || own["runAsNonRoot"] != true, "root is no other");
        // Without a group, the image's file of users decides; a kubelet takes root's.
        arguments.push(format!("--user={user}:0"));
    } else {
        ensure!(
            own["runAsNonRoot"].is_null(),
            "runAsNonRoot without runAsUser"
        );
    }
    if own["allowPrivilegeEscalation"] == false {
        arguments.push("--security-opt=no-new-privileges".to_owned());
    }
    if own["readOnlyRootFilesystem"] == true {
        arguments.push("--read-only".to_owned());
    }
    for (kind, flag) in [("drop", "--cap-drop"), ("add", "--cap-add")] {
        for capability in strings(&own["capabilities"][kind])? {
            arguments.push(format!("{flag}={capability}"));
        }
    }
    Ok(arguments)
}

/// A limit is the kernel's to keep; what is requested is the scheduler's to find.
fn resources(resources: &Value) -> Result<Vec<String>> {
    only(resources, "requests limits")?;
    only(&resources["limits"], "memory")?;
    let Some(limit) = resources["limits"]["memory"].as_str() else {
        return Ok(Vec::new());
    };
    let mebibytes = limit.strip_suffix("Mi").context("memory in Mi")?;
    Ok(vec![format!("--memory={mebibytes}m")])
}

/// The container's mounts: what is mounted, and where, with its options.
fn volumes(pod: &Value, container: &Value, kubelet: &Kubelet) -> Result<Vec<(PathBuf, String)>> {
    let mut mounts = Vec::new();
    for mount in list(&container["volumeMounts"]) {
        only(mount, "name mountPath readOnly")?;
        let volume = list(&pod["volumes"]).find(|volume| volume["name"] == mount["name"]);
        let volume = volume.with_context(|| format!("no volume {}", mount["name"]))?;
        only(volume, "name hostPath")?;
        let path = text(&volume["hostPath"]["path"])?;
        let path = kubelet.root.join(path.trim_start_matches('/'));
        on_node(&path, volume["hostPath"]["type"].as_str())?;
        let options = if mount["readOnly"] == true { ":ro" } else { "" };
        mounts.push((path, text(&mount["mountPath"])? + options));
    }
    Ok(mounts)
}

/// A path of the node's, made where its type says so.
fn on_node(path: &Path, kind: Option<&str>) -> Result<()> {
    let fits = match kind {
        Some("DirectoryOrCreate") => {
            fs::create_dir_all(path)?;
            path.is_dir()
        }
        Some("FileOrCreate") => {
            // Its folder must be there, says the kubelet.
            if !path.exists() {
                fs::write(path, "")?;
            }
            path.is_file()
        }
        Some("File") => path.is_file(),
        other => bail!("a hostPath of type {other:?} is not known here"),
    };
    ensure!(fits, "{} is not what the pod expects", path.display());
    Ok(())
}

fn variables(container: &Value, kubelet: &Kubelet) -> Result<BTreeMap<String, String>> {
    let mut variables = BTreeMap::new();
    for variable in list(&container["env"]) {
        only(variable, "name value valueFrom")?;
        let from = &variable["valueFrom"];
        only(from, "fieldRef secretKeyRef")?;
        let value = if let Some(path) = from["fieldRef"]["fieldPath"].as_str() {
            let value = kubelet.fields.get(path);
            Some(
                value
                    .with_context(|| format!("the pod's {path} is not known"))?
                    .clone(),
            )
        } else if let Some(secret) = from["secretKeyRef"]["name"].as_str() {
            let key = text(&from["secretKeyRef"]["key"])?;
            let value = kubelet.secrets.get(secret).and_then(|keys| keys.get(&key));
            ensure!(
                value.is_some() || from["secretKeyRef"]["optional"] == true,
                "no {key} in the Secret {secret}"
            );
            value.cloned()
        } else {
            Some(text(&variable["value"])?)
        };
        if let Some(value) = value {
            variables.insert(text(&variable["name"])?, value);
        }
    }
    Ok(variables)
}

/// `$(NAME)` as a kubelet replaces it.
fn expand(word: &str, variables: &BTreeMap<String, String>) -> String {
    variables
        .iter()
        .fold(word.to_owned(), |word, (name, value)| {
            word.replace(&format!("$({name})"), value)
        })
}

/// Refuses an object that has other fields than these.
fn only(object: &Value, fields: &str) -> Result<()> {
    for (field, value) in object.as_object().into_iter().flatten() {
        ensure!(
            fields.split_whitespace().any(|known| known == field),
            "a pod's {field} ({value}) is not known here, so that it would not be tested: teach {} about it",
            file!()
        );
    }
    Ok(())
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn text(value: &Value) -> Result<String> {
    let text = value.as_str();
    Ok(text
        .with_context(|| format!("{value} is no text"))?
        .to_owned())
}

fn strings(value: &Value) -> Result<Vec<String>> {
    list(value).map(text).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn template() -> Value {
        json!({ "spec": {
            "automountServiceAccountToken": false,
            "hostPID": true,
            "securityContext": { "seccompProfile": { "type": "RuntimeDefault" } },
            "containers": [{
                "name": "app", "image": "app:1", "command": ["/app", "run"], "args": ["--node=$(NODE)", "--x=$(OTHER)"],
                "env": [
                    { "name": "NODE", "valueFrom": { "fieldRef": { "fieldPath": "spec.nodeName" } } },
                    { "name": "KEY", "valueFrom": { "secretKeyRef": { "name": "s", "key": "k", "optional": true } } },
                ],
                "resources": { "limits": { "memory": "64Mi" } },
                "securityContext": {
                    "runAsUser": 7, "runAsNonRoot": true, "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
                    "capabilities": { "drop": ["ALL"], "add": ["NET_RAW"] },
                },
                "volumeMounts": [{ "name": "run", "mountPath": "/run/x", "readOnly": true }],
            }],
            "volumes": [{ "name": "run", "hostPath": { "path": "/run", "type": "DirectoryOrCreate" } }],
        } })
    }

    fn kubelet(root: &Path) -> Kubelet {
        Kubelet {
            netns: "place".to_owned(),
            root: root.to_owned(),
            fields: [("spec.nodeName".to_owned(), "n1".to_owned())].into(),
            arguments: vec!["--more".to_owned()],
            ..Kubelet::default()
        }
    }

    #[test]
    fn a_container_is_run_as_its_template_says() {
        let folder = scratch::folder("container").unwrap();
        let arguments = arguments(&template(), "app", &kubelet(folder.path())).unwrap();
        let volume = format!("--volume={}/run:/run/x:ro", folder.path().display());
        assert_eq!(
            arguments,
            [
                "--network=ns:/run/netns/place",
                "--pid=host",
                "--user=7:0",
                "--security-opt=no-new-privileges",
                "--read-only",
                "--cap-drop=ALL",
                "--cap-add=NET_RAW",
                "--memory=64m",
                &volume,
                "--env=NODE=n1",
                "--entrypoint=/app",
                "app:1",
                "run",
                "--node=n1",
                "--x=$(OTHER)",
                "--more",
            ]
        );
    }

    #[test]
    fn what_is_not_known_is_refused_by_its_name() {
        let folder = scratch::folder("container").unwrap();
        for (place, field) in [
            ("/spec", "shareProcessNamespace"),
            ("/spec/securityContext", "fsGroup"),
            ("/spec/volumes/0", "emptyDir"),
            ("/spec/containers/0", "lifecycle"),
            ("/spec/containers/0/env/0/valueFrom", "resourceFieldRef"),
            ("/spec/containers/0/resources/limits", "cpu"),
            ("/spec/containers/0/securityContext", "privileged"),
            ("/spec/containers/0/volumeMounts/0", "subPath"),
        ] {
            let mut template = template();
            template.pointer_mut(place).unwrap()[field] = json!(true);
            let error = arguments(&template, "app", &kubelet(folder.path())).unwrap_err();
            assert!(error.to_string().contains(field), "{field}: {error}");
        }
    }
}
