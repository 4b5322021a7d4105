//! OIDC issuer of a test: publishes discovery document and keys on loopback, and signs tokens.

use std::sync::Arc;

use axum::routing::get;
use axum::{Json, Router};
use jsonwebtoken::jwk::{Jwk, JwkSet};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use parking_lot::Mutex;
use podid_testkit::certs;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub const AUDIENCE: &str = "api://AzureADTokenExchange";
pub const SUBJECT: &str = "system:serviceaccount:default:app";

pub struct Key {
    id: String,
    key: EncodingKey,
}

impl Key {
    pub fn generate(id: &str) -> Self {
        let (private, _) = certs::key_pair().unwrap();
        Self {
            id: id.to_owned(),
            key: EncodingKey::from_rsa_pem(private.as_bytes()).unwrap(),
        }
    }
}

pub struct Issuer {
    pub url: String,
    keys: Arc<Mutex<Vec<Jwk>>>,
    stop: CancellationToken,
}

impl Drop for Issuer {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Issuer {
    pub async fn serve() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let keys = Arc::<Mutex<Vec<Jwk>>>::default();
        let document = json!({ "issuer": url, "jwks_uri": format!("{url}/openid/v1/jwks") });
        let published = Arc::clone(&keys);
        let jwks = move || async move {
            let keys = published.lock().clone();
            Json(JwkSet { keys })
        };
        let router = Router::new()
            .route(
                "/.well-known/openid-configuration",
                get(|| async { Json(document) }),
            )
            .route("/openid/v1/jwks", get(jwks));
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        tokio::spawn(async move {
            tokio::select! {
                served = async { axum::serve(listener, router).await } => served.unwrap(),
                () = stopped.cancelled() => {}
            }
        });
        Self { url, keys, stop }
    }

    /// Ends the server; new connections are refused.
    pub fn stop(&self) {
        self.stop.cancel();
    }

    /// Makes a key and publishes it.
    pub fn add_key(&self, id: &str) -> Key {
        let key = Key::generate(id);
        self.publish(&key, id);
        key
    }

    /// Publishes a key under a name, after those that are published.
    pub fn publish(&self, key: &Key, id: &str) {
        let mut jwk = Jwk::from_encoding_key(&key.key, Algorithm::RS256).unwrap();
        jwk.common.key_id = Some(id.to_owned());
        self.keys.lock().push(jwk);
    }

    pub fn remove_key(&self, id: &str) {
        self.keys
            .lock()
            .retain(|key| key.common.key_id.as_deref() != Some(id));
    }

    /// A token with these claims instead of the usual; times count from now, and what begins with a plus is added to the issuer.
    pub fn sign(&self, key: &Key, change: &Value) -> String {
        let now = jiff::Timestamp::now().as_second();
        let mut claims = json!({
            "iss": self.url, "sub": SUBJECT, "aud": [AUDIENCE], "nbf": now, "exp": now + 3600,
        });
        for (name, value) in change.as_object().unwrap() {
            claims[name] = match (value.as_i64(), value.as_str()) {
                (Some(seconds), _) => json!(now + seconds),
                (_, Some(text)) if text.starts_with('+') => {
                    json!(format!("{}{}", self.url, &text[1..]))
                }
                _ => value.clone(),
            };
        }
        let header = Header {
            kid: Some(key.id.clone()),
            ..Header::new(Algorithm::RS256)
        };
        jsonwebtoken::encode(&header, &claims, &key.key).unwrap()
    }
}
