//! Transparent proxy (TPROXY) for the metadata address: a pod's request reaches NMI instead of the node's metadata service.
//!
//! ```text
//! pod ── SYN to 169.254.169.254:80 ──► node
//!          prerouting   marks the packet, chooses NMI's transparent socket     (nftables.rs or iptables.rs)
//!          ip rule      sends what is marked to the loopback device            (routing.rs)
//!          input        refuses it unless a transparent socket takes it
//!          NMI          accepts: peer = the pod's address, local = 169.254.169.254:80   (listen.rs)
//! ```
//!
//! The packet keeps both addresses: there is no NAT, no `route_localnet`, and no dependence on connection tracking. A second
//! listener at the metadata address itself takes packets of bridges that are shown to the IP rules (`br_netfilter`), because the
//! kernel forgets there which socket was chosen. Every other packet from a pod to that address is refused.
//!
//! The rules **fail closed**: while they exist and NMI does not, a connection is refused (nftables) or dropped (iptables) and
//! never reaches the node's metadata service. Only [`Backend::cleanup`] and [`withdraw`] remove them.
//!
//! Requests of the node itself, and of pods on the host's network, are intercepted where [`HostNetwork`] says so: `output` sends them back
//! in by the same way. Pods are told from the node's processes by an eBPF program on their cgroup (pod_mark.rs).
//!
//! `podid nmi` runs a [`Keeper`], which puts the rules in place, repairs them, and proves by a connection of its own that they work (proof.rs). [`handover`] passes NMI's listening sockets to
//! its successor, and [`Links`] says whose network namespace a caller's address leads to.
//!
//! IPv4 only: Azure's metadata service has no IPv6 address.

mod backend;
pub mod boot;
mod bpf;
mod changes;
mod command;
mod conntrack;
mod error;
pub mod handover;
mod iptables;
mod keeper;
mod kubepods;
mod links;
mod listen;
mod netlink;
mod nftables;
mod pod_mark;
mod proof;
mod routing;
mod rules;
mod sockets;
mod withdraw;

pub use backend::Backend;
pub use conntrack::cut_connections;
pub use error::{Error, ErrorKind, Likely};
pub use keeper::{Keeper, State};
pub use links::{Link, Links, NamespaceId};
pub use listen::listen;
pub use rules::{HostNetwork, Rules};
pub use sockets::socket_owner;
pub use withdraw::withdraw;
