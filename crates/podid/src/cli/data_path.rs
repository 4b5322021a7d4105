//! Data path of the node: its label says whether the network plugin takes packets of pods past the node's netfilter hooks, and with them
//! past the interception rules. `podid nmi` asks at its start.

use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use kube::{Api, Client};
use podid_cluster::error_text::describe;
use tokio::sync::watch::Sender;

/// Azure Kubernetes Service sets it on nodes whose Cilium uses eBPF host routing.
const EBPF_HOST_ROUTING: &str = "kubernetes.azure.com/ebpf-host-routing";
/// The wait before the API server is asked again that did not answer.
const RETRY_DELAY: Duration = Duration::from_secs(30);

/// Reads the label as soon as the API server answers, and sets `bypassed` if it is there.
pub async fn read_label(client: Client, node: String, bypassed: Sender<bool>) {
    let nodes: Api<Node> = Api::all(client);
    loop {
        match nodes.get_metadata(&node).await {
            Ok(found) => {
                let labels = found.metadata.labels.unwrap_or_default();
                let is_set = labels
                    .get(EBPF_HOST_ROUTING)
                    .is_some_and(|value| value == "true");
                bypassed.send_if_modified(|bypassed| std::mem::replace(bypassed, is_set) != is_set);
                return;
            }
            Err(error) => {
                tracing::warn!(
                    node,
                    reason = describe(&error),
                    "the node's labels cannot be read, so that it is not known whether packets of pods pass by the interception rules ({EBPF_HOST_ROUTING}); podid's service account needs get on nodes"
                );
                if matches!(&error, kube::Error::Api(status) if status.code == 403 || status.code == 404)
                {
                    return;
                }
            }
        }
        tokio::time::sleep(RETRY_DELAY).await;
    }
}
