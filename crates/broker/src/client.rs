//! Broker client: asks `podid broker` for pods' tokens and for checks of federated credentials. The node agent and the controller
//! call it.
//!
//! It trusts the authorities in the CA file alone, and proves itself by the projected token in the token file. Both files are read for
//! each request, because the kubelet replaces them: the token before it expires, the CA when the broker rotates it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use parking_lot::Mutex;
use reqwest::{StatusCode, Url};
use serde::Serialize;
use zeroize::Zeroizing;

use crate::protocol::{
    CHECK_PATH, CheckRequest, ErrorBody, ErrorKind, IdentityRef, PodToken, PodTokenRequest,
    TOKEN_PATH,
};

/// The largest response in bytes; tokens have a few KiB.
const MAX_RESPONSE: usize = 256 * 1024;
/// How long a connection may take to open.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// How long an unused connection is kept: less than the broker keeps it, so that no request goes to one that is being closed.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// Attempts of one request: where a connection fails, the Service leads the next one to another broker.
const MAX_ATTEMPTS: usize = 3;

/// Why the broker gave nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClientError {
    /// The broker refuses.
    #[error("the broker answered {status}: {message}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// Why.
        kind: ErrorKind,
        /// The likely cause and the next step.
        message: String,
        /// How long the broker asks to wait.
        retry_after: Option<Duration>,
    },
    /// No answer.
    #[error(
        "the broker at {url} did not answer: {reason}; check that it runs (`kubectl get pods -l app.kubernetes.io/component=broker`) and that network policies let the caller reach it"
    )]
    Unreachable {
        /// The broker's base URL.
        url: String,
        /// What went wrong.
        reason: String,
    },
    /// A file that the request needs.
    #[error(
        "{path} cannot be used: {reason}; check that podid broker is deployed and has published its CA"
    )]
    File {
        /// Its path.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The answer is not the protocol's.
    #[error("the answer of {url} is not a broker's ({reason}); check --broker-url")]
    NotABroker {
        /// The broker's base URL.
        url: String,
        /// What came.
        reason: String,
    },
}

impl ClientError {
    /// Whether the same request may succeed later without anybody changing anything.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Refused { kind, .. } => kind.is_transient(),
            Self::Unreachable { .. } | Self::File { .. } => true,
            Self::NotABroker { .. } => false,
        }
    }

    /// How long the broker asks to wait.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}

/// A client of one broker.
pub struct BrokerClient {
    url: Url,
    ca_file: PathBuf,
    token_file: PathBuf,
    deadline: Duration,
    /// The HTTPS client with the CA bundle that it trusts.
    trusting: Mutex<Option<(Vec<u8>, reqwest::Client)>>,
}

impl BrokerClient {
    /// A client of the broker at `url`. A request may take as long as `deadline`, repeated attempts included.
    pub fn new(url: Url, ca_file: PathBuf, token_file: PathBuf, deadline: Duration) -> Self {
        Self {
            url,
            ca_file,
            token_file,
            deadline,
            trusting: Mutex::default(),
        }
    }

