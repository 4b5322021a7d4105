//! Data path of the network plugin: links by which a plugin is known whose pods' packets may pass by the node's netfilter hooks. The keeper
//! looks at its start, because podid's counters cannot show what never meets a hook.

use serde::Deserialize;

use crate::Error;
use crate::command::call;

/// Links of the node, and the plugins that make them.
const LINKS: [(&str, &str); 3] = [
    ("cilium_host", "Cilium"),
    ("ovn-k8s-mp0", "OVN-Kubernetes"),
    ("ovs-system", "Open vSwitch"),
];

#[derive(Deserialize)]
struct Link {
    ifname: String,
}

/// The plugin whose link is there.
pub(crate) async fn suspect() -> Result<Option<&'static str>, Error> {
    let args = "-j link show";
    let text = call("ip", args).run().await?;
    let links: Vec<Link> = serde_json::from_str(&text).map_err(|error| Error::Output {
        command: format!("ip {args}"),
        detail: error.to_string(),
    })?;
    let is_there = |(name, _): &&(&str, _)| links.iter().any(|link| link.ifname == *name);
    Ok(LINKS.iter().find(is_there).map(|(_, plugin)| *plugin))
}
