//! Request target: parses path and query, with percent-decoding and path normalisation, into an endpoint and what is asked for.
//!
//! `request.rs` and `host_token.rs` call it. It guards `/metadata/identity` of the metadata service: only exact spellings of known
//! endpoints are endpoints, and whatever any reader could take for that path is recognised and refused.

use std::borrow::Cow;

use podid_policy::ids::{ClientId, ResourceId};
use podid_policy::verdict::RequestedIdentity;

use crate::refusal::QueryError;
use crate::token::request::{IdentitySelector, MAX_RESOURCE, TokenRequest};

/// Longest target in bytes: a resource and a resource id at their longest, percent-encoded.
pub(crate) const MAX_TARGET: usize = 8 * 1024;
/// The first version of the protocol that has identities.
const FIRST_API_VERSION: &str = "2018-02-01";

/// The newest known versions of the protocol, which a client without a valid one is told.
pub(crate) const NEWEST_VERSIONS: [&str; 3] = ["2025-04-07", "2024-07-17", "2024-03-15"];

/// Which endpoint a path names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Endpoint<'a> {
    /// The token endpoint.
    Token,
    /// The endpoint that says the tenant of the caller's identity.
    Info,
    /// Another path under `/metadata/identity`, or an inexact spelling of it: neither answered nor forwarded.
    Identity,
    /// AAD Pod Identity's endpoint for programs of the node.
    Host,
    /// Another category of metadata, such as `instance`, in a spelling that has one meaning.
    Category(&'a str),
    /// A path that the metadata service does not have.
    Unknown,
}

/// The endpoint that a path names.
pub(crate) fn endpoint(path: &str) -> Endpoint<'_> {
    match exact(path) {
        Some("identity/oauth2/token") => return Endpoint::Token,
        Some("identity/info") => return Endpoint::Info,
        _ => {}
    }
    if is_host(path) {
        return Endpoint::Host;
    }
    if let Some(category) = category(path) {
        return Endpoint::Category(category);
    }
    let segments = normalised(path);
    let is = |n: usize, name: &str| {
        segments
            .get(n)
            .is_some_and(|s| s.eq_ignore_ascii_case(name))
    };
    if is(0, "metadata") && segments.get(1).is_none_or(|_| is(1, "identity")) {
        Endpoint::Identity
    } else {
        Endpoint::Unknown
    }
}

/// What follows `metadata/` in the spellings that SDKs use: `metadata` in any case, two slashes in front (Java), one at the end
/// (JavaScript).
fn exact(path: &str) -> Option<&str> {
    let path = path.strip_prefix('/').unwrap_or(path);
    let path = path.strip_prefix('/').unwrap_or(path);
    let path = path.strip_suffix('/').unwrap_or(path);
    let (root, rest) = path.split_once('/')?;
    root.eq_ignore_ascii_case("metadata").then_some(rest)
}

/// Whether a path is the endpoint at which the node asks for a pod's token.
pub(crate) fn is_host(path: &str) -> bool {
    path.strip_suffix('/').unwrap_or(path) == "/host/token"
}

/// The category of metadata, when every reader reads the path alike.
fn category(path: &str) -> Option<&str> {
    let plain = |segment: &str| {
        let ends = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
        let bytes = segment.as_bytes();
        ends(bytes.first())
            && ends(bytes.last())
            && bytes
                .iter()
                .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(b))
            && !segment.eq_ignore_ascii_case("identity")
    };
    let path = path.strip_prefix('/')?;
    let path = path.strip_suffix('/').unwrap_or(path);
    let mut segments = path.split('/');
    let root = segments.next()?.eq_ignore_ascii_case("metadata");
    let category = segments.next().filter(|segment| plain(segment))?;
    (root && segments.all(plain)).then_some(category)
}

/// Whether a query has only characters that no reader takes for part of a path.
pub(crate) fn is_plain_query(query: &str) -> bool {
    query
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || b"-_.~=&,:+".contains(&b))
}

/// The segments that the most lenient reader could see: percent-decoded until nothing is left to decode, backslashes as slashes,
/// parameters dropped, dot segments resolved.
fn normalised(path: &str) -> Vec<String> {
    let mut text = path.to_owned();
    for _ in 0..8 {
        let decoded = percent_decode(&text).replace('\\', "/");
        if decoded == text {
            break;
        }
        text = decoded;
    }
    let mut segments: Vec<String> = Vec::new();
    for segment in text.split('/') {
        let segment = segment.split(';').next().unwrap_or_default();
        let segment: String = segment
            .chars()
            .filter(|c| !c.is_control() && !c.is_whitespace())
            .collect();
        match segment.as_str() {
            "" | "." => {}
            ".." => {
                segments.pop();
            }
            _ => segments.push(segment),
        }
    }
    segments
}

