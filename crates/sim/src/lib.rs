//! The simulators: an Azure and a Kubernetes API from memory, for the demo, for faults, and for speed.

pub mod azure;
pub mod cluster;
