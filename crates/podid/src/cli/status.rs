//! `podid status`: who leads, which identities Azure refuses, and which pods wait, from what the API server has.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::PathBuf;

use anyhow::{Context as _, anyhow};
use clap::Args;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Endpoints, Event};
use kube::api::{DynamicObject, ListParams};
use kube::core::{ApiResource, GroupVersionKind};
use kube::{Api, Client, ResourceExt as _};
use podid_api::binding::AzureIdentityBinding;
use podid_api::{GROUP, VERSION};
use podid_cluster::error_text::describe;
use podid_cluster::served_schema::prunes_service_accounts;
use serde::Serialize;
use serde_json::Value;

use super::table::{Table, age};
use super::{api_client, run};

/// A lease that was not renewed for this long, in seconds, has no holder that works.
const STALE: i64 = 60;

/// Show who leads, which identities Azure refuses and why, and which pods wait
///
/// Everything comes from the API server, as the controller writes it there; nothing is asked of Azure. Exit code: 0 when all is
/// well, 3 when an identity does not work, a pod waits, or no controller leads, 1 when it cannot be told.
#[derive(Args)]
pub struct Status {
    /// Only this namespace; all of them unless given
    #[arg(long, short, value_name = "NAMESPACE")]
    namespace: Option<String>,
    /// Show every identity and not only those that do not work
    #[arg(long)]
    all: bool,
    /// How to print it
    #[arg(long, short, value_enum, default_value_t = Output::Table)]
    output: Output,
    /// A kubeconfig file; without it KUBECONFIG, else the pod's own service account
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
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
}

#[derive(clap::ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
enum Output {
    /// For people.
    Table,
    /// One JSON document.
    Json,
}

/// Everything that is shown.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    controller: Controller,
    identities: Vec<Identity>,
    waiting: Vec<Waiting>,
    assigned: usize,
    /// Identities that somebody else detached lately.
    drift: Vec<Drift>,
    /// Whether the API server prunes `spec.serviceAccounts`.
    schema_outdated: bool,
    /// Bindings that are limited to service accounts and have lost the field.
    pruned_bindings: Vec<String>,
}

#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Controller {
    /// AAD Pod Identity's controller, while that leads.
    elder: Option<String>,
    holder: Option<String>,
    renewed_seconds_ago: Option<i64>,
}

#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Identity {
    namespace: String,
    name: String,
    /// How its tokens are had.
    tokens: &'static str,
    /// `True`, `False`, `Unknown`; empty while nothing is known.
    ready: String,
    reason: String,
    message: String,
    pods: usize,
    waiting: usize,
}

#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Waiting {
    namespace: String,
    pod: String,
    identity: String,
    node: String,
    status: String,
    seconds: i64,
    message: String,
}

#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Drift {
    namespace: String,
    identity: String,
    seconds_ago: i64,
    count: i32,
    message: String,
}

impl Status {
    /// Prints it. Says whether all is well.
    pub fn run(self) -> anyhow::Result<bool> {
        run::block_on(1, self.tell())
    }

    async fn tell(self) -> anyhow::Result<bool> {
        let client = api_client::client(self.kubeconfig.as_deref()).await?;
        let now = Timestamp::now();
        let mut report = Report::read(
            &self
                .list(&client, "AzureIdentity", "azureidentities")
                .await?,
            &self
                .list(&client, "AzureAssignedIdentity", "azureassignedidentities")
                .await?,
            now,
        );
        report.controller = self.controller(&client, now).await?;
        report.drift = self.drift(&client, now).await;
        // Best effort: an API server without OpenAPI says nothing of its schema.
        report.schema_outdated = prunes_service_accounts(&client).await.unwrap_or_default();
        let bindings = self.list(&client, "AzureIdentityBinding", "azureidentitybindings");
        let bindings = bindings.await.unwrap_or_default();
        report.pruned_bindings = bindings.into_iter().filter_map(pruned).collect();
        let mut out = std::io::stdout().lock();
        match self.output {
            Output::Json => writeln!(out, "{}", serde_json::to_string_pretty(&report)?)?,
            Output::Table => write!(out, "{}", report.text(self.all))?,
        }
        Ok(report.is_well())
    }

