//! Policy of podid, as functions of values: which pod gets which identity and why not, which assignments must exist, and what to
//! attach to a host and detach from it. The controller and the node agent bring the objects and carry out the decisions; nothing
//! here does I/O, is async, or knows Kubernetes clients or HTTP.
//!
//! ```text
//!  objects ──► facts ──► matching ──► verdict: authorization of one token request (node agent)
//!   (podid-api)             │
//!                           └───────► desired: assignments that must exist ──► plan: diff of one host (controller)
//! ```
//!
//! Start with [`facts`] for the values that go in, [`matching`] for the rule itself, and [`verdict::authorize`] and
//! [`desired::DesiredState`] for its two uses. [`ids`] has Azure's names, which compare without regard to case. [`mod@issuer`] stands
//! by itself: whether Entra can use the cluster's OIDC issuer. [`federation`] has the names that the roles agree on for identities
//! whose tokens come by federation.

pub mod desired;
pub mod facts;
pub mod federation;
pub mod ids;
pub mod intern;
pub mod issuer;
pub mod matching;
pub mod plan;
pub mod reason;
pub mod verdict;
