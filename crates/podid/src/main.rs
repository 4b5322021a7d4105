//! `podid`: Azure identities for Kubernetes pods.

mod cli;
#[cfg(feature = "simulators")]
mod demo;
mod manifests;

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    cli::Cli::parse_from(cli::compat::normalise(std::env::args_os())).run()
}
