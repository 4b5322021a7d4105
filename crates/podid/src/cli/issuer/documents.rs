//! OIDC documents of an issuer and the head of a token, read from JSON and, for `--write`, written as JSON.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use podid_policy::issuer::{Discovery, Key, TokenClaims, jwks_url};
use serde::{Deserialize, Serialize};
use serde_json::json;

/// A JSON Web Key Set.
#[derive(Debug, Serialize, Deserialize)]
pub struct Jwks {
    keys: Vec<Jwk>,
}

/// A JSON Web Key: its public members only, so that nothing else is ever written.
#[derive(Debug, Serialize, Deserialize)]
struct Jwk {
    #[serde(rename = "use", skip_serializing_if = "Option::is_none")]
    usage: Option<String>,
    kty: String,
    #[serde(default)]
    kid: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    alg: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    n: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    e: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    crv: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    x: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    y: Option<String>,
}

impl Jwks {
    /// Reads one.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn read(body: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(body).map_err(|error| format!("no key set (JWKS): {error}"))
    }

    /// Its keys, as the checks take them.
    ///
    /// # Errors
    /// What is wrong with one.
    pub fn keys(&self) -> Result<Vec<Key>, String> {
        self.keys.iter().map(Jwk::key).collect()
    }

    /// As a file.
    pub fn file(&self) -> anyhow::Result<String> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }
}

impl Jwk {
    fn key(&self) -> Result<Key, String> {
        let bytes = |member: &Option<String>| {
            let text = member.as_deref().unwrap_or_default();
            let bytes = URL_SAFE_NO_PAD.decode(text.trim_end_matches('='));
            bytes.map_err(|_| "a key has a number that is not base64url".to_owned())
        };
        let (n, e) = (bytes(&self.n)?, bytes(&self.e)?);
        let (x, y) = (bytes(&self.x)?, bytes(&self.y)?);
        // Leading zeros do not make it another key.
        let modulus: Vec<u8> = n.into_iter().skip_while(|byte| *byte == 0).collect();
        let zeros = modulus.first().map_or(0, |byte| byte.leading_zeros());
        Ok(Key {
            id: self.kid.clone(),
            kind: self.kty.clone(),
            algorithm: self.alg.clone(),
            bits: (modulus.len() * 8).saturating_sub(zeros as usize),
            material: [modulus, e, x, y].concat(),
        })
    }
}

/// Reads a discovery document.
///
/// # Errors
/// What is wrong with it.
pub fn discovery(body: &[u8]) -> Result<Discovery, String> {
    #[derive(Deserialize)]
    struct Document {
        issuer: String,
        jwks_uri: String,
        #[serde(default)]
        id_token_signing_alg_values_supported: Vec<String>,
    }
    let read: Document = serde_json::from_slice(body)
        .map_err(|error| format!("no OIDC discovery document: {error}"))?;
    Ok(Discovery {
        issuer: read.issuer,
        jwks_uri: read.jwks_uri,
        algorithms: read.id_token_signing_alg_values_supported,
    })
}

/// The discovery document of an issuer, as kube-apiserver writes it.
pub fn discovery_file(issuer: &str) -> anyhow::Result<String> {
    let document = json!({
        "issuer": issuer,
        "jwks_uri": jwks_url(issuer),
        "response_types_supported": ["id_token"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["RS256"],
    });
    Ok(serde_json::to_string_pretty(&document)? + "\n")
}

/// Reads what a token says about its issuer. The token itself is in no error.
///
/// # Errors
/// What is wrong with it.
pub fn token(token: &str) -> Result<TokenClaims, String> {
    #[derive(Deserialize)]
    struct Header {
        alg: String,
        kid: Option<String>,
    }
    #[derive(Deserialize)]
    struct Payload {
        iss: String,
    }
    fn part<T: serde::de::DeserializeOwned>(text: Option<&str>) -> Option<T> {
        let bytes = URL_SAFE_NO_PAD.decode(text?).ok()?;
        serde_json::from_slice(&bytes).ok()
    }
    let mut parts = token.split('.');
    let header: Option<Header> = part(parts.next());
    let payload: Option<Payload> = part(parts.next());
    let (header, payload) = header
        .zip(payload)
        .ok_or("the API server's token is not a JWT with iss and alg")?;
    Ok(TokenClaims {
        issuer: payload.iss,
        key: header.kid,
        algorithm: header.alg,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_gives_its_issuer_and_key_and_nothing_else() {
        let encode = |text: &str| URL_SAFE_NO_PAD.encode(text);
        let header = encode(r#"{"alg":"RS256","kid":"k1"}"#);
        let good = format!(
            "{header}.{}.c2ln",
            encode(r#"{"iss":"https://i/","sub":"s"}"#)
        );
        let claims = token(&good).unwrap();
        assert_eq!(claims.issuer, "https://i/");
        assert_eq!(claims.key.as_deref(), Some("k1"));
        for secret in ["hush", "hush.hush.hush", &format!("{header}.hush.hush")] {
            let error = token(secret).unwrap_err();
            assert!(!error.contains("hush"), "{error}");
        }
    }

    #[test]
    fn the_bits_of_a_modulus_are_counted_without_leading_zeros() {
        let key = |n: &[u8]| {
            let n = URL_SAFE_NO_PAD.encode(n);
            let set = format!(r#"{{"keys":[{{"kty":"RSA","kid":"k","n":"{n}","e":"AQAB"}}]}}"#);
            Jwks::read(set.as_bytes())
                .unwrap()
                .keys()
                .unwrap()
                .remove(0)
        };
        assert_eq!(key(&[0x80, 0]).bits, 16);
        assert_eq!(key(&[0, 0x01, 0]).bits, 9);
        assert_eq!(key(&[0, 0x80, 0]).material, key(&[0x80, 0]).material);
    }

    #[test]
    fn a_private_member_of_a_key_is_not_written() {
        let set = r#"{"keys":[{"kty":"RSA","kid":"k","n":"AQ","e":"AQAB","d":"hush","p":"hush"}]}"#;
        let written = Jwks::read(set.as_bytes()).unwrap().file().unwrap();
        assert!(!written.contains("hush"), "{written}");
    }

    #[test]
    fn what_is_no_document_says_so() {
        for garbage in ["", "<html>", "[]", "{}", r#"{"issuer":1}"#, "null"] {
            let error = discovery(garbage.as_bytes()).unwrap_err();
            assert!(error.starts_with("no OIDC discovery document"), "{error}");
            let error = Jwks::read(garbage.as_bytes()).unwrap_err();
            assert!(error.starts_with("no key set"), "{error}");
        }
        let odd = r#"{"keys":[{"kty":"RSA","kid":"k","n":"!","e":"AQAB"}]}"#;
        assert!(Jwks::read(odd.as_bytes()).unwrap().keys().is_err());
    }
}
