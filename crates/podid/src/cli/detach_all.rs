//! `podid detach-all`: uninstall, as far as Azure and finalizers are concerned.
//!
//! An operator runs it, or the chart's pre-delete hook. It guards namespaces, which do not terminate while an
//! AzureAssignedIdentity has mic's finalizer, and hosts, which would keep what podid attached:
//!
//! ```text
//!   AAD Pod Identity's controller leads ─► nothing is done: the objects are its
//!   add --detach-all to mic's Deployment ─► wait: rolled out, no AzureAssignedIdentity, no ownership record ─► done
//!     │                                        └─ time is up ─┐
//!     └─ none, or 0 replicas─────────────────────────────────────┴─► take the finalizers off, say what stays attached, fail
//! ```

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use clap::Args;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Endpoints};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use kube::{Api, Client, ResourceExt as _};
use podid_api::assigned::{AzureAssignedIdentity, FINALIZER};
use podid_cluster::endpoints_lock::legacy_holder;
use podid_cluster::error_text::describe;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::compat::duration;
use super::{api_client, run};
use crate::manifests::NAME;

/// What tells the controller to do it.
const FLAG: &str = "--detach-all";
/// The controller's container.
const CONTAINER: &str = "mic";
/// Between two looks at what is left.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// AAD Pod Identity's controller renews its lock every 2 s and loses it after 15 s; one that is older has no living holder.
const LOCK_TIMEOUT: Duration = Duration::from_secs(20);

/// Detach what podid attached and remove every AzureAssignedIdentity, before podid is removed
///
/// The controller does it, told by a flag that is added to its Deployment. From then on no pod has an identity. What the controller
/// has not done in time is said, its finalizers are taken off all the same, and the exit code is 1. While AAD Pod Identity's
/// controller leads, nothing is done: it carries on with the objects.
#[derive(Args)]
pub struct DetachAll {
    /// The namespace that podid is in
    #[arg(long, short, value_name = "NAMESPACE", default_value = NAME)]
    namespace: String,
    /// The controller's Deployment
    #[arg(long, value_name = "NAME", default_value = "podid-mic")]
    deployment: String,
    /// The namespace of the controller's Lease
    #[arg(
        long = "leader-election-namespace",
        value_name = "NAMESPACE",
        default_value = "default"
    )]
    lease_namespace: String,
    /// The name of the controller's Lease
    #[arg(
        long = "leader-election-name",
        value_name = "NAME",
        default_value = "aad-pod-identity-mic"
    )]
    lease_name: String,
    /// How long the controller may take
    #[arg(long, value_name = "DURATION", default_value = "4m", value_parser = duration)]
    timeout: Duration,
    /// A kubeconfig file; without it KUBECONFIG, else the pod's own service account
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
}

impl DetachAll {
    /// Detaches everything.
    pub fn run(self) -> anyhow::Result<()> {
        run::block_on(1, self.detach())
    }

    async fn detach(self) -> anyhow::Result<()> {
        let client = api_client::client(self.kubeconfig.as_deref()).await?;
        let locks: Api<Endpoints> = Api::namespaced(client.clone(), &self.lease_namespace);
        if let Some(holder) = self.other_leader(&locks).await? {
            writeln!(
                std::io::stdout(),
                "{holder} of AAD Pod Identity leads and carries on with what is attached; nothing is done"
            )?;
            return Ok(());
        }
        let remains = Remains::new(&client, &self.namespace);
        let deployments: Api<Deployment> = Api::namespaced(client, &self.namespace);
        let deadline = Instant::now() + self.timeout;
        let mut told = None;
        while let Some(deployment) = self.told(&deployments).await? {
            let left = remains.count().await?;
            if left == (0, 0) && is_rolled_out(&deployment) {
                writeln!(std::io::stdout(), "nothing of podid is attached any more")?;
                return Ok(());
            }
            if told != Some(left) {
                let (objects, hosts) = left;
                writeln!(
                    std::io::stdout(),
                    "{objects} AzureAssignedIdentities and {hosts} hosts are left"
                )?;
                told = Some(left);
            }
            if Instant::now() > deadline {
                break;
            }
            sleep(POLL_INTERVAL).await;
        }
        remains.release().await?;
        let attached = remains.attached().await?;
        if attached.is_empty() {
            return Ok(());
        }
        bail!(
            "{} does not run or has not done it in time (its log says why), and these stay attached in Azure: {}; detach them by `az vmss identity remove` or `az vm identity remove`, then delete the ConfigMaps of label {}",
            self.deployment,
            attached.join("; "),
            podid_mic::RECORDS
        )
    }

    /// AAD Pod Identity's controller, where it leads: it renews its lock.
    async fn other_leader(&self, locks: &Api<Endpoints>) -> anyhow::Result<Option<String>> {
        let deadline = Instant::now() + LOCK_TIMEOUT;
        let mut first = None;
        while Instant::now() < deadline {
            let lock = locks.get_opt(&self.lease_name).await;
            let lock = lock
                .map_err(|error| anyhow!(describe(&error)))
                .with_context(|| format!("Endpoints {}: it takes get on it", self.lease_name))?;
            let Some(holder) = lock.as_ref().and_then(legacy_holder) else {
                return Ok(None);
            };
            let version = lock.and_then(|lock| lock.resource_version());
            if *first.get_or_insert_with(|| version.clone()) != version {
                return Ok(Some(holder));
            }
            sleep(POLL_INTERVAL).await;
        }
        Ok(None)
    }

