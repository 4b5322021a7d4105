//! `podid`: Azure identities for Kubernetes pods.

mod cli;
mod demo;

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    cli::Cli::parse_from(cli::compat::normalise(std::env::args_os())).run()
}