/// Percent-decoding (RFC 3986, section 2.1); what is not valid is left as it is.
fn percent_decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let hex = |b: &u8| char::from(*b).to_digit(16);
        match (first, tail) {
            (b'%', [high, low, after @ ..]) if hex(high).is_some() && hex(low).is_some() => {
                let value = hex(high).unwrap_or(0) * 16 + hex(low).unwrap_or(0);
                bytes.push(u8::try_from(value).unwrap_or(b'?'));
                rest = after;
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The query variables that podid knows; others are ignored.
#[derive(Default)]
struct Variables<'a> {
    api_version: Option<Cow<'a, str>>,
    resource: Option<Cow<'a, str>>,
    client_id: Option<Cow<'a, str>>,
    object_id: Option<Cow<'a, str>>,
    resource_id: Option<Cow<'a, str>>,
    bypass_cache: Option<Cow<'a, str>>,
}

/// Parses the query of a request for a token.
///
/// # Errors
/// [`QueryError`] says what is missing, doubled or malformed.
pub(crate) fn token_request(query: &str) -> Result<TokenRequest<'_>, QueryError> {
    let variables = variables(query)?;
    if !is_api_version(variables.api_version.as_deref().unwrap_or_default()) {
        return Err(QueryError::ApiVersion);
    }
    token_of(variables)
}

/// Parses the query of the node's request for a pod's token, which has no version.
///
/// # Errors
/// [`QueryError`] says what is missing, doubled or malformed.
pub(crate) fn host_request(query: &str) -> Result<TokenRequest<'_>, QueryError> {
    token_of(variables(query)?)
}

fn token_of(variables: Variables<'_>) -> Result<TokenRequest<'_>, QueryError> {
    let selector = selector(&variables)?;
    let resource = variables
        .resource
        .filter(|resource| !resource.is_empty())
        .ok_or(QueryError::NoResource)?;
    let odd = |c: char| c.is_control() || c == char::REPLACEMENT_CHARACTER;
    if resource.len() > MAX_RESOURCE || resource.contains(odd) {
        return Err(QueryError::Resource);
    }
    Ok(TokenRequest {
        resource,
        selector,
        bypass_cache: variables.bypass_cache.is_some_and(|value| value == "true"),
    })
}

/// Parses the query of a request for the tenant of an identity.
///
/// # Errors
/// [`QueryError`] says what is missing, doubled or malformed.
pub(crate) fn info_request(query: &str) -> Result<IdentitySelector, QueryError> {
    let variables = variables(query)?;
    if !is_api_version(variables.api_version.as_deref().unwrap_or_default()) {
        return Err(QueryError::ApiVersion);
    }
    selector(&variables)
}

fn selector<'a>(variables: &'a Variables<'_>) -> Result<IdentitySelector, QueryError> {
    // Some clients send an empty value when no identity is named.
    let given = |value: &'a Option<Cow<'_, str>>| value.as_deref().filter(|id| !id.is_empty());
    let client = given(&variables.client_id);
    let object = given(&variables.object_id);
    let arm = given(&variables.resource_id);
    let guid = |id, name| ClientId::parse(id).map_err(|_| QueryError::Selector(name));
    let mut object_id = None;
    let wanted = match (client, object, arm) {
        (None, None, None) => RequestedIdentity::Any,
        (Some(id), None, None) => RequestedIdentity::Client(guid(id, "client_id")?),
        (None, Some(id), None) => {
            object_id = Some(guid(id, "object_id")?);
            RequestedIdentity::Object(None)
        }
        (None, None, Some(id)) => RequestedIdentity::Resource(
            ResourceId::parse(id).map_err(|_| QueryError::Selector("msi_res_id"))?,
        ),
        _ => return Err(QueryError::TwoSelectors),
    };
    Ok(IdentitySelector { wanted, object_id })
}

fn variables(query: &str) -> Result<Variables<'_>, QueryError> {
    let mut found = Variables::default();
    for pair in query.split('&') {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let (slot, name) = match &*decoded(name) {
            "api-version" => (&mut found.api_version, "api-version"),
            "resource" => (&mut found.resource, "resource"),
            "client_id" => (&mut found.client_id, "client_id"),
            "object_id" => (&mut found.object_id, "object_id"),
            "msi_res_id" | "mi_res_id" | "resource_id" | "msi-res-id" => {
                (&mut found.resource_id, "msi_res_id")
            }
            "bypass_cache" => (&mut found.bypass_cache, "bypass_cache"),
            _ => continue,
        };
        if slot.replace(decoded(value)).is_some() {
            return Err(QueryError::Twice(name));
        }
    }
    Ok(found)
}

/// The decoded name or value of a query variable; borrowed when there is nothing to decode.
fn decoded(value: &str) -> Cow<'_, str> {
    if value.contains(['%', '+']) {
        Cow::Owned(percent_decode(&value.replace('+', " ")))
    } else {
        Cow::Borrowed(value)
    }
}

/// Whether it is a date not before [`FIRST_API_VERSION`]. Versions that podid does not know are valid, so that newer clients work.
fn is_api_version(text: &str) -> bool {
    let number = |part: Option<&str>, digits: usize| {
        let part = part.filter(|part| part.len() == digits)?;
        let plain = part.bytes().all(|b| b.is_ascii_digit());
        plain.then(|| part.parse::<u16>().ok()).flatten()
    };
    let mut parts = text.splitn(3, '-');
    let year = number(parts.next(), 4);
    let month = number(parts.next(), 2).is_some_and(|month| (1..=12).contains(&month));
    let day = number(parts.next(), 2).is_some_and(|day| (1..=31).contains(&day));
    year.is_some() && month && day && text >= FIRST_API_VERSION
}

#[cfg(test)]
mod tests;
