//! The broker as its clients see it, over TLS, between a fake API server and a fake Entra.

mod bounds;
mod exchange;
mod refusals;
mod rotation;
