//! HTTP: everything between a socket and a token.
//!
//! | file | what is in it |
//! | --- | --- |
//! | [`server`] | accepts connections and serves their requests |
//! | [`request`] | routes a request, logs and counts the outcome |
//! | [`target`] | parses the request target: endpoint, query, percent-decoding |
//! | [`response`] | renders tokens and refusals |
//! | [`info`] | endpoints that podid answers beside tokens |
//! | [`passthrough`] | requests that the metadata service answers itself; hop-by-hop headers |
//! | [`host_token`] | the Unix socket for programs of the node |
//! | [`rate_limit`], [`log_limit`] | bounds per pod, and for the log |
//! | [`error_body`] | bodies for hyper's own error responses |
//! | [`drain`] | graceful drain of connections |
//!
//! The room `lifecycle` uses it; it uses the rooms `token` and `caller`.

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
