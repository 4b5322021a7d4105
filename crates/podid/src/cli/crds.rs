//! `podid crds`: prints or applies the CustomResourceDefinitions.

use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, anyhow, ensure};
use clap::Args;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client, ResourceExt as _};
use podid_cluster::error_text::describe;
use tokio::time::{Instant, sleep, timeout};

use super::{api_client, run};

/// The field manager of server-side apply.
const MANAGER: &str = "podid";
/// Time limit for the API server to take one definition, and again to serve it.
const APPLY_TIMEOUT: Duration = Duration::from_secs(60);
/// Between two looks whether a definition is served.
const POLL_INTERVAL: Duration = Duration::from_millis(250);

/// Print the four CustomResourceDefinitions as YAML, for `kubectl apply -f -`
#[derive(Args)]
pub struct Crds {
    /// Bring those of the cluster up to date instead, whoever made them, and wait until they are served
    #[arg(long)]
    apply: bool,
    /// With --apply: a kubeconfig file; without it KUBECONFIG, else the pod's own service account
    #[arg(long, value_name = "FILE", requires = "apply")]
    kubeconfig: Option<PathBuf>,
}

impl Crds {
    /// Prints or applies the definitions.
    pub fn run(self) -> anyhow::Result<()> {
        if self.apply {
            return run::block_on(1, self.apply());
        }
        std::io::stdout().write_all(podid_api::crds::yaml()?.as_bytes())?;
        Ok(())
    }

    async fn apply(self) -> anyhow::Result<()> {
        let client = api_client::client(self.kubeconfig.as_deref()).await?;
        let ratchets = ratchets(&client).await;
        let api: Api<CustomResourceDefinition> = Api::all(client);
        for crd in podid_api::crds::all()? {
            let crd = match ratchets {
                true => crd,
                false => podid_api::crds::without_value_rules(crd),
            };
            let name = crd.name_any();
            timeout(APPLY_TIMEOUT, apply(&api, &name, &crd))
                .await
                .with_context(|| format!("{name}: the API server does not answer"))?
                .with_context(|| format!("{name} cannot be applied; it takes get, create and patch on customresourcedefinitions"))?;
            writeln!(std::io::stdout(), "{name} is up to date")?;
        }
        Ok(())
    }
}

/// Whether the API server leaves fields that an update does not change alone, whatever the rules; 1.30 is the first that does.
async fn ratchets(client: &Client) -> bool {
    let Ok(version) = client.apiserver_version().await else {
        return true;
    };
    is_at_least_1_30(&version.major, &version.minor)
}

fn is_at_least_1_30(major: &str, minor: &str) -> bool {
    // Some vendors write 29+.
    let minor = minor.trim_end_matches(|c: char| !c.is_ascii_digit());
    major != "1" || minor.parse().is_ok_and(|minor: u32| minor >= 30)
}

async fn apply(
    api: &Api<CustomResourceDefinition>,
    name: &str,
    crd: &CustomResourceDefinition,
) -> anyhow::Result<()> {
    let params = PatchParams::apply(MANAGER).force();
    let patched = api.patch(name, &params, &Patch::Apply(crd)).await;
    let mut applied = patched.map_err(|error| anyhow!(describe(&error)))?;
    let deadline = Instant::now() + APPLY_TIMEOUT;
    while !is_established(&applied) {
        ensure!(
            Instant::now() < deadline,
            "the API server does not serve it; see its conditions"
        );
        sleep(POLL_INTERVAL).await;
        applied = api.get(name).await?;
    }
    Ok(())
}

fn is_established(crd: &CustomResourceDefinition) -> bool {
    let status = crd.status.iter();
    status
        .flat_map(|status| status.conditions.iter().flatten())
        .any(|condition| condition.type_ == "Established" && condition.status == "True")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn api_servers_before_1_30_get_fewer_rules() {
        for (major, minor, whole) in [
            ("1", "25", false),
            ("1", "29+", false),
            ("1", "30", true),
            ("1", "34+", true),
            ("2", "0", true),
        ] {
            assert_eq!(is_at_least_1_30(major, minor), whole, "{major}.{minor}");
        }
    }
}
