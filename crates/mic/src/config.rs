//! Configuration of the controller: what the flags of `podid mic` set.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use podid_policy::ids::{ClientId, ResourceId};
use podid_policy::matching::Scope;

/// Settings of the controller. [`Config::new`] gives the defaults of the command line.
#[derive(Debug, Clone)]
pub struct Config {
    /// This replica's name, unique among its peers: the pod's name.
    pub instance: String,
    /// The controller's own namespace, where the ownership records are.
    pub namespace: String,
    /// The namespace of the leader Lease.
    pub lease_namespace: String,
    /// The name of the leader Lease.
    pub lease_name: String,
    /// How long the Lease lasts without renewal, in whole seconds.
    pub lease_duration: Duration,
    /// Whether bindings select pods of their own namespace only.
    pub scope: Scope,
    /// Identities that are never detached.
    pub immutable: Immutable,
    /// How often each host is compared with Azure; one where nothing changes is compared less often.
    pub reconcile_interval: Duration,
    /// How often every AzureAssignedIdentity is compared with what it must be (resync).
    pub sync_interval: Duration,
    /// How long an identity stays on a host after its last pod left.
    pub linger: Duration,
    /// Whether everything is detached and nothing attached, whatever pods need: podid is about to be removed.
    pub detach_all: bool,
    /// Debounce: how long no change of demand may come before a PATCH is sent; it is sent after eight times this at the latest.
    pub settle: Duration,
    /// The back-off after a first failure; every further failure doubles it.
    pub retry_interval: Duration,
    /// Whether objects with the capitalised field names of old versions are rewritten in place.
    pub type_upgrade: bool,
    /// How many AzureAssignedIdentity writes may be under way at once.
    pub parallel_writes: usize,
    /// Where `/healthz` is served.
    pub probe: SocketAddr,
    /// Where `/metrics` is served.
    pub metrics: SocketAddr,
}

/// Identities that are never detached: those that an operator lists, and the controller's own.
#[derive(Debug, Clone, Default)]
pub struct Immutable {
    /// By their client ids.
    pub client_ids: BTreeSet<ClientId>,
    /// By their ARM ids.
    pub resource_ids: BTreeSet<ResourceId>,
}

impl Config {
    /// The defaults, for a replica of this name in this namespace.
    pub fn new(instance: &str, namespace: &str) -> Self {
        let any = |port| SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
        Self {
            instance: instance.to_owned(),
            namespace: namespace.to_owned(),
            lease_namespace: "default".to_owned(),
            lease_name: "aad-pod-identity-mic".to_owned(),
            lease_duration: Duration::from_secs(15),
            scope: Scope::Namespaced,
            immutable: Immutable::default(),
            reconcile_interval: Duration::from_secs(180),
            sync_interval: Duration::from_secs(3600),
            linger: Duration::from_secs(30),
            detach_all: false,
            settle: Duration::from_millis(250),
            retry_interval: Duration::from_secs(1),
            type_upgrade: true,
            parallel_writes: 32,
            probe: any(8080),
            metrics: any(8888),
        }
    }
}
