//! `podid mic` on a real kube-apiserver: take-over, what kubectl shows, and the commands of the documentation.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test"
)]

#[path = "../chart/cluster.rs"]
#[allow(dead_code, reason = "not every test needs all of it")]
mod cluster;
mod guide;
mod kubectl;
#[path = "../docs/pages.rs"]
#[allow(dead_code, reason = "not every test needs all of it")]
mod pages;
mod pruned;
#[path = "../world/azure.rs"]
mod shared;
mod shell;
mod takeover;
mod uninstall;
mod world;
