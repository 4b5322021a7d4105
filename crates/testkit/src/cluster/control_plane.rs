//! Control plane of a cluster: etcd, kube-apiserver, kube-controller-manager and kube-scheduler, as processes in the fabric.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::json;

use super::fabric::FABRIC;
use crate::certs::{self, Authority};
use crate::process::{Process, command};
use crate::tools::Kubernetes;

const READY_WITHIN: Duration = Duration::from_secs(90);
/// The range of Services; the API server's own is its first.
const SERVICES: &str = "10.96.0.0/16";
const API_SERVICE: [u8; 4] = [10, 96, 0, 1];
/// The API server's port at [`FABRIC`].
pub const API_PORT: u16 = 6443;
/// Its clients' list of members, at loopback of the fabric.
const ETCD: &str = "http://127.0.0.1:2379";

/// Keys and certificates of a cluster with one authority, as files.
pub(super) struct Pki {
    folder: PathBuf,
    authority: Authority,
}

impl Pki {
    pub(super) fn new(folder: &Path) -> Result<Self> {
        let pki = Self {
            folder: folder.join("pki"),
            authority: Authority::new()?,
        };
        fs::create_dir(&pki.folder)?;
        fs::write(pki.path("ca.crt"), pki.authority.certificate())?;
        let (private, public) = certs::key_pair()?;
        fs::write(pki.path("accounts.key"), private)?;
        fs::write(pki.path("accounts.pub"), public)?;
        let names = ["kubernetes.default.svc", "kubernetes"];
        let addresses: [IpAddr; 2] = [FABRIC.into(), API_SERVICE.into()];
        pki.write("apiserver", &pki.authority.server(&names, &addresses)?)?;
        let kubelets_client = pki
            .authority
            .client("kube-apiserver", Some("system:masters"))?;
        pki.write("kubelet-client", &kubelets_client)?;
        Ok(pki)
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn write(&self, name: &str, (certificate, key): &(String, String)) -> Result<()> {
        fs::write(self.path(&format!("{name}.crt")), certificate)?;
        fs::write(self.path(&format!("{name}.key")), key)?;
        Ok(())
    }

    /// A kubelet's certificate as a server, in files of this name.
    pub(super) fn kubelet_server(&self, name: &str, node: &str, address: IpAddr) -> Result<()> {
        self.write(name, &self.authority.server(&[node], &[address])?)
    }

    /// A kubeconfig of a user, made once: others may be reading it.
    pub(super) fn kubeconfig(&self, user: &str, group: Option<&str>) -> Result<PathBuf> {
        let file = user.replace(':', "-");
        let path = self.path(&format!("{file}.kubeconfig"));
        if path.exists() {
            return Ok(path);
        }
        self.write(&file, &self.authority.client(user, group)?)?;
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "cluster",
            "clusters": [{ "name": "cluster", "cluster": {
                "server": format!("https://{FABRIC}:{API_PORT}"), "certificate-authority": self.path("ca.crt") } }],
            "users": [{ "name": "user", "user": {
                "client-certificate": self.path(&format!("{file}.crt")), "client-key": self.path(&format!("{file}.key")) } }],
            "contexts": [{ "name": "cluster", "context": { "cluster": "cluster", "user": "user" } }],
        });
        fs::write(&path, config.to_string())?;
        Ok(path)
    }
}

/// The processes. This thread is in the fabric.
pub(super) struct ControlPlane {
    _scheduler: Process,
    _controller_manager: Process,
    _apiserver: Process,
    _etcd: Process,
}

