//! Ignored flags of the original's mic and nmi: accepted so that old manifests start, and logged with their reason at the start.

use clap::Args;

/// What mic accepts and what does nothing there.
#[derive(Args)]
pub struct IgnoredByMic {
    #[arg(long = "clientQps", hide = true)]
    qps: Option<f64>,
    #[arg(long = "update-user-msi-max-retry", hide = true)]
    max_retry: Option<u32>,
    #[arg(long = "config-map-name", hide = true)]
    config_map: Option<String>,
    #[arg(long = "type-upgrade-status-key", hide = true)]
    upgrade_key: Option<String>,
    #[arg(long = "enableScaleFeatures", hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    scale: Option<bool>,
    #[arg(long = "enableProfile", hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    profile: Option<bool>,
}

impl IgnoredByMic {
    /// Says which of them were given, and what is so instead.
    pub fn tell(&self) {
        let upgraded = "every object that is spelt as before is rewritten, whenever it appears";
        let all = [
            (
                self.qps.is_some(),
                "--clientQps",
                "the API server's own fairness is relied on; see --createDeleteBatch",
            ),
            (
                self.max_retry.is_some(),
                "--update-user-msi-max-retry",
                "changes are retried until they succeed, ever less often",
            ),
            (self.config_map.is_some(), "--config-map-name", upgraded),
            (
                self.upgrade_key.is_some(),
                "--type-upgrade-status-key",
                upgraded,
            ),
            (
                self.scale.is_some(),
                "--enableScaleFeatures",
                "it is always so",
            ),
            (
                self.profile == Some(true),
                "--enableProfile",
                "there is no profiler; see /metrics",
            ),
        ];
        tell(&all);
    }
}

/// Logs those that were given.
fn tell(all: &[(bool, &'static str, &'static str)]) {
    for (_, flag, instead) in all.iter().filter(|(given, ..)| *given) {
        tracing::info!(flag, instead, "a flag has no effect");
    }
}

/// What nmi accepts and what does nothing there.
#[derive(Args)]
pub struct Ignored {
    #[arg(long = "MICNamespace", hide = true)]
    mic_namespace: Option<String>,
    #[arg(long = "retry-attempts-for-created", hide = true)]
    created: Option<u32>,
    #[arg(long = "retry-attempts-for-assigned", hide = true)]
    assigned: Option<u32>,
    #[arg(long = "find-identity-retry-interval", hide = true)]
    retry_interval: Option<u32>,
    #[arg(long = "enableScaleFeatures", hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    scale: Option<bool>,
    #[arg(long = "set-retry-after-header", hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    retry_after: Option<bool>,
    #[arg(long = "enable-conntrack-deletion", hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    conntrack: Option<bool>,
    #[arg(long = "enableProfile", hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    profile: Option<bool>,
    #[arg(long = "host-ip", hide = true)]
    host_ip: Option<String>,
}

impl Ignored {
    /// Says which of them were given, and what is so instead.
    pub fn tell(&self) {
        let held = "a request waits for --assignment-wait, then its client is told to come back";
        let all = [
            (
                self.mic_namespace.is_some(),
                "--MICNamespace",
                "exempt the controller with an AzurePodIdentityException",
            ),
            (self.created.is_some(), "--retry-attempts-for-created", held),
            (
                self.assigned.is_some(),
                "--retry-attempts-for-assigned",
                held,
            ),
            (
                self.retry_interval.is_some(),
                "--find-identity-retry-interval",
                held,
            ),
            (
                self.scale.is_some(),
                "--enableScaleFeatures",
                "it is always so",
            ),
            (
                self.retry_after.is_some(),
                "--set-retry-after-header",
                "it is always so",
            ),
            (
                self.conntrack.is_some(),
                "--enable-conntrack-deletion",
                "it is always so",
            ),
            (
                self.profile == Some(true),
                "--enableProfile",
                "there is no profiler; see /metrics",
            ),
            (
                self.host_ip.is_some(),
                "--host-ip",
                "callers are known by their own addresses",
            ),
        ];
        tell(&all);
    }
}
