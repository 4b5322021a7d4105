//! `podid mic` on a real kube-apiserver: take-over, and what kubectl shows.

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
mod takeover;
mod world;