    async fn list(
        &self,
        client: &Client,
        kind: &str,
        plural: &str,
    ) -> anyhow::Result<Vec<DynamicObject>> {
        let version = GroupVersionKind::gvk(GROUP, VERSION, kind);
        let resource = ApiResource::from_gvk_with_plural(&version, plural);
        let api: Api<DynamicObject> = match &self.namespace {
            Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
            None => Api::all_with(client.clone(), &resource),
        };
        let listed = api.list(&ListParams::default()).await;
        let hint = || {
            format!(
                "{plural} cannot be listed; are podid's CustomResourceDefinitions installed (podid crds), and may you list them?"
            )
        };
        Ok(listed
            .map_err(|error| anyhow!(describe(&error)))
            .with_context(hint)?
            .items)
    }

    async fn controller(&self, client: &Client, now: Timestamp) -> anyhow::Result<Controller> {
        let (namespace, name) = (&self.lease_namespace, &self.lease_name);
        let api: Api<Lease> = Api::namespaced(client.clone(), namespace);
        let lease = api.get_opt(name).await.with_context(|| {
            format!("the Lease {namespace}/{name} cannot be read; see --leader-election-namespace and --leader-election-name")
        })?;
        let spec = lease.and_then(|lease| lease.spec).unwrap_or_default();
        let holder = spec.holder_identity.filter(|holder| !holder.is_empty());
        let renewed = spec.renew_time.map(|at| seconds(at.0, now));
        Ok(Controller {
            elder: self.elder(client).await,
            holder,
            renewed_seconds_ago: renewed,
        })
    }

    /// Who holds the lock of AAD Pod Identity's controller, where it was here and podid does not hold it too.
    async fn elder(&self, client: &Client) -> Option<String> {
        let api: Api<Endpoints> = Api::namespaced(client.clone(), &self.lease_namespace);
        let lock = api.get_opt(&self.lease_name).await.ok()??;
        podid_cluster::endpoints_lock::legacy_holder(&lock)
    }

    /// Best effort: Events live an hour, and not everybody may list them.
    async fn drift(&self, client: &Client, now: Timestamp) -> Vec<Drift> {
        let api: Api<Event> = match &self.namespace {
            Some(namespace) => Api::namespaced(client.clone(), namespace),
            None => Api::all(client.clone()),
        };
        let detached = ListParams::default().fields("reason=IdentityDetached");
        let events = api.list(&detached).await.map(|list| list.items);
        let of_identity =
            |event: &Event| event.involved_object.kind.as_deref() == Some("AzureIdentity");
        let drift = |event: Event| {
            let series = event.series.unwrap_or_default();
            let at = series.last_observed_time.or(event.event_time);
            Drift {
                namespace: event.involved_object.namespace.unwrap_or_default(),
                identity: event.involved_object.name.unwrap_or_default(),
                seconds_ago: at.map(|at| seconds(at.0, now)).unwrap_or_default(),
                count: series.count.or(event.count).unwrap_or(1),
                message: event.message.unwrap_or_default(),
            }
        };
        let events = events.unwrap_or_default().into_iter();
        events.filter(of_identity).map(drift).collect()
    }
}

impl Report {
    fn read(identities: &[DynamicObject], objects: &[DynamicObject], now: Timestamp) -> Self {
        let mut report = Self::default();
        let mut users: BTreeMap<(String, String), (usize, usize)> = BTreeMap::new();
        for object in objects {
            let identity = &object.data["spec"]["azureIdentityRef"]["metadata"];
            let key = (text(&identity["namespace"]), text(&identity["name"]));
            let waiting = waiting(object, now);
            let (pods, late) = users.entry(key).or_default();
            *pods += 1;
            match waiting {
                Some(waiting) => {
                    *late += 1;
                    report.waiting.push(waiting);
                }
                None => report.assigned += 1,
            }
        }
        report.waiting.sort_by_key(|waiting| -waiting.seconds);
        report.identities = identities
            .iter()
            .map(|object| {
                let meta = &object.metadata;
                let namespace = meta.namespace.clone().unwrap_or_default();
                let name = meta.name.clone().unwrap_or_default();
                let condition = condition(&object.data["status"]);
                let key = (namespace.clone(), name.clone());
                let (pods, waiting) = users.get(&key).copied().unwrap_or_default();
                Identity {
                    namespace,
                    name,
                    tokens: tokens(&object.data["spec"]),
                    ready: text(&condition["status"]),
                    reason: text(&condition["reason"]),
                    message: text(&condition["message"]),
                    pods,
                    waiting,
                }
            })
            .collect();
        report
    }

