//! Service principal: tokens of an AzureIdentity of type 1 (client secret) or 2 (certificate) from Entra, by the OAuth client
//! credentials grant. `source.rs` calls this where an identity is not a managed one.
//!
//! The Kubernetes Secret with the credential is read for each fetch and wiped afterwards. This file guards where the credential
//! goes: a Secret of another namespace is read only with an operator's flag and sent to Azure's own authorities only, and none is
//! sent in clear text.

use futures::future::try_join_all;
use kube::Client;
use podid_azure::certificate::Certificate;
use podid_azure::entra::{Credential, Entra};
use podid_azure::{Token, clouds};
use podid_cluster::secrets::{self, SecretData};
use podid_policy::facts::{IdentityFacts, IdentitySource, ObjectKey};
use reqwest::Url;
use tokio::sync::Semaphore;
use zeroize::Zeroizing;

use crate::token::source::SourceError;

/// PFX files that are decrypted at a time: key derivation is slow by design, and may take one core of a node but not more.
const MAX_CONCURRENT_DECRYPTIONS: usize = 1;

/// The token source of service principals.
pub(crate) struct ServicePrincipals {
    entra: Entra,
    client: Client,
    /// Whether an AzureIdentity may name a Secret of another namespace.
    any_namespace: bool,
    decryptions: Semaphore,
}

/// The credential that a Secret holds.
enum OwnedCredential {
    ClientSecret(Zeroizing<String>),
    Certificate(Certificate),
}

impl OwnedCredential {
    fn as_credential(&self) -> Credential<'_> {
        match self {
            Self::ClientSecret(secret) => Credential::Secret(secret),
            Self::Certificate(certificate) => Credential::Certificate(certificate),
        }
    }
}

impl ServicePrincipals {
    pub(crate) fn new(entra: Entra, client: Client, any_namespace: bool) -> Self {
        Self {
            entra,
            client,
            any_namespace,
            decryptions: Semaphore::new(MAX_CONCURRENT_DECRYPTIONS),
        }
    }

