//! veth lookup by rtnetlink: which link leads to an address, and which network namespace is at its other end. NMI's attestation asks it
//! who a caller is, because the kernel knows before the API server does.
//!
//! A connection's replies take the route to the caller's address. Where each pod has a veth pair, that route names the pod's own
//! link; behind a bridge, the neighbour and forwarding tables name the port. The other end is in the pod's network namespace, for
//! which the kernel has a number (`RTM_GETNSID`, rtnetlink(7)) that can be compared with the number of a process's namespace.

use std::io;
use std::net::IpAddr;

use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage};
use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage};
use netlink_packet_route::nsid::{NsidAttribute, NsidMessage};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;

use crate::netlink::Requests;

/// The number that this network namespace has for another one. Reused after that one is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NamespaceId(pub i32);

/// A link of the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link {
    /// The network namespace at its other end; `None` when it is not one end of a pair.
    pub peer: Option<NamespaceId>,
    /// Whether it is a port of a bridge, where a pod can take another's address (ARP) and give it back at any moment.
    pub bridged: bool,
}

/// Asks the kernel about links. The kernel answers at once, so nothing here waits.
pub struct Links {
    requests: Requests,
}

impl Links {
    /// Opens a socket to ask with.
    ///
    /// # Errors
    /// The operating system's, when a netlink socket cannot be had.
    pub fn open() -> io::Result<Self> {
        Ok(Self {
            requests: Requests::open(NETLINK_ROUTE)?,
        })
    }

    /// The link that replies to `address` take.
    ///
    /// # Errors
    /// When there is none, or the kernel does not say.
    pub fn towards(&mut self, address: IpAddr) -> io::Result<Link> {
        let index = self.route(address)?;
        let first = self.link(index)?;
        if !is_bridge(&first) {
            let bridged = attribute(&first.attributes, |a| match a {
                LinkAttribute::Controller(_) => Some(()),
                _ => None,
            });
            return Ok(Link {
                peer: peer(&first),
                bridged: bridged.is_some(),
            });
        }
        let hardware = self.neighbour(address, index)?;
        let port = self.port(hardware, index)?;
        Ok(Link {
            peer: peer(&self.link(port)?),
            bridged: true,
        })
    }

    /// The network namespace of a process; `None` while the kernel has given it no number, as when no link leads there.
    ///
    /// # Errors
    /// When there is no such process.
    pub fn namespace_of(&mut self, pid: u32) -> io::Result<Option<NamespaceId>> {
        let mut ask = NsidMessage::default();
        ask.attributes.push(NsidAttribute::Pid(pid));
        match self.requests.ask(RouteNetlinkMessage::GetNsId(ask))? {
            RouteNetlinkMessage::NewNsId(answer) => {
                Ok(attribute(&answer.attributes, |a| match a {
                    NsidAttribute::Id(id) if *id >= 0 => Some(NamespaceId(*id)),
                    _ => None,
                }))
            }
            other => Err(unexpected(&other)),
        }
    }

    fn route(&mut self, address: IpAddr) -> io::Result<u32> {
        let mut ask = RouteMessage::default();
        let (family, length, destination) = match address {
            IpAddr::V4(ip) => (AddressFamily::Inet, 32, RouteAddress::Inet(ip)),
            IpAddr::V6(ip) => (AddressFamily::Inet6, 128, RouteAddress::Inet6(ip)),
        };
        ask.header.address_family = family;
        ask.header.destination_prefix_length = length;
        ask.attributes
            .push(RouteAttribute::Destination(destination));
        match self.requests.ask(RouteNetlinkMessage::GetRoute(ask))? {
            RouteNetlinkMessage::NewRoute(answer) => attribute(&answer.attributes, |a| match a {
                RouteAttribute::Oif(index) => Some(*index),
                _ => None,
            })
            .ok_or_else(|| missing("the route names no link")),
            other => Err(unexpected(&other)),
        }
    }

    fn link(&mut self, index: u32) -> io::Result<LinkMessage> {
        let mut ask = LinkMessage::default();
        ask.header.index = index;
        match self.requests.ask(RouteNetlinkMessage::GetLink(ask))? {
            RouteNetlinkMessage::NewLink(answer) => Ok(answer),
            other => Err(unexpected(&other)),
        }
    }

    fn neighbour(&mut self, address: IpAddr, bridge: u32) -> io::Result<Vec<u8>> {
        let mut ask = NeighbourMessage::default();
        let (family, destination) = match address {
            IpAddr::V4(ip) => (AddressFamily::Inet, NeighbourAddress::Inet(ip)),
            IpAddr::V6(ip) => (AddressFamily::Inet6, NeighbourAddress::Inet6(ip)),
        };
        ask.header.family = family;
        ask.header.ifindex = bridge;
        ask.attributes
            .push(NeighbourAttribute::Destination(destination));
        let answer = self.neighbour_entry(ask)?;
        attribute(&answer.attributes, |a| match a {
            NeighbourAttribute::LinkLayerAddress(bytes) => Some(bytes.clone()),
            _ => None,
        })
        .ok_or_else(|| missing("the neighbour has no hardware address"))
    }

    fn port(&mut self, hardware: Vec<u8>, bridge: u32) -> io::Result<u32> {
        let mut ask = NeighbourMessage::default();
        ask.header.family = AddressFamily::Bridge;
        ask.attributes = vec![
            NeighbourAttribute::LinkLayerAddress(hardware),
            NeighbourAttribute::Controller(bridge),
        ];
        Ok(self.neighbour_entry(ask)?.header.ifindex)
    }

    fn neighbour_entry(&mut self, ask: NeighbourMessage) -> io::Result<NeighbourMessage> {
        match self.requests.ask(RouteNetlinkMessage::GetNeighbour(ask))? {
            RouteNetlinkMessage::NewNeighbour(answer) => Ok(answer),
            other => Err(unexpected(&other)),
        }
    }
}

fn attribute<A, T>(attributes: &[A], pick: impl Fn(&A) -> Option<T>) -> Option<T> {
    attributes.iter().find_map(pick)
}

fn is_bridge(link: &LinkMessage) -> bool {
    let kind = attribute(&link.attributes, |a| match a {
        LinkAttribute::LinkInfo(info) => attribute(info, |i| match i {
            LinkInfo::Kind(kind) => Some(kind.clone()),
            _ => None,
        }),
        _ => None,
    });
    kind == Some(InfoKind::Bridge)
}

fn peer(link: &LinkMessage) -> Option<NamespaceId> {
    attribute(&link.attributes, |a| match a {
        LinkAttribute::LinkNetNsId(id) if *id >= 0 => Some(NamespaceId(*id)),
        _ => None,
    })
}

fn missing(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, what)
}

fn unexpected(answer: &RouteNetlinkMessage) -> io::Error {
    let kind = std::mem::discriminant(answer);
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("the kernel answered something else ({kind:?})"),
    )
}
