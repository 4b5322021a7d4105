//! `podid broker`: the flags of the token broker for federated identities, and what they mean.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use clap::{ArgAction, Args};
use podid_azure::clouds::{self, ENVIRONMENT_FILE};
use podid_azure::endpoints::Endpoints;
use podid_azure::entra::Entra;
use podid_broker::Config;
use podid_policy::facts::ObjectKey;
use podid_policy::matching::Scope;

use super::compat::Logging;
use super::{api_client, run};

/// Time limit for one request to Entra; two of them fit into the time limit of one request to the broker.
const ENTRA_TIMEOUT: Duration = Duration::from_secs(4);
/// SDKs take a token that lives for less than this as expired.
const TOKEN_FLOOR: Duration = Duration::from_secs(300);

/// Run the broker: mint assertions for federated identities and exchange them at Entra, for the node agents
#[derive(Args)]
pub struct Broker {
    /// Where the HTTPS endpoints are served
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "0.0.0.0:8443")]
    listen: SocketAddr,
    /// The namespace that this process runs in; the Secret and the ConfigMap of its CA are there
    #[arg(
        long,
        value_name = "NAMESPACE",
        env = "BROKER_POD_NAMESPACE",
        default_value = "default"
    )]
    namespace: String,
    /// The name of the broker's Service. The Secret and the ConfigMap of its CA are named after it: NAME-ca
    #[arg(long, value_name = "NAME", default_value = "podid-broker")]
    service_name: String,
    /// Further names or addresses in the server's certificate, separated by commas, next to that of the Service
    #[arg(long = "server-names", value_name = "NAMES", value_delimiter = ',')]
    server_names: Vec<String>,
    /// The node agent's service account, which may ask for tokens; podid-nmi in the broker's own namespace unless given
    #[arg(long, value_name = "NAMESPACE/NAME", value_parser = account)]
    nmi_service_account: Option<ObjectKey>,
    /// The controller's service account, which may ask for checks; podid-mic in the broker's own namespace unless given
    #[arg(long, value_name = "NAMESPACE/NAME", value_parser = account)]
    mic_service_account: Option<ObjectKey>,
    /// Take bindings of the pod's own namespace only. Give false to match across namespaces
    #[arg(long = "forceNamespaced", env = "FORCENAMESPACED", value_name = "BOOL", default_value_t = true,
        num_args = 0..=1, require_equals = true, default_missing_value = "true", action = ArgAction::Set)]
    force_namespaced: bool,
    /// A kubeconfig file; without it KUBECONFIG, else the pod's own service account
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    #[command(flatten)]
    azure: Azure,
    #[command(flatten)]
    ports: Ports,
    #[command(flatten)]
    logging: Logging,
}

/// Where assertions are exchanged.
#[derive(Args)]
#[command(next_help_heading = "Azure")]
struct Azure {
    /// The tenant of AzureIdentities that name none
    #[arg(long, value_name = "ID", env = "AZURE_TENANT_ID")]
    tenant_id: Option<String>,
    /// The cloud: AzurePublicCloud, AzureUSGovernmentCloud, AzureChinaCloud, or AzureStackCloud with AZURE_ENVIRONMENT_FILEPATH
    #[arg(long, value_name = "CLOUD")]
    cloud_name: Option<String>,
    /// The base URL of Entra where it is not the cloud's own
    #[arg(long, value_name = "URL", env = "AZURE_AUTHORITY_HOST")]
    azure_authority_host: Option<String>,
    /// Text to be added to the User-Agent of requests to Entra
    #[arg(long = "custom-user-agent", value_name = "TEXT")]
    user_agent: Option<String>,
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

impl Broker {
    /// Runs until SIGTERM.
    pub fn run(self) -> anyhow::Result<()> {
        self.logging.start();
        run::block_on(0, self.serve())
    }

    async fn serve(self) -> anyhow::Result<()> {
        let shutdown = run::shutdown()?;
        let endpoints = self.azure.endpoints()?;
        let client = api_client::client(self.kubeconfig.as_deref()).await?;
        let agent = self.azure.user_agent.as_deref();
        let entra = Entra::with_user_agent(&endpoints.authority, ENTRA_TIMEOUT, agent)
            .context("--custom-user-agent")?;
        let config = self.config(&endpoints);
        let names = config.server_names.join(",");
        let broker = podid_broker::Broker::new(config, client, entra);
        let listeners = broker.bind()?;
        let listen = listeners.https.local_addr().context("--listen")?;
        tracing::info!(%listen, names, authority = %endpoints.authority, "podid broker starts");
        Ok(broker.run(listeners, shutdown).await?)
    }

    fn config(&self, endpoints: &Endpoints) -> Config {
        let any = |port| SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
        let (namespace, service) = (&self.namespace, &self.service_name);
        let own = |account: &Option<ObjectKey>, name| {
            let given = account.clone();
            given.unwrap_or_else(|| ObjectKey::new(namespace, name))
        };
        let mut server_names = vec![format!("{service}.{namespace}.svc")];
        server_names.extend(self.server_names.iter().cloned());
        Config {
            namespace: namespace.clone(),
            authority_object: format!("{service}-ca"),
            server_names,
            scope: match self.force_namespaced {
                true => Scope::Namespaced,
                false => Scope::AcrossNamespaces,
            },
            nmi_account: own(&self.nmi_service_account, "podid-nmi"),
            mic_account: own(&self.mic_service_account, "podid-mic"),
            tenant: self.azure.tenant_id.clone().filter(|id| !id.is_empty()),
            assertion_audience: clouds::exchange_audience(&endpoints.authority).to_owned(),
            check_resource: endpoints.arm_audience.clone(),
            token_floor: TOKEN_FLOOR,
            listen: self.listen,
            probe: any(self.ports.probe),
            metrics: any(self.ports.prometheus),
        }
    }
}

impl Azure {
    fn endpoints(&self) -> anyhow::Result<Endpoints> {
        let environment = std::env::var_os(ENVIRONMENT_FILE).map(PathBuf::from);
        let cloud = match (&self.cloud_name, &environment) {
            (Some(name), _) => name,
            (None, Some(_)) => "AzureStackCloud",
            (None, None) => "",
        };
        let endpoints = clouds::endpoints(cloud, environment.as_deref());
        let mut endpoints = endpoints.context("--cloud-name")?;
        let flag = "--azure-authority-host";
        if let Some(text) = self.azure_authority_host.as_deref()
            && !text.is_empty()
        {
            endpoints.authority = clouds::parse_url(flag, text)?;
            ensure!(
                endpoints.authority.scheme() == "https",
                "{flag} must be https, since requests carry assertions"
            );
        }
        Ok(endpoints)
    }
}

fn account(text: &str) -> Result<ObjectKey, String> {
    let names = text.split_once('/').filter(|(namespace, name)| {
        !namespace.is_empty() && !name.is_empty() && !name.contains('/')
    });
    let (namespace, name) = names.ok_or("expected NAMESPACE/NAME of a service account")?;
    Ok(ObjectKey::new(namespace, name))
}
