//! The rules of podid as functions of values: which bindings match a pod, which identities it may use, and the verdict on a
//! token request with its explanation.
//!
//! Nothing here does I/O, is async, or knows Kubernetes clients or HTTP.

pub mod desired;
pub mod facts;
pub mod ids;
pub mod intern;
pub mod matching;
pub mod plan;
pub mod reason;
pub mod verdict;
