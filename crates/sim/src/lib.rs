//! Simulators, from memory: an Azure ([`azure`]) and a Kubernetes API server ([`cluster`]).
//!
//! `podid demo` and `podid sim` run them, and most tests do: they are quick, and faults can be injected into both. Each begins
//! with `bind`, which opens its ports and says where they are, and goes on with `run` until a token is cancelled:
//!
//! ```text
//!                  azure::Azure ── control() ──► azure::Control   identities, hosts, roles, faults, journal
//! test or demo ──┤
//!                  cluster::Cluster ── faults() ──► cluster::FaultInjector   latency, refusals, cut watches
//! ```
//!
//! What a simulator answers is held to the real thing: the cluster by one list of questions that a real kube-apiserver is asked
//! too (`tests/conformance`), Azure by the tests of podid's own clients of it.

pub mod azure;
pub mod cluster;
