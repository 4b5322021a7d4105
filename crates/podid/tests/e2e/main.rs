//! The scenarios of AAD Pod Identity's end-to-end tests, by their numbers, on a real kube-apiserver, with two real `podid mic`, a real
//! `podid nmi` on a node and its pods in network namespaces, and a simulated Azure. They share one world and run beside each other.
//!
//! | scenario | here |
//! | --- | --- |
//! | S0, rules are there after the installation and gone after it | `scenario_s0_...`; that the rules of others stay is tried in podid-intercept |
//! | 1 to 26, 28, 29 | a test of that number |
//! | 27, Gatekeeper refuses a malformed resource id | makes no sense any more: the definitions' own rules refuse it; that is what `scenario_27_...` tries |
//!
//! What the original's validator does with Key Vault, these do with the token itself: whose it is must be the identity that was
//! bound, named by client id, by resource id, and not named.
//!
//! Needs root, for network namespaces.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test"
)]

mod azure;
mod node;
#[path = "../world/azure.rs"]
mod shared;
mod single;
mod world;
