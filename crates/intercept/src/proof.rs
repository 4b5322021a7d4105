//! Self-test of interception: a probe connection of nmi's own that the rules must catch. The keeper makes one at its start, after every
//! change and after every interval, and interception is in place only if it was caught.
//!
//! ```text
//! keeper ── connect, without nmi's mark ──► 169.254.169.254:80
//!        ── sock_diag(7): has this node a socket at 169.254.169.254:80 whose peer is the probe? ──► caught, or not
//! ```
//!
//! The evidence is the kernel's: only a transparent socket of this node can have that address. The probe sends nothing, so that it is
//! no request to the server that answers it. It proves what holds for senders like itself, which are those of the host's network. A
//! probe from another place, such as a network namespace of its own, needs another [`connect`] and the same [`has_socket`].

use std::io;
use std::net::{SocketAddr, SocketAddrV4};
use std::time::Duration;

use tokio::net::TcpStream;

use crate::error::Likely;
use crate::sockets::has_socket;
use crate::{Error, HostNetwork, Rules};

/// Time for the probe's connect; the kernel sends a lost SYN again after 1 and 3 s.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);

/// Proves that the node's own connections are caught, as far as the rules say that this process's are.
///
/// # Errors
/// [`Error::NotCaught`] with what became of the probe and the likely cause.
pub(crate) async fn prove(rules: &Rules) -> Result<(), Error> {
    if rules.withdrawing || rules.host_network == HostNetwork::Off {
        return Ok(());
    }
    let metadata = SocketAddrV4::new(rules.metadata, rules.metadata_port);
    let not_caught = |outcome, likely| Error::NotCaught {
        metadata,
        outcome,
        likely,
    };
    let connected = connect(metadata).await;
    let (_probe, caller) =
        connected.map_err(|error| not_caught(error.to_string(), Likely::Firewall))?;
    // Without the kernel's support both ends seem to be missing.
    match (has_socket(metadata, caller), has_socket(caller, metadata)) {
        (Ok(true), _) => Ok(()),
        (Ok(false), Ok(true)) => Err(not_caught(
            "it was answered from elsewhere".to_owned(),
            Likely::OtherRules,
        )),
        (Err(error), _) | (_, Err(error)) => {
            Err(not_caught(error.to_string(), Likely::NoSocketDiag))
        }
        (Ok(false), Ok(false)) => Err(not_caught(
            "the kernel does not list it".to_owned(),
            Likely::NoSocketDiag,
        )),
    }
}

/// A connection of this process's, without the mark by which nmi's own requests pass, and its own address.
async fn connect(metadata: SocketAddrV4) -> io::Result<(TcpStream, SocketAddrV4)> {
    let connecting = TcpStream::connect(metadata);
    let Ok(connected) = tokio::time::timeout(PROBE_TIMEOUT, connecting).await else {
        return Err(io::Error::new(
            io::ErrorKind::TimedOut,
            format!("no answer in {} s", PROBE_TIMEOUT.as_secs()),
        ));
    };
    let probe = connected?;
    match probe.local_addr()? {
        SocketAddr::V4(caller) => Ok((probe, caller)),
        SocketAddr::V6(_) => Err(io::ErrorKind::AddrNotAvailable.into()),
    }
}
