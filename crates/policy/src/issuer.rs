//! OIDC issuer of a cluster: whether Entra can verify the tokens of service accounts by what the issuer publishes. `podid issuer`
//! collects the [`Evidence`] and prints the [`checks`]; nothing is fetched here.
//!
//! ```text
//!  a token            iss ─────┐
//!                     kid ──┐  │
//!  the API server  issuer ──│──┤ equal, byte for byte
//!                    keys ──┤  │
//!  published       issuer ──│──┘
//!                    keys ──┘ the same key under the same kid, RS256, among the first 100
//! ```

mod fetched;
mod keys;
mod reason;
#[cfg(test)]
mod tests;
mod url;

use std::net::IpAddr;

pub use fetched::FetchError;
pub use keys::{Key, KeySet};
pub use reason::Reason;

/// The most characters of a foreign text that are shown.
const MOST_SHOWN: usize = 300;

/// Everything that the checks look at.
#[derive(Debug, Clone)]
pub struct Evidence {
    /// The issuer that is checked.
    pub issuer: String,
    /// What a token says, or why there is none.
    pub token: Result<TokenClaims, String>,
    /// The issuer in the API server's own discovery document.
    pub api_issuer: String,
    /// The keys by which the API server verifies tokens.
    pub api_keys: Vec<Key>,
    /// What everybody can read at the issuer, where it was asked.
    pub published: Option<Published>,
}

/// What a token of the cluster says about its issuer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenClaims {
    /// `iss`, of the payload.
    pub issuer: String,
    /// `kid`, of the header: the key that signs.
    pub key: Option<String>,
    /// `alg`, of the header.
    pub algorithm: String,
}

/// What an anonymous reader gets at the issuer.
#[derive(Debug, Clone)]
pub struct Published {
    /// The addresses of the issuer's host, or why they are not known.
    pub addresses: Result<Vec<IpAddr>, String>,
    /// The discovery document.
    pub discovery: Result<Discovery, FetchError>,
    /// The keys, where the discovery document was read and says where they are.
    pub keys: Option<Result<KeySet, FetchError>>,
}

/// An OIDC discovery document, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Discovery {
    /// `issuer`.
    pub issuer: String,
    /// `jwks_uri`: where the keys are.
    pub jwks_uri: String,
    /// `id_token_signing_alg_values_supported`.
    pub algorithms: Vec<String>,
}

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// As Entra needs it.
    Ok,
    /// Entra can use it today; it may cause a failure later.
    Warning,
    /// Entra cannot use it.
    Wrong,
    /// It could not be told from here.
    Unknown,
}

impl Outcome {
    /// One word, for tables and scripts.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Wrong => "wrong",
            Self::Unknown => "unknown",
        }
    }
}

/// One check with its outcome.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// What is checked.
    pub name: &'static str,
    /// How it ended.
    pub outcome: Outcome,
    /// What was found.
    pub found: String,
    /// What it means, unless all is well.
    pub finding: Option<Finding>,
}

/// What is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The stable kind.
    pub reason: Reason,
    /// The likely cause.
    pub cause: String,
    /// The next step.
    pub next: String,
}

impl Check {
    fn ok(name: &'static str, found: String) -> Self {
        Self::without_finding(name, Outcome::Ok, found)
    }

    /// A check that another one, which says why, has made impossible.
    fn not_made(name: &'static str, found: &str) -> Self {
        Self::without_finding(name, Outcome::Unknown, found.to_owned())
    }

    fn without_finding(name: &'static str, outcome: Outcome, found: String) -> Self {
        Self {
            name,
            outcome,
            found,
            finding: None,
        }
    }

    fn found(
        name: &'static str,
        outcome: Outcome,
        found: String,
        reason: Reason,
        cause: impl Into<String>,
        next: impl Into<String>,
    ) -> Self {
        let finding = Finding {
            reason,
            cause: cause.into(),
            next: next.into(),
        };
        Self {
            name,
            outcome,
            found,
            finding: Some(finding),
        }
    }
}

/// Makes every check that the evidence allows, in the order in which a reader repairs what they find.
pub fn checks(evidence: &Evidence) -> Vec<Check> {
    let mut checks = vec![url::check(&evidence.issuer), token_issuer(evidence)];
    if let Some(published) = &evidence.published {
        checks.push(url::addresses(published));
        checks.push(match &published.discovery {
            Ok(read) => Check::ok(
                "discovery document",
                format!("keys at {}", shown(&read.jwks_uri)),
            ),
            Err(error) => error.check("discovery document", &discovery_url(&evidence.issuer)),
        });
        checks.push(published_issuer(evidence, published));
        checks.push(jwks(published));
        checks.push(keys::match_check(evidence, published));
    }
    checks.extend(keys::checks(evidence));
    checks
}

/// The checks of what is about to be published: nobody has read it yet, and tokens may still say another issuer.
pub fn checks_before_publishing(evidence: &Evidence) -> Vec<Check> {
    let mut checks = vec![url::check(&evidence.issuer)];
    checks.extend(keys::checks(evidence));
    checks
}

