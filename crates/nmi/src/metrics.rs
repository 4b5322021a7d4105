//! Metrics: AAD Pod Identity's names with bounded labels, and podid's own.
//!
//! Every task counts here; `lifecycle/health.rs` serves the text. Labels are bounded, because pods choose resources and a label value
//! costs memory for as long as the process runs.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicI64, AtomicU64};
use std::time::Duration;

use parking_lot::RwLock;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Metric, Registry};

use podid_policy::facts::{IdentityFacts, IdentitySource};

use tokio::sync::watch::Receiver;

use crate::token::source::SourceError;

/// Resources that have a label value of their own; all others share `other`.
const RESOURCES: [&str; 8] = [
    "management.azure.com",
    "storage.azure.com",
    "vault.azure.net",
    "database.windows.net",
    "servicebus.azure.net",
    "eventhubs.azure.net",
    "graph.microsoft.com",
    "management.core.windows.net",
];
/// Upper bounds of the histograms, in seconds. A cached token is answered in 0.1 ms, so that AAD Pod Identity's buckets, which begin
/// at 0.5 s, would not tell fast from slow.
const BUCKETS: [f64; 15] = [
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0,
    100.0,
];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Operation {
    operation_type: &'static str,
    status_code: u16,
    namespace: String,
    resource: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kind {
    kind: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Type {
    operation_type: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Build {
    version: &'static str,
}

/// Every metric of the node agent.
pub struct Metrics {
    registry: RwLock<Registry>,
    /// The state of the interception rules; unset when requests are not intercepted.
    interception: OnceLock<Receiver<podid_intercept::State>>,
    operations: Family<Operation, Histogram>,
    tokens: Family<Outcome, Counter>,
    refusals: Family<Outcome, Counter>,
    synced: Family<Kind, Gauge>,
    malformed: Family<Kind, Gauge>,
    cached: Gauge<i64, AtomicI64>,
    connections: Gauge<i64, AtomicI64>,
    dropped: Counter<u64, AtomicU64>,
    upstream: Family<Type, Histogram>,
    upstream_errors: Family<Type, Gauge>,
    kubernetes_errors: Family<Type, Gauge>,
    failures: Family<Outcome, Counter>,
    in_place: Gauge,
    rule_changes: Family<Outcome, Gauge>,
    packets: Family<Outcome, Gauge>,
    unproven: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::default();
        let build = Family::<Build, Gauge>::default();
        let version = env!("CARGO_PKG_VERSION");
        build.get_or_create(&Build { version }).set(1);
        registry.register("podid_build_info", "1, labelled with the version", build);
        Self {
            operations: add(
                &mut registry,
                "aadpodidentity_nmi_operations_duration_seconds",
                "Time to answer a request",
                Family::new_with_constructor(histogram),
            ),
            upstream: add(
                &mut registry,
                "aadpodidentity_imds_operations_duration_seconds",
                "Time to get a token from its issuer: the metadata service (adal_token_msi_userassignedid) or Entra (adal_token)",
                Family::new_with_constructor(histogram),
            ),
            // Gauges, because AAD Pod Identity's names have no `_total`, which this format adds to every counter.
            upstream_errors: add(
                &mut registry,
                "aadpodidentity_imds_operations_errors_count",
                "Tokens that their issuer did not give, since the start",
                Family::default(),
            ),
            kubernetes_errors: add(
                &mut registry,
                "aadpodidentity_kubernetes_api_operations_errors_count",
                "Requests to the API server that failed, since the start: get_secret, get_pod_list",
                Family::default(),
            ),
            failures: add(
                &mut registry,
                "podid_nmi_upstream_failures",
                "Tokens that could not be had, by cause",
                Family::default(),
            ),
            tokens: add(
                &mut registry,
                "podid_nmi_tokens",
                "Tokens given, by whether they came from memory",
                Family::default(),
            ),
            refusals: add(
                &mut registry,
                "podid_nmi_refusals",
                "Requests that got no token, by reason",
                Family::default(),
            ),
            synced: add(
                &mut registry,
                "podid_nmi_watch_synced",
                "1 while the watch of a kind runs and has seen a complete list",
                Family::default(),
            ),
            malformed: add(
                &mut registry,
                "podid_nmi_malformed_objects",
                "Objects of a kind that could not be read since the start",
                Family::default(),
            ),
            cached: add(
                &mut registry,
                "podid_nmi_cached_tokens",
                "Tokens held",
                Gauge::default(),
            ),
            connections: add(
                &mut registry,
                "podid_nmi_connections",
                "Open connections",
                Gauge::default(),
            ),
            dropped: add(
                &mut registry,
                "podid_nmi_dropped_connections",
                "Connections closed at once because their pod has too many",
                Counter::default(),
            ),
            in_place: add(
                &mut registry,
                "podid_nmi_interception_in_place",
                "1 when the interception rules were in place at the last look and what they catch arrives, or none are wanted",
                Gauge::default(),
            ),
            rule_changes: add(
                &mut registry,
                "podid_nmi_interception_rules",
                "How often the rules were looked at, put in place, repaired after somebody else had changed them, and could not be, since the start",
                Family::default(),
            ),
            packets: add(
                &mut registry,
                "podid_nmi_interception_packets",
                "First packets of pods' connections that were intercepted, by whether they arrived behind all rules of the node or where they were lost, since the start",
                Family::default(),
            ),
            unproven: add(
                &mut registry,
                "podid_nmi_interception_unproven",
                "1 while the network plugin may take packets of pods past the interception rules and none has arrived",
                Gauge::default(),
            ),
            registry: RwLock::new(registry),
            interception: OnceLock::new(),
        }
    }
}

fn add<M: Metric + Clone>(registry: &mut Registry, name: &str, help: &str, metric: M) -> M {
    registry.register(name, help, metric.clone());
    metric
}

fn histogram() -> Histogram {
    Histogram::new(BUCKETS.iter().copied())
}

impl Metrics {
    /// Counts an answered request.
    pub fn answered(
        &self,
        endpoint: &'static str,
        status: u16,
        namespace: &str,
        resource: &str,
        took: Duration,
    ) {
        let labels = Operation {
            operation_type: endpoint,
            status_code: status,
            namespace: namespace.to_owned(),
            resource: known_resource(resource),
        };
        self.operations
            .get_or_create(&labels)
            .observe(took.as_secs_f64());
    }

    /// Counts a token that was given.
    pub fn token(&self, how: &'static str) {
        self.tokens.get_or_create(&Outcome { reason: how }).inc();
    }

    /// Counts a refused request.
    pub fn refused(&self, reason: &'static str) {
        self.refusals.get_or_create(&Outcome { reason }).inc();
    }

    /// Sets the status of the watch of a kind.
    pub fn watch(&self, kind: &'static str, health: &podid_cluster::watch::WatchStatus) {
        let running = health.synced && health.trouble.is_none();
        self.synced
            .get_or_create(&Kind { kind })
            .set(i64::from(running));
        let count = i64::try_from(health.malformed).unwrap_or(i64::MAX);
        self.malformed.get_or_create(&Kind { kind }).set(count);
    }

    /// Counts a call to an issuer for a token.
    pub fn fetched(
        &self,
        identity: &IdentityFacts,
        took: Duration,
        outcome: Result<(), &SourceError>,
    ) {
        let operation_type = match identity.source {
            IdentitySource::UserAssigned { .. } => "adal_token_msi_userassignedid",
            IdentitySource::ServicePrincipal { .. } | IdentitySource::Federated { .. } => {
                "adal_token"
            }
        };
        let operation = Type { operation_type };
        self.upstream
            .get_or_create(&operation)
            .observe(took.as_secs_f64());
        let Err(error) = outcome else { return };
        let reason = error.name();
        self.failures.get_or_create(&Outcome { reason }).inc();
        if matches!(error, SourceError::Secret(_)) {
            self.api_failed("get_secret");
        } else {
            self.upstream_errors.get_or_create(&operation).inc();
        }
    }

    /// Counts a failed request to the API server.
    pub fn api_failed(&self, operation_type: &'static str) {
        let operation = Type { operation_type };
        self.kubernetes_errors.get_or_create(&operation).inc();
    }

    /// Reads the state of the interception rules from here on. Without it nothing is to be intercepted.
    pub fn intercepted_by(&self, state: Receiver<podid_intercept::State>) {
        // It is set once per process.
        let _ = self.interception.set(state);
    }

    fn observe_interception(&self) {
        let Some(state) = self.interception.get() else {
            self.in_place.set(1);
            return;
        };
        let state = state.borrow();
        self.in_place.set(i64::from(state.in_place));
        for (reason, count) in [
            ("checked", state.checks),
            ("applied", state.applied),
            ("repaired", state.repaired),
            ("failed", state.failures),
        ] {
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            self.rule_changes
                .get_or_create(&Outcome { reason })
                .set(count);
        }
        self.unproven.set(i64::from(state.unproven.is_some()));
        for (reason, count) in [
            ("arrived", state.arrived),
            ("lost_before_input", state.lost.before_input),
            ("lost_in_input", state.lost.in_input),
        ] {
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            self.packets.get_or_create(&Outcome { reason }).set(count);
        }
    }

    /// Why requests are not intercepted, for a person, as far as it is known.
    pub(crate) fn interception_trouble(&self) -> Option<String> {
        self.interception.get()?.borrow().trouble.clone()
    }

    pub(crate) fn connections(&self) -> &Gauge<i64, AtomicI64> {
        &self.connections
    }

    pub(crate) fn dropped(&self) {
        self.dropped.inc();
    }

    /// The text that Prometheus scrapes, with the number of cached tokens.
    pub fn text(&self, cached: usize) -> String {
        self.observe_interception();
        self.cached.set(i64::try_from(cached).unwrap_or(i64::MAX));
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = encode(&mut text, &self.registry.read());
        text
    }
}

/// The label value of a resource.
fn known_resource(resource: &str) -> &'static str {
    let host = resource
        .trim_start_matches("https://")
        .trim_end_matches('/');
    RESOURCES
        .into_iter()
        .find(|known| *known == host)
        .unwrap_or(match resource {
            "" => "",
            _ => "other",
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_bounded() {
        let metrics = Metrics::default();
        for n in 0..1000 {
            let resource = format!("https://made-up-{n}/");
            metrics.answered("token", 200, "shop", &resource, Duration::from_micros(80));
        }
        metrics.answered(
            "token",
            200,
            "shop",
            "https://vault.azure.net",
            Duration::ZERO,
        );
        let text = metrics.text(7);
        let lines = text
            .lines()
            .filter(|l| l.contains("duration_seconds_count"))
            .count();
        assert_eq!(lines, 2, "{text}");
        assert!(text.contains("resource=\"vault.azure.net\""));
        assert!(text.contains("podid_nmi_cached_tokens 7"));
    }

    #[test]
    fn failures_have_the_originals_names() {
        use podid_azure::{Error, ErrorKind, error::Service};
        use podid_policy::{facts::ObjectKey, ids::ClientId};
        let principal = IdentityFacts {
            key: ObjectKey::new("shop", "sp"),
            client_id: ClientId::parse("6f1c0000-0000-0000-0000-0000000022ab").unwrap(),
            source: IdentitySource::ServicePrincipal {
                certificate: false,
                tenant: "t".into(),
                auxiliary_tenants: Vec::new(),
                secret: ObjectKey::new("shop", "proof"),
                authority: None,
            },
            namespaced: false,
        };
        let metrics = Metrics::default();
        let refused = Error::new(Service::Entra, ErrorKind::InvalidCredential, "x").into();
        metrics.fetched(&principal, Duration::ZERO, Err(&refused));
        let absent = podid_cluster::secrets::SecretError::Absent(ObjectKey::new("shop", "proof"));
        metrics.fetched(&principal, Duration::ZERO, Err(&absent.into()));
        metrics.fetched(&principal, Duration::ZERO, Ok(()));
        let text = metrics.text(0);
        for line in [
            "aadpodidentity_imds_operations_errors_count{operation_type=\"adal_token\"} 1",
            "aadpodidentity_imds_operations_duration_seconds_count{operation_type=\"adal_token\"} 3",
            "aadpodidentity_kubernetes_api_operations_errors_count{operation_type=\"get_secret\"} 1",
            "podid_nmi_upstream_failures_total{reason=\"secret_missing\"} 1",
        ] {
            assert!(text.contains(line), "{line} is not in {text}");
        }
    }
}
