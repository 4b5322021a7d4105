//! What the controller must do, against a simulated cluster and a simulated Azure with time under control: the scenarios of
//! AAD Pod Identity's end-to-end tests that concern it, by their numbers, and what they leave out.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

mod faults;
mod hosts;
mod kills;
mod original;
mod world;
