//! Federated identities end to end: a real kube-apiserver, a simulated Azure that reads the API server's issuer, and `podid mic`,
//! `podid broker` and two `podid nmi` as their service accounts. A pod asks as it always has; whatever is stolen is refused.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test"
)]

mod azure;
mod moves;
mod pasted;
#[path = "../rbac/roles.rs"]
#[allow(dead_code, reason = "not every test needs all of it")]
mod roles;
mod setup;
mod thefts;
mod tokens;
mod world;
