//! Everything that podid says to an API server, except what it decides.

pub mod lease;
pub mod watch;
