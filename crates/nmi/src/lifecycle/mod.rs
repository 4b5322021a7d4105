//! Lifecycle: which node agent of a node serves, and what it serves while it does.
//!
//! | file | what is in it |
//! | --- | --- |
//! | [`takeover`] | hot restart: takeover from the running node agent, and by the next one |
//! | [`servers`] | the listeners and their tasks; the graceful drain of all of them |
//! | [`health`] | `/healthz`, `/readyz` and `/metrics` |
//!
//! `lib.rs` starts it. It uses the room `http`, and no room uses it.

pub(crate) mod health;
pub(crate) mod servers;
pub(crate) mod takeover;
