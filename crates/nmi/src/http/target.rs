//! Request target: parses path and query, with percent-decoding and path normalisation, into an endpoint and what is asked for.
//!
//! `request.rs` and `host_token.rs` call it. It guards `/metadata/identity` of the metadata service: only exact spellings of known
//! endpoints are endpoints, and whatever any reader could take for that path is recognised and refused.

use std::borrow::Cow;

use podid_policy::ids::{ClientId, IdError, ResourceId};
use podid_policy::verdict::RequestedIdentity;

use crate::config::Config;
use crate::refusal::QueryError;
use crate::token::request::{MAX_RESOURCE, TokenRequest};

/// Longest target in bytes: a resource and a resource id at their longest, percent-encoded.
pub(crate) const MAX_TARGET: usize = 8 * 1024;
/// The version of the protocol that clients of `MSI_ENDPOINT` speak.
const MSI_API_VERSION: &str = "2017-09-01";
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

/// What follows `metadata/` in the spellings that SDKs use: `metadata` in any case, several slashes in front (Java, with a host that ends
/// with one), one at the end (JavaScript).
fn exact(path: &str) -> Option<&str> {
    let path = path.trim_start_matches('/');
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

/// The protocol that a query follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// The metadata service's.
    Imds,
    /// Also that of clients that know only `MSI_ENDPOINT`: `api-version` may be absent or 2017-09-01, and `clientid` names an identity.
    MsiEndpoint,
}

impl Dialect {
    /// The dialect that this node agent understands: old clients send no `Metadata: true` either.
    pub(crate) fn of(config: &Config) -> Self {
        match config.metadata_header_required {
            true => Self::Imds,
            false => Self::MsiEndpoint,
        }
    }
}

/// One query variable, by the name that was sent.
struct Variable<'a> {
    name: &'static str,
    value: Cow<'a, str>,
}

/// The query variables that podid knows; others are ignored.
#[derive(Default)]
struct Variables<'a> {
    api_version: Option<Variable<'a>>,
    resource: Option<Variable<'a>>,
    client_id: Option<Variable<'a>>,
    object_id: Option<Variable<'a>>,
    resource_id: Option<Variable<'a>>,
    bypass_cache: Option<Variable<'a>>,
}

impl Variables<'_> {
    /// Checks `api-version`.
    fn check_version(&self, dialect: Dialect) -> Result<(), QueryError> {
        let version = self.api_version.as_ref().map_or("", |found| &found.value);
        let is_msi = dialect == Dialect::MsiEndpoint && ["", MSI_API_VERSION].contains(&version);
        (is_msi || is_api_version(version))
            .then_some(())
            .ok_or(QueryError::ApiVersion)
    }
}

/// Parses the query of a request for a token.
///
/// # Errors
/// [`QueryError`] says what is missing, doubled or malformed.
pub(crate) fn token_request(query: &str, dialect: Dialect) -> Result<TokenRequest<'_>, QueryError> {
    let variables = variables(query, dialect)?;
    variables.check_version(dialect)?;
    token_of(variables)
}

/// Parses the query of the node's request for a pod's token, which has no version.
///
/// # Errors
/// [`QueryError`] says what is missing, doubled or malformed.
pub(crate) fn host_request(query: &str) -> Result<TokenRequest<'_>, QueryError> {
    token_of(variables(query, Dialect::Imds)?)
}

fn token_of(variables: Variables<'_>) -> Result<TokenRequest<'_>, QueryError> {
    let wanted = wanted(&variables)?;
    let resource = variables
        .resource
        .map(|resource| resource.value)
        .filter(|resource| !resource.is_empty())
        .ok_or(QueryError::NoResource)?;
    if resource.len() > MAX_RESOURCE {
        return Err(QueryError::LongResource);
    }
    if resource.contains(char::is_control) {
        return Err(QueryError::ControlInResource);
    }
    if resource.contains(char::REPLACEMENT_CHARACTER) {
        return Err(QueryError::ResourceNotText);
    }
    Ok(TokenRequest {
        resource,
        wanted,
        bypass_cache: variables
            .bypass_cache
            .is_some_and(|bypass| bypass.value == "true"),
    })
}

/// Parses the query of a request for the tenant of an identity.
///
/// # Errors
/// [`QueryError`] says what is missing, doubled or malformed.
pub(crate) fn info_request(query: &str, dialect: Dialect) -> Result<RequestedIdentity, QueryError> {
    let variables = variables(query, dialect)?;
    variables.check_version(dialect)?;
    wanted(&variables)
}

fn wanted(variables: &Variables<'_>) -> Result<RequestedIdentity, QueryError> {
    // Some clients send an empty value when no identity is named.
    let all = [
        &variables.client_id,
        &variables.object_id,
        &variables.resource_id,
    ];
    let given = |variable: &Option<_>| {
        let variable: &Option<Variable<'_>> = variable;
        variable
            .as_ref()
            .is_some_and(|found| !found.value.is_empty())
    };
    let mut named = all.into_iter().filter(|variable| given(variable)).flatten();
    let Some(only) = named.next() else {
        return Ok(RequestedIdentity::Any);
    };
    if let Some(other) = named.next() {
        return Err(QueryError::TwoSelectors(only.name, other.name));
    }
    let text = &*only.value;
    let malformed = |cause: IdError| QueryError::Selector {
        name: only.name,
        cause,
        hint: match text.trim() == text {
            true => "",
            false => "; there is white space or a line break around it",
        },
    };
    if given(&variables.client_id) {
        let id = ClientId::parse(text).map_err(malformed)?;
        Ok(RequestedIdentity::Client(id))
    } else if given(&variables.object_id) {
        Ok(RequestedIdentity::Object {
            id: ClientId::parse(text).map_err(malformed)?,
            identity: None,
        })
    } else {
        let id = ResourceId::parse(text).map_err(malformed)?;
        Ok(RequestedIdentity::Resource(id))
    }
}

fn variables(query: &str, dialect: Dialect) -> Result<Variables<'_>, QueryError> {
    let mut found = Variables::default();
    for pair in query.split('&') {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let (slot, name) = match &*decoded(name) {
            "api-version" => (&mut found.api_version, "api-version"),
            "resource" => (&mut found.resource, "resource"),
            "client_id" => (&mut found.client_id, "client_id"),
            "clientid" if dialect == Dialect::MsiEndpoint => (&mut found.client_id, "clientid"),
            "object_id" => (&mut found.object_id, "object_id"),
            "msi_res_id" => (&mut found.resource_id, "msi_res_id"),
            "mi_res_id" => (&mut found.resource_id, "mi_res_id"),
            "resource_id" => (&mut found.resource_id, "resource_id"),
            "msi-res-id" => (&mut found.resource_id, "msi-res-id"),
            "bypass_cache" => (&mut found.bypass_cache, "bypass_cache"),
            _ => continue,
        };
        let value = decoded(value);
        if let Some(before) = slot.replace(Variable { name, value }) {
            return Err(QueryError::Twice {
                first: before.name,
                second: name,
            });
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
