//! Real kube-apiserver with its etcd, for one test or a few. It can be stopped, frozen, given new certificates, and its history
//! compacted.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::api::rbac::v1::ClusterRoleBinding;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use parking_lot::Mutex;
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;
use tokio::time::{Instant, sleep, timeout};

use crate::certs;
use crate::ports::free_ports;
use crate::process::{Process, command};
use crate::scratch;
use crate::tools::Kubernetes;

const READY_WITHIN: Duration = Duration::from_secs(90);
const KUBECTL_WITHIN: Duration = Duration::from_secs(60);
const TOKEN: &str = "admin-of-a-throw-away-cluster";
const STARTS: u32 = 3;
/// What kubeadm gives a cluster for which nobody says another.
const ISSUER: &str = "https://kubernetes.default.svc";

/// How an [`ApiServer`] is started.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Further addresses of this machine at which clients in other network namespaces reach it. Without any it listens on loopback alone.
    pub addresses: Vec<Ipv4Addr>,
    /// The issuer of service accounts' tokens.
    pub issuer: TokenIssuer,
}

/// The issuer that the tokens of service accounts name.
#[derive(Debug, Clone, Default)]
pub enum TokenIssuer {
    /// `https://kubernetes.default.svc`, which nobody outside of a cluster can read.
    #[default]
    ClusterInternal,
    /// This URL, at which the test publishes the two documents itself.
    Url(String),
    /// The server's own URL on loopback, where anybody can read discovery document and keys who trusts [`ApiServer::authority`].
    Published,
}

/// A running API server. No controller, scheduler or kubelet runs beside it: pods stay as the test writes them.
///
/// Dropped, the server and all that it kept are thrown away.
#[derive(Debug)]
pub struct ApiServer {
    port: u16,
    programs: Kubernetes,
    addresses: Vec<IpAddr>,
    ca: PathBuf,
    apiserver: Mutex<Option<Process>>,
    // Declared after the server, so that the server ends first.
    etcd: Process,
    etcd_port: u16,
    issuer: TokenIssuer,
    folder: TempDir,
}

impl ApiServer {
    /// Starts one and waits until it is ready, with its namespace `default`.
    ///
    /// # Errors
    /// When a program is missing (saying what to install) or the server is not ready in time (with the end of its log).
    pub async fn start() -> Result<Self> {
        Self::start_with(Options::default()).await
    }

    /// As [`ApiServer::start`], with options.
    ///
    /// # Errors
    /// As [`ApiServer::start`].
    pub async fn start_with(options: Options) -> Result<Self> {
        let programs = tokio::task::spawn_blocking(Kubernetes::find).await??;
        let mut attempt = 1;
        loop {
            match Self::try_start(&programs, &options).await {
                // A port that was free may be taken by another test meanwhile.
                Err(error)
                    if attempt < STARTS
                        && format!("{error:#}").contains("address already in use") =>
                {
                    attempt += 1;
                }
                result => return result,
            }
        }
    }

    async fn try_start(programs: &Kubernetes, options: &Options) -> Result<Self> {
        let folder = scratch::folder("apiserver")?;
        let [etcd_port, peer_port, port] = free_ports()?;
        let etcd = start_etcd(programs, folder.path(), etcd_port, peer_port)?;
        let addresses: Vec<IpAddr> = std::iter::once(Ipv4Addr::LOCALHOST)
            .chain(options.addresses.iter().copied())
            .map(IpAddr::V4)
            .collect();
        let tls = certs::server(folder.path(), &NAMES, &addresses)?;
        write_keys(folder.path())?;
        let server = Self {
            port,
            programs: programs.clone(),
            addresses,
            ca: tls.ca,
            apiserver: Mutex::default(),
            etcd,
            etcd_port,
            issuer: options.issuer.clone(),
            folder,
        };
        server.write_kubeconfig(Ipv4Addr::LOCALHOST)?;
        server.resume().await?;
        if matches!(options.issuer, TokenIssuer::Published) {
            server.publish_issuer().await?;
        }
        Ok(server)
    }

