//! How a pod's request for the metadata address reaches NMI instead of the node's own metadata service.
//!
//! Packets to `169.254.169.254:80` are handed to NMI's transparent listener where they enter the node, with the caller's
//! address and the original destination intact: no NAT, no `route_localnet`, and no dependence on connection tracking. A second
//! listener at the metadata address itself ([`listen`], transparent) takes those that come over a bridge whose packets are
//! shown to the IP rules (`br_netfilter`), since the kernel forgets there which socket was chosen. Everything else from a pod to
//! that address is refused. The rules **fail closed**: while they exist and NMI does not, a connection is refused (nftables) or
//! dropped (iptables) and never reaches the node's metadata service. Nothing here removes
//! them but [`Backend::cleanup`], and [`withdraw`], which ends with it.
//!
//! IPv4 only: Azure's metadata service has no IPv6 address.

mod backend;
mod changes;
mod command;
mod conntrack;
mod error;
pub mod handover;
mod iptables;
mod keeper;
mod links;
mod listen;
mod nftables;
mod routing;
mod rules;
mod withdraw;

pub use backend::Backend;
pub use conntrack::cut_connections;
pub use error::{Error, ErrorKind};
pub use keeper::{Keeper, State};
pub use links::{Link, Links, NamespaceId};
pub use listen::listen;
pub use rules::{HostNetwork, Rules};
pub use withdraw::withdraw;
