//! Connection limit: bounds the connections of one address and of all together.
//!
//! `server.rs` asks it before it speaks TLS. It guards node agents against a pod that opens connections until nobody else gets one.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;

/// Connections of one address at a time: a node agent has a few, and a gateway may stand for some nodes.
const MAX_PER_ADDRESS: usize = 64;
/// Connections of all addresses at a time: more than a cluster has nodes, and each takes some tens of KiB.
const MAX_CONNECTIONS: usize = 8192;

#[derive(Default)]
struct Open {
    by_address: HashMap<IpAddr, usize>,
    total: usize,
}

/// Counts open connections.
#[derive(Clone, Default)]
pub(crate) struct Connections(Arc<Mutex<Open>>);

/// The place of one connection, which ends with it.
pub(crate) struct Permit {
    connections: Connections,
    address: IpAddr,
}

impl Connections {
    /// A place for a connection of this address; `None` when there are too many.
    pub(crate) fn open(&self, address: IpAddr) -> Option<Permit> {
        let mut open = self.0.lock();
        if open.total >= MAX_CONNECTIONS {
            return None;
        }
        let count = open.by_address.entry(address).or_default();
        if *count >= MAX_PER_ADDRESS {
            return None;
        }
        *count += 1;
        open.total += 1;
        Some(Permit {
            connections: self.clone(),
            address,
        })
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut open = self.connections.0.lock();
        open.total -= 1;
        if let Some(count) = open.by_address.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                open.by_address.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_does_not_take_the_places_of_others() {
        let connections = Connections::default();
        let (one, other) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let mut permits: Vec<_> = (0..MAX_PER_ADDRESS)
            .map(|_| connections.open(one))
            .collect();
        assert!(permits.iter().all(Option::is_some));
        assert!(connections.open(one).is_none());
        assert!(connections.open(other).is_some());
        permits.pop();
        assert!(connections.open(one).is_some());
        permits.clear();
        assert_eq!(connections.0.lock().total, 0);
        assert!(connections.0.lock().by_address.is_empty());
    }
}
