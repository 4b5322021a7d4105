//! Flags of the broker's clients, `podid nmi` and `podid mic`: where the broker is, whom they trust to be it, and how they prove
//! themselves.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use clap::Args;
use podid_broker::client::BrokerClient;
use reqwest::Url;

/// Where tokens of federated identities come from.
#[derive(Args)]
#[command(next_help_heading = "Federated identities")]
pub struct Broker {
    /// The base URL of podid broker, https and the name of its Service (podid-broker.podid.svc:8443). Without it nothing is done for AzureIdentities with spec.federation
    #[arg(long = "broker-url", value_name = "URL")]
    url: Option<String>,
    /// The certificate authorities that sign the broker's certificate; read anew for each request
    #[arg(
        long = "broker-ca-file",
        value_name = "FILE",
        default_value = "/var/run/secrets/podid-broker/ca.crt"
    )]
    ca_file: PathBuf,
    /// This pod's service account token for the audience podid-broker; read anew for each request
    #[arg(
        long = "broker-token-file",
        value_name = "FILE",
        default_value = "/var/run/secrets/podid-broker/token"
    )]
    token_file: PathBuf,
}

impl Broker {
    /// A client of the broker, if there is one; a request may take as long as `deadline`.
    pub fn client(&self, deadline: Duration) -> anyhow::Result<Option<BrokerClient>> {
        let Some(text) = self.url.as_deref().filter(|text| !text.is_empty()) else {
            return Ok(None);
        };
        let url = Url::parse(text).with_context(|| format!("--broker-url {text:?}"))?;
        ensure!(
            url.scheme() == "https" && url.has_host(),
            "--broker-url {text:?} must be https://HOST:PORT, since requests carry tokens"
        );
        Ok(Some(BrokerClient::new(
            url,
            self.ca_file.clone(),
            self.token_file.clone(),
            deadline,
        )))
    }

    /// The broker's URL, for the log.
    pub fn url(&self) -> &str {
        self.url.as_deref().unwrap_or_default()
    }
}
