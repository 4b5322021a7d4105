//! A pod's share of connections, so that a noisy one does not starve its neighbours.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;

/// Requests on connections beyond this are answered with 429.
const SHARE: usize = 128;
/// Connections beyond this are closed at once.
const LIMIT: usize = 256;

/// Open connections by address.
#[derive(Debug, Default)]
pub struct Connections(Mutex<HashMap<IpAddr, usize>>);

/// One open connection.
#[derive(Debug)]
pub struct Connection {
    all: Arc<Connections>,
    address: IpAddr,
}

impl Connections {
    /// Counts a new connection; `None` when the address has too many.
    pub fn open(self: &Arc<Self>, address: IpAddr) -> Option<Connection> {
        let mut open = self.0.lock();
        let count = open.entry(address).or_default();
        if *count >= LIMIT {
            return None;
        }
        *count += 1;
        Some(Connection {
            all: Arc::clone(self),
            address,
        })
    }
}

impl Connection {
    /// Whether its pod has more than its share.
    pub fn is_beyond_share(&self) -> bool {
        self.all
            .0
            .lock()
            .get(&self.address)
            .is_some_and(|count| *count > SHARE)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let mut open = self.all.0.lock();
        if let Some(count) = open.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_noisy_pod_does_not_count_against_its_neighbour() {
        let all = Arc::new(Connections::default());
        let (noisy, quiet) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let mut held: Vec<_> = std::iter::from_fn(|| all.open(noisy)).collect();
        assert_eq!(held.len(), LIMIT);
        assert!(held[0].is_beyond_share());
        let other = all.open(quiet).unwrap();
        assert!(!other.is_beyond_share());
        held.truncate(SHARE);
        assert!(!held[0].is_beyond_share());
        drop((held, other));
        assert!(all.0.lock().is_empty());
    }
}
