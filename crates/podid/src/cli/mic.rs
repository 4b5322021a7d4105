//! `podid mic`: the flags of the original's `mic`, and what they mean here.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use clap::{ArgAction, Args};
use podid_azure::config::Credential;
use podid_azure::imds::Identity;
use podid_broker::client::BrokerClient;
use podid_broker::protocol::IdentityRef;
use podid_mic::{BrokerCheck, Config, Immutable};
use podid_policy::facts::ObjectKey;
use podid_policy::ids::ClientId;
use podid_policy::matching::Scope;

use super::broker_client::Broker;
use super::cloud::{Cloud, Source};
use super::compat::{Logging, duration};
use super::ignored::IgnoredByMic;
use super::{api_client, run};

/// Time limit for one check by the broker, which asks the API server once and Entra once.
const CHECK_TIMEOUT: Duration = Duration::from_secs(20);

/// Run the controller: attach identities to the hosts of the pods that are bound to them
///
/// Flags keep the names of AAD Pod Identity's mic; one dash works as well as two.
#[derive(Args)]
pub struct Mic {
    /// The cloud provider's configuration file; changes take effect within seconds. Without it the credential comes from CLOUD, TENANT_ID, CLIENT_ID, CLIENT_SECRET, USE_MSI and USER_ASSIGNED_MSI_CLIENT_ID, or, where these name none, from AZURE_TENANT_ID, AZURE_CLIENT_ID and AZURE_FEDERATED_TOKEN_FILE
    #[arg(long, value_name = "FILE")]
    cloudconfig: Option<PathBuf>,
    /// A kubeconfig file; without it KUBECONFIG, else the pod's own service account
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Bind identities to pods of their own namespace only. Give false to match across namespaces
    #[arg(long = "forceNamespaced", env = "FORCENAMESPACED", value_name = "BOOL", default_value_t = true,
        num_args = 0..=1, require_equals = true, default_missing_value = "true", action = ArgAction::Set)]
    force_namespaced: bool,
    /// Client ids, separated by commas, that are never detached from a host
    #[arg(
        long = "immutable-user-msis",
        value_name = "IDS",
        value_delimiter = ','
    )]
    immutable_user_msis: Vec<String>,
    /// How often Azure is compared with what is assigned
    #[arg(long = "identity-assignment-reconcile-interval", value_name = "DURATION", default_value = "3m", value_parser = duration)]
    reconcile_interval: Duration,
    /// How long an identity stays on a host after its last pod has left
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = duration)]
    linger: Duration,
    /// Detach everything that podid attached and remove every AzureAssignedIdentity, whatever pods need: before podid is removed. `podid detach-all` adds this flag
    #[arg(long = "detach-all", value_name = "BOOL", default_value_t = false,
        num_args = 0..=1, require_equals = true, default_missing_value = "true", action = ArgAction::Set)]
    detach_all: bool,
    /// How often every object is looked at again
    #[arg(long = "syncRetryDuration", value_name = "DURATION", default_value = "3600s", value_parser = duration)]
    sync_interval: Duration,
    /// The first wait after a failed change in Azure; doubled by every further one
    #[arg(long = "update-user-msi-retry-interval", value_name = "DURATION", default_value = "1s", value_parser = duration)]
    retry_interval: Duration,
    /// Rewrite objects in the capitalised spelling of older versions in place
    #[arg(long = "enable-type-upgrade", value_name = "BOOL", default_value_t = true,
        num_args = 0..=1, require_equals = true, default_missing_value = "true", action = ArgAction::Set)]
    type_upgrade: bool,
    /// The most AzureAssignedIdentities written at once
    #[arg(long = "createDeleteBatch", value_name = "COUNT", default_value_t = 32)]
    parallel_writes: usize,
    /// The namespace that this process runs in
    #[arg(
        long,
        value_name = "NAMESPACE",
        env = "MIC_POD_NAMESPACE",
        default_value = "default"
    )]
    namespace: String,
    #[command(flatten)]
    leader: Leader,
    #[command(flatten)]
    ports: Ports,
    #[command(flatten)]
    broker: Broker,
    #[command(flatten)]
    logging: Logging,
    /// Text to be added to the User-Agent of requests to Azure
    #[arg(long = "custom-user-agent", value_name = "TEXT")]
    user_agent: Option<String>,
    #[command(flatten)]
    ignored: IgnoredByMic,
}

