//! Azure Resource Manager (ARM) client: reads and changes the identities of virtual machines and scale sets. The controller has one
//! for its cloud configuration; requests wait for nothing but Azure, and each class of them is throttled apart.

mod compute;
mod credential;
mod identity;
mod poll;
mod throttle;

use std::sync::Arc;
use std::time::Duration;

use http::Method;
use reqwest::Url;
use serde_json::Value;

pub use compute::HostIdentity;

use crate::config::Credential;
use crate::endpoints::Endpoints;
use crate::entra::{Entra, client, read_body, transport_error};
use crate::error::{Error, ErrorKind, Service};
use crate::imds::Imds;
use credential::TokenHolder;
use throttle::{Class, Throttle};

/// One request, answer included, may take a minute; ARM ends slower ones itself.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// Fetching the controller's own token may take half a minute, retries included.
const TOKEN_TIMEOUT: Duration = Duration::from_secs(30);
/// The largest answer in bytes; a scale set with its extensions stays far below.
const MAX_ANSWER: usize = 4 * 1024 * 1024;

/// Azure Resource Manager, as one credential sees it.
#[derive(Clone)]
pub struct Arm(Arc<Inner>);

struct Inner {
    client: reqwest::Client,
    base: Url,
    token: TokenHolder,
    throttle: Arc<Throttle>,
}

/// An answer that is not an error.
struct Answered {
    headers: http::HeaderMap,
    status: u16,
    body: Value,
}

impl Arm {
    /// A client. `agent` is added to the User-Agent.
    ///
    /// # Errors
    /// The system's TLS cannot be set up, or `agent` is no header value.
    pub fn new(
        endpoints: &Endpoints,
        credential: Credential,
        agent: Option<&str>,
    ) -> Result<Self, Error> {
        Self::sharing(Arc::default(), endpoints, credential, agent)
    }

    /// A client with a new configuration that keeps the throttling state of this one.
    ///
    /// # Errors
    /// The system's TLS cannot be set up.
    pub fn reconfigured(
        &self,
        endpoints: &Endpoints,
        credential: Credential,
        agent: Option<&str>,
    ) -> Result<Self, Error> {
        Self::sharing(self.0.throttle.clone(), endpoints, credential, agent)
    }

    fn sharing(
        throttle: Arc<Throttle>,
        endpoints: &Endpoints,
        credential: Credential,
        agent: Option<&str>,
    ) -> Result<Self, Error> {
        let token = TokenHolder::new(
            credential,
            Imds::new(&endpoints.imds, None, TOKEN_TIMEOUT),
            Entra::with_user_agent(&endpoints.authority, TOKEN_TIMEOUT, agent)?,
            endpoints.arm_audience.clone(),
        );
        Ok(Self(Arc::new(Inner {
            client: client(Service::Arm, REQUEST_TIMEOUT, agent)?,
            base: endpoints.arm.clone(),
            token,
            throttle,
        })))
    }

    /// One request, unless the subscription is throttled; repeated once with a new token when ARM refuses the first one (401).
    async fn call(
        &self,
        subscription: &str,
        class: Class,
        method: Method,
        url: Url,
        extra: Option<(&'static str, String)>,
        body: Option<&Value>,
    ) -> Result<Answered, Error> {
        self.0.throttle.admit(subscription, class)?;
        let mut refused = false;
        loop {
            let token = self.0.token.get().await?;
            let mut request = self
                .0
                .client
                .request(method.clone(), url.clone())
                .bearer_auth(token.secret());
            if let Some((name, value)) = &extra {
                request = request.header(*name, value);
            }
            if let Some(body) = body {
                request = request.json(body);
            }
            let answer = request
                .send()
                .await
                .map_err(|error| transport_error(Service::Arm, &error))?;
            let (status, headers) = (answer.status(), answer.headers().clone());
            let body = read_body(Service::Arm, answer, MAX_ANSWER).await?;
            if status.as_u16() == 401 && !refused {
                refused = true;
                self.0.token.forget(&token).await;
                continue;
            }
            if !status.is_success() {
                let error = Error::from_answer(Service::Arm, status.as_u16(), &headers, &body);
                return Err(self.0.throttle.note(subscription, class, error));
            }
            let body = match body.as_slice() {
                [] => Value::Null,
                body => serde_json::from_slice(body).map_err(|_| {
                    Error::new(Service::Arm, ErrorKind::Malformed, "the answer is not JSON")
                })?,
            };
            return Ok(Answered {
                headers,
                status: status.as_u16(),
                body,
            });
        }
    }
}

#[cfg(test)]
mod tests;
