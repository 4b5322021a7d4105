//! The server's state.
use super::{Config, faults::Faults};

#[derive(Debug)]
pub(super) struct Server {
    config: Config,
    faults: Faults,
}

impl Server {
    pub(super) fn new(config: Config) -> Self {
        Self {
            config,
            faults: Faults::new(),
        }
    }
    pub(super) fn config(&self) -> &Config {
        &self.config
    }
    pub(super) fn faults(&self) -> &Faults {
        &self.faults
    }
    pub(super) fn compact(&self) {}
}