/// Leader election.
#[derive(Args)]
#[command(next_help_heading = "Leader election")]
struct Leader {
    /// This candidate's name; the host name (the pod's name) unless given
    #[arg(
        long = "leader-election-instance",
        value_name = "NAME",
        env = "HOSTNAME",
        default_value = "podid-mic"
    )]
    instance: String,
    /// The Lease's namespace
    #[arg(
        long = "leader-election-namespace",
        value_name = "NAMESPACE",
        default_value = "default"
    )]
    lease_namespace: String,
    /// The Lease's name
    #[arg(
        long = "leader-election-name",
        value_name = "NAME",
        default_value = "aad-pod-identity-mic"
    )]
    name: String,
    /// How long a claim lasts without renewal
    #[arg(long = "leader-election-duration", value_name = "DURATION", default_value = "15s", value_parser = duration)]
    duration: Duration,
}

/// Ports for probes and metrics.
#[derive(Args)]
#[command(next_help_heading = "Ports")]
struct Ports {
    /// The port of /healthz and /readyz
    #[arg(long = "http-probe-port", value_name = "PORT", default_value_t = 8080)]
    probe: u16,
    /// The port of /metrics
    #[arg(long = "prometheus-port", value_name = "PORT", default_value_t = 8888)]
    prometheus: u16,
}

impl Mic {
    /// Runs until SIGTERM, or until its configuration is another file that only a new container sees.
    pub fn run(self) -> anyhow::Result<()> {
        self.logging.start();
        run::block_on(0, self.control())
    }

    async fn control(self) -> anyhow::Result<()> {
        let shutdown = run::shutdown()?;
        let source = Source::new(self.cloudconfig.as_deref());
        let cloud = source.read()?;
        let client = api_client::client(self.kubeconfig.as_deref()).await?;
        tracing::info!(credential = ?cloud.credential, arm = %cloud.endpoints.arm, "podid mic starts");
        self.ignored.tell();
        let agent = self.user_agent.clone();
        let broker = self.broker.client(CHECK_TIMEOUT)?;
        let config = self.config(&cloud.credential)?;
        let azure = Cloud::new(source, cloud, agent).context("--custom-user-agent")?;
        let azure = Arc::new(azure);
        let mut mic = podid_mic::Mic::new(config, client, azure.clone());
        if let Some(client) = broker {
            mic = mic.with_broker(check_by(client));
        }
        let listeners = mic
            .bind()
            .await
            .context("--http-probe-port and --prometheus-port")?;
        let mut running = std::pin::pin!(mic.run(listeners, shutdown.clone()));
        let followed = tokio::select! {
            ran = &mut running => return Ok(ran?),
            followed = azure.follow(&shutdown) => followed,
        };
        // The lease is given back, so that another replica leads meanwhile.
        shutdown.cancel();
        running.await?;
        followed
    }

    fn config(self, credential: &Credential) -> anyhow::Result<Config> {
        let mut immutable = Immutable::default();
        for text in &self.immutable_user_msis {
            let text = text.trim();
            if !text.is_empty() {
                let id = ClientId::parse(text).context("--immutable-user-msis")?;
                immutable.client_ids.insert(id);
            }
        }
        // The controller never takes away the identity that it works with.
        match credential {
            Credential::ManagedIdentity(Identity::Client(own)) => {
                immutable.client_ids.insert(own.clone());
            }
            Credential::ManagedIdentity(Identity::Resource(own)) => {
                immutable.resource_ids.insert(own.clone());
            }
            _ => {}
        }
        let any = |port| SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
        Ok(Config {
            instance: self.leader.instance,
            namespace: self.namespace,
            lease_namespace: self.leader.lease_namespace,
            lease_name: self.leader.name,
            lease_duration: self.leader.duration,
            scope: if self.force_namespaced {
                Scope::Namespaced
            } else {
                Scope::AcrossNamespaces
            },
            immutable,
            reconcile_interval: self.reconcile_interval,
            sync_interval: self.sync_interval,
            linger: if self.detach_all {
                Duration::ZERO
            } else {
                self.linger
            },
            detach_all: self.detach_all,
            retry_interval: self.retry_interval,
            type_upgrade: self.type_upgrade,
            parallel_writes: self.parallel_writes,
            probe: any(self.ports.probe),
            metrics: any(self.ports.prometheus),
            ..Config::new("", "")
        })
    }
}

fn check_by(client: BrokerClient) -> BrokerCheck {
    let client = Arc::new(client);
    Arc::new(move |identity: ObjectKey| {
        let client = client.clone();
        Box::pin(async move { client.check(&IdentityRef::from(&identity)).await })
    })
}
