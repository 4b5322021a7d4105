//! From the first accepted connection to the last answer.

pub(crate) mod health;
pub(crate) mod servers;
pub(crate) mod takeover;
