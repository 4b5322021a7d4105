//! Transparent proxy (TPROXY) for the metadata address: a pod's request reaches NMI instead of the node's metadata service.
//!
//! ```text
//! pod ── SYN to 169.254.169.254:80 ──► node
//!          prerouting   chooses NMI's transparent socket                       (nftables.rs or iptables.rs)
//!          ip rule      sends it to the loopback device                        (routing.rs)
//!          input        refuses it unless a transparent socket takes it
//!          NMI          accepts: peer = the pod's address, local = 169.254.169.254:80   (listen.rs)
//! ```
//!
//! The packet keeps both addresses, and no `route_localnet` is needed. Packets of bridges that are shown to the IP rules
//! (`br_netfilter`) get NMI's port, where a second listener takes them at the metadata address, because the kernel forgets there
//! which socket was chosen. So nothing of NMI's is bound to port 80. Every other packet from a pod to that address is refused.
//!
//! The rules **fail closed**: while they exist and NMI does not, a connection is refused (nftables) or lost (iptables, and bridges shown to the IP rules) and
//! never reaches the node's metadata service. Only [`Backend::cleanup`] and [`withdraw`] remove them.
//!
//! Requests of the node itself, and of pods on the host's network, are intercepted where [`HostNetwork`] says so: `output` sends them back
//! in by the same way. Pods are told from the node's processes by an eBPF program on their cgroup (pod_mark.rs).
//!
//! `podid nmi` runs a [`Keeper`], which puts the rules in place, repairs them, and proves that they work, by a connection of its own (proof.rs)
//! and by the packets of pods (arrivals.rs). [`handover`] passes NMI's listening sockets to
//! its successor, and [`Links`] says whose network namespace a caller's address leads to.
//!
//! IPv4 only: Azure's metadata service has no IPv6 address.

mod arrivals;
mod backend;
pub mod boot;
mod bpf;
mod changes;
mod command;
mod conntrack;
mod data_path;
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

pub use arrivals::Lost;
pub use backend::Backend;
pub use conntrack::cut_connections;
pub use error::{Error, ErrorKind, Likely, LostWhere};
pub use keeper::{Keeper, State};
pub use links::{Link, Links, NamespaceId};
pub use listen::listen;
pub use rules::{HostNetwork, Rules};
pub use sockets::socket_owner;
pub use withdraw::withdraw;
