//! Service principals: their Secrets, what they prove themselves with, and their tokens.

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

/// Opening a PFX is work by design; more of them at once would keep the node from its own.
const OPENING: usize = 1;

/// Gets tokens of service principals.
pub(crate) struct Principals {
    entra: Entra,
    client: Client,
    /// Whether an AzureIdentity may name a Secret of another namespace.
    any_namespace: bool,
    opening: Semaphore,
}

/// What a Secret holds.
enum Proof {
    Secret(Zeroizing<String>),
    Certificate(Certificate),
}

impl Proof {
    fn credential(&self) -> Credential<'_> {
        match self {
            Self::Secret(secret) => Credential::Secret(secret),
            Self::Certificate(certificate) => Credential::Certificate(certificate),
        }
    }
}

impl Principals {
    pub(crate) fn new(entra: Entra, client: Client, any_namespace: bool) -> Self {
        Self {
            entra,
            client,
            any_namespace,
            opening: Semaphore::new(OPENING),
        }
    }

    /// The Secret of `identity`, if it is a service principal and may be read.
    pub(crate) fn secret<'a>(&self, identity: &'a IdentityFacts) -> Option<&'a ObjectKey> {
        let IdentitySource::ServicePrincipal { secret, .. } = &identity.source else {
            return None;
        };
        (self.any_namespace || secret.namespace == identity.key.namespace).then_some(secret)
    }

    /// A token of `identity` for `resource`, with one for each auxiliary tenant. All or none: a client that was promised several
    /// would fail later, and elsewhere, with less.
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
            return Err(unusable(identity, "is no service principal"));
        };
        if self.secret(identity).is_none() {
            let text = format!(
                "names Secret {secret} of another namespace, which is not read; move it to namespace {}, or give podid nmi --allow-cross-namespace-secrets",
                identity.key.namespace
            );
            return Err(unusable(identity, text));
        }
        let authority = self.authority(identity, secret, authority.as_deref())?;
        let data = secrets::read(&self.client, secret).await?;
        let proof = if *certificate {
            Proof::Certificate(self.certificate(secret, data).await?)
        } else {
            Proof::Secret(client_secret(secret, data)?)
        };
        let asked = std::iter::once(tenant)
            .chain(auxiliary_tenants)
            .map(|tenant| {
                self.entra.client_credentials(
                    tenant,
                    &identity.client_id,
                    proof.credential(),
                    resource,
                    authority.as_ref(),
                )
            });
        let mut tokens = try_join_all(asked).await?.into_iter();
        let first = tokens.next();
        let mut token = first.ok_or_else(|| unusable(identity, "has no tenant"))?;
        token.auxiliary = tokens.collect();
        Ok(token)
    }

    /// The authority that an identity names. Whoever writes AzureIdentities decides where a Secret of the namespace is sent, but
    /// not in clear text; and a Secret of another namespace goes to Azure alone.
    fn authority(
        &self,
        identity: &IdentityFacts,
        secret: &ObjectKey,
        url: Option<&str>,
    ) -> Result<Option<Url>, SourceError> {
        let Some(text) = url else { return Ok(None) };
        let url = clouds::parse_url("spec.adEndpoint", text)
            .map_err(|error| unusable(identity, error.to_string()))?;
        let own = url.origin() == self.entra.authority().origin();
        if own || clouds::is_authority(&url) {
            return Ok(Some(url));
        }
        if secret.namespace != identity.key.namespace {
            let text = format!(
                "sends Secret {secret} of another namespace to spec.adEndpoint {url}, which is no authority of Azure's"
            );
            return Err(unusable(identity, text));
        }
        if url.scheme() != "https" {
            let text =
                format!("would send its Secret in clear text; spec.adEndpoint {url} must be https");
            return Err(unusable(identity, text));
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
                return Err(unsuitable(key, text));
            }
        };
        if let Some(private) = data.remove("tls.key") {
            file.push(b'\n');
            file.extend_from_slice(&private);
        }
        let password = match data.remove("password") {
            Some(password) => text(key, &password)?,
            None => Zeroizing::default(),
        };
        // The semaphore is never closed.
        let _turn = self.opening.acquire().await;
        let opened = tokio::task::spawn_blocking(move || Certificate::read(&file, &password)).await;
        match opened {
            Ok(Ok(certificate)) => Ok(certificate),
            Ok(Err(error)) => Err(unsuitable(key, format!("cannot be used: {error}"))),
            Err(_) => Err(unsuitable(key, "could not be opened")),
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
        unsuitable(
            key,
            "must have one key, or the client secret under clientSecret",
        )
    })?;
    text(key, &value)
}

fn text(key: &ObjectKey, value: &[u8]) -> Result<Zeroizing<String>, SourceError> {
    std::str::from_utf8(value)
        .map(|text| Zeroizing::new(text.trim_end_matches(['\n', '\r']).to_owned()))
        .map_err(|_| {
            unsuitable(
                key,
                "does not hold text where a secret or password is expected",
            )
        })
}

fn unusable(identity: &IdentityFacts, what: impl std::fmt::Display) -> SourceError {
    SourceError::Unusable(format!("AzureIdentity {} {what}", identity.key))
}

fn unsuitable(secret: &ObjectKey, what: impl std::fmt::Display) -> SourceError {
    SourceError::Unusable(format!("Secret {secret} {what}"))
}
