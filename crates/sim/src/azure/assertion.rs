//! Client assertions (RFC 7523) that an application signs itself: what Entra verifies before it believes them. `entra` calls it for
//! each token request that proves itself with one: whose it is, by which certificate, for whom, when, and that it is new.

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::signature::{
    RSA_PKCS1_2048_8192_SHA256, RSA_PSS_2048_8192_SHA256, UnparsedPublicKey,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::Value;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::directory::Application;

/// `client_assertion_type` of a JWT (RFC 7523).
pub(super) const TYPE: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";
/// Clocks may differ by this, in seconds.
pub(super) const SKEW: i64 = 300;

/// The assertion's `jti`, or what is wrong with it. `audience` is the beginning of the URLs that it may be for.
pub(super) fn verify(
    jwt: &str,
    application: &Application,
    client_id: &str,
    audience: &str,
    now: i64,
) -> Result<String, &'static str> {
    let malformed = "Client assertion is not a signed JWT.";
    let (signed, seal) = jwt.rsplit_once('.').ok_or(malformed)?;
    let (header, claims) = signed.split_once('.').ok_or(malformed)?;
    let (header, claims) = (
        part(header).ok_or(malformed)?,
        part(claims).ok_or(malformed)?,
    );
    let seal = decode(seal).ok_or(malformed)?;
    let certificate = application
        .certificates
        .iter()
        .find(|der| named_by(&header, der))
        .ok_or("The certificate with identifier used to sign the client assertion is not registered on application.")?;
    if !signs(certificate, &header, signed.as_bytes(), &seal) {
        return Err("Client assertion failed signature validation.");
    }
    let is_own = |name: &str| {
        claims[name]
            .as_str()
            .is_some_and(|id| id.eq_ignore_ascii_case(client_id))
    };
    if !is_own("iss") || !is_own("sub") {
        return Err("Client assertion is not the application's.");
    }
    if !claims["aud"]
        .as_str()
        .is_some_and(|url| url.starts_with(audience))
    {
        return Err("Client assertion audience claim does not match the realm issuer.");
    }
    let at = |name: &str| claims[name].as_i64();
    if at("nbf").is_none_or(|from| from > now + SKEW)
        || at("exp").is_none_or(|until| until + SKEW < now)
    {
        return Err("Client assertion is not within its valid time range.");
    }
    claims["jti"]
        .as_str()
        .map(str::to_owned)
        .ok_or("Client assertion has no jti.")
}

/// Whether the application itself made the assertion.
pub(super) fn is_own(jwt: &str, client_id: &str) -> bool {
    let claims = jwt.split('.').nth(1).and_then(part);
    claims.is_some_and(|claims| {
        let issuer = claims["iss"].as_str();
        issuer.is_some_and(|id| id.eq_ignore_ascii_case(client_id))
    })
}

/// Entra takes the padding that some clients send.
fn decode(text: &str) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')).ok()
}

fn part(text: &str) -> Option<Value> {
    serde_json::from_slice(&decode(text)?).ok()
}

fn named_by(header: &Value, der: &[u8]) -> bool {
    let stated = header["x5t#S256"].as_str().and_then(decode);
    stated.as_deref() == Some(digest(&SHA256, der).as_ref())
}

fn signs(der: &[u8], header: &Value, signed: &[u8], seal: &[u8]) -> bool {
    let algorithm = match header["alg"].as_str() {
        Some("PS256") => &RSA_PSS_2048_8192_SHA256,
        Some("RS256") => &RSA_PKCS1_2048_8192_SHA256,
        _ => return false,
    };
    X509Certificate::from_der(der).is_ok_and(|(_, certificate)| {
        let key = &certificate.public_key().subject_public_key.data;
        UnparsedPublicKey::new(algorithm, key)
            .verify(signed, seal)
            .is_ok()
    })
}
