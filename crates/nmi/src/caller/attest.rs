//! Attestation: evidence from the node itself that a caller is the pod which, by the API server, has its address.
//!
//! Addresses pass from pod to pod, and the news of it may be late; on a bridge one pod can even take another's. The kubelet puts
//! a pod's processes into control groups named after the pod's uid, and the kernel knows which network namespace they are in and
//! which namespace is at the other end of the link that a caller's replies take. Only when both are one is the caller the pod.
//!
//! The same evidence tells which pod a caller is whose address the API server has not been told yet.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use podid_intercept::{Link, Links, NamespaceId};
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

/// Who is at the other end of the link that leads to an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum LinkPeer {
    /// This pod.
    Pod(Arc<PodFacts>),
    /// Some network namespace, of which it is not known whose it is.
    Unclear,
    /// None: the address is the node's own, or not at a pair of links.
    None,
}

/// What the kernel knows of links; a fake of it answers in tests.
pub(crate) trait Kernel: Send {
    fn towards(&mut self, address: IpAddr) -> io::Result<Link>;
    fn namespace_of(&mut self, pid: u32) -> io::Result<Option<NamespaceId>>;
}

impl Kernel for Links {
    fn towards(&mut self, address: IpAddr) -> io::Result<Link> {
        self.towards(address)
    }

    fn namespace_of(&mut self, pid: u32) -> io::Result<Option<NamespaceId>> {
        self.namespace_of(pid)
    }
}

/// Looks for evidence.
pub struct Attestor {
    /// Without them there is no evidence, and links are still told apart from the rest.
    processes: Option<Processes>,
    strict: bool,
    kernel: Mutex<Box<dyn Kernel>>,
}

impl std::fmt::Debug for Attestor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Attestor")
            .field("strict", &self.strict)
            .finish_non_exhaustive()
    }
}

impl Attestor {
    /// An attestor; without processes the address alone counts. A strict one takes the lack of evidence for evidence of fraud;
    /// use it only where every pod has a pair of links.
    ///
    /// # Errors
    /// When the kernel cannot be asked about links.
    pub fn open(processes: Option<Processes>, strict: bool) -> io::Result<Self> {
        Ok(Self::new(Box::new(Links::open()?), processes, strict))
    }

    pub(crate) fn new(kernel: Box<dyn Kernel>, processes: Option<Processes>, strict: bool) -> Self {
        Self {
            processes,
            strict,
            kernel: Mutex::new(kernel),
        }
    }

    /// Whether whoever has `address` is `pod`. Microseconds for a pod whose processes are known.
    pub async fn look(&self, pod: &PodFacts, address: IpAddr) -> Evidence {
        let Some(processes) = &self.processes else {
            return Evidence::None;
        };
        match self.evidence(&pod.uid, address) {
            Evidence::Other => {}
            decided => return decided,
        }
        processes.list().await;
        self.evidence(&pod.uid, address)
    }

    /// Who of `pods` is the caller at `address`, which the API server gives to none of them.
    pub(crate) async fn identify(&self, pods: &[Arc<PodFacts>], address: IpAddr) -> LinkPeer {
        match (self.link_peer(pods, address), &self.processes) {
            (LinkPeer::Unclear, Some(processes)) => {
                processes.list().await;
                self.link_peer(pods, address)
            }
            (peer, _) => peer,
        }
    }

    fn link_peer(&self, pods: &[Arc<PodFacts>], address: IpAddr) -> LinkPeer {
        let Ok(link) = self.kernel.lock().towards(address) else {
            return LinkPeer::None;
        };
        let Some(there) = link.peer else {
            return LinkPeer::None;
        };
        // On a bridge a pod can answer for its neighbour's address, and so would be taken for a neighbour that has just started.
        // A pod that has an address of its own is therefore known by that one only.
        let counts = |pod: &PodFacts| !link.bridged || pod.addresses.is_empty();
        let mut found = pods
            .iter()
            .filter(|pod| counts(pod) && self.is_in(&pod.uid, there));
        match (found.next(), found.next()) {
            (Some(pod), None) => LinkPeer::Pod(Arc::clone(pod)),
            _ => LinkPeer::Unclear,
        }
    }

    fn evidence(&self, uid: &str, address: IpAddr) -> Evidence {
        let link = match self.kernel.lock().towards(address) {
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
        let Some(processes) = &self.processes else {
            return false;
        };
        processes.of_pod(uid).into_iter().any(|pid| {
            let namespace = self.kernel.lock().namespace_of(pid);
            matches!(namespace, Ok(Some(id)) if id == there) && processes.is_of_pod(pid, uid)
        })
    }
}
