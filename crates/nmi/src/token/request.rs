//! Token request: what the query of a request asks for, parsed. `http/target.rs` makes it; `grant.rs` grants or refuses it.

use std::borrow::Cow;

use podid_policy::verdict::RequestedIdentity;

/// Longest `resource` in bytes; every known one is far shorter.
pub(crate) const MAX_RESOURCE: usize = 1024;

/// What a request for a token asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TokenRequest<'a> {
    /// The audience of the token, byte for byte as the client says it.
    pub(crate) resource: Cow<'a, str>,
    /// Which identity is wanted; one that is named by object id is not resolved yet (`object_id.rs`).
    pub(crate) wanted: RequestedIdentity,
    /// Whether a token must be fetched although one is cached.
    pub(crate) bypass_cache: bool,
}
