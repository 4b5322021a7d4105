//! Self-test of interception: a probe connection of nmi's own that the rules must catch. The keeper makes one at its start, after every
//! change and after every interval, and interception is in place only if it was caught.
//!
//! ```text
//! keeper ── connect, without nmi's mark ──► 169.254.169.254:80
//!        ── sock_diag(7): has this node a socket at 169.254.169.254:80 whose peer is the probe? ──► caught, or not
//! ```
//!
//! The evidence is the kernel's: only a transparent socket of this node can have that address. The probe sends nothing, so that it is no request to
//! anybody, whoever answers it. What holds for a probe holds for whoever sends in the same way: for now that is the host's network. A
//! probe from elsewhere, such as a network namespace of its own, needs another [`connect`] and the same [`is_caught`].

use std::io;
use std::net::{SocketAddr, SocketAddrV4};
use std::time::Duration;

use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::constants::{AF_INET, IPPROTO_TCP, TCP_LISTEN};
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, SocketId, StateFlags};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use tokio::net::TcpStream;

use crate::netlink::Requests;
use crate::{Error, HostNetwork, Rules};

/// Time for the probe's connect; the kernel sends a lost SYN again after 1 and 3 s.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);
/// `INET_DIAG_NOCOOKIE` of linux/inet_diag.h: the socket is known by its addresses alone.
const NO_COOKIE: [u8; 8] = [0xff; 8];

/// Proves that the node's own connections are caught, as far as the rules say that this process's are.
///
/// # Errors
/// [`Error::NotCaught`] with what became of the probe and the likely cause.
pub(crate) async fn prove(rules: &Rules) -> Result<(), Error> {
    if rules.withdrawing || rules.host_network == HostNetwork::Off {
        return Ok(());
    }
    let metadata = SocketAddrV4::new(rules.metadata, rules.metadata_port);
    let not_caught = |outcome: String, next| Error::NotCaught {
        metadata,
        outcome,
        next,
    };
    let connected = connect(metadata).await;
    let probe = connected.map_err(|error| not_caught(error.to_string(), REFUSED))?;
    let ask = || match probe.local_addr()? {
        SocketAddr::V4(caller) => is_caught(metadata, caller),
        SocketAddr::V6(_) => Ok(false),
    };
    match ask() {
        Ok(true) => Ok(()),
        Ok(false) => Err(not_caught(
            "it was answered from elsewhere".to_owned(),
            PASSED,
        )),
        Err(error) => Err(not_caught(
            format!("the kernel does not say where it ended: {error}"),
            "the kernel needs INET_TCP_DIAG (the module tcp_diag)",
        )),
    }
}

const REFUSED: &str = "a firewall on this node may refuse packets to that address that come in by the loopback device: allow them, and compare `nft list ruleset` and `iptables-save`";
const PASSED: &str = "another program's rules may come before podid's, or with --intercept-host-network=pods another program's eBPF may: compare `nft list ruleset`, `iptables-save` and `bpftool cgroup tree`";

/// A connection of this process's, without the mark by which nmi's own requests pass.
async fn connect(metadata: SocketAddrV4) -> io::Result<TcpStream> {
    match tokio::time::timeout(PROBE_TIMEOUT, TcpStream::connect(metadata)).await {
        Ok(connected) => connected,
        Err(_) => Err(io::Error::new(
            io::ErrorKind::TimedOut,
            format!("no answer in {} s", PROBE_TIMEOUT.as_secs()),
        )),
    }
}

/// Whether this node itself is the other end of a connection from `caller` to the metadata address.
fn is_caught(metadata: SocketAddrV4, caller: SocketAddrV4) -> io::Result<bool> {
    let request = InetRequest {
        family: AF_INET,
        protocol: IPPROTO_TCP,
        extensions: ExtensionFlags::empty(),
        states: StateFlags::all(),
        socket_id: SocketId {
            source_address: (*metadata.ip()).into(),
            source_port: metadata.port(),
            destination_address: (*caller.ip()).into(),
            destination_port: caller.port(),
            interface_id: 0,
            cookie: NO_COOKIE,
        },
    };
    let mut requests = Requests::open(NETLINK_SOCK_DIAG)?;
    match requests.ask(SockDiagMessage::InetRequest(request)) {
        // Without such a connection the kernel finds who listens at the address.
        Ok(SockDiagMessage::InetResponse(found)) => Ok(found.header.state != TCP_LISTEN),
        Ok(_) => Ok(false),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}