    fn leads(&self) -> bool {
        let renewed = self.controller.renewed_seconds_ago;
        self.controller.elder.is_none()
            && self.controller.holder.is_some()
            && renewed.is_some_and(|seconds| seconds < STALE)
    }

    fn is_well(&self) -> bool {
        let refused = |identity: &Identity| identity.ready == "False";
        let is_limited = !self.schema_outdated && self.pruned_bindings.is_empty();
        let works = self.waiting.is_empty() && !self.identities.iter().any(refused);
        self.leads() && works && is_limited
    }

    fn text(&self, all: bool) -> String {
        let count = |ready: &str| self.identities.iter().filter(|i| i.ready == ready).count();
        let (works, broken) = (count("True"), count("False"));
        let idle = self.identities.len() - works - broken;
        let mut parts = vec![format!(
            "Controller    {}\nIdentities    {}: {works} ready, {broken} not working, {idle} not in use\nAssignments   {}: {} assigned, {} waiting\n",
            self.controller(),
            self.identities.len(),
            self.assigned + self.waiting.len(),
            self.assigned,
            self.waiting.len(),
        )];
        parts.extend(self.limits());
        let mut identities = Table::new(&[
            "NAMESPACE",
            "IDENTITY",
            "TOKENS",
            "READY",
            "REASON",
            "PODS",
            "WAITING",
            "MESSAGE",
        ]);
        for i in self.identities.iter().filter(|i| all || i.ready == "False") {
            let (pods, waiting) = (i.pods.to_string(), i.waiting.to_string());
            let tokens = i.tokens.to_owned();
            let known = [
                &i.namespace,
                &i.name,
                &tokens,
                &i.ready,
                &i.reason,
                &pods,
                &waiting,
                &i.message,
            ];
            identities.row(known.map(Clone::clone));
        }
        let mut waiting = Table::new(&["NAMESPACE", "POD", "IDENTITY", "NODE", "WAITING", "WHY"]);
        for w in &self.waiting {
            let since = age(w.seconds);
            let known = [
                &w.namespace,
                &w.pod,
                &w.identity,
                &w.node,
                &since,
                &w.message,
            ];
            waiting.row(known.map(Clone::clone));
        }
        let mut drift = Table::new(&[
            "NAMESPACE",
            "IDENTITY",
            "TIMES",
            "LAST",
            "DETACHED BY SOMEBODY ELSE",
        ]);
        for d in &self.drift {
            let (times, last) = (d.count.to_string(), age(d.seconds_ago));
            let known = [&d.namespace, &d.identity, &times, &last, &d.message];
            drift.row(known.map(Clone::clone));
        }
        let tables = [identities, waiting, drift];
        parts.extend(
            tables
                .iter()
                .filter(|t| !t.is_empty())
                .map(ToString::to_string),
        );
        parts.join("\n")
    }

    /// What is wrong with limits of bindings to service accounts.
    fn limits(&self) -> Option<String> {
        let outdated = self.schema_outdated.then_some(
            "Limits        the API server drops spec.serviceAccounts of bindings: podid crds --apply\n",
        );
        let pruned = (!self.pruned_bindings.is_empty()).then(|| {
            let names = self.pruned_bindings.join(", ");
            format!(
                "Limits        have lost the field and stay limited: {names}; apply them again\n"
            )
        });
        let lines: Vec<String> = outdated
            .map(str::to_owned)
            .into_iter()
            .chain(pruned)
            .collect();
        (!lines.is_empty()).then(|| lines.concat())
    }

    fn controller(&self) -> String {
        if let Some(elder) = &self.controller.elder {
            return format!("{elder} of AAD Pod Identity leads; podid waits for it");
        }
        match (&self.controller.holder, self.controller.renewed_seconds_ago) {
            (Some(holder), Some(seconds)) if seconds < STALE => {
                format!("{holder} leads, renewed {} ago", age(seconds))
            }
            (Some(holder), Some(seconds)) => {
                format!("nobody leads: {holder} did so last, {} ago", age(seconds))
            }
            _ => "nobody leads: is podid mic running?".to_owned(),
        }
    }
}

