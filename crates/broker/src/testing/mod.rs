//! Fakes for the broker's tests: an API server, Entra, and a broker between them.

mod api;
mod entra;
mod world;

pub(crate) use api::FakeApi;
pub(crate) use entra::FakeEntra;
pub(crate) use world::*;
