//! Who is calling.

pub(crate) mod attest;
pub(crate) mod connection;
pub(crate) mod index;
pub(crate) mod lookup;
pub(crate) mod pods;
pub(crate) mod processes;
pub(crate) mod watches;
