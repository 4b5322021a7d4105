//! `podid mic` on a real kube-apiserver: take-over, and what kubectl shows.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

mod kubectl;
mod takeover;
mod world;
