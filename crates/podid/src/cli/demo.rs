//! `podid demo`: the flags of the demo.

use clap::{Args, ValueEnum};

use super::run;
use crate::demo;

/// Show the whole story on this machine: no root, no cluster, no Azure
///
/// Starts a simulated cluster and a simulated Azure, mic and nmi, and walks through the steps from an identity to a token, and through what must not happen.
#[derive(Args)]
pub struct Demo {
    /// Leave everything running at the end, and say how to play with it
    #[arg(long)]
    keep: bool,
    /// How the steps are told
    #[arg(long, short, value_enum, value_name = "FORM", default_value_t = Form::Text)]
    output: Form,
}

#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// For people.
    Text,
    /// One JSON object at the end.
    Json,
}

impl Demo {
    /// Exit code 1 when a step did not happen.
    pub fn run(self) -> anyhow::Result<()> {
        let Self { keep, output } = self;
        if std::env::var_os("RUST_LOG").is_some() {
            let logs = tracing_subscriber::fmt()
                .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
                .with_writer(std::io::stderr);
            // A second start in one process keeps the first.
            let _ = logs.try_init();
        }
        run::block_on(0, demo::run(keep, output == Form::Json))
    }
}
