//! Metrics (counters, histograms, gauges) in the Prometheus text format: under the names that AAD Pod Identity gave them, and a few of
//! podid's own.
//!
//! The tasks count what they do; [`crate::health`] renders the text.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use parking_lot::Mutex;

use crate::host::cloud::Fault;

/// The prefix of the names that AAD Pod Identity has, too.
const PREFIX: &str = "aadpodidentity_";
/// The upper bounds, in seconds, of a write to the API server.
const OBJECT_BUCKETS: [f64; 18] = [
    0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 2.0, 3.0, 4.0, 5.0, 10.0,
];
/// The upper bounds, in seconds, of a call to Azure, which may take minutes.
const CLOUD_BUCKETS: [f64; 11] = [
    0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 900.0, 1200.0,
];

/// A write of an AzureAssignedIdentity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum WriteKind {
    Addition,
    Update,
    Deletion,
}

impl WriteKind {
    fn name(self) -> &'static str {
        match self {
            Self::Addition => "addition",
            Self::Update => "update",
            Self::Deletion => "deletion",
        }
    }
}

#[derive(Default)]
struct Histogram {
    counts: Vec<u64>,
    sum: f64,
    count: u64,
}

impl Histogram {
    fn observe(&mut self, bounds: &[f64], value: f64) {
        self.counts.resize(bounds.len(), 0);
        for (count, bound) in self.counts.iter_mut().zip(bounds) {
            *count += u64::from(value <= *bound);
        }
        self.sum += value;
        self.count += 1;
    }
}

#[derive(Default)]
struct Numbers {
    writes: BTreeMap<WriteKind, Histogram>,
    cloud: BTreeMap<&'static str, Histogram>,
    cloud_errors: BTreeMap<&'static str, u64>,
    api_errors: BTreeMap<&'static str, u64>,
    cycles: Histogram,
    elections: u64,
    faults: BTreeMap<Fault, u64>,
    drifts: u64,
}

/// Counters and histograms. All label values are known in advance, so that the memory is bounded.
#[derive(Default)]
pub(crate) struct Metrics(Mutex<Numbers>);

