//! Who is calling.

pub mod attest;
pub mod index;
pub(crate) mod lookup;
pub(crate) mod pods;
pub(crate) mod watches;
