//! The chart, with helm itself on a real kube-apiserver.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test"
)]

mod cluster;
mod life;
mod monitors;
mod older;
mod refusals;
mod rendering;
