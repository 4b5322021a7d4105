//! Token request: what the query of a request asks for, parsed. `http/target.rs` makes it; `grant.rs` grants or refuses it.

use std::borrow::Cow;

use podid_policy::ids::ClientId;
use podid_policy::verdict::RequestedIdentity;

/// Longest `resource` in bytes; every known one is far shorter.
pub(crate) const MAX_RESOURCE: usize = 1024;

/// What a request for a token asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TokenRequest<'a> {
    /// The audience of the token, byte for byte as the client says it.
    pub(crate) resource: Cow<'a, str>,
    /// Which identity is wanted.
    pub(crate) selector: IdentitySelector,
    /// Whether a token must be fetched although one is cached.
    pub(crate) bypass_cache: bool,
}

/// How a request names an identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct IdentitySelector {
    /// What the rules are asked for; with an object id `RequestedIdentity::Object(None)` until `object_id.rs` has resolved it.
    pub(crate) wanted: RequestedIdentity,
    /// The object id, where the request has one; it is a GUID as client ids are.
    pub(crate) object_id: Option<ClientId>,
}
