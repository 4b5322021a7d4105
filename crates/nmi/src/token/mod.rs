//! What a caller is granted, and its token.

pub(crate) mod cache;
pub(crate) mod grant;
pub(crate) mod imds_limiter;
pub(crate) mod measured;
pub(crate) mod object_id;
pub(crate) mod prefetch;
pub(crate) mod request;
pub(crate) mod secret_watch;
pub(crate) mod service_principal;
pub(crate) mod source;
