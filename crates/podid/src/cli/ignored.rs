//! Flags of the original's nmi that have no meaning here: taken so that old manifests start, and told so at the start.

use clap::Args;

/// What is accepted and does nothing.
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
        for (flag, instead) in self.given() {
            tracing::info!(flag, instead, "a flag has no effect");
        }
    }

    fn given(&self) -> Vec<(&'static str, &'static str)> {
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
        let given = all.into_iter().filter(|(given, ..)| *given);
        given.map(|(_, flag, instead)| (flag, instead)).collect()
    }
}
