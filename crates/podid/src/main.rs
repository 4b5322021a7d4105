//! The program `podid`: Azure identities for Kubernetes pods.
//!
//! ```text
//! main ──► cli ──┬── mic, nmi            the roles of a cluster: flags in, a task of podid-mic or podid-nmi out
//!                ├── status, issuer,     what a person asks and applies
//!                │   crds, boot-rules
//!                ├── manifests ──► manifests/   the objects of an installation
//!                └── demo ──► demo/, sim        without a cluster and without Azure
//! ```

mod cli;
#[cfg(feature = "simulators")]
mod demo;
mod manifests;

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    cli::Cli::parse_from(cli::compat::normalise(std::env::args_os())).run()
}
