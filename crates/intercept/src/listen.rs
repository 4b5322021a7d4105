//! Transparent listening socket (`IP_TRANSPARENT`), at which intercepted connections arrive. `podid nmi` opens it.

use std::io;
use std::net::{SocketAddr, TcpListener};

use socket2::{Domain, Protocol, Socket, Type};

/// Connections that wait for `accept`; a burst of pods that start at once fits in.
const BACKLOG: i32 = 1024;

/// A listener at `addr` (port 0: any), non-blocking, which may be bound again at once after a restart.
///
/// A `transparent` one takes intercepted connections: `peer_addr` of an accepted socket is the caller's own address and
/// `local_addr` the address that it asked for. One that is not transparent gets none of them.
///
/// # Errors
/// What the system said; for a transparent listener without the capability `NET_ADMIN`, permission denied with a sentence that says so.
pub fn listen(addr: SocketAddr, transparent: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if transparent {
        allow_transparent(&socket2::SockRef::from(&socket), addr)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into()).map_err(|error| {
        io::Error::new(error.kind(), format!("cannot listen on {addr}: {error}"))
    })?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

pub(crate) fn allow_transparent(socket: &Socket, addr: SocketAddr) -> io::Result<()> {
    if addr.is_ipv6() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{addr}: interception is IPv4 only, give an IPv4 address"),
        ));
    }
    socket.set_ip_transparent_v4(true).map_err(|error| {
        io::Error::new(
            error.kind(),
            format!("cannot take intercepted connections: {error}; podid nmi needs the capability NET_ADMIN"),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpStream;

    #[test]
    fn the_port_can_be_bound_again_right_after_a_served_connection() {
        let first = listen("127.0.0.1:0".parse().unwrap(), false).unwrap();
        let addr = first.local_addr().unwrap();
        let client = TcpStream::connect(addr).unwrap();
        first.set_nonblocking(false).unwrap();
        let (served, _) = first.accept().unwrap();
        drop(served);
        drop(client);
        drop(first);
        assert_eq!(listen(addr, false).unwrap().local_addr().unwrap(), addr);
    }

    #[test]
    fn a_port_in_use_is_named() {
        let first = listen("127.0.0.1:0".parse().unwrap(), false).unwrap();
        let addr = first.local_addr().unwrap();
        let error = listen(addr, false).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        assert!(error.to_string().contains(&addr.to_string()), "{error}");
    }

    #[test]
    fn an_ipv6_address_cannot_intercept() {
        let error = listen("[::1]:0".parse().unwrap(), true).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
}
