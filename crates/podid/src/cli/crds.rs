//! `podid crds`.

use std::io::Write as _;

use clap::Args;

/// Print the four CustomResourceDefinitions as YAML, for `kubectl apply -f -`
#[derive(Args)]
pub struct Crds {}

impl Crds {
    /// Prints the definitions.
    pub fn run(self) -> anyhow::Result<()> {
        let Self {} = self;
        std::io::stdout().write_all(podid_api::crds::yaml()?.as_bytes())?;
        Ok(())
    }
}
