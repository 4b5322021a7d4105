//! Scenarios of the controller against a simulated cluster and a simulated Azure, in accelerated time: those of AAD Pod Identity's
//! end-to-end tests, and what they leave out.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

mod faults;
mod federation;
mod hosts;
mod kills;
mod original;
mod world;
