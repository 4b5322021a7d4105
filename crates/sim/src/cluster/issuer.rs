//! OIDC issuer of service account tokens: the key that signs them, and the two documents (discovery, JWKS) by which others verify
//! them. `token_request` signs with it and `token_review` verifies; Entra reads the documents.

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation, jwk::Jwk};
use parking_lot::Mutex;
use rcgen::{KeyPair, PKCS_RSA_SHA256, PublicKeyData as _, RsaKeySize};
use serde_json::{Value, json};

use super::{
    api::Answer,
    failure::{Failure, Outcome},
};

pub(super) struct Issuer {
    url: String,
    /// Made when it is first needed.
    key: Mutex<Option<Arc<SigningKey>>>,
}

struct SigningKey {
    private: EncodingKey,
    public: Jwk,
}

impl fmt::Debug for Issuer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Issuer({})", self.url)
    }
}

fn failed(error: impl fmt::Display) -> Failure {
    Failure::new(500, "InternalError", format!("no signing key: {error}"))
}

impl SigningKey {
    fn generate() -> Outcome<Self> {
        let pair =
            KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048).map_err(failed)?;
        let private = EncodingKey::from_rsa_pem(pair.serialize_pem().as_bytes()).map_err(failed)?;
        let mut public = Jwk::from_encoding_key(&private, Algorithm::RS256).map_err(failed)?;
        let id = digest(&SHA256, &pair.subject_public_key_info());
        public.common.key_id = Some(URL_SAFE_NO_PAD.encode(id));
        public.common.public_key_use = Some(jsonwebtoken::jwk::PublicKeyUse::Signature);
        Ok(Self { private, public })
    }
}

impl Issuer {
    pub(super) fn new(url: String) -> Self {
        Self {
            url,
            key: Mutex::default(),
        }
    }

    /// As tokens name it.
    pub(super) fn url(&self) -> &str {
        &self.url
    }

    fn key(&self) -> Outcome<Arc<SigningKey>> {
        let mut made = self.key.lock();
        if let Some(key) = &*made {
            return Ok(Arc::clone(key));
        }
        let key = Arc::new(SigningKey::generate()?);
        *made = Some(Arc::clone(&key));
        Ok(key)
    }

    pub(super) fn sign(&self, claims: &Value) -> Outcome<String> {
        let key = self.key()?;
        let header = Header {
            typ: None,
            kid: key.public.common.key_id.clone(),
            ..Header::new(Algorithm::RS256)
        };
        jsonwebtoken::encode(&header, claims, &key.private).map_err(failed)
    }

    /// The claims of a token of this issuer that is in its time.
    pub(super) fn verify(&self, token: &str) -> Option<Value> {
        let key = DecodingKey::from_jwk(&self.key().ok()?.public).ok()?;
        let mut rules = Validation::new(Algorithm::RS256);
        rules.leeway = 0;
        rules.validate_nbf = true;
        // The caller compares the audiences.
        rules.validate_aud = false;
        rules.set_issuer(&[&self.url]);
        let read = jsonwebtoken::decode::<Value>(token, &key, &rules);
        read.ok().map(|token| token.claims)
    }

    /// The document that is at a path.
    pub(super) fn document(&self, path: &str) -> Outcome<Option<Answer>> {
        let (content_type, body) = match path {
            "/.well-known/openid-configuration" => (
                "application/json",
                json!({
                    "issuer": self.url, "jwks_uri": format!("{}/openid/v1/jwks", self.url),
                    "response_types_supported": ["id_token"], "subject_types_supported": ["public"],
                    "id_token_signing_alg_values_supported": ["RS256"],
                }),
            ),
            "/openid/v1/jwks" => (
                "application/jwk-set+json",
                json!({ "keys": [self.key()?.public] }),
            ),
            _ => return Ok(None),
        };
        Ok(Some(Answer::Document { content_type, body }))
    }
}