    /// The Secret of `identity`, where the identity is a service principal and podid may read the Secret.
    pub(crate) fn secret<'a>(&self, identity: &'a IdentityFacts) -> Option<&'a ObjectKey> {
        let IdentitySource::ServicePrincipal { secret, .. } = &identity.source else {
            return None;
        };
        (self.any_namespace || secret.namespace == identity.key.namespace).then_some(secret)
    }

    /// A token of `identity` for `resource`, together with one of each auxiliary tenant. One that is refused fails the whole: a
    /// client that got fewer tokens than tenants would fail later, where the cause does not show.
    ///
    /// # Errors
    /// [`SourceError::Secret`] when the Secret cannot be read, [`SourceError::Unusable`] when it or the AzureIdentity says
    /// something that cannot be used, [`SourceError::Azure`] when Entra refuses.
    pub(crate) async fn token(
        &self,
        identity: &IdentityFacts,
        resource: &str,
    ) -> Result<Token, SourceError> {
        let IdentitySource::ServicePrincipal {
            certificate,
            tenant,
            auxiliary_tenants,
            secret,
            authority,
        } = &identity.source
        else {
            return Err(identity_error(identity, "is no service principal"));
        };
        if self.secret(identity).is_none() {
            let text = format!(
                "names Secret {secret} of another namespace, which is not read; move it to namespace {}, or give podid nmi --allow-cross-namespace-secrets",
                identity.key.namespace
            );
            return Err(identity_error(identity, text));
        }
        let authority = self.authority(identity, secret, authority.as_deref())?;
        let data = secrets::read(&self.client, secret).await?;
        let credential = if *certificate {
            OwnedCredential::Certificate(self.certificate(secret, data).await?)
        } else {
            OwnedCredential::ClientSecret(client_secret(secret, data)?)
        };
        let requests = std::iter::once(tenant)
            .chain(auxiliary_tenants)
            .map(|tenant| {
                self.entra.client_credentials(
                    tenant,
                    &identity.client_id,
                    credential.as_credential(),
                    resource,
                    authority.as_ref(),
                )
            });
        let mut tokens = try_join_all(requests).await?.into_iter();
        let first = tokens.next();
        let mut token = first.ok_or_else(|| identity_error(identity, "has no tenant"))?;
        token.auxiliary = tokens.collect();
        Ok(token)
    }

    /// The authority that the identity names instead of the cloud's own. An author of AzureIdentities may send Secrets of the own
    /// namespace to any `https` address, and Secrets of another namespace to Azure's authorities only.
    fn authority(
        &self,
        identity: &IdentityFacts,
        secret: &ObjectKey,
        url: Option<&str>,
    ) -> Result<Option<Url>, SourceError> {
        let Some(text) = url else { return Ok(None) };
        let url = clouds::parse_url("spec.adEndpoint", text)
            .map_err(|error| identity_error(identity, error.to_string()))?;
        let own = url.origin() == self.entra.authority().origin();
        if own || clouds::is_authority(&url) {
            return Ok(Some(url));
        }
        if secret.namespace != identity.key.namespace {
            let text = format!(
                "sends Secret {secret} of another namespace to spec.adEndpoint {url}, which is no authority of Azure's"
            );
            return Err(identity_error(identity, text));
        }
        if url.scheme() != "https" {
            let text =
                format!("would send its Secret in clear text; spec.adEndpoint {url} must be https");
            return Err(identity_error(identity, text));
        }
        Ok(Some(url))
    }

    async fn certificate(
        &self,
        key: &ObjectKey,
        mut data: SecretData,
    ) -> Result<Certificate, SourceError> {
        let mut file = match (data.remove("certificate"), data.remove("tls.crt")) {
            (Some(file), _) | (None, Some(file)) => file,
            (None, None) => {
                let text = "has no certificate; put a PFX or PEM under the key certificate";
                return Err(secret_error(key, text));
            }
        };
        if let Some(private) = data.remove("tls.key") {
            file.push(b'\n');
            file.extend_from_slice(&private);
        }
        let password = match data.remove("password") {
            Some(password) => utf8(key, &password)?,
            None => Zeroizing::default(),
        };
        // The semaphore is never closed.
        let _permit = self.decryptions.acquire().await;
        let opened = tokio::task::spawn_blocking(move || Certificate::read(&file, &password)).await;
        match opened {
            Ok(Ok(certificate)) => Ok(certificate),
            Ok(Err(error)) => Err(secret_error(key, format!("cannot be used: {error}"))),
            Err(_) => Err(secret_error(key, "could not be opened")),
        }
    }
}

fn client_secret(key: &ObjectKey, mut data: SecretData) -> Result<Zeroizing<String>, SourceError> {
    let value = match data.len() {
        1 => data.pop_first().map(|(_, value)| value),
        _ => data
            .remove("clientSecret")
            .or_else(|| data.remove("clientsecret")),
    };
    let value = value.ok_or_else(|| {
        secret_error(
            key,
            "must have one key, or the client secret under clientSecret",
        )
    })?;
    utf8(key, &value)
}

/// The value as text without the line end that `kubectl create secret --from-file` keeps.
fn utf8(key: &ObjectKey, value: &[u8]) -> Result<Zeroizing<String>, SourceError> {
    std::str::from_utf8(value)
        .map(|text| Zeroizing::new(text.trim_end_matches(['\n', '\r']).to_owned()))
        .map_err(|_| {
            secret_error(
                key,
                "does not hold text where a secret or password is expected",
            )
        })
}

fn identity_error(identity: &IdentityFacts, what: impl std::fmt::Display) -> SourceError {
    SourceError::Unusable(format!("AzureIdentity {} {what}", identity.key))
}

fn secret_error(secret: &ObjectKey, what: impl std::fmt::Display) -> SourceError {
    SourceError::Unusable(format!("Secret {secret} {what}"))
}
