//! Connection context: what stays true of a caller for as long as its connection is open.
//!
//! `http/server.rs` makes one per accepted connection. It guards against an address that passes to another pod: the first pod that
//! a request resolves to is pinned, and requests of any other are refused.
//!
//! ```text
//!  accepted ──first request──► pinned to a pod's uid ──attested──► attested   (not looked at again)
//!                                   │          │
//!                                   │          └──evidence that can pass to another pod──► attested anew for each request
//!                                   └──the address is another pod's──► refused: ChangedHands
//! ```

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use podid_policy::facts::PodFacts;

use crate::caller::attest::{Attestor, Evidence, LinkPeer};
use crate::caller::index::Caller;
use crate::context::Context;
use crate::refusal::Refusal;

/// One open connection of a caller.
pub(crate) struct ConnectionContext {
    /// The address that it comes from.
    pub(crate) peer: IpAddr,
    /// Whether a program of the node has the other end, which runs as root on the host's network.
    pub(crate) is_root_of_node: bool,
    attestor: Option<Arc<Attestor>>,
    /// The uid of the pod that opened it.
    uid: OnceLock<Arc<str>>,
    /// The uid of the pod that the kernel says it comes from.
    kernel_uid: OnceLock<Arc<str>>,
    /// Whether the evidence holds for the whole connection.
    attested: AtomicBool,
}

impl ConnectionContext {
    /// A connection from `peer` that has brought no request yet. Without an attestor the address alone counts.
    pub(crate) fn new(peer: IpAddr, attestor: Option<Arc<Attestor>>) -> Self {
        Self {
            peer,
            is_root_of_node: false,
            attestor,
            uid: OnceLock::new(),
            kernel_uid: OnceLock::new(),
            attested: AtomicBool::new(false),
        }
    }

    /// Whether `pod` opened it; the first pod that is asked about did.
    pub(crate) fn is_of(&self, pod: &PodFacts) -> bool {
        *self.uid.get_or_init(|| Arc::clone(&pod.uid)) == pod.uid
    }

    /// Which pod the caller is: by its address as the API server has it, else by the kernel's word. `None` until the index is
    /// complete.
    pub(crate) fn caller(&self, context: &Context) -> Option<Caller> {
        let by_address = context.caller(self.peer)?;
        let by_kernel = match (&by_address, self.kernel_uid.get()) {
            (Caller::Unknown | Caller::NotYet, Some(uid)) => context.index.read().pod_with_uid(uid),
            _ => None,
        };
        Some(by_kernel.map_or(by_address, Caller::Pod))
    }

    /// Asks the kernel which pod the caller is, and remembers it.
    pub(crate) async fn ask_kernel(&self, context: &Context) -> LinkPeer {
        let Some(attestor) = &self.attestor else {
            return LinkPeer::None;
        };
        let pods = context.index.read().possible_callers();
        let peer = attestor.identify(&pods, self.peer).await;
        if let LinkPeer::Pod(pod) = &peer {
            self.kernel_uid.get_or_init(|| Arc::clone(&pod.uid));
        }
        peer
    }

    /// Attests that the caller is `pod`.
    ///
    /// # Errors
    /// [`Refusal::NotAttested`] when the node's kernel says that the address is somebody else's.
    pub(crate) async fn attest(&self, pod: &PodFacts) -> Result<(), Refusal> {
        let Some(attestor) = &self.attestor else {
            return Ok(());
        };
        if self.attested.load(Ordering::Relaxed) {
            return Ok(());
        }
        match attestor.look(pod, self.peer).await {
            Evidence::Genuine { fleeting } => {
                self.attested.store(!fleeting, Ordering::Relaxed);
                Ok(())
            }
            Evidence::None if pod.addresses.contains(&self.peer) => Ok(()),
            Evidence::None | Evidence::Other => Err(Refusal::NotAttested {
                pod: pod.key.clone(),
                address: self.peer,
            }),
        }
    }
}
