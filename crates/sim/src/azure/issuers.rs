//! OIDC issuers as Entra reads them: discovery document and keys (JWKS), anonymously, at the URL that an assertion names.
//!
//! ```text
//!  iss ──► {iss}/.well-known/openid-configuration ──► the same issuer, and jwks_uri ──► the first 100 keys
//! ```

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jsonwebtoken::jwk::Jwk;
use parking_lot::Mutex;
use reqwest::{Certificate, Client, Url};
use serde_json::Value;
use tokio::time::Instant;

/// Entra knows no further keys of a set.
const MOST_KEYS: usize = 100;
/// For one document; Entra does not wait long either.
const TIMEOUT: Duration = Duration::from_secs(3);
/// Bytes of a document: a hundred keys of 4096 bits have less than 100 KiB.
const MAX_DOCUMENT: usize = 1 << 20;

pub(super) type Keys = Arc<Vec<Jwk>>;

/// Reads issuers, and keeps their keys for a while.
#[derive(Default)]
pub(super) struct Issuers {
    /// Beside the system's, for issuers of tests.
    authorities: Mutex<Vec<Certificate>>,
    client: Mutex<Option<Client>>,
    kept: Mutex<HashMap<String, (Instant, Keys)>>,
}

impl Issuers {
    /// Trusts the authorities of these certificates (PEM) beside the system's.
    pub(super) fn trust(&self, pem: &[u8]) -> Result<(), reqwest::Error> {
        let more = Certificate::from_pem_bundle(pem)?;
        self.authorities.lock().extend(more);
        *self.client.lock() = None;
        Ok(())
    }

    /// The issuer's keys, read at most `cache` ago; or why they cannot be read.
    pub(super) async fn keys(&self, issuer: &str, cache: Duration) -> Result<Keys, String> {
        let now = Instant::now();
        if let Some((read, keys)) = self.kept.lock().get(issuer)
            && *read + cache > now
        {
            return Ok(Arc::clone(keys));
        }
        let base = issuer.trim_end_matches('/');
        let discovery = self
            .get(&format!("{base}/.well-known/openid-configuration"))
            .await?;
        if discovery["issuer"] != issuer {
            return Err(format!(
                "the discovery document names the issuer {}",
                discovery["issuer"]
            ));
        }
        let uri = discovery["jwks_uri"].as_str().unwrap_or_default();
        let set = self.get(uri).await?;
        let all = set["keys"].as_array().ok_or("the key set has no keys")?;
        let usable = all
            .iter()
            .take(MOST_KEYS)
            .filter_map(|key| serde_json::from_value(key.clone()).ok());
        let keys: Keys = Arc::new(usable.collect());
        self.kept
            .lock()
            .insert(issuer.to_owned(), (now, Arc::clone(&keys)));
        Ok(keys)
    }

    async fn get(&self, url: &str) -> Result<Value, String> {
        let failed = |error: reqwest::Error| format!("{url}: {error:?}");
        let parsed = Url::parse(url).map_err(|error| format!("{url}: {error}"))?;
        if parsed.scheme() != "https" && !is_loopback(&parsed) {
            return Err(format!("{url} is not https"));
        }
        let request = self.client().map_err(failed)?.get(parsed);
        let answer = request
            .send()
            .await
            .and_then(reqwest::Response::error_for_status);
        let mut answer = answer.map_err(failed)?;
        if !answer.status().is_success() {
            return Err(format!("{url} answers {}", answer.status()));
        }
        let mut body = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(failed)? {
            if body.len() + chunk.len() > MAX_DOCUMENT {
                return Err(format!("{url} has more than {MAX_DOCUMENT} bytes"));
            }
            body.extend_from_slice(&chunk);
        }
        serde_json::from_slice(&body).map_err(|error| format!("{url} is not JSON: {error}"))
    }

    /// The client, made when it is first needed: the system may have no authorities.
    fn client(&self) -> Result<Client, reqwest::Error> {
        let mut made = self.client.lock();
        if let Some(client) = &*made {
            return Ok(client.clone());
        }
        let client = Client::builder()
            .tls_certs_merge(self.authorities.lock().iter().cloned())
            .redirect(reqwest::redirect::Policy::none())
            .timeout(TIMEOUT)
            .no_proxy()
            .build()?;
        *made = Some(client.clone());
        Ok(client)
    }
}

/// Whether it is this machine: the simulated cluster serves its documents there without TLS.
fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    let address = host.parse::<std::net::IpAddr>();
    url.scheme() == "http" && address.is_ok_and(|address| address.is_loopback())
}
