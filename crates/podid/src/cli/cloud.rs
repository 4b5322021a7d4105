//! The cloud provider's configuration of `podid mic`: where it comes from, and following its changes.

use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::future::BoxFuture;
use podid_azure::arm::Arm;
use podid_azure::clouds::ENVIRONMENT_FILE;
use podid_azure::config::{CloudConfig, ConfigError};
use podid_azure::error::Error;
use podid_mic::{HostChange, HostClient, HostError, HostIdentities};
use podid_policy::ids::{ClientId, HostKey, ResourceId};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// How often the files are looked at. Reading beats notifications here: mounted Secrets are links that are swapped.
const LOOK: Duration = Duration::from_secs(5);

/// The mounts of this process, one a line.
const MOUNTS: &str = "/proc/self/mountinfo";

/// Where the configuration comes from.
pub struct Source {
    file: Option<PathBuf>,
    environment: Option<PathBuf>,
    /// What is mounted at each file, as it was at the start.
    mounted: Vec<Option<String>>,
}

impl Source {
    /// `file` is `--cloudconfig`; the environment stands for it when it is missing or empty.
    pub fn new(file: Option<&Path>) -> Self {
        let mut source = Self {
            file: file
                .filter(|path| !path.as_os_str().is_empty())
                .map(Path::to_owned),
            environment: std::env::var_os(ENVIRONMENT_FILE).map(PathBuf::from),
            mounted: Vec::new(),
        };
        source.mounted = source.mounts();
        source
    }

    /// Reads the configuration.
    ///
    /// # Errors
    /// [`ConfigError`] names what is missing or wrong.
    pub fn read(&self) -> Result<CloudConfig, ConfigError> {
        let environment = self.environment.as_deref();
        match &self.file {
            Some(path) => CloudConfig::from_file(path, environment),
            None => CloudConfig::from_variables(|name| std::env::var(name).ok(), environment),
        }
    }

    /// When each file was changed last, and its size; a file that is missing has none.
    fn looks(&self) -> Vec<Option<(std::time::SystemTime, u64)>> {
        let look = |path: &PathBuf| {
            let meta = std::fs::metadata(path).ok()?;
            Some((meta.modified().ok()?, meta.len()))
        };
        self.files().map(look).collect()
    }

    /// What is mounted at each file now; a file that is no mount of its own has none.
    fn mounts(&self) -> Vec<Option<String>> {
        let all = std::fs::read_to_string(MOUNTS).unwrap_or_default();
        self.files().map(|path| mounted_at(&all, path)).collect()
    }

    fn files(&self) -> impl Iterator<Item = &PathBuf> {
        [&self.file, &self.environment].into_iter().flatten()
    }
}

/// The name that the file mounted at `path` has in its own file system: the kernel follows a renaming there, and marks a file that
/// is deleted.
fn mounted_at(mounts: &str, path: &Path) -> Option<String> {
    let path = path.canonicalize().ok()?;
    let at = |line: &str| {
        let mut fields = line.split(' ').skip(3);
        let (name, point) = (fields.next()?, fields.next()?);
        (Path::new(point) == path).then(|| name.to_owned())
    };
    // The last one covers those before it.
    mounts.lines().rev().find_map(at)
}

/// Azure Resource Manager by the configuration as it is now.
pub struct Cloud {
    source: Source,
    agent: Option<String>,
    arm: watch::Sender<Arm>,
}

impl Cloud {
    /// Begins with what was read. `agent` is added to the User-Agent.
    ///
    /// # Errors
    /// The system's TLS cannot be set up, or `agent` is no header value.
    pub fn new(source: Source, config: CloudConfig, agent: Option<String>) -> Result<Self, Error> {
        let arm = Arm::new(&config.endpoints, config.credential, agent.as_deref())?;
        Ok(Self {
            source,
            agent,
            arm: watch::Sender::new(arm),
        })
    }

    /// Follows the files until shutdown. What cannot be used is told, and what was read before stays in use.
    ///
    /// # Errors
    /// When another file has taken the place of one that is mounted by itself: this container goes on seeing the former one.
    pub async fn follow(&self, shutdown: &CancellationToken) -> anyhow::Result<()> {
        let mut known = self.source.looks();
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                () = tokio::time::sleep(LOOK) => {}
            }
            if self.source.mounts() != self.source.mounted {
                anyhow::bail!(
                    "the cloud configuration was replaced on the node, and what is mounted here is the former file; ending, so that the kubelet starts the container with the new one"
                );
            }
            let looks = self.source.looks();
            if looks == known {
                continue;
            }
            known = looks;
            match self.renew() {
                Ok(credential) => {
                    tracing::info!(%credential, "the cloud configuration has changed and is in use")
                }
                Err(error) => {
                    tracing::warn!(
                        reason = format!("{error:#}"),
                        "the cloud configuration has changed and cannot be used; the former one stays in use"
                    );
                }
            }
        }
    }

    fn renew(&self) -> anyhow::Result<String> {
        let config = self.source.read()?;
        let credential = format!("{:?}", config.credential);
        let arm = self.arm();
        let agent = self.agent.as_deref();
        let renewed = arm.reconfigured(&config.endpoints, config.credential, agent)?;
        self.arm.send_replace(renewed);
        Ok(credential)
    }

    fn arm(&self) -> Arm {
        self.arm.borrow().clone()
    }
}

impl HostClient for Cloud {
    fn identities<'a>(
        &'a self,
        host: &'a HostKey,
    ) -> BoxFuture<'a, Result<HostIdentities, HostError>> {
        Box::pin(async move { HostClient::identities(&self.arm(), host).await })
    }

    fn patch<'a>(
        &'a self,
        host: &'a HostKey,
        seen: &'a HostIdentities,
        change: &'a HostChange,
    ) -> BoxFuture<'a, Result<Option<String>, HostError>> {
        Box::pin(async move { HostClient::patch(&self.arm(), host, seen, change).await })
    }

    fn client_id<'a>(
        &'a self,
        id: &'a ResourceId,
    ) -> BoxFuture<'a, Result<Option<ClientId>, HostError>> {
        Box::pin(async move { HostClient::client_id(&self.arm(), id).await })
    }
}
