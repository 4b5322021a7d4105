//! Everything said to an API server: watches that feed an index, the leader Lease, Events, status writes, Secrets.

pub mod endpoints_lock;
pub mod error_text;
pub mod events;
#[cfg(test)]
mod fake;
pub mod lease;
pub mod lenient;
pub mod secrets;
pub mod status;
pub mod taint;
pub mod watch;