    /// The Deployment, once it has the flag; `None` when nothing of it runs.
    async fn told(&self, api: &Api<Deployment>) -> anyhow::Result<Option<Deployment>> {
        let takes = "it takes get and patch on it";
        let found = api.get_opt(&self.deployment).await;
        let found = found.map_err(|error| anyhow!(describe(&error)));
        let found = found.with_context(|| format!("Deployment {}: {takes}", self.deployment))?;
        let Some(deployment) = found.filter(|d| replicas(d) > 0) else {
            return Ok(None);
        };
        let mut args = args_of(&deployment);
        if args.iter().any(|arg| arg == FLAG) {
            return Ok(Some(deployment));
        }
        args.push(FLAG.to_owned());
        let patch = json!({
            "metadata": { "resourceVersion": deployment.resource_version() },
            "spec": { "template": { "spec": { "containers": [{ "name": CONTAINER, "args": args }] } } },
        });
        let params = PatchParams::default();
        match api
            .patch(&self.deployment, &params, &Patch::Strategic(patch))
            .await
        {
            Ok(changed) => Ok(Some(changed)),
            // Somebody else has changed it meanwhile: the next look adds the flag.
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(Some(deployment)),
            Err(error) => Err(anyhow!(describe(&error)))
                .with_context(|| format!("Deployment {}: {takes}", self.deployment)),
        }
    }
}

fn replicas(deployment: &Deployment) -> i32 {
    let spec = deployment.spec.as_ref();
    spec.and_then(|spec| spec.replicas).unwrap_or(1)
}

fn args_of(deployment: &Deployment) -> Vec<String> {
    let pod = deployment
        .spec
        .as_ref()
        .and_then(|s| s.template.spec.as_ref());
    let containers = pod.into_iter().flat_map(|pod| &pod.containers);
    let mut mic = containers.filter(|container| container.name == CONTAINER);
    let args = mic.next().and_then(|container| container.args.clone());
    args.unwrap_or_default()
}

/// Whether every replica has the flag, so that none attaches anything anew.
fn is_rolled_out(deployment: &Deployment) -> bool {
    let has_flag = args_of(deployment).iter().any(|arg| arg == FLAG);
    let status = deployment.status.clone().unwrap_or_default();
    let is_current = status.observed_generation >= deployment.metadata.generation;
    let updated = status.updated_replicas.unwrap_or_default();
    has_flag && is_current && status.replicas.unwrap_or_default() == updated
}

/// What is left of podid's work.
struct Remains {
    objects: Api<AzureAssignedIdentity>,
    records: Api<ConfigMap>,
    client: Client,
}

impl Remains {
    fn new(client: &Client, namespace: &str) -> Self {
        Self {
            objects: Api::all(client.clone()),
            records: Api::namespaced(client.clone(), namespace),
            client: client.clone(),
        }
    }

    async fn objects(&self) -> anyhow::Result<Vec<AzureAssignedIdentity>> {
        let listed = self.objects.list(&ListParams::default()).await;
        let listed = listed.map_err(|error| anyhow!(describe(&error)));
        Ok(listed.context("AzureAssignedIdentities")?.items)
    }

    async fn records(&self) -> anyhow::Result<Vec<ConfigMap>> {
        let labelled = ListParams::default().labels(podid_mic::RECORDS);
        let listed = self.records.list(&labelled).await;
        let listed = listed.map_err(|error| anyhow!(describe(&error)));
        Ok(listed.context("ConfigMaps of ownership records")?.items)
    }

    /// How many AzureAssignedIdentities and hosts there are.
    async fn count(&self) -> anyhow::Result<(usize, usize)> {
        Ok((self.objects().await?.len(), self.records().await?.len()))
    }

    /// Takes mic's finalizer off every AzureAssignedIdentity and deletes it.
    async fn release(&self) -> anyhow::Result<()> {
        for object in self.objects().await? {
            let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
            let api: Api<AzureAssignedIdentity> = Api::namespaced(self.client.clone(), &namespace);
            let kept: Vec<_> = object
                .finalizers()
                .iter()
                .filter(|finalizer| *finalizer != FINALIZER)
                .collect();
            let patch = Patch::Merge(json!({ "metadata": { "finalizers": kept } }));
            let params = PatchParams::default();
            let patched = api.patch(&name, &params, &patch).await.map(drop);
            let deleted = match patched {
                Ok(()) => api.delete(&name, &DeleteParams::default()).await.map(drop),
                Err(error) => Err(error),
            };
            match deleted {
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                done => done
                    .map_err(|error| anyhow!(describe(&error)))
                    .with_context(|| format!("AzureAssignedIdentity {namespace}/{name}"))?,
            }
        }
        Ok(())
    }

    /// What is attached by podid, host by host.
    async fn attached(&self) -> anyhow::Result<Vec<String>> {
        let records = self.records().await?;
        let texts = records.into_iter().map(|record| {
            let data = record.data.unwrap_or_default();
            let text = |key: &str| data.get(key).map(String::as_str).unwrap_or_default();
            let ids: BTreeMap<String, Value> =
                serde_json::from_str(text("attached")).unwrap_or_default();
            let ids: Vec<String> = ids.into_keys().collect();
            format!("to {}: {}", text("host"), ids.join(", "))
        });
        Ok(texts.collect())
    }
}
