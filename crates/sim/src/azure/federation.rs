//! Federated assertions: another issuer's token that stands for an identity or an application. `entra` calls this for each token
//! request that proves itself with one; each refusal has the AADSTS code that Entra gives.
//!
//! ```text
//!  a JWT? ─► not Entra's own ─► a credential matches iss, sub, aud ─► in its time ─► issuer read ─► its key ─► its signature
//!   50027      700222        70025 700211 700213 7002138 700212       700024        50166      7000272       700027
//! ```

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, DecodingKey};
use serde_json::Value;

use super::World;
use super::assertion::SKEW;
use super::directory::{Principal, key};
use super::entra_error::{Refused, refuse};
use super::federated_credentials::FederatedCredential;

/// Issuers whose tokens are Entra's own.
const OWN: [&str; 2] = [
    "https://login.microsoftonline.com/",
    "https://sts.windows.net/",
];

/// The parts of an assertion that are looked at.
struct Assertion<'a> {
    jwt: &'a str,
    header: Value,
    issuer: String,
    subject: String,
    /// The audience, where it is one alone.
    audience: Option<String>,
    not_before: Option<i64>,
    expires: i64,
}

/// Verifies an assertion for the principal with this client id.
pub(super) async fn verify(
    world: &World,
    client_id: &str,
    principal: &Principal,
    jwt: &str,
    now: i64,
) -> Result<(), Refused> {
    let assertion = Assertion::read(jwt).ok_or_else(|| {
        refuse(
            "invalid_request",
            50_027,
            "JWT token is invalid or malformed.",
        )
    })?;
    if OWN.iter().any(|own| assertion.issuer.starts_with(own)) {
        let text = "AAD-issued tokens may not be used for federated identity flows.";
        return Err(refuse("invalid_request", 700_222, text));
    }
    let name = principal
        .identity
        .as_deref()
        .and_then(|id| id.rsplit('/').next());
    let client = format!("'{client_id}'({})", name.unwrap_or("application"));
    let pace = world.config.pace();
    let matched = {
        let mut directory = world.directory.lock();
        let federation = directory.federations.entry(key(client_id)).or_default();
        federation
            .known
            .ask(pace, |known| assertion.matches(known, &client))
    };
    matched?;
    assertion.check_time(now)?;
    let keys = world
        .issuers
        .keys(&assertion.issuer, world.config.issuer_cache)
        .await;
    let keys = keys.map_err(|reason| {
        tracing::info!(
            issuer = assertion.issuer,
            reason,
            "the issuer cannot be read"
        );
        refuse(
            "invalid_request",
            50_166,
            "Request to External OIDC endpoint failed.",
        )
    })?;
    assertion.check_signature(&keys)
}

impl<'a> Assertion<'a> {
    fn read(jwt: &'a str) -> Option<Self> {
        let part = |text: &str| -> Option<Value> {
            serde_json::from_slice(&URL_SAFE_NO_PAD.decode(text).ok()?).ok()
        };
        let mut parts = jwt.split('.');
        let (header, claims) = (part(parts.next()?)?, part(parts.next()?)?);
        let text = |name: &str| claims[name].as_str().map(str::to_owned);
        let audience = match &claims["aud"] {
            Value::String(one) => Some(one.clone()),
            Value::Array(all) if all.len() == 1 => all[0].as_str().map(str::to_owned),
            _ => None,
        };
        Some(Self {
            jwt,
            header,
            issuer: text("iss")?,
            subject: text("sub")?,
            audience,
            not_before: claims["nbf"].as_i64(),
            expires: claims["exp"].as_i64()?,
        })
    }

    /// Whether a node of the token service knows a credential for it. `client` is the principal as refusals name it.
    fn matches(&self, known: &[FederatedCredential], client: &str) -> Result<(), Refused> {
        const CHECK: &str = "Check your federated identity credential Subject, Audience and Issuer against the presented assertion.";
        const CASE: &str = "The subject matches with case-insensitive comparison, but not with case-sensitive comparison.";
        let no = |number, what: &str, value: &str, hint: &str| {
            let text = format!(
                "No matching federated identity record found for presented assertion {what} '{value}'. {hint} https://learn.microsoft.com/entra/workload-id/workload-identity-federation"
            );
            Err(refuse("invalid_client", number, text))
        };
        if known.is_empty() {
            let text =
                format!("The client {client} has no configured federated identity credentials.");
            return Err(refuse("invalid_client", 70_025, text));
        }
        let (issuer, subject) = (&self.issuer, &self.subject);
        let of_issuer: Vec<_> = known.iter().filter(|one| one.issuer == *issuer).collect();
        if of_issuer.is_empty() {
            return no(700_211, "issuer", issuer, CHECK);
        }
        let Some(found) = of_issuer.iter().find(|one| one.subject == *subject) else {
            let is_near = |one: &&FederatedCredential| one.subject.eq_ignore_ascii_case(subject);
            return match of_issuer.iter().any(is_near) {
                true => no(7_002_138, "subject", subject, CASE),
                false => no(700_213, "subject", subject, CHECK),
            };
        };
        match &self.audience {
            Some(audience) if *audience == found.audience => Ok(()),
            other => {
                let audience = other.as_deref().unwrap_or_default();
                no(700_212, "audience", audience, CHECK)
            }
        }
    }

    fn check_time(&self, now: i64) -> Result<(), Refused> {
        let begins = self.not_before.unwrap_or(now);
        if begins <= now + SKEW && now <= self.expires + SKEW {
            return Ok(());
        }
        let shown = |second| {
            Timestamp::from_second(second).map_or_else(|_| String::new(), |at| at.to_string())
        };
        let text = format!(
            "Client assertion is not within its valid time range. Current time: {}, assertion valid from {}, expiry time of assertion {}. Review the documentation at https://docs.microsoft.com/azure/active-directory/develop/active-directory-certificate-credentials .",
            shown(now),
            shown(begins),
            shown(self.expires)
        );
        Err(refuse("invalid_client", 700_024, text))
    }

    fn check_signature(&self, keys: &[Jwk]) -> Result<(), Refused> {
        let id = self.header["kid"].as_str().unwrap_or_default();
        let named = |key: &&Jwk| key.common.key_id.as_deref() == Some(id);
        let found = keys.iter().find(named).ok_or_else(|| {
            let text = format!(
                "The certificate with identifier {id} used to sign the federated credential could not be found in the metadata of identity provider {}. Please validate that your Identity Provider's metadata exposes the key used to sign the incoming token.",
                self.issuer
            );
            refuse("invalid_client", 7_000_272, text)
        })?;
        let is_valid = || {
            let key = DecodingKey::from_jwk(found).ok()?;
            let (signed, seal) = self.jwt.rsplit_once('.')?;
            jsonwebtoken::crypto::verify(seal, signed.as_bytes(), &key, Algorithm::RS256).ok()
        };
        if self.header["alg"] == "RS256" && is_valid() == Some(true) {
            return Ok(());
        }
        let text = "Client assertion failed signature validation.";
        Err(refuse("invalid_client", 700_027, text))
    }
}
