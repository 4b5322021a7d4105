//! The ways to intercept.

#![allow(
    dead_code,
    clippy::expect_used,
    reason = "not every test file needs all of it, and tests may panic"
)]

use std::io;

use std::fs;

use podid_intercept::{Backend, Rules};

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

    /// The kubelet of the node does not use this variant any more.
    pub fn off(self, world: &World) {
        match self {
            Self::Nftables => return,
            Self::IptablesNft => world
                .node
                .run("iptables-nft -w 5 -t mangle -X KUBE-KUBELET-CANARY"),
            Self::IptablesLegacy => world
                .node
                .run("iptables-legacy -w 5 -t mangle -X KUBE-KUBELET-CANARY"),
        };
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

/// Both backends' rules, as a crash leaves them between putting one's in place and removing the other's.
pub fn leave_both(world: &World, iptables: Way, nftables_rules: &Rules, iptables_rules: &Rules) {
    let apply = |backend: Backend, rules: &Rules| {
        world
            .node
            .block_on(|| async { backend.apply(rules).await.expect("applied") });
    };
    apply(Backend::Nftables, nftables_rules);
    let saved = tempfile::NamedTempFile::new().expect("a file");
    fs::write(saved.path(), world.node.run("nft list table inet podid")).expect("written");
    apply(iptables.on(world), iptables_rules);
    world
        .node
        .run(&format!("nft -f {}", saved.path().display()));
}
