//! What the node agent needs to be told.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use podid_policy::matching::Scope;

use crate::caller::attest::Attestor;

/// What no client that keeps its tokens comes near to.
pub const POD_REQUESTS: u32 = 100;

/// Settings of the node agent.
#[derive(Debug, Clone)]
pub struct Config {
    /// The node whose pods are served.
    pub node: String,
    /// How far bindings reach.
    pub scope: Scope,
    /// Whether an identity must be assigned to the node by the controller before its tokens are given; not so in managed mode,
    /// where an operator attaches identities.
    pub assigned_first: bool,
    /// Whether of several identities of equal weight the first by name is given to a request that names none.
    pub pick_first: bool,
    /// Resources of which tokens are fetched as soon as a pod is granted an identity.
    pub prefetch: Vec<String>,
    /// How long a request for an identity that is being assigned is held.
    pub assignment_wait: Duration,
    /// Tokens with less life than this are not served. Clients take less than 300 s for expired.
    pub token_floor: Duration,
    /// Whether the header `Metadata: true` is demanded.
    pub metadata_header_required: bool,
    /// Categories of metadata, such as `instance`, that pods may read.
    pub allowed_categories: Vec<String>,
    /// How many requests a second a pod may make for long, and twice as many at once; the rest is answered with 429.
    pub pod_requests: u32,
    /// Where the node's own programs ask for a pod's token, if they may.
    pub host_token_socket: Option<PathBuf>,
    /// Looks whether a caller is the pod that its address says; without it the address alone counts.
    pub attestor: Option<Arc<Attestor>>,
    /// Where `/healthz` and `/readyz` are served.
    pub probe: SocketAddr,
    /// Where `/metrics` is served.
    pub metrics: SocketAddr,
}
