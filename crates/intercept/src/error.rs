//! Error taxonomy of interception: each error names the likely cause and what an operator does about it.

/// Why interception could not be set up, checked or removed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A tool is not installed.
    #[error("{tool} is not on PATH: install the package {package}")]
    Missing {
        /// The program that was looked for.
        tool: String,
        /// The Debian and Ubuntu package that has it.
        package: &'static str,
    },
    /// The kernel refused for lack of privilege.
    #[error(
        "{command}: {detail}; podid nmi needs the capability NET_ADMIN on the host's network, and NET_RAW where iptables-legacy is installed"
    )]
    Denied {
        /// The command that was run.
        command: String,
        /// What it said.
        detail: String,
    },
    /// A tool said no.
    #[error("{command} failed: {detail}")]
    Failed {
        /// The command that was run.
        command: String,
        /// What it said, shortened.
        detail: String,
    },
    /// A tool did not end in time.
    #[error(
        "{command} did not end in {seconds} s: another program may hold the xtables lock, or the machine is overloaded"
    )]
    Timeout {
        /// The command that was run.
        command: String,
        /// How long it was waited for.
        seconds: u64,
    },
    /// A tool said something that cannot be understood.
    #[error("{command} gave unexpected output: {detail}; its version may not be supported")]
    Output {
        /// The command that was run.
        command: String,
        /// What was wrong with the output.
        detail: String,
    },
    /// The kernel did not take the eBPF programs by which pods on the host's network are known.
    #[error(
        "cannot {step}: {cause}; --intercept-host-network=pods needs the capability BPF, a seccomp profile that allows bpf(2), Linux 5.8 or newer, and the node's /sys/fs/bpf in the container at /host/sys/fs/bpf"
    )]
    PodMark {
        /// What was tried.
        step: &'static str,
        /// The operating system's word.
        cause: std::io::Error,
    },
    /// The rules are in place, and a connection that they must catch was not caught.
    #[error(
        "the rules are in place, but a connection of podid nmi's own to {metadata} was not intercepted: {outcome}; {likely}"
    )]
    NotCaught {
        /// Where it went to.
        metadata: std::net::SocketAddrV4,
        /// What became of it.
        outcome: String,
        /// The likely cause, with the next step.
        likely: Likely,
    },
    /// The rules are in place and catch packets of pods, of which none arrives.
    #[error(
        "the rules are in place and catch requests of pods, but none of them arrives: the packets are lost {place}"
    )]
    Lost {
        /// Where, with the next step.
        place: LostWhere,
    },
    /// The network plugin takes the packets of pods past the rules.
    #[error(
        "the node's label kubernetes.azure.com/ebpf-host-routing=true says that the packets of pods pass by the node's netfilter hooks, and with them podid: the node's own identities are open to pods. Use nodes without eBPF host routing, or deny pods the metadata address by a policy of the network plugin"
    )]
    Bypassed,
    /// The rules contradict themselves.
    #[error("interception settings are wrong: {0}")]
    Rules(&'static str),
    /// Neither backend works here.
    #[error("no way to intercept works on this node. nftables: {nftables}. iptables: {iptables}")]
    NoBackend {
        /// Why nftables does not work.
        nftables: Box<Error>,
        /// Why iptables does not work.
        iptables: Box<Error>,
    },
}

/// Why a connection was likely not caught.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Likely {
    /// It was refused or dropped.
    #[error(
        "a firewall on this node may refuse packets to that address that come in by the loopback device: allow them, and compare `nft list ruleset` and `iptables-save`"
    )]
    Firewall,
    /// It passed.
    #[error(
        "another program's rules may come before podid's, or with --intercept-host-network=pods another program's eBPF may: compare `nft list ruleset`, `iptables-save` and `bpftool cgroup tree`"
    )]
    OtherRules,
    /// It cannot be said where it went.
    #[error("podid nmi needs the kernel's INET_TCP_DIAG (the module tcp_diag)")]
    NoSocketDiag,
}

/// Where packets of pods are lost that the rules have caught.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LostWhere {
    /// Between the rules and the node's input.
    #[error(
        "before the node's INPUT, because another program's policy rule or packet mark takes them elsewhere: compare `ip -4 rule`, `iptables-save -t mangle` and `nft list ruleset`"
    )]
    BeforeInput,
    /// In the node's input.
    #[error(
        "in the node's INPUT, because a firewall of the node refuses them, or a network policy denies them to the pods that have asked. To allow them: `iptables -I INPUT -d 169.254.169.254/32 -p tcp -m socket --nowildcard --transparent -j ACCEPT`, or the same in the firewall's or the network plugin's own settings"
    )]
    Input,
}

/// The stable names of [`Error`]'s variants, for metrics and for code that decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// A tool is not installed.
    Missing,
    /// Not enough privilege.
    Denied,
    /// A tool said no.
    Failed,
    /// A tool did not end in time.
    Timeout,
    /// A tool's output was not understood.
    Output,
    /// The kernel did not take the eBPF programs.
    PodMark,
    /// A connection that must be caught was not caught.
    NotCaught,
    /// Packets of pods are caught and do not arrive.
    Lost,
    /// The network plugin takes the packets of pods past the rules.
    Bypassed,
    /// The rules contradict themselves.
    Rules,
    /// Neither backend works here.
    NoBackend,
}

impl Error {
    /// The kind of this error.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Missing { .. } => ErrorKind::Missing,
            Self::Denied { .. } => ErrorKind::Denied,
            Self::Failed { .. } => ErrorKind::Failed,
            Self::Timeout { .. } => ErrorKind::Timeout,
            Self::Output { .. } => ErrorKind::Output,
            Self::PodMark { .. } => ErrorKind::PodMark,
            Self::NotCaught { .. } => ErrorKind::NotCaught,
            Self::Lost { .. } => ErrorKind::Lost,
            Self::Bypassed => ErrorKind::Bypassed,
            Self::Rules(_) => ErrorKind::Rules,
            Self::NoBackend { .. } => ErrorKind::NoBackend,
        }
    }
}
