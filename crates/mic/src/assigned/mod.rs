//! The objects of kind AzureAssignedIdentity: which of them must exist, and the writes that bring that about.
//!
//! ```text
//!   index (an assignment is affected) ──► queue ──► writer ──► reconcile ──► create / patch / remove ──► API server
//!                                           ▲          │                                                    │
//!                                           └─ failed ─┘◄────────────────── the answer goes into the index ─┘
//! ```
//!
//! [`object`] is what the index keeps of an object, [`copies`] the copies of AzureIdentity and AzureIdentityBinding inside it,
//! [`reconcile`] the decision, [`queue`] the work queue and [`writer`] the tasks that write.

pub(crate) mod copies;
pub(crate) mod object;
pub(crate) mod queue;
pub(crate) mod reconcile;
pub(crate) mod writer;
