//! What people are told.

pub(crate) mod conditions;
pub(crate) mod events;
