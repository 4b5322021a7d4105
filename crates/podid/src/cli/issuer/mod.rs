//! `podid issuer`: whether Entra can use the cluster's OIDC issuer, what to do if not, and the two documents to publish.
//!
//! ```text
//! kubeconfig ──► api_server   discovery document, keys, a token's iss and kid ──┐
//! issuer URL ──► fetch        what everybody can read there                   ──┼──► podid_policy::issuer::checks ──► view
//! --write    ──► publish      the two documents, for a static web server        │
//!                documents    JSON to values and back ──────────────────────────┘
//! ```

mod api_server;
mod documents;
mod fetch;
mod publish;
mod view;

use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::bail;
use clap::Args;
use podid_policy::issuer::{self, Evidence, shown, usable_url};

use super::compat::duration;
use super::{api_client, run};
use api_server::{ApiServer, ServiceAccount};
use documents::Jwks;
use view::{Report, Source};

/// Show the cluster's OIDC issuer, check whether Entra can use it, and write the two documents to publish
///
/// Workload identity federation, Azure Workload Identity's included, rests on it: Entra takes a token of a service account when it
/// can read the issuer's discovery document and keys anonymously over https, and these agree with the token.
///
/// The API server is asked for its discovery document, its keys, and a token of --service-account, of which iss and kid are read: it
/// is for an audience that nobody accepts, is sent to nobody, and is forgotten. Then both documents are read at the issuer, from this
/// machine, without a credential and without following a redirect. Nothing in the cluster or in Azure is changed.
///
/// Exit codes: 0 when Entra can use the issuer, as far as can be told from here (with --write: when the documents are written, and
/// nothing is wrong with the keys); 3 when it cannot, and the causes and next steps are printed; 1 when it cannot be told, or not both
/// documents could be written; 2 for flags that cannot be understood.
#[derive(Args)]
pub struct Issuer {
    /// The issuer that is checked or written, an https URL; without it the one that the cluster's tokens
    /// say
    #[arg(long, value_name = "URL", value_parser = issuer_url)]
    issuer_url: Option<String>,
    /// Write the discovery document and the keys below this directory, named as a static web server is to serve them below the issuer's
    /// URL, instead of reading what is published there
    #[arg(long, value_name = "DIRECTORY")]
    write: Option<PathBuf>,
    /// The service account, as NAMESPACE/NAME, whose token says the issuer and the key that signs
    #[arg(long, value_name = "ACCOUNT", default_value = "default/default")]
    service_account: ServiceAccount,
    /// Time limit of each answer
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = timeout)]
    timeout: Duration,
    /// How to print it
    #[arg(long, short, value_enum, default_value_t = Output::Table)]
    output: Output,
    /// A kubeconfig file; without it KUBECONFIG, else the pod's own service account
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
}

#[derive(clap::ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
enum Output {
    /// For people.
    Table,
    /// One JSON document.
    Json,
}

impl Issuer {
    /// Prints the report. Says whether Entra can use the issuer.
    pub fn run(self) -> anyhow::Result<bool> {
        run::block_on(1, self.tell())
    }

    async fn tell(self) -> anyhow::Result<bool> {
        let (mut report, jwks) = self.ask_cluster().await?;
        match &self.write {
            Some(directory) => {
                self.require_publishable(&report)?;
                report.files = publish::write(directory, &report.evidence.issuer, &jwks)?;
                report.checks = issuer::checks_before_publishing(&report.evidence);
            }
            None => {
                if usable_url(&report.evidence.issuer).is_ok() {
                    let reader = fetch::Reader::new(self.timeout)?;
                    let published = reader.published(&report.evidence.issuer).await;
                    report.evidence.published = Some(published);
                }
                report.checks = issuer::checks(&report.evidence);
            }
        }
        let mut out = std::io::stdout().lock();
        match self.output {
            Output::Json => writeln!(out, "{}", serde_json::to_string_pretty(&report.json())?)?,
            Output::Table => write!(out, "{}", report.text())?,
        }
        Ok(report.is_usable())
    }

    /// What the API server says, and its keys as they are to be written.
    async fn ask_cluster(&self) -> anyhow::Result<(Report, Jwks)> {
        let api = ApiServer {
            client: api_client::client(self.kubeconfig.as_deref()).await?,
            timeout: self.timeout,
        };
        let discovery = api.discovery().await?;
        let jwks = api.jwks().await?;
        let token = api.token(&self.service_account).await;
        let (issuer, source) = match (&self.issuer_url, &token) {
            (Some(url), _) => (url.clone(), Source::Flag),
            (None, Ok(token)) => (
                token.issuer.clone(),
                Source::Token(self.service_account.to_string()),
            ),
            (None, Err(_)) => (discovery.issuer.clone(), Source::ApiServer),
        };
        let api_keys = jwks.keys();
        let evidence = Evidence {
            issuer,
            token: token.map_err(|error| format!("{error:#}")),
            api_issuer: discovery.issuer,
            api_keys: api_keys
                .map_err(|error| anyhow::anyhow!("the API server's keys: {error}"))?,
            published: None,
        };
        Ok((Report::new(evidence, source), jwks))
    }

    /// The cluster's own issuer may be one that nobody can publish.
    fn require_publishable(&self, report: &Report) -> anyhow::Result<()> {
        let issuer = &report.evidence.issuer;
        if let Err(finding) = usable_url(issuer) {
            bail!(
                "--write needs --issuer-url, the URL at which the documents will be published: the cluster's issuer is {}, and {}",
                shown(issuer),
                finding.cause
            );
        }
        Ok(())
    }
}

fn issuer_url(text: &str) -> Result<String, String> {
    let parsed = reqwest::Url::parse(text).map_err(|error| error.to_string());
    match usable_url(text) {
        Ok(()) => parsed.map(|_| text.to_owned()),
        Err(finding) => Err(finding.cause),
    }
}

fn timeout(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Err("without any time nothing is read".to_owned()),
        limit => Ok(limit),
    }
}
