//! Entra token endpoint: tokens of service principals, by the OAuth 2.0 client credentials grant with a client secret, a
//! certificate or a federated token. The node agent calls it for AzureIdentities, the controller for its own token.

use std::borrow::Cow;
use std::time::Duration;

use jiff::Timestamp;
use podid_policy::ids::ClientId;
use reqwest::Url;

use crate::certificate::Certificate;
use crate::endpoints::join;
use crate::error::{Error, ErrorKind, Service};
use crate::token::Token;

/// The type of a client assertion: a signed JWT in place of a secret (RFC 7523).
const ASSERTION_TYPE: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";
/// The end of a scope that asks for all that the application was granted.
const DEFAULT_SCOPE: &str = "/.default";
/// The largest answer in bytes; tokens have a few KiB.
const MAX_ANSWER: usize = 256 * 1024;

/// The credential of a service principal.
#[derive(Clone, Copy)]
pub enum Credential<'a> {
    /// A client secret.
    Secret(&'a str),
    /// A certificate, by an assertion that its key signs.
    Certificate(&'a Certificate),
    /// A token of another issuer, which the application trusts (workload identity federation).
    Federated(&'a str),
}

/// A client of one authority.
#[derive(Clone)]
pub struct Entra {
    client: reqwest::Client,
    authority: Url,
}

impl Entra {
    /// A client of `authority`. One token request may take as long as `deadline`.
    ///
    /// # Errors
    /// The system's TLS cannot be set up.
    pub fn new(authority: &Url, deadline: Duration) -> Result<Self, Error> {
        Self::with_user_agent(authority, deadline, None)
    }

    /// As [`Entra::new`], with `agent` added to the User-Agent.
    ///
    /// # Errors
    /// The system's TLS cannot be set up, or `agent` is no header value.
    pub fn with_user_agent(
        authority: &Url,
        deadline: Duration,
        agent: Option<&str>,
    ) -> Result<Self, Error> {
        Ok(Self {
            client: client(Service::Entra, deadline, agent)?,
            authority: authority.clone(),
        })
    }

    /// The authority of identities that name none.
    pub fn authority(&self) -> &Url {
        &self.authority
    }

    /// A token for `resource`, by client credentials. `authority` replaces this client's own, for identities that name one.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidCredential`] when Entra refuses the client or its credential, or the certificate cannot be used now; else
    /// as [`ErrorKind`] says.
    pub async fn client_credentials(
        &self,
        tenant: &str,
        client_id: &ClientId,
        credential: Credential<'_>,
        resource: &str,
        authority: Option<&Url>,
    ) -> Result<Token, Error> {
        let authority = authority.unwrap_or(&self.authority);
        // The v1 endpoint takes any resource as it is; federation needs v2, which takes a scope.
        let federated = matches!(credential, Credential::Federated(_));
        let path: &[&str] = match federated {
            true => &[tenant, "oauth2", "v2.0", "token"],
            false => &[tenant, "oauth2", "token"],
        };
        let url = join(authority, path);
        let scope = scope(resource);
        let mut form = vec![
            ("grant_type", "client_credentials"),
            ("client_id", client_id.as_str()),
        ];
        form.push(if federated {
            ("scope", &scope)
        } else {
            ("resource", resource)
        });
        let assertion;
        match credential {
            Credential::Secret(secret) => form.push(("client_secret", secret)),
            Credential::Certificate(certificate) => {
                assertion = certificate
                    .assertion(client_id, url.as_str(), Timestamp::now())
                    .map_err(|error| {
                        let text = format!("the certificate cannot be used: {error}");
                        Error::new(Service::Entra, ErrorKind::InvalidCredential, text)
                    })?;
                form.push(("client_assertion_type", ASSERTION_TYPE));
                form.push(("client_assertion", &assertion));
            }
            Credential::Federated(token) => {
                form.push(("client_assertion_type", ASSERTION_TYPE));
                form.push(("client_assertion", token));
            }
        }
        let request = self.client.post(url).form(&form);
        let answer = request
            .send()
            .await
            .map_err(|error| transport_error(Service::Entra, &error))?;
        let status = answer.status();
        let headers = answer.headers().clone();
        let body = read_body(Service::Entra, answer, MAX_ANSWER).await?;
        if status.is_success() {
            Token::parse(Service::Entra, &body, resource, Timestamp::now())
        } else if federated {
            let status = status.as_u16();
            Err(Error::from_federated_answer(status, &headers, &body))
        } else {
            let status = status.as_u16();
            Err(Error::from_answer(Service::Entra, status, &headers, &body))
        }
    }
}

/// The OAuth scope of a resource. Entra takes what is before the last `/.default` as the token's audience, byte for byte, so that a
/// slash at the resource's end stays.
fn scope(resource: &str) -> Cow<'_, str> {
    match resource.ends_with(DEFAULT_SCOPE) {
        true => Cow::Borrowed(resource),
        false => Cow::Owned(format!("{resource}{DEFAULT_SCOPE}")),
    }
}

/// An HTTPS client that follows no redirect, since requests carry credentials.
pub(crate) fn client(
    service: Service,
    deadline: Duration,
    agent: Option<&str>,
) -> Result<reqwest::Client, Error> {
    let own = concat!("podid/", env!("CARGO_PKG_VERSION"));
    let agent = agent.map_or_else(|| own.to_owned(), |more| format!("{own} {more}"));
    crate::proxy::used_by(reqwest::Client::builder())
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(Duration::from_secs(10).min(deadline))
        .timeout(deadline)
        .user_agent(agent)
        .build()
        .map_err(|error| Error::new(service, ErrorKind::Unavailable, error))
}

/// The error of a request without an answer. It leaves out the URL, which may carry a signature.
pub(crate) fn transport_error(service: Service, error: &reqwest::Error) -> Error {
    let kind = if error.is_timeout() {
        ErrorKind::Timeout
    } else {
        ErrorKind::Unavailable
    };
    let mut cause: &dyn std::error::Error = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    let text = if std::ptr::eq(cause, error as &dyn std::error::Error) {
        "the request could not be sent".to_owned()
    } else {
        cause.to_string()
    };
    Error::new(service, kind, text)
}

/// The body of an answer, of at most `max` bytes.
pub(crate) async fn read_body(
    service: Service,
    mut answer: reqwest::Response,
    max: usize,
) -> Result<Vec<u8>, Error> {
    let mut body = Vec::new();
    while let Some(chunk) = answer
        .chunk()
        .await
        .map_err(|error| transport_error(service, &error))?
    {
        if body.len() + chunk.len() > max {
            return Err(Error::new(
                service,
                ErrorKind::Malformed,
                "the answer is too long",
            ));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::FederationFault;
    use crate::fake::{Answer, Fake};
    use rstest::rstest;

    const ID: &str = "6f1c0000-0000-0000-0000-0000000022ab";

    #[rstest]
    #[case("https://vault.azure.net", "https://vault.azure.net/.default")]
    #[case(
        "https://database.windows.net/",
        "https://database.windows.net//.default"
    )]
    #[case(
        "https://management.core.windows.net//",
        "https://management.core.windows.net///.default"
    )]
    #[case("https://vault.azure.net/.default", "https://vault.azure.net/.default")]
    #[case("https://r/.DEFAULT", "https://r/.DEFAULT/.default")]
    #[case("https://R/Path?q=1", "https://R/Path?q=1/.default")]
    #[case(
        "6dae42f8-4368-4678-94ff-3960e28e3630",
        "6dae42f8-4368-4678-94ff-3960e28e3630/.default"
    )]
    #[tokio::test]
    async fn a_resource_becomes_a_scope_byte_for_byte(
        #[case] resource: &str,
        #[case] expected: &str,
    ) {
        let fake = Fake::start([Answer::ok(r#"{"access_token":"t","expires_in":3599}"#)]).await;
        let entra = Entra::new(&fake.url, Duration::from_secs(5)).unwrap();
        let (id, credential) = (ClientId::parse(ID).unwrap(), Credential::Federated("a.b.c"));
        let token = entra.client_credentials("t", &id, credential, resource, None);
        assert_eq!(token.await.unwrap().resource, resource);
        let seen = &fake.seen()[0];
        assert_eq!(seen.target, "/t/oauth2/v2.0/token");
        let form: Vec<_> = reqwest::Url::parse(&format!(
            "http://x/?{}",
            std::str::from_utf8(&seen.body).unwrap()
        ))
        .unwrap()
        .query_pairs()
        .into_owned()
        .collect();
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let expected = [
            pair("grant_type", "client_credentials"),
            pair("client_id", ID),
            pair("scope", expected),
            pair("client_assertion_type", ASSERTION_TYPE),
            pair("client_assertion", "a.b.c"),
        ];
        assert_eq!(form, expected);
    }

    #[tokio::test]
    async fn a_refused_assertion_has_its_fault_and_is_not_quoted() {
        let body = r#"{"error":"invalid_client","error_codes":[700213],"error_description":"AADSTS700213: No matching"}"#;
        let fake = Fake::start([Answer::new(401, body)]).await;
        let entra = Entra::new(&fake.url, Duration::from_secs(5)).unwrap();
        let (id, credential) = (
            ClientId::parse(ID).unwrap(),
            Credential::Federated("hu.s.h"),
        );
        let refused = entra.client_credentials("t", &id, credential, "https://r", None);
        let refused = refused.await.unwrap_err();
        assert_eq!(
            refused.federation_fault(),
            Some(FederationFault::CredentialMissing)
        );
        assert!(!refused.to_string().contains("hu.s.h"));
    }

    async fn ask(fake: &Fake) -> Result<Token, Error> {
        let entra = Entra::new(&fake.url, Duration::from_secs(5)).unwrap();
        let id = ClientId::parse(ID).unwrap();
        entra
            .client_credentials(
                "tenant/../x",
                &id,
                Credential::Secret("hu&sh"),
                "https://r/",
                None,
            )
            .await
    }

    #[tokio::test]
    async fn a_secret_goes_into_the_form_and_the_tenant_into_one_segment() {
        let fake = Fake::start([Answer::ok(r#"{"access_token":"t","expires_in":"3599"}"#)]).await;
        assert_eq!(ask(&fake).await.unwrap().secret(), "t");
        let seen = &fake.seen()[0];
        assert_eq!(
            (&*seen.method, &*seen.target),
            ("POST", "/tenant%2F..%2Fx/oauth2/token")
        );
        assert_eq!(
            std::str::from_utf8(&seen.body).unwrap(),
            format!(
                "grant_type=client_credentials&client_id={ID}&resource=https%3A%2F%2Fr%2F&client_secret=hu%26sh"
            )
        );
    }

    #[tokio::test]
    async fn a_refused_secret_is_explained_and_not_quoted() {
        let body = r#"{"error":"invalid_client","error_description":"AADSTS7000215: Invalid client secret provided.\r\nTrace ID: x"}"#;
        let fake = Fake::start([Answer::new(401, body)]).await;
        let error = ask(&fake).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidCredential);
        assert!(!error.to_string().contains("hu&sh"));
    }

    #[tokio::test]
    async fn a_redirect_is_not_followed() {
        let fake = Fake::start([Answer::status(307).with("location", "{base}/elsewhere")]).await;
        assert!(ask(&fake).await.is_err());
        assert_eq!(fake.seen().len(), 1);
    }
}
