//! Everything that speaks HTTP to callers.

pub(crate) mod drain;
pub(crate) mod error_body;
pub(crate) mod host_token;
pub(crate) mod info;
pub(crate) mod log_limit;
pub(crate) mod passthrough;
pub(crate) mod rate_limit;
pub(crate) mod request;
pub(crate) mod response;
pub(crate) mod server;
pub(crate) mod target;
