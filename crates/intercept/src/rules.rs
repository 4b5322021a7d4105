//! Interception settings: addresses, ports, packet marks and the routing table, as one value that both backends render.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use crate::{Error, kubepods};

/// What to intercept and where to send it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Rules {
    /// The address NMI's listener is bound to. Unspecified (`0.0.0.0`) works as well.
    pub listen_address: Ipv4Addr,
    /// The TCP port NMI's listener is bound to.
    pub listen_port: u16,
    /// The metadata address. No packet of a pod to it gets past the node.
    pub metadata: Ipv4Addr,
    /// The TCP port of the metadata address that is handed to NMI; the others are refused.
    pub metadata_port: u16,
    /// The bit that NMI sets on its own sockets (`SO_MARK`) so that the rules let them pass. Checked as a mask. The rules look at
    /// it on the node's own traffic only. To set it there takes the capability `NET_ADMIN` or, since Linux 5.17, `NET_RAW`.
    pub mark_own: u32,
    /// The bit that the rules set on intercepted packets. Checked as a mask.
    pub mark_tproxy: u32,
    /// The bit that an eBPF program sets on the sockets of pods that connect to the metadata address. Checked as a mask.
    pub mark_pod: u32,
    /// The routing table that delivers intercepted packets to the node itself. Must belong to podid alone.
    pub table: u32,
    /// Which traffic of the node itself is intercepted too. NMI sees the node's address as the caller.
    pub host_network: HostNetwork,
    /// Whether other machines and pods may connect to NMI's own port directly. Loopback always may.
    pub direct: bool,
    /// Whether podid leaves the node: new connections go where the node's other rules send them, or to the metadata service.
    /// Only connections that NMI has already are still handed to it. Nothing fails closed any more.
    pub withdrawing: bool,
}

/// Traffic that does not come in by a pod's link: that of pods on the host network, and of the node's own processes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum HostNetwork {
    /// Passes.
    Off,
    /// That of processes in a control group is intercepted.
    Pods {
        /// The group's directory in a hierarchy of version 2.
        cgroup: PathBuf,
    },
    /// All is intercepted, the kubelet's too.
    All,
}

impl HostNetwork {
    /// That of pods, by the control group of all pods that this process is in; `None` when it is in none that can be seen below
    /// `/sys/fs/cgroup`, which must be the node's own and of version 2.
    pub fn pods() -> Option<Self> {
        let cgroup = kubepods::find(Path::new("/sys/fs/cgroup"), std::process::id())?;
        Some(Self::Pods { cgroup })
    }
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            listen_address: Ipv4Addr::LOCALHOST,
            listen_port: 2579,
            metadata: Ipv4Addr::new(169, 254, 169, 254),
            metadata_port: 80,
            mark_own: 0x20,
            mark_tproxy: 0x10,
            mark_pod: 0x40,
            table: 2579,
            host_network: HostNetwork::Off,
            direct: false,
            withdrawing: false,
        }
    }
}

impl Rules {
    /// Refuses settings under which the rules would not do what they promise.
    pub(crate) fn validate(&self) -> Result<(), Error> {
        if self.listen_port == 0 || self.metadata_port == 0 {
            return Err(Error::Rules(
                "a port is 0; give the port that the listener is bound to",
            ));
        }
        let marks = [self.mark_own, self.mark_tproxy, self.mark_pod];
        let are_single = marks.iter().all(|mark| mark.is_power_of_two());
        if !are_single || marks.iter().fold(0, |all, mark| all | mark).count_ones() != 3 {
            return Err(Error::Rules(
                "the packet marks must be different single bits",
            ));
        }
        if self.table == 0 || (253..=255).contains(&self.table) {
            return Err(Error::Rules(
                "the routing table must not be one of the system's own (0, 253 to 255)",
            ));
        }
        if self.metadata.is_unspecified()
            || self.metadata.is_loopback()
            || self.metadata.is_multicast()
        {
            return Err(Error::Rules(
                "the metadata address cannot be unspecified, loopback or multicast",
            ));
        }
        Ok(())
    }

    /// Where intercepted packets are delivered: the transparent-proxy rules need a specific address.
    pub(crate) fn target(&self) -> Ipv4Addr {
        if self.listen_address.is_unspecified() {
            Ipv4Addr::LOCALHOST
        } else {
            self.listen_address
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_valid_and_contradictions_are_refused() {
        assert!(Rules::default().validate().is_ok());
        let wrong = [
            Rules {
                listen_port: 0,
                ..Rules::default()
            },
            Rules {
                mark_own: 0,
                ..Rules::default()
            },
            Rules {
                mark_own: 0x30,
                ..Rules::default()
            },
            Rules {
                table: 254,
                ..Rules::default()
            },
            Rules {
                mark_pod: 0x10,
                ..Rules::default()
            },
            Rules {
                metadata: Ipv4Addr::LOCALHOST,
                ..Rules::default()
            },
        ];
        for rules in wrong {
            assert!(rules.validate().is_err(), "{rules:?} was accepted");
        }
    }

    #[test]
    fn an_unspecified_listener_is_reached_by_loopback() {
        let rules = Rules {
            listen_address: Ipv4Addr::UNSPECIFIED,
            ..Rules::default()
        };
        assert_eq!(rules.target(), Ipv4Addr::LOCALHOST);
    }
}