/// The name of a binding whose limit the API server has pruned.
fn pruned(object: DynamicObject) -> Option<String> {
    let binding: AzureIdentityBinding = object.try_parse().ok()?;
    let name = format!("{}/{}", binding.namespace()?, binding.name_any());
    binding.is_pruned().then_some(name)
}

/// What an AzureAssignedIdentity that is not Assigned tells.
fn waiting(object: &DynamicObject, now: Timestamp) -> Option<Waiting> {
    let (spec, status) = (&object.data["spec"], &object.data["status"]);
    if status["status"] == "Assigned" {
        return None;
    }
    let made = object.metadata.creation_timestamp.as_ref();
    Some(Waiting {
        namespace: text(&spec["podNamespace"]),
        pod: text(&spec["pod"]),
        identity: text(&spec["azureIdentityRef"]["metadata"]["name"]),
        node: text(&spec["nodename"]),
        status: text(&status["status"]),
        seconds: made.map(|at| seconds(at.0, now)).unwrap_or_default(),
        message: text(&status["message"]),
    })
}

/// How the tokens of an AzureIdentity are had.
fn tokens(spec: &Value) -> &'static str {
    match spec["type"].as_i64().unwrap_or_default() {
        _ if spec["federation"].is_object() => "federation",
        0 => "attached",
        1 => "secret",
        2 => "certificate",
        _ => "",
    }
}

fn condition(status: &Value) -> &Value {
    let conditions = status["conditions"].as_array();
    let ready = conditions.and_then(|all| all.iter().find(|c| c["type"] == "Ready"));
    ready.unwrap_or(&Value::Null)
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn seconds(since: Timestamp, now: Timestamp) -> i64 {
    now.duration_since(since).as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn object(value: Value) -> DynamicObject {
        serde_json::from_value(value).unwrap()
    }

    fn assigned(pod: &str, status: &Value) -> DynamicObject {
        object(json!({
            "metadata": { "name": pod, "namespace": "shop", "creationTimestamp": "2026-01-01T00:00:00Z" },
            "spec": {
                "pod": pod, "podNamespace": "shop", "nodename": "n1",
                "azureIdentityRef": { "metadata": { "namespace": "shop", "name": "reader" } },
            },
            "status": status,
        }))
    }

    fn report() -> Report {
        let refused = json!({ "type": "Ready", "status": "False", "reason": "IdentityNotFound", "message": "was not found" });
        let identity = object(json!({
            "metadata": { "name": "reader", "namespace": "shop" }, "spec": {}, "status": { "conditions": [refused] },
        }));
        let other = object(json!({
            "metadata": { "name": "idle", "namespace": "shop" }, "spec": { "type": 1, "federation": {} },
        }));
        let objects = [
            assigned(
                "web",
                &json!({ "status": "Created", "message": "was not found" }),
            ),
            assigned("old", &json!({ "status": "Assigned" })),
        ];
        let now = "2026-01-01T00:03:12Z".parse().unwrap();
        let mut report = Report::read(&[identity, other], &objects, now);
        report.controller = Controller {
            elder: None,
            holder: Some("mic-0".to_owned()),
            renewed_seconds_ago: Some(3),
        };
        report
    }

    #[test]
    fn what_does_not_work_is_told_with_its_reason() {
        let report = report();
        assert!(!report.is_well());
        assert_eq!(
            report.text(false),
            "Controller    mic-0 leads, renewed 3s ago\n\
             Identities    2: 0 ready, 1 not working, 1 not in use\n\
             Assignments   2: 1 assigned, 1 waiting\n\n\
             NAMESPACE   IDENTITY   TOKENS     READY   REASON             PODS   WAITING   MESSAGE\n\
             shop        reader     attached   False   IdentityNotFound   2      1         was not found\n\n\
             NAMESPACE   POD   IDENTITY   NODE   WAITING   WHY\n\
             shop        web   reader     n1     3m12s     was not found\n"
        );
        assert!(report.text(true).contains("idle       federation"));
    }

    #[test]
    fn all_is_well_only_while_somebody_leads() {
        let mut report = report();
        report.identities.clear();
        report.waiting.clear();
        assert!(report.is_well());
        report.controller.renewed_seconds_ago = Some(STALE);
        assert!(!report.is_well());
        assert!(
            report
                .text(false)
                .contains("nobody leads: mic-0 did so last")
        );
        report.controller = Controller::default();
        assert!(report.text(false).contains("is podid mic running?"));
    }
}
