//! Metrics: the original's names with bounded labels, and podid's own.

use std::sync::atomic::{AtomicI64, AtomicU64};
use std::time::Duration;

use parking_lot::RwLock;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// Resources that are told apart; pods can make up any.
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
/// The original's buckets begin at half a second; requests are answered in far less.
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

/// Every metric of the node agent.
pub struct Metrics {
    registry: RwLock<Registry>,
    operations: Family<Operation, Histogram>,
    tokens: Family<Outcome, Counter>,
    refusals: Family<Outcome, Counter>,
    synced: Family<Kind, Gauge>,
    malformed: Family<Kind, Gauge>,
    cached: Gauge<i64, AtomicI64>,
    connections: Gauge<i64, AtomicI64>,
    dropped: Counter<u64, AtomicU64>,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::default();
        let operations = Family::<Operation, Histogram>::new_with_constructor(|| {
            Histogram::new(BUCKETS.iter().copied())
        });
        registry.register(
            "aadpodidentity_nmi_operations_duration_seconds",
            "Time to answer a request",
            operations.clone(),
        );
        let tokens = Family::default();
        registry.register(
            "podid_nmi_tokens",
            "Tokens given, by whether they came from memory",
            tokens.clone(),
        );
        let refusals = Family::default();
        registry.register(
            "podid_nmi_refusals",
            "Requests that got no token, by reason",
            refusals.clone(),
        );
        let synced = Family::default();
        registry.register(
            "podid_nmi_watch_synced",
            "1 while the watch of a kind runs and has seen a complete list",
            synced.clone(),
        );
        let malformed = Family::default();
        registry.register(
            "podid_nmi_malformed_objects",
            "Objects of a kind that could not be read since the start",
            malformed.clone(),
        );
        let cached = Gauge::default();
        registry.register("podid_nmi_cached_tokens", "Tokens held", cached.clone());
        let connections = Gauge::default();
        registry.register(
            "podid_nmi_connections",
            "Open connections",
            connections.clone(),
        );
        let dropped = Counter::default();
        registry.register(
            "podid_nmi_dropped_connections",
            "Connections closed at once because their pod has too many",
            dropped.clone(),
        );
        Self {
            registry: RwLock::new(registry),
            operations,
            tokens,
            refusals,
            synced,
            malformed,
            cached,
            connections,
            dropped,
        }
    }
}

impl Metrics {
    /// A request was answered.
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
            resource: known(resource),
        };
        self.operations
            .get_or_create(&labels)
            .observe(took.as_secs_f64());
    }

    /// A token was given.
    pub fn token(&self, how: &'static str) {
        self.tokens.get_or_create(&Outcome { reason: how }).inc();
    }

    /// A request got no token.
    pub fn refused(&self, reason: &'static str) {
        self.refusals.get_or_create(&Outcome { reason }).inc();
    }

    /// How the watch of a kind is doing.
    pub fn watch(&self, kind: &'static str, health: &podid_cluster::watch::Health) {
        let running = health.synced && health.trouble.is_none();
        self.synced
            .get_or_create(&Kind { kind })
            .set(i64::from(running));
        let count = i64::try_from(health.malformed).unwrap_or(i64::MAX);
        self.malformed.get_or_create(&Kind { kind }).set(count);
    }

    /// Adds metrics of another part of the process.
    pub fn extend(&self, register: impl FnOnce(&mut Registry)) {
        register(&mut self.registry.write());
    }

    pub(crate) fn connections(&self) -> &Gauge<i64, AtomicI64> {
        &self.connections
    }

    pub(crate) fn dropped(&self) {
        self.dropped.inc();
    }

    /// The text that Prometheus reads.
    pub fn text(&self, cached: usize) -> String {
        self.cached.set(i64::try_from(cached).unwrap_or(i64::MAX));
        let mut text = String::new();
        // Writing to a String does not fail.
        let _ = encode(&mut text, &self.registry.read());
        text
    }
}

fn known(resource: &str) -> &'static str {
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
}
