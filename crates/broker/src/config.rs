//! Config: the settings of the broker. `podid broker` makes it of its flags.

use std::net::SocketAddr;
use std::time::Duration;

use podid_policy::facts::ObjectKey;
use podid_policy::matching::Scope;

/// Settings of the broker.
#[derive(Debug, Clone)]
pub struct Config {
    /// The namespace that the broker runs in; the Secret and the ConfigMap of its CA are there.
    pub namespace: String,
    /// The name of this Secret and of this ConfigMap.
    pub authority_object: String,
    /// The names and addresses in the server's certificate.
    pub server_names: Vec<String>,
    /// How far bindings reach.
    pub scope: Scope,
    /// The node agent's service account, which may ask for tokens.
    pub nmi_account: ObjectKey,
    /// The controller's service account, which may ask for checks.
    pub mic_account: ObjectKey,
    /// The tenant of AzureIdentities that name none.
    pub tenant: Option<String>,
    /// The audience of assertions for AzureIdentities that name none.
    pub assertion_audience: String,
    /// The resource whose token is exchanged for a check: one that every tenant has.
    pub check_resource: String,
    /// The shortest remaining life of a token that is served; clients treat one with less than 300 s as expired.
    pub token_floor: Duration,
    /// Where the HTTPS endpoints are served.
    pub listen: SocketAddr,
    /// Where `/healthz` and `/readyz` are served.
    pub probe: SocketAddr,
    /// Where `/metrics` is served.
    pub metrics: SocketAddr,
}
