//! Everything said to Azure: the metadata service (IMDS), Entra's token endpoint, and Azure Resource Manager.
//!
//! Where they are is a value ([`endpoints::Endpoints`]), so that a simulator is one more place.

pub mod arm;
pub mod certificate;
pub mod clouds;
pub mod config;
pub mod endpoints;
pub mod entra;
pub mod error;
#[cfg(test)]
mod fake;
pub mod imds;
mod pfx;
pub mod token;

pub use error::{Error, ErrorKind};
pub use token::Token;
