//! Real nodes: kubelet, containerd, kube-proxy, bridge and ptp CNI, the images that CI builds, and podid installed by helm as the README
//! says, beside a simulated Azure.
//!
//! `cargo test -p podid --test node -- --nocapture` shows the figures. Needs root; `tools/setup` installs the rest.
//!
//! ```text
//!   fabric: kube-apiserver, controller manager, scheduler; simulated Azure, Azurite
//!     ├─ n1: bridge CNI, kube-proxy with nftables      kubelet, containerd, podid's nmi, mic, pods
//!     └─ n2: ptp CNI, kube-proxy with iptables         the same
//! ```

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test"
)]

mod article;
mod azure;
mod callers;
mod load;
mod migration;
mod namespace;
mod nodes;
mod original;
mod own_nodes;
mod processes;
mod rolls;
mod shell;
mod starts;
mod traces;
mod uninstall;
mod upgrade;
mod world;
