//! The images of the Dockerfile, run by a container engine as `podid manifests` and the chart say: user, capabilities, seccomp,
//! read-only root, mounts, and nothing that is not in the image. A real kube-apiserver, real packets, and a simulated Azure.
//!
//! Needs root, for containers and network namespaces.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test"
)]

mod azure;
mod image;
mod mic;
mod nmi;
#[path = "../world/azure.rs"]
mod shared;
mod world;