    /// A token for a pod.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn token(&self, request: &PodTokenRequest) -> Result<PodToken, ClientError> {
        let body = self.post(TOKEN_PATH, request).await?;
        serde_json::from_slice(&body).map_err(|_| self.not_a_broker("a body without a token"))
    }

    /// Succeeds when the broker has exchanged a token of this identity.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn check(&self, identity: &IdentityRef) -> Result<(), ClientError> {
        let request = CheckRequest {
            identity: identity.clone(),
        };
        self.post(CHECK_PATH, &request).await.map(drop)
    }

    async fn post(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<Zeroizing<Vec<u8>>, ClientError> {
        let attempts = self.attempts(path, body);
        tokio::time::timeout(self.deadline, attempts)
            .await
            .unwrap_or_else(|_| Err(self.unreachable("no answer in time")))
    }

    async fn attempts(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<Zeroizing<Vec<u8>>, ClientError> {
        let client = self.client().await?;
        let token = Zeroizing::new(read(&self.token_file).await?);
        let token =
            std::str::from_utf8(&token).map_err(|_| file_error(&self.token_file, "no text"))?;
        let mut url = self.url.clone();
        url.set_path(path);
        for attempt in 1.. {
            let request = client
                .post(url.clone())
                .bearer_auth(token.trim())
                .json(body);
            let outcome = match request.send().await {
                Ok(response) => self.read_response(response).await,
                Err(error) => Err(self.unreachable(&root_cause(&error))),
            };
            match outcome {
                Err(ClientError::Unreachable { .. }) if attempt < MAX_ATTEMPTS => {}
                outcome => return outcome,
            }
        }
        Err(self.unreachable("no attempt was made"))
    }

    async fn read_response(
        &self,
        mut response: reqwest::Response,
    ) -> Result<Zeroizing<Vec<u8>>, ClientError> {
        let status = response.status();
        let retry_after = response
            .headers()
            .get(reqwest::header::RETRY_AFTER)
            .and_then(|value| value.to_str().ok()?.parse().ok())
            .map(Duration::from_secs);
        // As large as a token and its body mostly are, so that few copies of the token are left behind as the buffer grows.
        let mut body = Zeroizing::new(Vec::with_capacity(16 * 1024));
        while let Some(chunk) = response
            .chunk()
            .await
            .map_err(|error| self.unreachable(&root_cause(&error)))?
        {
            if body.len() + chunk.len() > MAX_RESPONSE {
                return Err(self.not_a_broker("a body that is too long"));
            }
            body.extend_from_slice(&chunk);
        }
        if matches!(status, StatusCode::OK | StatusCode::NO_CONTENT) {
            return Ok(body);
        }
        match serde_json::from_slice::<ErrorBody>(&body) {
            Ok(ErrorBody { error }) => Err(ClientError::Refused {
                status: status.as_u16(),
                kind: error.kind,
                message: error.message,
                retry_after,
            }),
            Err(_) => Err(self.not_a_broker(&format!("status {}", status.as_u16()))),
        }
    }

    /// The HTTPS client that trusts what the CA file holds now.
    async fn client(&self) -> Result<reqwest::Client, ClientError> {
        let bundle = read(&self.ca_file).await?;
        let mut trusting = self.trusting.lock();
        if let Some((known, client)) = &*trusting
            && *known == bundle
        {
            return Ok(client.clone());
        }
        let client = client(&bundle).map_err(|reason| file_error(&self.ca_file, &reason))?;
        *trusting = Some((bundle, client.clone()));
        Ok(client)
    }

    fn unreachable(&self, reason: &str) -> ClientError {
        ClientError::Unreachable {
            url: self.url.to_string(),
            reason: reason.to_owned(),
        }
    }

    fn not_a_broker(&self, reason: &str) -> ClientError {
        ClientError::NotABroker {
            url: self.url.to_string(),
            reason: reason.to_owned(),
        }
    }
}

/// A client that trusts the authorities of `bundle` and no other, and follows no redirect, since requests carry tokens.
fn client(bundle: &[u8]) -> Result<reqwest::Client, String> {
    let authorities = reqwest::Certificate::from_pem_bundle(bundle)
        .map_err(|_| "it is not a bundle of PEM certificates".to_owned())?;
    if authorities.is_empty() {
        return Err("it holds no certificate".to_owned());
    }
    reqwest::Client::builder()
        .tls_certs_only(authorities)
        .https_only(true)
        .http1_only()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(CONNECT_TIMEOUT)
        .pool_idle_timeout(IDLE_TIMEOUT)
        .user_agent(concat!("podid/", env!("CARGO_PKG_VERSION")))
        .build()
        .map_err(|error| root_cause(&error))
}

async fn read(path: &Path) -> Result<Vec<u8>, ClientError> {
    tokio::fs::read(path)
        .await
        .map_err(|error| file_error(path, &error.to_string()))
}

fn file_error(path: &Path, reason: &str) -> ClientError {
    ClientError::File {
        path: path.display().to_string(),
        reason: reason.to_owned(),
    }
}

/// The innermost cause, which says more than the outer ones and has no URL.
fn root_cause(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}
