//! Endpoints of one cloud, as a value. `clouds.rs` makes it, and each client takes its part.

use reqwest::Url;

/// The address of the metadata service, the same on every node.
pub const IMDS: &str = "http://169.254.169.254";

/// The three services that podid talks to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoints {
    /// The metadata service, without a path.
    pub imds: Url,
    /// Entra: the authority's base URL, without a tenant.
    pub authority: Url,
    /// Azure Resource Manager.
    pub arm: Url,
    /// The resource that a token for Azure Resource Manager is asked for; ARM compares it byte for byte, the final slash included.
    pub arm_audience: String,
}

/// `base` with further path segments, each percent-encoded.
pub(crate) fn join(base: &Url, segments: &[&str]) -> Url {
    let mut url = base.clone();
    // Only URLs that cannot have a path refuse, and `Endpoints` holds http(s) URLs.
    if let Ok(mut path) = url.path_segments_mut() {
        path.pop_if_empty().extend(segments);
    }
    url
}