impl ControlPlane {
    /// Starts it and waits until the API server is ready.
    pub(super) fn start(
        programs: &Kubernetes,
        pki: &Pki,
        admin: &Path,
        folder: &Path,
    ) -> Result<Self> {
        let log = |name: &str| folder.join(format!("{name}.log"));
        let assets = programs.apiserver.parent().context("a folder")?;
        let etcd = Process::spawn(etcd(&programs.etcd, folder), &log("etcd"))?;
        let apiserver = command(None, &programs.apiserver);
        let apiserver = Process::spawn(apiserver_of(apiserver, pki), &log("kube-apiserver"))?;
        wait_until_ready(&programs.kubectl, admin, &[&apiserver, &etcd])?;
        // It ends for good when it comes before the API server's own roles.
        let mut manager = command(None, assets.join("kube-controller-manager"));
        as_user(
            &mut manager,
            &pki.kubeconfig("system:kube-controller-manager", None)?,
        );
        manager
            .args([
                "--use-service-account-credentials=true",
                "--bind-address=127.0.0.1",
            ])
            .arg(format!("--service-cluster-ip-range={SERVICES}"))
            // Pods of a node that is gone are not waited for that long.
            .arg("--node-monitor-grace-period=20s");
        file(
            &mut manager,
            "service-account-private-key-file",
            &pki.path("accounts.key"),
        );
        file(&mut manager, "root-ca-file", &pki.path("ca.crt"));
        // Its default is a folder of the machine's.
        file(
            &mut manager,
            "flex-volume-plugin-dir",
            &folder.join("plugins"),
        );
        let mut scheduler = command(None, assets.join("kube-scheduler"));
        as_user(
            &mut scheduler,
            &pki.kubeconfig("system:kube-scheduler", None)?,
        );
        scheduler.arg("--bind-address=127.0.0.1");
        Ok(Self {
            _scheduler: Process::spawn(scheduler, &log("kube-scheduler"))?,
            _controller_manager: Process::spawn(manager, &log("kube-controller-manager"))?,
            _apiserver: apiserver,
            _etcd: etcd,
        })
    }
}

fn file(command: &mut Command, flag: &str, path: &Path) {
    command.arg(format!("--{flag}={}", path.display()));
}

fn as_user(command: &mut Command, kubeconfig: &Path) {
    for flag in [
        "kubeconfig",
        "authentication-kubeconfig",
        "authorization-kubeconfig",
    ] {
        file(command, flag, kubeconfig);
    }
    command.arg("--leader-elect=false");
}

fn etcd(program: &Path, folder: &Path) -> Command {
    let mut etcd = command(None, program);
    let peer = "http://127.0.0.1:2380";
    etcd.arg("--unsafe-no-fsync")
        .arg("--data-dir")
        .arg(folder.join("etcd"))
        .args([
            "--listen-client-urls",
            ETCD,
            "--advertise-client-urls",
            ETCD,
        ])
        .args([
            "--listen-peer-urls",
            peer,
            "--initial-advertise-peer-urls",
            peer,
        ])
        .arg(format!("--initial-cluster=default={peer}"));
    etcd
}

fn apiserver_of(mut apiserver: Command, pki: &Pki) -> Command {
    apiserver
        .arg(format!("--etcd-servers={ETCD}"))
        .arg(format!("--secure-port={API_PORT}"))
        .arg(format!("--advertise-address={FABRIC}"))
        .arg(format!("--service-cluster-ip-range={SERVICES}"))
        .args(["--bind-address=0.0.0.0", "--allow-privileged=true"])
        .args([
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
        ])
        .args(["--kubelet-preferred-address-types=InternalIP"])
        .arg("--service-account-issuer=https://kubernetes.default.svc");
    for (flag, name) in [
        ("client-ca-file", "ca.crt"),
        ("tls-cert-file", "apiserver.crt"),
        ("tls-private-key-file", "apiserver.key"),
        ("kubelet-certificate-authority", "ca.crt"),
        ("kubelet-client-certificate", "kubelet-client.crt"),
        ("kubelet-client-key", "kubelet-client.key"),
        ("service-account-key-file", "accounts.pub"),
        ("service-account-signing-key-file", "accounts.key"),
    ] {
        file(&mut apiserver, flag, &pki.path(name));
    }
    apiserver
}

fn wait_until_ready(kubectl: &Path, admin: &Path, parts: &[&Process]) -> Result<()> {
    let deadline = Instant::now() + READY_WITHIN;
    loop {
        let mut ask = Command::new(kubectl);
        let asked = ask.args(["get", "--raw=/readyz"]).env("KUBECONFIG", admin);
        if asked
            .output()
            .context("kubectl does not start")?
            .status
            .success()
        {
            return Ok(());
        }
        let ended = parts.iter().find(|part| part.has_ended());
        if let Some(part) = ended.or_else(|| parts.iter().find(|_| Instant::now() > deadline)) {
            bail!("the API server is not ready: {}", part.log());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}
