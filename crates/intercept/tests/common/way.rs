//! The ways to intercept.

#![allow(
    dead_code,
    clippy::expect_used,
    reason = "not every test file needs all of it, and tests may panic"
)]

use std::io;

use podid_intercept::Backend;

use super::World;

/// A backend, and for iptables the variant that the node's kubelet uses.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Way {
    Nftables,
    IptablesNft,
    IptablesLegacy,
}

impl Way {
    pub fn on(self, world: &World) -> Backend {
        match self {
            Self::Nftables => return Backend::Nftables,
            Self::IptablesNft => world
                .node
                .run("iptables-nft -w 5 -t mangle -N KUBE-KUBELET-CANARY"),
            Self::IptablesLegacy => world
                .node
                .run("iptables-legacy -w 5 -t mangle -N KUBE-KUBELET-CANARY"),
        };
        Backend::Iptables
    }

    pub fn flush(self, world: &World) {
        match self {
            Self::Nftables => world.node.run("nft flush ruleset"),
            Self::IptablesNft => world.node.run("iptables-nft -w 5 -t mangle -F"),
            Self::IptablesLegacy => world.node.run("iptables-legacy -w 5 -t mangle -F"),
        };
    }
}

/// Refused at once by nftables; dropped by iptables.
pub fn assert_closed(way: Way, answer: io::Result<String>) {
    let error = answer.expect_err("something answered");
    if way == Way::Nftables {
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }
}
