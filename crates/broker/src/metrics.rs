//! Metrics of the broker, with bounded labels: no namespace, pod, identity or resource is one.
//!
//! Every task counts here; `http/health.rs` serves the text.

use std::sync::atomic::AtomicI64;
use std::time::Duration;

use jiff::Timestamp;
use parking_lot::RwLock;
use podid_cluster::watch::WatchStatus;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Metric, Registry};

/// Upper bounds of the histograms, in seconds: a token from memory takes less than 1 ms, an exchange some hundred.
const BUCKETS: [f64; 12] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 10.0,
];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Request {
    endpoint: &'static str,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kind {
    kind: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Certificate {
    certificate: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Build {
    version: &'static str,
}

/// Every metric of the broker.
pub struct Metrics {
    registry: RwLock<Registry>,
    requests: Family<Request, Histogram>,
    exchanges: Family<Outcome, Histogram>,
    synced: Family<Kind, Gauge>,
    malformed: Family<Kind, Gauge>,
    held: Gauge,
    connections: Gauge<i64, AtomicI64>,
    dropped: Counter,
    handshakes_failed: Counter,
    expiries: Family<Certificate, Gauge>,
    authority_in_sync: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::default();
        let build = Family::<Build, Gauge>::default();
        let version = env!("CARGO_PKG_VERSION");
        build.get_or_create(&Build { version }).set(1);
        registry.register("podid_build_info", "1, labelled with the version", build);
        Self {
            requests: add(
                &mut registry,
                "podid_broker_request_duration_seconds",
                "Time to answer a request, by endpoint, and by ok or the kind of the refusal",
                Family::new_with_constructor(histogram),
            ),
            exchanges: add(
                &mut registry,
                "podid_broker_exchange_duration_seconds",
                "Time to mint an assertion and exchange it at Entra, by ok or the kind of the error",
                Family::new_with_constructor(histogram),
            ),
            synced: add(
                &mut registry,
                "podid_broker_watch_synced",
                "1 while the watch of a kind runs and has seen a complete list",
                Family::default(),
            ),
            malformed: add(
                &mut registry,
                "podid_broker_malformed_objects",
                "Objects of a kind that could not be read since the start",
                Family::default(),
            ),
            held: add(
                &mut registry,
                "podid_broker_cached_tokens",
                "Tokens held",
                Gauge::default(),
            ),
            connections: add(
                &mut registry,
                "podid_broker_connections",
                "Open connections",
                Gauge::default(),
            ),
            dropped: add(
                &mut registry,
                "podid_broker_dropped_connections",
                "Connections closed at once because there are too many, or too many of one address",
                Counter::default(),
            ),
            handshakes_failed: add(
                &mut registry,
                "podid_broker_failed_handshakes",
                "TLS handshakes that failed, mostly because a client does not trust the CA yet",
                Counter::default(),
            ),
            expiries: add(
                &mut registry,
                "podid_broker_certificate_expiry_timestamp_seconds",
                "When the certificate of the authority and of the server expires",
                Family::default(),
            ),
            authority_in_sync: add(
                &mut registry,
                "podid_broker_authority_in_sync",
                "1 when the Secret and the ConfigMap of the CA were read and written at the last look",
                Gauge::default(),
            ),
            registry: RwLock::new(registry),
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
    pub fn answered(&self, endpoint: &'static str, outcome: &'static str, took: Duration) {
        let request = Request { endpoint, outcome };
        let requests = self.requests.get_or_create(&request);
        requests.observe(took.as_secs_f64());
    }

    /// Counts an exchange.
    pub fn exchanged(&self, outcome: &'static str, took: Duration) {
        let exchanges = self.exchanges.get_or_create(&Outcome { outcome });
        exchanges.observe(took.as_secs_f64());
    }

    /// Sets the status of the watch of a kind.
    pub fn watch(&self, kind: &'static str, status: &WatchStatus) {
        let running = status.synced && status.trouble.is_none();
        let synced = self.synced.get_or_create(&Kind { kind });
        synced.set(i64::from(running));
        let count = i64::try_from(status.malformed).unwrap_or(i64::MAX);
        self.malformed.get_or_create(&Kind { kind }).set(count);
    }

    pub(crate) fn connections(&self) -> &Gauge<i64, AtomicI64> {
        &self.connections
    }

    pub(crate) fn connection_dropped(&self) {
        self.dropped.inc();
    }

    pub(crate) fn handshake_failed(&self) {
        self.handshakes_failed.inc();
    }

    /// Sets whether the CA's objects could be read and written.
    pub(crate) fn authority_in_sync(&self, in_sync: bool) {
        self.authority_in_sync.set(i64::from(in_sync));
    }

    /// Sets when a certificate expires.
    pub fn expires(&self, certificate: &'static str, at: Timestamp) {
        let certificate = Certificate { certificate };
        self.expiries
            .get_or_create(&certificate)
            .set(at.as_second());
    }

    /// The text that Prometheus scrapes, with the number of tokens that are held.
    pub fn text(&self, held: u64) -> String {
        self.held.set(i64::try_from(held).unwrap_or(i64::MAX));
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = encode(&mut text, &self.registry.read());
        text
    }
}
