//! Azure beside the cluster, in the fabric: the simulated one, and Azurite as a storage account.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use podid_sim::azure::{Azure, Config, Control, HostKind, Role};
use podid_testkit::cluster::{FABRIC, Fabric};
use podid_testkit::net::METADATA;
use podid_testkit::process::{Process, command};
use podid_testkit::{certs, tools};
use serde_json::json;
use tokio_util::sync::CancellationToken;

pub const GROUP: &str = "nodes";
const ARM: u16 = 8081;
const ENTRA: u16 = 8082;
const AZURE_TIMEOUT: Duration = Duration::from_secs(60);
/// Azurite's well-known account and its key, with which the blob is put there.
pub const ACCOUNT: &str = "devstoreaccount1";
const ACCOUNT_KEY: &str =
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";
pub const BLOB: &str = "what the article's program reads";

/// The simulated Azure, with one scale set: its first machine's metadata service is that of every node.
pub struct Simulated {
    pub control: Control,
    pub scale_set: String,
    /// mic's own credential.
    application: String,
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

impl Simulated {
    pub fn start(fabric: &Fabric) -> Self {
        let stop = CancellationToken::new();
        let (ready, started) = mpsc::channel();
        let told = stop.clone();
        let (runtime, namespace) = (tokio::runtime::Runtime::new().unwrap(), fabric.clone());
        let thread = std::thread::spawn(move || {
            namespace.enter().unwrap();
            runtime.block_on(async {
                let azure = Azure::bind(Config {
                    address: FABRIC.into(),
                    arm_port: ARM,
                    entra_port: ENTRA,
                    throttle: false,
                    ..Config::default()
                });
                let azure = azure.await.unwrap();
                let control = azure.control();
                let set = control.create_host(HostKind::ScaleSet, GROUP, "pool");
                // Whoever reaches the node's own metadata service gets a token that is nobody's else.
                control.enable_system(&set).unwrap();
                let imds = SocketAddr::from((METADATA, 80));
                control.serve_imds(&set, Some(0), imds).await.unwrap();
                ready.send((control, set)).unwrap();
                azure.run(told).await.unwrap();
            });
        });
        let (control, scale_set) = started.recv().unwrap();
        let (application, principal) = control.create_application("secret");
        let scope = format!("/subscriptions/{}", control.subscription());
        control.assign_role(&principal, Role::Owner, &scope);
        Self {
            control,
            scale_set,
            application,
            stop,
            thread: Some(thread),
        }
    }

    /// What Azure puts on a node, for mic, and where a simulated one is.
    pub fn files(&self) -> Vec<(PathBuf, String)> {
        let places = json!({
            "resourceManagerEndpoint": format!("http://{FABRIC}:{ARM}/"),
            "activeDirectoryEndpoint": format!("http://{FABRIC}:{ENTRA}/"),
            "tokenAudience": "https://management.azure.com/",
        });
        [
            ("azure.json", self.credentials("secret")),
            ("akscustom.json", places.to_string()),
        ]
        .map(|(name, content)| (Path::new("/etc/kubernetes").join(name), content))
        .to_vec()
    }

    /// The file `azure.json`.
    fn credentials(&self, secret: &str) -> String {
        let credentials = json!({
            "cloud": "AzureStackCloud", "tenantId": self.control.tenant(),
            "aadClientId": self.application, "aadClientSecret": secret,
        });
        credentials.to_string()
    }

    /// Gives mic's application a new secret in place of its former one, and the `azure.json` that has it.
    pub fn renew_secret(&self) -> String {
        self.control.rotate_secret(&self.application, "new secret");
        self.credentials("new secret")
    }
}

impl Drop for Simulated {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A storage account that believes Azure's tokens, with a blob. This thread is in the fabric.
pub struct Storage {
    _azurite: Process,
    /// The certificate of who signed its own, as PEM.
    pub authority: String,
}

impl Storage {
    pub fn start(folder: &Path) -> Self {
        let tls = certs::server(folder, &["localhost"], &[FABRIC.into()]).unwrap();
        let azurite = tools::repository().join("tools/azurite/node_modules/.bin/azurite-blob");
        assert!(azurite.is_file(), "Azurite is missing; run tools/setup");
        let mut server = command(None, azurite);
        let flags = "--oauth basic --skipApiVersionCheck --inMemoryPersistence --disableTelemetry --blobPort 10000 --blobHost";
        server.args(flags.split(' ')).arg(FABRIC.to_string());
        server
            .arg("--cert")
            .arg(&tls.cert)
            .arg("--key")
            .arg(&tls.key);
        let azurite = Process::spawn(server, &folder.join("azurite.log")).unwrap();
        let deadline = Instant::now() + AZURE_TIMEOUT;
        while !azurite.log().contains("successfully") {
            let late = Instant::now() > deadline || azurite.has_ended();
            assert!(!late, "Azurite does not start: {}", azurite.log());
            std::thread::sleep(Duration::from_millis(50));
        }
        let put = format!(
            "from azure.storage.blob import BlobServiceClient\n\
             account = {{'account_name': '{ACCOUNT}', 'account_key': '{ACCOUNT_KEY}'}}\n\
             client = BlobServiceClient('{}', credential=account)\n\
             client.create_container('container').upload_blob('blob', b\"{BLOB}\")\n",
            Self::url()
        );
        let mut python = Command::new(tools::on_path("python3").unwrap());
        python.args(["-c", &put]).env("REQUESTS_CA_BUNDLE", &tls.ca);
        let output = python.env("no_proxy", "*").output().unwrap();
        assert!(output.status.success(), "{output:?}\n{}", azurite.log());
        Self {
            _azurite: azurite,
            authority: std::fs::read_to_string(&tls.ca).unwrap(),
        }
    }

    pub fn url() -> String {
        format!("https://{FABRIC}:10000/{ACCOUNT}")
    }
}
