//! A node with control groups of version 2, systemd and AppArmor: an emulated machine with its own kernel, on which helm installs podid as
//! the README says.
//!
//! `cargo test -p podid --test node_v2 -- --nocapture` shows the figures. Needs root; `tools/setup` installs the rest. It takes a few
//! minutes, because the machine is emulated.
//!
//! ```text
//!   fabric: kube-apiserver, controller manager, scheduler; simulated Azure
//!     ├─ n1: namespaces of this machine                mic
//!     └─ n2: virtual machine, bridge CNI               nmi, and the pods of the tests
//! ```

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test"
)]

#[path = "../node/azure.rs"]
#[allow(dead_code, reason = "no storage account is needed here")]
mod azure;
mod callers;
mod host_network;
mod machine;
#[path = "../node/namespace.rs"]
#[allow(dead_code, reason = "not all of it is needed here")]
mod namespace;
#[path = "../node/own_nodes.rs"]
mod own_nodes;
mod reboot;
mod starts;
#[path = "../node/world.rs"]
#[allow(dead_code, reason = "not all of it is needed here")]
mod world;
