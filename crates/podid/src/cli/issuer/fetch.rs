//! Anonymous HTTPS client for an issuer's published documents: no redirect is followed, and size and time of an answer are bounded.

use std::error::Error;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::Context as _;
use podid_policy::issuer::{Discovery, FetchError, KeySet, Published, discovery_url};
use reqwest::{Response, Url, header};

use super::documents::{self, Jwks};

/// Bytes of a document. A hundred keys of 4096 bits have less than 100 KiB.
const MAX_DOCUMENT: usize = 1 << 20;
const HTTPS_PORT: u16 = 443;

/// A document as it was served.
struct Document {
    body: Vec<u8>,
    /// Seconds for which caches may keep it.
    max_age: Option<u64>,
}

/// Reads as Entra does: by https, without a credential.
pub struct Reader {
    client: reqwest::Client,
    timeout: Duration,
}

impl Reader {
    /// One that takes as long as this for a document.
    ///
    /// # Errors
    /// The system's TLS cannot be set up.
    pub fn new(timeout: Duration) -> anyhow::Result<Self> {
        let client = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .https_only(true)
            .timeout(timeout)
            .user_agent(concat!("podid/", env!("CARGO_PKG_VERSION")))
            .build()
            .context("no HTTPS client")?;
        Ok(Self { client, timeout })
    }

    /// What everybody can read at the issuer.
    pub async fn published(&self, issuer: &str) -> Published {
        let (addresses, discovery) = tokio::join!(self.addresses(issuer), self.discovery(issuer));
        let uri = discovery.as_ref().map(|read| read.jwks_uri.as_str());
        let keys = match uri {
            Ok(uri) if uri.starts_with("https://") => Some(self.keys(uri).await),
            _ => None,
        };
        Published {
            addresses,
            discovery,
            keys,
        }
    }

    /// The addresses of the issuer's host, as this machine's resolver has them.
    async fn addresses(&self, issuer: &str) -> Result<Vec<IpAddr>, String> {
        let url = Url::parse(issuer).map_err(|error| error.to_string())?;
        let port = url.port().unwrap_or(HTTPS_PORT);
        let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
        let lookup = tokio::net::lookup_host((host, port));
        let found = match tokio::time::timeout(self.timeout, lookup).await {
            Ok(found) => found.map_err(|error| format!("{host} is not found: {error}"))?,
            Err(_) => return Err(format!("{host} is not found in time")),
        };
        let mut addresses: Vec<IpAddr> = found.map(|address| address.ip()).collect();
        addresses.sort_unstable();
        addresses.dedup();
        Ok(addresses)
    }

    async fn discovery(&self, issuer: &str) -> Result<Discovery, FetchError> {
        let document = self.get(&discovery_url(issuer)).await?;
        documents::discovery(&document.body).map_err(FetchError::Malformed)
    }

    async fn keys(&self, uri: &str) -> Result<KeySet, FetchError> {
        let document = self.get(uri).await?;
        let read = Jwks::read(&document.body).and_then(|set| set.keys());
        Ok(KeySet {
            keys: read.map_err(FetchError::Malformed)?,
            bytes: document.body.len(),
            max_age: document.max_age,
        })
    }

    async fn get(&self, url: &str) -> Result<Document, FetchError> {
        let failed = |error: &reqwest::Error| failure(error, self.timeout);
        let request = self
            .client
            .get(url)
            .header(header::ACCEPT, "application/json");
        let mut answer = request.send().await.map_err(|error| failed(&error))?;
        let status = answer.status();
        if status.is_redirection() {
            let to = text_of(&answer, header::LOCATION).unwrap_or("nowhere");
            return Err(FetchError::Redirected(status.as_u16(), to.to_owned()));
        }
        if status != reqwest::StatusCode::OK {
            return Err(FetchError::Status(status.as_u16()));
        }
        let max_age = text_of(&answer, header::CACHE_CONTROL).and_then(max_age);
        let mut body = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(|error| failed(&error))? {
            if body.len() + chunk.len() > MAX_DOCUMENT {
                return Err(FetchError::TooLarge(MAX_DOCUMENT));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(Document { body, max_age })
    }
}

fn text_of(answer: &Response, name: header::HeaderName) -> Option<&str> {
    answer.headers().get(name)?.to_str().ok()
}

fn max_age(cache_control: &str) -> Option<u64> {
    let mut directives = cache_control.split(',').map(str::trim);
    directives.find_map(|one| one.strip_prefix("max-age=")?.parse().ok())
}

/// Why there is no answer, by what is behind the client's error.
fn failure(error: &reqwest::Error, limit: Duration) -> FetchError {
    if error.is_timeout() {
        return FetchError::TimedOut(limit);
    }
    let mut cause: &dyn Error = error;
    let mut tls = false;
    while let Some(next) = cause.source() {
        cause = next;
        tls |= is_tls(cause);
        // The client has no type for it.
        if cause.to_string() == "dns error" {
            return FetchError::NameNotFound;
        }
    }
    match tls {
        true => FetchError::TlsFailed(cause.to_string()),
        false => FetchError::Unreachable(cause.to_string()),
    }
}

/// Whether TLS refused the server, or the server does not speak it. The client wraps that error in I/O errors, one or more.
fn is_tls(error: &(dyn Error + 'static)) -> bool {
    let io = error.downcast_ref::<std::io::Error>();
    match io.and_then(std::io::Error::get_ref) {
        Some(wrapped) => is_tls(wrapped),
        None => error.is::<rustls::Error>(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn max_age_is_one_of_several_directives() {
        assert_eq!(max_age("public, max-age=3600"), Some(3600));
        assert_eq!(max_age("max-age=1,immutable"), Some(1));
        for none in ["", "no-store", "max-age=", "max-age=x", "s-maxage=7"] {
            assert_eq!(max_age(none), None, "{none}");
        }
    }
}
