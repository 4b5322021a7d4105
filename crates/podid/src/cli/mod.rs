//! The command line: a file a command.

mod crds;

use std::io::Write as _;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Azure identities for Kubernetes pods.
#[derive(Parser)]
#[command(version, propagate_version = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Crds(crds::Crds),
}

impl Cli {
    /// Runs the command; failures are told on standard error with their causes and give exit code 1.
    pub fn run(self) -> ExitCode {
        let Self { command } = self;
        let outcome = match command {
            Command::Crds(crds) => crds.run(),
        };
        match outcome {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                // Nobody is left to tell when standard error is closed.
                let _ = writeln!(std::io::stderr(), "podid: {error:#}");
                ExitCode::FAILURE
            }
        }
    }
}
