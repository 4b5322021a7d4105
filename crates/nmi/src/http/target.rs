//! The request target: read once, into what is asked or a refusal.
//!
//! Only exact spellings of known endpoints are endpoints. Everything else under `/metadata/identity`, however it is written,
//! is recognised as such and refused.

use std::borrow::Cow;

use podid_policy::ids::{ClientId, ResourceId};
use podid_policy::verdict::RequestedIdentity;

use crate::refusal::QueryError;
use crate::token::request::{IdentitySelector, MAX_RESOURCE, TokenRequest};

/// Longer targets are refused.
pub(crate) const MAX_TARGET: usize = 8 * 1024;
/// Since this version of the protocol there are identities.
const FIRST_API_VERSION: &str = "2018-02-01";

/// The newest versions of the protocol that are known, which a client with another one is told.
pub(crate) const NEWEST_VERSIONS: [&str; 3] = ["2025-04-07", "2024-07-17", "2024-03-15"];

/// Which endpoint a path names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Endpoint<'a> {
    /// The token endpoint.
    Token,
    /// Which tenant the caller's identity is of.
    Info,
    /// Something else under `/metadata/identity`, or an odd spelling of it: never answered, never passed on.
    Identity,
    /// The original's endpoint for the node's own programs.
    Host,
    /// Another category of metadata, spelt plainly: `instance`, `versions`, …
    Category(&'a str),
    /// Nothing that the metadata service has.
    Unknown,
}

/// Reads a path.
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

/// What follows `metadata/`, as clients write it: `metadata` in any case, doubled slash in front (Java), one slash at the end
/// (JavaScript).
fn exact(path: &str) -> Option<&str> {
    let path = path.strip_prefix('/').unwrap_or(path);
    let path = path.strip_prefix('/').unwrap_or(path);
    let path = path.strip_suffix('/').unwrap_or(path);
    let (root, rest) = path.split_once('/')?;
    root.eq_ignore_ascii_case("metadata").then_some(rest)
}

/// Whether the node asks for a pod's token.
pub(crate) fn is_host(path: &str) -> bool {
    path.strip_suffix('/').unwrap_or(path) == "/host/token"
}

/// The category, when the path is spelt so plainly that nobody can read it otherwise.
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

/// Whether the query of a request for a category holds nothing that anybody could read as a path.
pub(crate) fn is_plain_query(query: &str) -> bool {
    query
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || b"-_.~=&,:+".contains(&b))
}

/// The segments that the most lenient reader could see: decoded until nothing is left to decode, backslashes as slashes,
/// parameters dropped, dot segments resolved.
fn normalised(path: &str) -> Vec<String> {
    let mut text = path.to_owned();
    for _ in 0..8 {
        let decoded = decode(&text).replace('\\', "/");
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

fn decode(text: &str) -> String {
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

/// The variables that mean something here; a client's other ones are ignored.
#[derive(Default)]
struct Variables<'a> {
    api_version: Option<Cow<'a, str>>,
    resource: Option<Cow<'a, str>>,
    client_id: Option<Cow<'a, str>>,
    object_id: Option<Cow<'a, str>>,
    resource_id: Option<Cow<'a, str>>,
    bypass_cache: Option<Cow<'a, str>>,
}

/// Reads the query of a request for a token.
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

/// Reads the query of the node's request for a pod's token, which has no version.
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

/// Reads the query of a request about an identity.
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
    // Some clients name nothing by an empty value.
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
        let (slot, name) = match &*plain(name) {
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
        if slot.replace(plain(value)).is_some() {
            return Err(QueryError::Twice(name));
        }
    }
    Ok(found)
}

/// Decodes a value; borrowed when there is nothing to decode.
fn plain(value: &str) -> Cow<'_, str> {
    if value.contains(['%', '+']) {
        Cow::Owned(decode(&value.replace('+', " ")))
    } else {
        Cow::Borrowed(value)
    }
}

/// Whether it is a date since there are identities: one that is not known yet too, so that newer clients work.
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
