//! Sockets of this network namespace, asked of the kernel (sock_diag(7)): whether there is one with given addresses, and whose it is.
//!
//! `proof` asks whether a probe was caught; the node agent asks for the user at the other end of a loopback connection.

use std::io;
use std::net::SocketAddrV4;

use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::constants::{AF_INET, IPPROTO_TCP, TCP_ESTABLISHED, TCP_LISTEN};
use netlink_packet_sock_diag::inet::{
    ExtensionFlags, InetRequest, InetResponseHeader, SocketId, StateFlags,
};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;

use crate::netlink::Requests;

/// `INET_DIAG_NOCOOKIE` of linux/inet_diag.h: the socket is known by its addresses alone.
const NO_COOKIE: [u8; 8] = [0xff; 8];

/// Whether this network namespace has a connected socket with these two addresses.
pub(crate) fn has_socket(local: SocketAddrV4, peer: SocketAddrV4) -> io::Result<bool> {
    // Where no connection has the addresses, the kernel finds who listens at the local one.
    let found = find(local, peer)?;
    Ok(found.is_some_and(|socket| socket.state != TCP_LISTEN))
}

/// The user who owns the established socket with these two addresses; `None` where this network namespace has no such socket.
///
/// # Errors
/// The kernel cannot be asked.
pub fn socket_owner(local: SocketAddrV4, peer: SocketAddrV4) -> io::Result<Option<u32>> {
    let found = find(local, peer)?;
    // The kernel shows root as the owner of a socket that no process has any more, which has no inode.
    let owned = found.filter(|socket| socket.state == TCP_ESTABLISHED && socket.inode != 0);
    Ok(owned.map(|socket| socket.uid))
}

fn find(local: SocketAddrV4, peer: SocketAddrV4) -> io::Result<Option<InetResponseHeader>> {
    let request = InetRequest {
        family: AF_INET,
        protocol: IPPROTO_TCP,
        extensions: ExtensionFlags::empty(),
        states: StateFlags::all(),
        socket_id: SocketId {
            source_address: (*local.ip()).into(),
            source_port: local.port(),
            destination_address: (*peer.ip()).into(),
            destination_port: peer.port(),
            interface_id: 0,
            cookie: NO_COOKIE,
        },
    };
    let mut requests = Requests::open(NETLINK_SOCK_DIAG)?;
    match requests.ask(SockDiagMessage::InetRequest(request)) {
        Ok(SockDiagMessage::InetResponse(found)) => Ok(Some(found.header)),
        Ok(_) => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
    use std::os::unix::fs::MetadataExt as _;

    fn v4(address: io::Result<SocketAddr>) -> SocketAddrV4 {
        match address.unwrap() {
            SocketAddr::V4(address) => address,
            SocketAddr::V6(address) => unreachable!("{address}"),
        }
    }

    #[test]
    fn the_owner_of_a_connected_socket_is_told_and_of_nothing_else() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (ours, theirs) = (v4(listener.local_addr()), v4(client.local_addr()));
        let user = std::fs::metadata("/proc/self").unwrap().uid();
        assert_eq!(socket_owner(theirs, ours).unwrap(), Some(user));
        let another = SocketAddrV4::new([127, 0, 0, 2].into(), theirs.port());
        assert_eq!(socket_owner(another, ours).unwrap(), None);
        // Nobody has it any more, and the kernel would say that it is root's.
        client.shutdown(Shutdown::Write).unwrap();
        drop(client);
        assert_eq!(socket_owner(theirs, ours).unwrap(), None);
    }
}
