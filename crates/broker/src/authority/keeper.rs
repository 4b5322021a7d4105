//! Keeper of the CA: its Secret and its ConfigMap, so that all brokers have one CA and all clients trust it.
//!
//! ```text
//!  read the Secret ──► nothing due ──► publish the bundle in the ConfigMap ──► renew the server's certificate
//!     ▲      │
//!     │      └── a step is due (authority/mod.rs) ──► write it with the version that was read
//!     └───────────── another broker was first (409) ◄──┘
//! ```
//!
//! `lib.rs` runs it. Both objects are made by the installation, so that the broker needs no right to create Secrets: with that right it
//! could have tokens of other service accounts.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use podid_cluster::error_text::describe;
use podid_policy::facts::ObjectKey;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::authority::Authority;
use crate::config::Config;
use crate::context::Context;

/// The key of the ConfigMap under which clients find the bundle.
pub(crate) const BUNDLE: &str = "ca.crt";
/// How often both objects are looked at: another broker may have rotated the CA.
const INTERVAL: Duration = Duration::from_secs(60);
/// The wait after a failure.
const RETRY_DELAY: Duration = Duration::from_secs(5);
/// How long the API server may take for all requests of one look.
const SYNC_TIMEOUT: Duration = Duration::from_secs(30);
/// Attempts of one look: brokers that write at once agree after one conflict, and a step may follow another.
const MAX_ATTEMPTS: usize = 8;

/// Keeps the CA.
pub(crate) struct Keeper {
    secrets: Api<Secret>,
    config_maps: Api<ConfigMap>,
    /// The namespace and the name of both objects.
    object: ObjectKey,
}

impl Keeper {
    pub(crate) fn new(client: &Client, config: &Config) -> Self {
        let namespace = &config.namespace;
        Self {
            secrets: Api::namespaced(client.clone(), namespace),
            config_maps: Api::namespaced(client.clone(), namespace),
            object: ObjectKey::new(namespace, &config.authority_object),
        }
    }

    /// Keeps the CA and the server's certificate until shutdown.
    pub(crate) async fn run(self, context: Arc<Context>, shutdown: CancellationToken) {
        loop {
            let look = self.sync(&context, Timestamp::now());
            let outcome = tokio::time::timeout(SYNC_TIMEOUT, look).await;
            let outcome = outcome.unwrap_or_else(|_| Err("no answer in time".to_owned()));
            context.metrics.authority_in_sync(outcome.is_ok());
            let wait = match outcome {
                Ok(()) => INTERVAL,
                Err(reason) => {
                    tracing::warn!(%reason, "the broker's CA cannot be kept");
                    RETRY_DELAY
                }
            };
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// One look at both objects.
    pub(crate) async fn sync(&self, context: &Context, now: Timestamp) -> Result<(), String> {
        let authority = self.advanced(now).await?;
        self.publish(&authority.bundle()).await?;
        let ca = &authority.current;
        context.metrics.expires("authority", ca.certificate.expires);
        let names = &context.config.server_names;
        let renewed = context.tls.renew(ca, names, now);
        if let Some(expires) = renewed.map_err(|error| error.to_string())? {
            context.metrics.expires("server", expires);
            tracing::info!(%expires, "the server has a new certificate");
        }
        Ok(())
    }

    /// The CA, after all steps that are due, as the Secret has it.
    async fn advanced(&self, now: Timestamp) -> Result<Authority, String> {
        for _ in 0..MAX_ATTEMPTS {
            let found = self.secrets.get(&self.object.name).await;
            let mut secret = found.map_err(|error| self.explain("Secret", &error))?;
            let content = secret.data.take().unwrap_or_default();
            let known = Authority::read(&content).unwrap_or_else(|reason| {
                tracing::warn!(secret = %self.object, %reason, "the Secret is of no use and is filled anew");
                None
            });
            let due = match &known {
                Some(known) => known.advance(now),
                None => Authority::new(now).map(Some),
            };
            let due = due.map_err(|error| error.to_string())?;
            let Some(due) = due else {
                return known.ok_or_else(|| "there is no CA".to_owned());
            };
            secret.data = Some(due.content());
            let params = PostParams::default();
            match self
                .secrets
                .replace(&self.object.name, &params, &secret)
                .await
            {
                Ok(_) => tracing::info!("the broker's CA has gone one step further"),
                Err(kube::Error::Api(status)) if status.code == 409 => {}
                Err(error) => return Err(self.explain("Secret", &error)),
            }
        }
        Err(format!("Secret {} changes all the time", self.object))
    }

    async fn publish(&self, bundle: &str) -> Result<(), String> {
        let explain = |error| self.explain("ConfigMap", &error);
        let published = self
            .config_maps
            .get(&self.object.name)
            .await
            .map_err(explain)?;
        let published: BTreeMap<_, _> = published.data.unwrap_or_default();
        if published.get(BUNDLE).map(String::as_str) == Some(bundle) {
            return Ok(());
        }
        let patch = Patch::Merge(json!({ "data": { BUNDLE: bundle } }));
        let params = PatchParams::default();
        let patched = self
            .config_maps
            .patch(&self.object.name, &params, &patch)
            .await;
        patched.map_err(explain)?;
        tracing::info!("the CA's certificates are published");
        Ok(())
    }

    /// No text of serde's: it may quote a key.
    fn explain(&self, kind: &str, error: &kube::Error) -> String {
        let object = format!("{kind} {}", self.object);
        match error {
            kube::Error::Api(status) if status.code == 404 => {
                format!(
                    "{object} does not exist; apply podid's chart or manifests again, which make it"
                )
            }
            kube::Error::SerdeError(_) => format!("{object} cannot be read"),
            error => format!("{object}: {}", describe(error)),
        }
    }
}