/// Whether an issuer is one that could be published: `https`, a name that is not the cluster's own, nothing after the path.
///
/// # Errors
/// What is wrong with it.
pub fn usable_url(issuer: &str) -> Result<(), Finding> {
    url::check(issuer).finding.map_or(Ok(()), Err)
}

/// Where the discovery document of an issuer is.
pub fn discovery_url(issuer: &str) -> String {
    let base = issuer.trim_end_matches('/');
    format!("{base}/.well-known/openid-configuration")
}

/// Where `podid issuer` puts the keys of an issuer, as kube-apiserver does.
pub fn jwks_url(issuer: &str) -> String {
    format!("{}/openid/v1/jwks", issuer.trim_end_matches('/'))
}

/// A foreign text, cut, without anything that a terminal would act on.
pub fn shown(text: &str) -> String {
    let mut shown = String::new();
    for (count, c) in text.chars().enumerate() {
        if count == MOST_SHOWN {
            return shown + "…";
        }
        match c {
            ' '..='~' => shown.push(c),
            other => shown.extend(other.escape_unicode()),
        }
    }
    shown
}

/// Whether tokens say this issuer.
fn token_issuer(evidence: &Evidence) -> Check {
    const NAME: &str = "token issuer";
    let said = match &evidence.token {
        Ok(token) => &token.issuer,
        Err(_) => &evidence.api_issuer,
    };
    if *said != evidence.issuer {
        let issuer = shown(&evidence.issuer);
        return Check::found(
            NAME,
            Outcome::Wrong,
            shown(said),
            Reason::TokenIssuerDiffers,
            format!(
                "the API server signs its tokens with another issuer than {issuer}{}",
                difference(said, &evidence.issuer)
            ),
            format!(
                "once both documents are published, start kube-apiserver with --service-account-issuer={issuer} as the first of these flags, and keep the former issuer as a second one while pods have tokens of it"
            ),
        );
    }
    if let Err(why) = &evidence.token {
        return Check::found(
            NAME,
            Outcome::Unknown,
            format!("{}, by the API server's discovery document", shown(said)),
            Reason::TokenNotSeen,
            format!("no token could be read: {}", shown(why)),
            "give --service-account=NAMESPACE/NAME with a service account for which you may create tokens (create on serviceaccounts/token); the token is read for its iss and kid, and forgotten",
        );
    }
    if *said != evidence.api_issuer {
        return Check::found(
            NAME,
            Outcome::Warning,
            shown(said),
            Reason::ApiServersDiffer,
            format!(
                "the discovery document of the API server says {}: the API servers of the cluster are set up differently, or are being restarted",
                shown(&evidence.api_issuer)
            ),
            "compare --service-account-issuer of all API servers, and run this again when all are restarted",
        );
    }
    Check::ok(NAME, shown(said))
}

/// Whether the published discovery document names the issuer that tokens name.
fn published_issuer(evidence: &Evidence, published: &Published) -> Check {
    const NAME: &str = "published issuer";
    match &published.discovery {
        Err(_) => Check::not_made(NAME, "the discovery document was not read"),
        Ok(read) if read.issuer == evidence.issuer => {
            Check::ok(NAME, "equal, byte for byte".to_owned())
        }
        Ok(read) => Check::found(
            NAME,
            Outcome::Wrong,
            shown(&read.issuer),
            Reason::IssuerDiffers,
            format!(
                "the discovery document of {} names another issuer{}; Entra compares them byte for byte",
                shown(&evidence.issuer),
                difference(&read.issuer, &evidence.issuer)
            ),
            "publish the document anew with the issuer that tokens say: podid issuer --write=DIRECTORY writes it; and give the federated credential the same text",
        ),
    }
}

/// What two issuers that look alike differ in.
fn difference(one: &str, other: &str) -> &'static str {
    if one.trim_end_matches('/') == other.trim_end_matches('/') {
        " (they differ in the slash at the end)"
    } else if one.eq_ignore_ascii_case(other) {
        " (they differ in capital letters)"
    } else if one.trim() == other.trim() {
        " (they differ in white space)"
    } else {
        ""
    }
}

/// Whether the keys can be read where the discovery document says.
fn jwks(published: &Published) -> Check {
    const NAME: &str = "published keys";
    let uri = published
        .discovery
        .as_ref()
        .map(|read| read.jwks_uri.as_str());
    match (&published.keys, uri) {
        (Some(Ok(set)), _) => Check::ok(
            NAME,
            format!("{}, {} bytes", keys::counted(set.keys.len()), set.bytes),
        ),
        (Some(Err(error)), Ok(uri)) => error.check(NAME, uri),
        (None, Ok(uri)) => Check::found(
            NAME,
            Outcome::Wrong,
            shown(uri),
            Reason::JwksUriNotHttps,
            "jwks_uri of the discovery document is not an https URL, so Entra does not read the keys",
            "publish the document anew: podid issuer --write=DIRECTORY writes it; where the API server itself is the issuer, set its --service-account-jwks-uri",
        ),
        (_, Err(_)) => Check::not_made(NAME, "the discovery document was not read"),
    }
}
