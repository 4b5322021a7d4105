//! Azure clients of podid: the node's metadata service (IMDS), Entra's token endpoint, and Azure Resource Manager (ARM). The node
//! agent gets tokens of the first two; the controller attaches identities by the third. Nothing here knows Kubernetes.
//!
//! | to do this | look here |
//! | --- | --- |
//! | know a cloud's endpoints: public, sovereign (national) or custom | [`clouds`], [`endpoints::Endpoints`] |
//! | read `azure.json` or the environment | [`config::CloudConfig`] |
//! | get a token of a managed identity | [`imds::Imds`] |
//! | get a token of a service principal | [`entra::Entra`], with a [`certificate::Certificate`], a client secret or a federated assertion |
//! | know why Entra refuses a federated assertion, and who repairs it | [`FederationFault`] |
//! | attach and detach identities | [`arm::Arm`] |
//! | reach Azure, or anything, through the environment's proxy | [`proxy`] |
//! | decide by an error whether to retry | [`Error`], [`ErrorKind`] |
//!
//! Each client is given its endpoint as a value, so that tests and the simulator need no other code.

pub mod arm;
pub mod certificate;
pub mod clouds;
pub mod config;
pub mod endpoints;
pub mod entra;
pub mod error;
#[cfg(test)]
mod fake;
mod fields;
pub mod imds;
mod pfx;
pub mod proxy;
pub mod token;

pub use error::{Error, ErrorKind, FaultOwner, FederationFault, Healing};
pub use token::Token;