    /// Ends the server; what it knows stays in etcd.
    pub fn stop(&self) {
        self.apiserver.lock().take();
    }

    /// Starts it again after [`ApiServer::stop`], at the same port, and waits until it is ready.
    ///
    /// # Errors
    /// As [`ApiServer::start`].
    pub async fn resume(&self) -> Result<()> {
        let apiserver = self.start_apiserver()?;
        *self.apiserver.lock() = Some(apiserver);
        self.wait_until_ready().await
    }

    /// The server stands still, or goes on: connections stay open and are not answered.
    ///
    /// # Errors
    /// When the server does not run.
    pub fn freeze(&self, still: bool) -> Result<()> {
        let apiserver = self.apiserver.lock();
        let pid = apiserver.as_ref().context("it does not run")?.pid();
        let signal = if still { "-STOP" } else { "-CONT" };
        let sent = std::process::Command::new("kill")
            .args([signal, &pid.to_string()])
            .status()?;
        anyhow::ensure!(sent.success(), "kill {signal} {pid}");
        Ok(())
    }

    /// Gives the server another certificate, by another authority. It counts from the next [`ApiServer::resume`] on, and for
    /// clients that read the file of [`ApiServer::authority`] anew.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn renew_certificate(&self) -> Result<()> {
        certs::server(self.folder.path(), &NAMES, &self.addresses)?;
        Ok(())
    }

    /// The issuer as tokens name it, byte for byte.
    pub fn issuer(&self) -> String {
        match &self.issuer {
            TokenIssuer::ClusterInternal => ISSUER.to_owned(),
            TokenIssuer::Url(url) => url.clone(),
            TokenIssuer::Published => format!("https://127.0.0.1:{}", self.port),
        }
    }

    /// Lets anybody read the issuer's two documents, and waits until the server does.
    async fn publish_issuer(&self) -> Result<()> {
        let discovery = "system:service-account-issuer-discovery";
        let binding: ClusterRoleBinding = serde_json::from_value(serde_json::json!({
            "metadata": { "name": "anonymous-issuer-discovery" },
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": discovery },
            "subjects": [{ "apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "system:unauthenticated" }],
        }))?;
        let api = Api::all(self.client().await?);
        api.create(&PostParams::default(), &binding).await?;
        let authority = reqwest::Certificate::from_pem(&std::fs::read(&self.ca)?)?;
        let anonymous = reqwest::Client::builder()
            .tls_certs_only([authority])
            .no_proxy()
            .build()?;
        let url = format!("{}/openid/v1/jwks", self.issuer());
        let deadline = Instant::now() + READY_WITHIN;
        while !anonymous.get(&url).send().await?.status().is_success() {
            anyhow::ensure!(Instant::now() < deadline, "{url} cannot be read");
            sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// The file with the certificate of the authority that signed the server's.
    pub fn authority(&self) -> &Path {
        &self.ca
    }

    /// Compacts etcd: a client that asks for older changes gets 410 Gone. The server itself keeps for a while what has changed
    /// since it was started.
    ///
    /// # Errors
    /// When etcd does not do it.
    pub fn compact(&self) -> Result<()> {
        let ask = |path: &str, body: String| -> Result<serde_json::Value> {
            let url = format!("http://127.0.0.1:{}/v3/kv/{path}", self.etcd_port);
            let output = std::process::Command::new("curl")
                .args(["-sSf", "--noproxy", "*", "-d", &body, &url])
                .output()
                .context("curl does not start")?;
            let failed = String::from_utf8_lossy(&output.stderr);
            anyhow::ensure!(output.status.success(), "etcd: {path}: {failed}");
            Ok(serde_json::from_slice(&output.stdout)?)
        };
        let found = ask("range", r#"{ "key": "AA==", "limit": "1" }"#.to_owned())?;
        let revision = found["header"]["revision"]
            .as_str()
            .context("etcd tells no revision")?;
        ask("compaction", format!(r#"{{ "revision": "{revision}" }}"#))?;
        Ok(())
    }

    /// The secure port, on loopback and on the addresses of the options.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// A kubeconfig file of an administrator, by way of loopback.
    pub fn kubeconfig(&self) -> PathBuf {
        self.kubeconfig_path(Ipv4Addr::LOCALHOST)
    }

    /// A kubeconfig file that reaches the server at one of the addresses of the options.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn kubeconfig_at(&self, address: Ipv4Addr) -> Result<PathBuf> {
        self.write_kubeconfig(address)
    }

    /// The program kubectl of the same version.
    pub fn kubectl(&self) -> &Path {
        &self.programs.kubectl
    }

    /// A client of an administrator.
    ///
    /// # Errors
    /// When the kubeconfig is not usable.
    pub async fn client(&self) -> Result<Client> {
        let kubeconfig = Kubeconfig::read_from(self.kubeconfig())?;
        let config =
            Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
        Ok(Client::try_from(config)?)
    }

    /// Runs kubectl with these arguments and this standard input.
    ///
    /// # Errors
    /// When kubectl does not start or end in time; that it failed is in the output's status.
    pub async fn run_kubectl(&self, arguments: &[&str], stdin: &str) -> Result<Output> {
        let mut child = tokio::process::Command::new(&self.programs.kubectl)
            .args(arguments)
            .env("KUBECONFIG", self.kubeconfig())
            .env("KUBECACHEDIR", self.folder.path().join("kubectl-cache"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("kubectl does not start")?;
        let mut input = child
            .stdin
            .take()
            .context("kubectl has no standard input")?;
        let exchange = async {
            // kubectl that refuses its arguments closes its input unread.
            let _ = input.write_all(stdin.as_bytes()).await;
            drop(input);
            child.wait_with_output().await
        };
        Ok(timeout(KUBECTL_WITHIN, exchange)
            .await
            .with_context(|| format!("kubectl {arguments:?} does not end"))??)
    }

    /// Installs podid's four CustomResourceDefinitions and waits until they are served.
    ///
    /// # Errors
    /// When the server refuses one or does not serve it in time.
    pub async fn install_crds(&self) -> Result<()> {
        let api: Api<CustomResourceDefinition> = Api::all(self.client().await?);
        let definitions = podid_api::crds::all()?;
        for crd in &definitions {
            api.create(&PostParams::default(), crd).await?;
        }
        let deadline = Instant::now() + READY_WITHIN;
        for crd in &definitions {
            let name = crd.metadata.name.as_deref().unwrap_or_default();
            while !is_established(&api.get(name).await?) {
                if Instant::now() > deadline {
                    bail!("the API server does not serve {name}");
                }
                sleep(Duration::from_millis(50)).await;
            }
        }
        Ok(())
    }

    async fn wait_until_ready(&self) -> Result<()> {
        let client = self.client().await?;
        let namespaces: Api<Namespace> = Api::all(client.clone());
        let deadline = Instant::now() + READY_WITHIN;
        loop {
            let readyz = http::Request::get("/readyz").body(Vec::new())?;
            let failure = match client.request_text(readyz).await {
                Ok(_) => match namespaces.get_opt("default").await {
                    Ok(Some(_)) => return Ok(()),
                    Ok(None) => "it has no namespace default".to_owned(),
                    Err(error) => error.to_string(),
                },
                Err(error) => error.to_string(),
            };
            let log = self.apiserver.lock().as_ref().map(Process::log);
            for part in self.apiserver.lock().iter().chain([&self.etcd]) {
                if part.has_ended() {
                    bail!("the API server or its etcd ended: {}", part.log());
                }
            }
            if Instant::now() > deadline {
                let log = log.unwrap_or_default();
                bail!("the API server is not ready: {failure}\n{log}");
            }
            sleep(Duration::from_millis(100)).await;
        }
    }

    fn kubeconfig_path(&self, address: Ipv4Addr) -> PathBuf {
        self.folder.path().join(format!("kubeconfig-{address}"))
    }

    /// A kubeconfig file of an administrator who reaches the server by way of something else.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn kubeconfig_by(&self, way: SocketAddr) -> Result<PathBuf> {
        self.write(
            way,
            &self
                .folder
                .path()
                .join(format!("kubeconfig-{}-{}", way.ip(), way.port())),
        )
    }

    fn write_kubeconfig(&self, address: Ipv4Addr) -> Result<PathBuf> {
        let server = SocketAddr::from((address, self.port));
        self.write(server, &self.kubeconfig_path(address))
    }

    fn write(&self, server: SocketAddr, path: &Path) -> Result<PathBuf> {
        let config = serde_json::json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{ "name": "test", "cluster": {
                "server": format!("https://{server}"), "certificate-authority": self.ca } }],
            "users": [{ "name": "admin", "user": { "token": TOKEN } }],
            "contexts": [{ "name": "test", "context": { "cluster": "test", "user": "admin" } }],
        });
        std::fs::write(path, config.to_string())?;
        Ok(path.to_owned())
    }

    fn start_apiserver(&self) -> Result<Process> {
        let at = |name: &str| self.folder.path().join(name);
        let everywhere = self.addresses.len() > 1;
        let bind = if everywhere {
            Ipv4Addr::UNSPECIFIED
        } else {
            Ipv4Addr::LOCALHOST
        };
        let mut apiserver = command(None, &self.programs.apiserver);
        apiserver
            .arg(format!(
                "--etcd-servers=http://127.0.0.1:{}",
                self.etcd_port
            ))
            .arg(format!("--secure-port={}", self.port))
            .arg(format!("--bind-address={bind}"))
            .args([
                "--advertise-address=127.0.0.1",
                "--endpoint-reconciler-type=none",
            ])
            .args([
                "--service-cluster-ip-range=10.0.0.0/24",
                "--allow-privileged=true",
            ])
            .arg("--authorization-mode=RBAC")
            .arg(format!(
                "--anonymous-auth={}",
                matches!(self.issuer, TokenIssuer::Published)
            ))
            // No controller makes the service account of a namespace, without which this one refuses every pod.
            .arg("--disable-admission-plugins=ServiceAccount")
            .arg(format!("--service-account-issuer={}", self.issuer()))
            .arg(format!("--cert-dir={}", self.folder.path().display()));
        for (flag, name) in FILES {
            apiserver.arg(format!("{flag}={}", at(name).display()));
        }
        Process::spawn(apiserver, &at("kube-apiserver.log"))
    }
}

/// The server's names, next to its addresses.
const NAMES: [&str; 2] = ["localhost", "kubernetes.default.svc"];
const FILES: [(&str, &str); 5] = [
    ("--tls-cert-file", "server.crt"),
    ("--tls-private-key-file", "server.key"),
    ("--token-auth-file", "tokens.csv"),
    ("--service-account-key-file", "accounts.pub"),
    ("--service-account-signing-key-file", "accounts.key"),
];

/// The keys of service accounts' tokens, and the administrator's token.
fn write_keys(folder: &Path) -> Result<()> {
    let (private, public) = certs::key_pair()?;
    std::fs::write(folder.join("accounts.key"), private)?;
    std::fs::write(folder.join("accounts.pub"), public)?;
    let administrator = format!("{TOKEN},admin,admin,system:masters\n");
    std::fs::write(folder.join("tokens.csv"), administrator)?;
    Ok(())
}

fn start_etcd(programs: &Kubernetes, folder: &Path, client: u16, peer: u16) -> Result<Process> {
    let mut etcd = command(None, &programs.etcd);
    let (client, peer) = (
        format!("http://127.0.0.1:{client}"),
        format!("http://127.0.0.1:{peer}"),
    );
    etcd.arg("--unsafe-no-fsync")
        .arg("--data-dir")
        .arg(folder.join("etcd"))
        .args([
            "--listen-client-urls",
            &client,
            "--advertise-client-urls",
            &client,
        ])
        .args([
            "--listen-peer-urls",
            &peer,
            "--initial-advertise-peer-urls",
            &peer,
        ])
        .args(["--initial-cluster", &format!("default={peer}")]);
    Process::spawn(etcd, &folder.join("etcd.log"))
}

fn is_established(crd: &CustomResourceDefinition) -> bool {
    crd.status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten())
        .any(|condition| condition.type_ == "Established" && condition.status == "True")
}