/// Gauges: what is true at the moment of the scrape.
#[derive(Debug, Default)]
pub(crate) struct Gauges {
    pub(crate) leading: bool,
    pub(crate) hosts: usize,
    pub(crate) assignments: usize,
    pub(crate) quarantined: usize,
    pub(crate) is_schema_outdated: bool,
    pub(crate) pruned: usize,
    pub(crate) troubled: usize,
    pub(crate) lag: Duration,
    pub(crate) interrupted: Vec<(&'static str, bool)>,
    pub(crate) malformed: Vec<(&'static str, u64)>,
}

impl Metrics {
    pub(crate) fn wrote(&self, write: WriteKind, took: Duration) {
        let mut numbers = self.0.lock();
        let histogram = numbers.writes.entry(write).or_default();
        histogram.observe(&OBJECT_BUCKETS, took.as_secs_f64());
    }

    pub(crate) fn write_failed(&self, write: WriteKind) {
        let operation = match write {
            WriteKind::Addition => "assigned_identity_addition",
            WriteKind::Update => "assigned_identity_update",
            WriteKind::Deletion => "assigned_identity_deletion",
        };
        *self.0.lock().api_errors.entry(operation).or_default() += 1;
    }

    /// A call to Azure, and the fault if it failed.
    pub(crate) fn cloud(&self, operation: &'static str, took: Duration, fault: Option<Fault>) {
        let mut numbers = self.0.lock();
        let histogram = numbers.cloud.entry(operation).or_default();
        histogram.observe(&CLOUD_BUCKETS, took.as_secs_f64());
        if let Some(fault) = fault {
            *numbers.faults.entry(fault).or_default() += 1;
            *numbers.cloud_errors.entry(operation).or_default() += 1;
        }
    }

    /// Somebody else has detached what podid had attached.
    pub(crate) fn drifted(&self) {
        self.0.lock().drifts += 1;
    }

    /// A change of a host was carried out.
    pub(crate) fn cycle(&self, took: Duration) {
        let mut numbers = self.0.lock();
        numbers.cycles.observe(&CLOUD_BUCKETS, took.as_secs_f64());
    }

    pub(crate) fn elected(&self) {
        self.0.lock().elections += 1;
    }

    /// All metrics as text.
    pub(crate) fn text(&self, gauges: &Gauges) -> String {
        let numbers = self.0.lock();
        let mut out = Text(String::new());
        let none = Histogram::default();
        for write in [WriteKind::Addition, WriteKind::Update, WriteKind::Deletion] {
            let histogram = numbers.writes.get(&write).unwrap_or(&none);
            let name = format!("{PREFIX}assigned_identity_{}", write.name());
            let help = format!("AzureAssignedIdentity objects: {}", write.name());
            out.head(&format!("{name}_count"), "counter", &help);
            out.line(&format!("{name}_count"), "", histogram.count as f64);
            let name = format!("{name}_duration_seconds");
            out.head(&name, "histogram", &help);
            out.histogram(&name, "", &OBJECT_BUCKETS, histogram);
        }
        let name = format!("{PREFIX}cloud_provider_operations_duration_seconds");
        out.head(&name, "histogram", "Calls to Azure Resource Manager");
        for (operation, histogram) in &numbers.cloud {
            let label = format!("operation_type=\"{operation}\"");
            out.histogram(&name, &label, &CLOUD_BUCKETS, histogram);
        }
        let failures = [
            (
                "cloud_provider_operations_errors_count",
                &numbers.cloud_errors,
            ),
            (
                "kubernetes_api_operations_errors_count",
                &numbers.api_errors,
            ),
        ];
        for (name, errors) in failures {
            let name = format!("{PREFIX}{name}");
            out.head(&name, "counter", "Calls that failed");
            for (operation, count) in errors {
                let label = format!("operation_type=\"{operation}\"");
                out.line(&name, &label, *count as f64);
            }
        }
        let name = format!("{PREFIX}mic_cycle_count");
        out.head(&name, "counter", "Changes of hosts that were carried out");
        out.line(&name, "", numbers.cycles.count as f64);
        let name = format!("{PREFIX}mic_cycle_duration_seconds");
        out.head(&name, "histogram", "Changes of hosts that were carried out");
        out.histogram(&name, "", &CLOUD_BUCKETS, &numbers.cycles);
        let name = format!("{PREFIX}mic_new_leader_election_count");
        out.head(&name, "counter", "How often this replica became leader");
        out.line(&name, "", numbers.elections as f64);
        let name = "podid_mic_cloud_faults_count";
        out.head(name, "counter", "Calls to Azure that failed, by cause");
        for fault in Fault::ALL {
            let count = numbers.faults.get(&fault).copied().unwrap_or_default();
            let label = format!("fault=\"{}\"", fault.name());
            out.line(name, &label, count as f64);
        }
        let name = "podid_mic_drift_count";
        let help = "Identities that somebody else detached and podid attached again";
        out.head(name, "counter", help);
        out.line(name, "", numbers.drifts as f64);
        gauges.text(&mut out);
        out.0
    }
}

impl Gauges {
    fn text(&self, out: &mut Text) {
        let plain = [
            (
                "podid_mic_leading",
                "Whether this replica leads",
                usize::from(self.leading),
            ),
            (
                "podid_mic_hosts",
                "Virtual machines and scale sets that are looked after",
                self.hosts,
            ),
            (
                "podid_mic_assignments",
                "Assignments that must exist",
                self.assignments,
            ),
            (
                "podid_mic_quarantined_identities",
                "Identities that Azure refuses to attach",
                self.quarantined,
            ),
            (
                "podid_mic_schema_outdated",
                "Whether the API server prunes spec.serviceAccounts of AzureIdentityBindings",
                usize::from(self.is_schema_outdated),
            ),
            (
                "podid_mic_pruned_bindings",
                "AzureIdentityBindings that are limited to service accounts and have lost the field",
                self.pruned,
            ),
            (
                "podid_mic_hosts_in_trouble",
                "Hosts that cannot be read or changed at present",
                self.troubled,
            ),
        ];
        for (name, help, value) in plain {
            out.head(name, "gauge", help);
            out.line(name, "", value as f64);
        }
        let name = "podid_mic_oldest_pending_seconds";
        let help = "How long the identity that is missing longest on a host has been wanted there";
        out.head(name, "gauge", help);
        out.line(name, "", self.lag.as_secs_f64());
        let name = "podid_mic_watch_interrupted";
        out.head(
            name,
            "gauge",
            "Whether a watch is interrupted or not yet complete",
        );
        for (kind, interrupted) in &self.interrupted {
            let value = f64::from(u8::from(*interrupted));
            out.line(name, &format!("kind=\"{kind}\""), value);
        }
        let name = "podid_mic_malformed_objects_count";
        out.head(name, "counter", "Objects that could not be read");
        for (kind, count) in &self.malformed {
            out.line(name, &format!("kind=\"{kind}\""), *count as f64);
        }
    }
}

struct Text(String);

impl Text {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn line(&mut self, name: &str, labels: &str, value: f64) {
        let labels = if labels.is_empty() {
            String::new()
        } else {
            format!("{{{labels}}}")
        };
        let _ = writeln!(self.0, "{name}{labels} {value}");
    }

    fn histogram(&mut self, name: &str, labels: &str, bounds: &[f64], histogram: &Histogram) {
        let with = |extra: String| match labels {
            "" => extra,
            labels => format!("{labels},{extra}"),
        };
        let none = vec![0; bounds.len()];
        let counts = if histogram.counts.is_empty() {
            &none
        } else {
            &histogram.counts
        };
        for (bound, count) in bounds.iter().zip(counts) {
            let labels = with(format!("le=\"{bound}\""));
            self.line(&format!("{name}_bucket"), &labels, *count as f64);
        }
        let total = histogram.count as f64;
        self.line(
            &format!("{name}_bucket"),
            &with("le=\"+Inf\"".to_owned()),
            total,
        );
        self.line(&format!("{name}_sum"), labels, histogram.sum);
        self.line(&format!("{name}_count"), labels, total);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_people_have_dashboards_for() {
        let metrics = Metrics::default();
        metrics.wrote(WriteKind::Addition, Duration::from_millis(15));
        metrics.cloud(
            "vmss_update",
            Duration::from_secs(7),
            Some(Fault::Throttled),
        );
        metrics.cycle(Duration::from_secs(7));
        metrics.elected();
        metrics.write_failed(WriteKind::Deletion);
        let text = metrics.text(&Gauges {
            leading: true,
            is_schema_outdated: true,
            pruned: 2,
            interrupted: vec![("Pod", false)],
            ..Gauges::default()
        });
        for line in [
            "# TYPE aadpodidentity_assigned_identity_addition_count counter",
            "aadpodidentity_assigned_identity_addition_count 1",
            "aadpodidentity_assigned_identity_addition_duration_seconds_bucket{le=\"0.01\"} 0",
            "aadpodidentity_assigned_identity_addition_duration_seconds_bucket{le=\"0.02\"} 1",
            "aadpodidentity_cloud_provider_operations_errors_count{operation_type=\"vmss_update\"} 1",
            "aadpodidentity_cloud_provider_operations_duration_seconds_bucket{operation_type=\"vmss_update\",le=\"10\"} 1",
            "aadpodidentity_kubernetes_api_operations_errors_count{operation_type=\"assigned_identity_deletion\"} 1",
            "aadpodidentity_mic_cycle_count 1",
            "aadpodidentity_mic_cycle_duration_seconds_bucket{le=\"+Inf\"} 1",
            "aadpodidentity_mic_new_leader_election_count 1",
            "podid_mic_cloud_faults_count{fault=\"Throttled\"} 1",
            "podid_mic_leading 1",
            "podid_mic_schema_outdated 1",
            "podid_mic_pruned_bindings 2",
            "podid_mic_watch_interrupted{kind=\"Pod\"} 0",
        ] {
            assert!(
                text.lines().any(|l| l == line),
                "{line} is missing in\n{text}"
            );
        }
    }
}
