//! Token cache of the controller's own ARM token: one token, fetched anew shortly before it expires. Every request of `mod.rs`
//! takes it from here.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::Mutex;
use zeroize::Zeroizing;

use crate::config::{Credential, read_file};
use crate::entra::{self, Entra};
use crate::error::{Error, ErrorKind, Service};
use crate::imds::Imds;
use crate::token::Token;

/// A token that is valid for less than five minutes is replaced before use, so that no request outlives it.
const MIN_REMAINING: Duration = Duration::from_secs(300);

pub(super) struct TokenHolder {
    credential: Credential,
    imds: Imds,
    entra: Entra,
    audience: String,
    held: Mutex<Option<Arc<Token>>>,
}

impl TokenHolder {
    pub(super) fn new(credential: Credential, imds: Imds, entra: Entra, audience: String) -> Self {
        Self {
            credential,
            imds,
            entra,
            audience,
            held: Mutex::new(None),
        }
    }

    /// The held token, or a new one. The lock is held during the fetch (single flight), so that callers wait for one token instead
    /// of fetching one each. While the fetch fails, the held token is used until it expires.
    pub(super) async fn get(&self) -> Result<Arc<Token>, Error> {
        let mut held = self.held.lock().await;
        if let Some(token) = held
            .as_ref()
            .filter(|token| token.remaining(Timestamp::now()) > MIN_REMAINING)
        {
            return Ok(Arc::clone(token));
        }
        match self.fetch().await {
            Ok(token) => {
                let token = Arc::new(token);
                *held = Some(Arc::clone(&token));
                Ok(token)
            }
            Err(error) => match held.as_ref() {
                Some(token) if !token.remaining(Timestamp::now()).is_zero() => {
                    Ok(Arc::clone(token))
                }
                _ => Err(error),
            },
        }
    }

    /// Drops a token that ARM refused, unless a new one has replaced it.
    pub(super) async fn forget(&self, refused: &Arc<Token>) {
        let mut held = self.held.lock().await;
        if held
            .as_ref()
            .is_some_and(|token| Arc::ptr_eq(token, refused))
        {
            *held = None;
        }
    }

    async fn fetch(&self) -> Result<Token, Error> {
        match &self.credential {
            Credential::ManagedIdentity(identity) => {
                self.imds.token(identity, &self.audience).await
            }
            Credential::Secret {
                tenant,
                client_id,
                secret,
            } => {
                self.entra
                    .client_credentials(
                        tenant,
                        client_id,
                        entra::Credential::Secret(secret),
                        &self.audience,
                        None,
                    )
                    .await
            }
            Credential::Certificate {
                tenant,
                client_id,
                certificate,
            } => {
                let credential = entra::Credential::Certificate(certificate);
                let entra = &self.entra;
                entra
                    .client_credentials(tenant, client_id, credential, &self.audience, None)
                    .await
            }
            Credential::Federated {
                tenant,
                client_id,
                token_file,
            } => {
                let token = federated(token_file)?;
                let credential = entra::Credential::Federated(&token);
                let entra = &self.entra;
                entra
                    .client_credentials(tenant, client_id, credential, &self.audience, None)
                    .await
            }
        }
    }
}

/// The service account token, which the kubelet renews in its file.
fn federated(path: &Path) -> Result<Zeroizing<String>, Error> {
    let text = read_file(path).and_then(|bytes| {
        let text = std::str::from_utf8(&bytes).map_err(|_| "not a token".to_owned())?;
        Ok(Zeroizing::new(text.trim().to_owned()))
    });
    text.map_err(|cause| {
        let text = format!("AZURE_FEDERATED_TOKEN_FILE {}: {cause}", path.display());
        Error::new(Service::Entra, ErrorKind::InvalidCredential, text)
    })
}
