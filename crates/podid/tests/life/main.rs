//! The life of nodes, of clusters and of podid itself, on a real kube-apiserver, with real processes and packets and a simulated
//! Azure. In every test a pod that is served asks without a pause, and somebody looks without a pause whether what it needs is
//! attached: it goes on being served, and nothing is detached by mistake.
//!
//! | what happens | here |
//! | --- | --- |
//! | a node is added, drained, deleted, renamed | `nodes.rs` |
//! | controllers and node agents are rolled, crash, are evicted; two replicas through a leader change | `processes.rs` |
//! | the API server is restarted, slow, does not answer for ten minutes, is down for ten minutes; etcd is compacted | `server.rs` |
//! | service account tokens and the API server's certificate and authority are renewed | `credentials.rs` |
//!
//! Where minutes matter, the clocks of podid's processes run faster (libfaketime). Needs root, for network namespaces.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test"
)]

#[path = "../rolling/client.rs"]
mod client;
mod credentials;
mod nodes;
mod processes;
mod served;
mod server;
#[path = "../world/azure.rs"]
mod shared;
#[path = "../e2e/world.rs"]
mod world;
