//! Config: the settings of the node agent. `podid nmi` makes it of its flags.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use podid_policy::matching::Scope;

use crate::caller::attest::Attestor;

/// The default of `Config::pod_requests`, in requests a second; a client that keeps its tokens stays far below.
pub const POD_REQUESTS: u32 = 100;

/// Settings of the node agent.
#[derive(Debug, Clone)]
pub struct Config {
    /// The node whose pods are served.
    pub node: String,
    /// How far bindings reach.
    pub scope: Scope,
    /// Whether tokens of an identity are given only once the controller has assigned it to the node; `false` in managed mode, where an
    /// operator attaches identities.
    pub assigned_first: bool,
    /// Whether a request that names no identity gets the first by name of several with equal weight; else it is refused.
    pub pick_first: bool,
    /// Resources for which tokens are prefetched as soon as a pod is granted an identity.
    pub prefetch: Vec<String>,
    /// How long a request is held for what is not there yet: the index, the address of its pod, an identity that is being assigned, or
    /// that the metadata service does not have yet.
    pub assignment_wait: Duration,
    /// The shortest remaining life of a token that is served; clients treat one with less than 300 s as expired.
    pub token_floor: Duration,
    /// Whether requests must have the header `Metadata: true`.
    pub metadata_header_required: bool,
    /// Categories of metadata, such as `instance`, that pods may read.
    pub allowed_categories: Vec<String>,
    /// How many requests a second a pod may send, and twice as many at once; more are answered with 429.
    pub pod_requests: u32,
    /// The Unix socket at which programs of the node ask for pods' tokens; `None` for none.
    pub host_token_socket: Option<PathBuf>,
    /// Whether root on the host's network may ask for pods' tokens at the listener of the metadata service, by loopback.
    pub host_token_loopback: bool,
    /// Attests that a caller is the pod that its address says; without one the address alone counts.
    pub attestor: Option<Arc<Attestor>>,
    /// Where `/healthz` and `/readyz` are served.
    pub probe: SocketAddr,
    /// Where `/metrics` is served.
    pub metrics: SocketAddr,
}
