//! What a caller is granted, and its token.

pub(crate) mod cache;
pub(crate) mod grant;
mod imds_limiter;
pub(crate) mod instrumented;
pub(crate) mod object_id;
pub(crate) mod prefetch;
pub(crate) mod request;
pub(crate) mod secret_watch;
mod service_principal;
pub(crate) mod source;
