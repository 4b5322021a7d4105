//! The request target: read once, into what is asked or a refusal.
//!
//! Only exact spellings of known endpoints are endpoints. Everything else under `/metadata/identity`, however it is written,
//! is recognised as such and refused.

use std::borrow::Cow;

use podid_policy::ids::{ClientId, ResourceId};
use podid_policy::verdict::Wanted;

/// Longer targets are refused.
pub const MAX_TARGET: usize = 8 * 1024;
/// Longer resources are refused.
const MAX_RESOURCE: usize = 1024;
/// Since this version of the protocol there are identities.
const FIRST_API_VERSION: &str = "2018-02-01";

/// The newest versions of the protocol that are known, which a client with another one is told.
pub const NEWEST_VERSIONS: [&str; 3] = ["2025-04-07", "2024-07-17", "2024-03-15"];

/// Which endpoint a path names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Endpoint<'a> {
    /// The token endpoint.
    Token,
    /// Something else under `/metadata/identity`, or an odd spelling of it: never answered, never passed on.
    Identity,
    /// Another category of metadata, spelt plainly: `instance`, `versions`, …
    Category(&'a str),
    /// Nothing that the metadata service has.
    Unknown,
}

/// Reads a path.
pub fn endpoint(path: &str) -> Endpoint<'_> {
    if is_token(path) {
        return Endpoint::Token;
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

/// As clients write it: `metadata` in any case, doubled slash in front (Java), one slash at the end (JavaScript).
fn is_token(path: &str) -> bool {
    let path = path.strip_prefix('/').unwrap_or(path);
    let path = path.strip_prefix('/').unwrap_or(path);
    let path = path.strip_suffix('/').unwrap_or(path);
    path.split_once('/').is_some_and(|(root, rest)| {
        root.eq_ignore_ascii_case("metadata") && rest == "identity/oauth2/token"
    })
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
pub fn is_plain_query(query: &str) -> bool {
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

/// A request for a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRequest<'a> {
    /// What the token is for, to the byte as the client means it.
    pub resource: Cow<'a, str>,
    /// Which identity.
    pub wanted: Wanted,
    /// Whether a cached token will not do.
    pub bypass_cache: bool,
}

/// Why a query is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QueryError {
    /// `api-version` is absent or not one that has identities.
    #[error("Bad request. api-version is invalid or was not specified in the request")]
    ApiVersion,
    /// `resource` is absent.
    #[error("Required query variable 'resource' is missing")]
    NoResource,
    /// `resource` is too long or not text.
    #[error("query variable 'resource' is longer than {MAX_RESOURCE} bytes or not UTF-8")]
    Resource,
    /// The same variable twice.
    #[error("query variable '{0}' is given twice")]
    Twice(&'static str),
    /// Two ways of naming the identity at once.
    #[error("client_id, object_id and msi_res_id exclude one another")]
    TwoSelectors,
    /// The identity is named by something that is not an id.
    #[error("query variable '{0}' is malformed")]
    Selector(&'static str),
    /// The query of a request for a category could be read in several ways.
    #[error("the query has characters other than letters, digits and -_.~=&,:+")]
    Odd,
    /// Identities are not known by their object id.
    #[error(
        "object_id is not supported, since an AzureIdentity does not state it; name the identity by client_id or msi_res_id"
    )]
    ObjectId,
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
pub fn token_request(query: &str) -> Result<TokenRequest<'_>, QueryError> {
    let variables = variables(query)?;
    let version = variables.api_version.unwrap_or_default();
    if !is_api_version(&version) {
        return Err(QueryError::ApiVersion);
    }
    let resource = variables
        .resource
        .filter(|resource| !resource.is_empty())
        .ok_or(QueryError::NoResource)?;
    let odd = |c: char| c.is_control() || c == char::REPLACEMENT_CHARACTER;
    if resource.len() > MAX_RESOURCE || resource.contains(odd) {
        return Err(QueryError::Resource);
    }
    let client = variables.client_id.filter(|id| !id.is_empty());
    let object = variables.object_id.filter(|id| !id.is_empty());
    let arm = variables.resource_id.filter(|id| !id.is_empty());
    let wanted = match (client, object, arm) {
        (None, None, None) => Wanted::Any,
        (Some(id), None, None) => {
            Wanted::Client(ClientId::parse(&id).map_err(|_| QueryError::Selector("client_id"))?)
        }
        (None, None, Some(id)) => Wanted::Resource(
            ResourceId::parse(&id).map_err(|_| QueryError::Selector("msi_res_id"))?,
        ),
        (None, Some(_), None) => return Err(QueryError::ObjectId),
        _ => return Err(QueryError::TwoSelectors),
    };
    Ok(TokenRequest {
        resource,
        wanted,
        bypass_cache: variables.bypass_cache.is_some_and(|value| value == "true"),
    })
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

fn is_api_version(text: &str) -> bool {
    let digits = |s: &str, n: usize| s.len() == n && s.bytes().all(|b| b.is_ascii_digit());
    let mut parts = text.splitn(3, '-');
    let date = parts.next().is_some_and(|s| digits(s, 4))
        && parts.next().is_some_and(|s| digits(s, 2))
        && parts.next().is_some_and(|s| digits(s, 2));
    date && text >= FIRST_API_VERSION
}

#[cfg(test)]
mod tests;
