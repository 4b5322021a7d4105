//! Boot rules: fail closed from the boot of a node until NMI starts. The node loads them by itself, before its network is up, from
//! files that `podid boot-rules` prints or installs.
//!
//! ```text
//! boot ── the node loads the file ──► forwarded packets to the metadata address are refused
//!      ── kubelet starts pods     ──► they are refused; the node's own programs are not
//!      ── NMI starts              ──► [`crate::Backend::apply`] replaces the file's rules by its own, without a gap
//! ```
//!
//! They are the part of NMI's rules that needs no NMI, under the names by which [`crate::Backend`] finds, replaces and removes what
//! podid has put in place.

use crate::{Rules, iptables, nftables};

/// The input of `nft -f`.
pub fn nftables(rules: &Rules) -> String {
    nftables::boot_script(rules)
}

/// The input of `iptables-restore --noflush`, for nodes that have no `nft`.
pub fn iptables(rules: &Rules) -> String {
    iptables::boot_script(rules)
}
