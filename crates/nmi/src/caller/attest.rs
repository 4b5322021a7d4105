//! Attestation: evidence from the node itself that a caller is the pod which, by the API server, has its address.
//!
//! Addresses pass from pod to pod, and the news of it may be late; on a bridge one pod can even take another's. The kubelet puts
//! a pod's processes into control groups named after the pod's uid, and the kernel knows which network namespace they are in and
//! which namespace is at the other end of the link that a caller's replies take. Only when both are one is the caller the pod.

use std::net::IpAddr;

use parking_lot::Mutex;
use podid_intercept::{Links, NamespaceId};
use podid_policy::facts::PodFacts;

use crate::caller::processes::Processes;

/// What the evidence says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Evidence {
    /// The caller is the pod.
    Genuine {
        /// Whether it must be looked at again for each request, as the link is a port of a bridge.
        fleeting: bool,
    },
    /// The caller is somebody else, or no process of the pod is left.
    Other,
    /// The address is not at a link that leads to a pod.
    None,
}

/// Looks for evidence.
pub struct Attestor {
    processes: Processes,
    strict: bool,
    links: Mutex<Links>,
}

impl std::fmt::Debug for Attestor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Attestor")
            .field("strict", &self.strict)
            .finish_non_exhaustive()
    }
}

impl Attestor {
    /// An attestor. A strict one takes the lack of evidence for evidence of fraud; use it only where every pod has a pair of
    /// links.
    ///
    /// # Errors
    /// When the kernel cannot be asked about links.
    pub fn open(processes: Processes, strict: bool) -> std::io::Result<Self> {
        Ok(Self {
            processes,
            strict,
            links: Mutex::new(Links::open()?),
        })
    }

    /// Whether whoever has `address` is `pod`. Microseconds for a pod whose processes are known.
    pub async fn look(&self, pod: &PodFacts, address: IpAddr) -> Evidence {
        match self.evidence(&pod.uid, address) {
            Evidence::Other => {}
            decided => return decided,
        }
        self.processes.list().await;
        self.evidence(&pod.uid, address)
    }

    fn evidence(&self, uid: &str, address: IpAddr) -> Evidence {
        let link = match self.links.lock().towards(address) {
            Ok(link) => link,
            Err(error) => {
                tracing::debug!(%address, reason = %error, "the kernel does not say which link an address is at");
                return Evidence::Other;
            }
        };
        match link.peer {
            None if self.strict => Evidence::Other,
            None => Evidence::None,
            Some(there) if self.is_in(uid, there) => Evidence::Genuine {
                fleeting: link.bridged,
            },
            Some(_) => Evidence::Other,
        }
    }

    /// Whether a process of the pod is in the namespace.
    fn is_in(&self, uid: &str, there: NamespaceId) -> bool {
        self.processes.of_pod(uid).into_iter().any(|pid| {
            let namespace = self.links.lock().namespace_of(pid);
            matches!(namespace, Ok(Some(id)) if id == there) && self.processes.is_of_pod(pid, uid)
        })
    }
}
