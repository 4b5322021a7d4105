//! Netlink multicast: the kernel reports changes of rules and routes, so that the keeper looks at once and not after its interval.
//!
//! The kernel reports changes of nftables (and so of `iptables-nft`), policy rules and routes, but not of `iptables-legacy`.

use std::io;

use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};
use netlink_sys::{Socket, SocketAddr};
use tokio::io::unix::AsyncFd;

/// Multicast group `NFNLGRP_NFTABLES`, fixed by the kernel.
const NFTABLES: u32 = 7;
/// Multicast group `RTNLGRP_IPV4_ROUTE`, fixed by the kernel.
const ROUTES: u32 = 7;
/// Multicast group `RTNLGRP_IPV4_RULE`, fixed by the kernel.
const RULES: u32 = 8;
/// Bytes of the read buffer. A longer message is cut, which does no harm because the content is not read.
const BUFFER: usize = 16 * 1024;

/// A subscription to changes in the network namespace in which it was made.
pub(crate) struct Changes {
    rules: AsyncFd<Socket>,
    routes: AsyncFd<Socket>,
}

impl Changes {
    pub(crate) fn subscribe() -> io::Result<Self> {
        Ok(Self {
            rules: subscribe(NETLINK_NETFILTER, &[NFTABLES])?,
            routes: subscribe(NETLINK_ROUTE, &[ROUTES, RULES])?,
        })
    }

    /// Returns when something changed since it was last called.
    pub(crate) async fn next(&self) -> io::Result<()> {
        tokio::select! {
            heard = hear(&self.rules) => heard,
            heard = hear(&self.routes) => heard,
        }
    }
}

#[allow(
    unsafe_code,
    reason = "tokio has no safe way for a socket that it does not know"
)]
fn subscribe(protocol: isize, groups: &[u32]) -> io::Result<AsyncFd<Socket>> {
    let mut socket = Socket::new(protocol)?;
    socket.bind(&SocketAddr::new(0, 0))?;
    socket.set_non_blocking(true)?;
    for &group in groups {
        socket.add_membership(group)?;
    }
    // SAFETY: a `Socket` has the same open descriptor until it is dropped, and nothing but the result can drop it.
    let registered = unsafe { AsyncFd::register(socket) };
    Ok(registered?)
}

async fn hear(socket: &AsyncFd<Socket>) -> io::Result<()> {
    let mut heard = false;
    let mut buffer = Vec::with_capacity(BUFFER);
    loop {
        let mut ready = socket.readable().await?;
        // Reads until nothing is left, because tokio reports only what comes after that.
        while let Ok(outcome) = ready.try_io(|socket| {
            buffer.clear();
            socket.get_ref().recv(&mut buffer, 0)
        }) {
            match outcome {
                Ok(_) => heard = true,
                // The kernel dropped messages because too many waited.
                Err(error) if error.raw_os_error() == Some(ENOBUFS) => heard = true,
                Err(error) => return Err(error),
            }
        }
        if heard {
            return Ok(());
        }
    }
}

/// No buffer space: messages were lost.
const ENOBUFS: i32 = rustix::io::Errno::NOBUFS.raw_os_error();
