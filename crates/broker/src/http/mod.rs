//! HTTPS: the endpoints of the broker protocol, and the probes.
//!
//! | file | what is in it |
//! | --- | --- |
//! | [`server`] | accepts connections, speaks TLS, drains |
//! | [`connections`] | the connection limit per address |
//! | [`request`] | one request from its head to its response |
//! | [`audit`] | the log lines about who got what |
//! | [`health`] | the probes and the metrics |

pub(crate) mod audit;
pub(crate) mod connections;
pub(crate) mod health;
pub(crate) mod request;
pub(crate) mod server;
