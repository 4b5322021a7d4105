//! Access tokens (JWT): signed with RS256, with the claims that Azure's services look at. Entra and the metadata services issue
//! them; ARM verifies those of its callers here.

use aws_lc_rs::error::Unspecified;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair, KeySize};
use aws_lc_rs::signature::{self, KeyPair as _, RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

/// Azure issues tokens as from five minutes ago, so that clocks need not agree.
const SKEW: i64 = 300;

/// Two keys, as Azure always has more than one; the first signs.
pub(super) struct Signer {
    keys: Vec<(String, KeyPair)>,
}

/// Who a token is about.
pub(super) struct Subject<'a> {
    pub(super) tenant: &'a str,
    pub(super) client_id: &'a str,
    pub(super) principal_id: &'a str,
    /// The ARM id of the managed identity.
    pub(super) identity: Option<&'a str>,
    /// The ARM id of the host that asked.
    pub(super) host: Option<&'a str>,
    /// 1: a secret; 2: a certificate or a managed identity.
    pub(super) proof: &'static str,
}

impl Signer {
    pub(super) fn generate() -> Result<Self, Unspecified> {
        let keys = (0..2)
            .map(|n| {
                Ok((
                    format!("podid-sim-{n}"),
                    KeyPair::generate(KeySize::Rsa2048)?,
                ))
            })
            .collect::<Result<_, Unspecified>>()?;
        Ok(Self { keys })
    }

    /// A token for `audience`, to the byte as asked, from `now` for `life` seconds.
    pub(super) fn token(
        &self,
        subject: &Subject<'_>,
        audience: &str,
        now: i64,
        life: i64,
    ) -> Result<String, Unspecified> {
        let (kid, key) = self.keys.first().ok_or(Unspecified)?;
        let issuer = format!("https://sts.windows.net/{}/", subject.tenant);
        let header = json!({ "typ": "JWT", "alg": "RS256", "kid": kid, "x5t": kid });
        let mut claims = json!({
            "aud": audience, "iss": issuer, "idp": issuer,
            "iat": now - SKEW, "nbf": now - SKEW, "exp": now + life,
            "appid": subject.client_id, "appidacr": subject.proof, "idtyp": "app",
            "oid": subject.principal_id, "sub": subject.principal_id, "tid": subject.tenant,
            "uti": uuid::Uuid::new_v4().simple().to_string(), "ver": "1.0",
        });
        if let Some(id) = subject.identity {
            claims["xms_mirid"] = json!(id);
        }
        if let Some(id) = subject.host {
            claims["xms_az_rid"] = json!(id);
        }
        let signed = format!("{}.{}", part(&header), part(&claims));
        let mut seal = vec![0; key.public_modulus_len()];
        key.sign(
            &signature::RSA_PKCS1_SHA256,
            &SystemRandom::new(),
            signed.as_bytes(),
            &mut seal,
        )?;
        Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(seal)))
    }

    /// The claims of a token that this signer made and that is valid at `now`.
    pub(super) fn verify(&self, token: &str, now: i64) -> Option<Value> {
        let (signed, seal) = token.rsplit_once('.')?;
        let (_, claims) = signed.split_once('.')?;
        let seal = URL_SAFE_NO_PAD.decode(seal).ok()?;
        let genuine = self.keys.iter().any(|(_, key)| {
            UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, key.public_key().as_ref())
                .verify(signed.as_bytes(), &seal)
                .is_ok()
        });
        let claims: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).ok()?).ok()?;
        let at = |name: &str| claims[name].as_i64();
        (genuine && at("nbf")? <= now && now < at("exp")?).then_some(claims)
    }

    /// The public keys, for who verifies.
    pub(super) fn jwks(&self) -> Value {
        let keys: Vec<Value> = self
            .keys
            .iter()
            .map(|(kid, key)| {
                let public = key.public_key();
                json!({
                    "kty": "RSA", "use": "sig", "alg": "RS256", "kid": kid, "x5t": kid,
                    "n": URL_SAFE_NO_PAD.encode(public.modulus().big_endian_without_leading_zero()),
                    "e": URL_SAFE_NO_PAD.encode(public.exponent().big_endian_without_leading_zero()),
                })
            })
            .collect();
        json!({ "keys": keys })
    }
}

fn part(value: &Value) -> String {
    URL_SAFE_NO_PAD.encode(value.to_string())
}
