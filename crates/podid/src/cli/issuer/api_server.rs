//! API server's own OIDC documents, and a token that says its issuer; each answer is bounded in size and time.

use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use kube::Client;
use kube::client::Body;
use podid_cluster::error_text::describe;
use podid_policy::issuer::{Discovery, TokenClaims, shown};
use serde_json::{Value, json};
use tokio::time::timeout;

use super::documents::{self, Jwks};

const DISCOVERY: &str = "/.well-known/openid-configuration";
const JWKS: &str = "/openid/v1/jwks";
/// Bytes of an answer; the documents have a few KiB.
const MAX_ANSWER: usize = 1 << 20;
/// The audience of the token. Nobody accepts it, so that the token is worth nothing.
const AUDIENCE: &str = "podid-issuer";
/// Seconds that the token lives: the API server grants no fewer.
const TOKEN_LIFE: u32 = 600;

/// A service account, of which a token is asked for.
#[derive(Debug, Clone)]
pub struct ServiceAccount {
    namespace: String,
    name: String,
}

impl std::fmt::Display for ServiceAccount {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl std::str::FromStr for ServiceAccount {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let is_name = |name: &str| {
            let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-.".contains(&b);
            name.bytes().all(fits) && name.contains(|c: char| c.is_ascii_alphanumeric())
        };
        match text.split_once('/') {
            Some((namespace, name)) if is_name(namespace) && is_name(name) => Ok(Self {
                namespace: namespace.to_owned(),
                name: name.to_owned(),
            }),
            _ => Err("expected NAMESPACE/NAME, such as default/default".to_owned()),
        }
    }
}

/// The API server of the reader's kubeconfig.
pub struct ApiServer {
    /// Its client.
    pub client: Client,
    /// Time limit of each answer.
    pub timeout: Duration,
}

impl ApiServer {
    /// Its discovery document.
    pub async fn discovery(&self) -> anyhow::Result<Discovery> {
        let body = self.ask(Request::get(DISCOVERY), Body::empty()).await?;
        documents::discovery(&body)
            .map_err(|error| anyhow!("the API server's {DISCOVERY}: {}", shown(&error)))
    }

    /// Its keys.
    pub async fn jwks(&self) -> anyhow::Result<Jwks> {
        let body = self.ask(Request::get(JWKS), Body::empty()).await?;
        Jwks::read(&body).map_err(|error| anyhow!("the API server's {JWKS}: {}", shown(&error)))
    }

    /// What a token of this service account says. The token is in no error, and forgotten.
    pub async fn token(&self, account: &ServiceAccount) -> anyhow::Result<TokenClaims> {
        let ServiceAccount { namespace, name } = account;
        let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token");
        let request = json!({
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": { "audiences": [AUDIENCE], "expirationSeconds": TOKEN_LIFE },
        });
        let post = Request::post(path).header("Content-Type", "application/json");
        let body = self
            .ask(post, Body::from(request.to_string().into_bytes()))
            .await?;
        let answer: Option<Value> = serde_json::from_slice(&body).ok();
        let token = answer
            .as_ref()
            .and_then(|answer| answer["status"]["token"].as_str());
        documents::token(token.unwrap_or_default()).map_err(|error| anyhow!(error))
    }

    async fn ask(&self, request: http::request::Builder, body: Body) -> anyhow::Result<Vec<u8>> {
        let request = request.body(body).context("no request")?;
        let path = request.uri().path().to_owned();
        let answer = timeout(self.timeout, self.read(request)).await;
        answer
            .unwrap_or_else(|_| {
                let seconds = self.timeout.as_secs_f32();
                Err(anyhow!("no answer within {seconds} s (--timeout)"))
            })
            .with_context(|| format!("the API server's {path} cannot be read"))
    }

    async fn read(&self, request: Request<Body>) -> anyhow::Result<Vec<u8>> {
        let answer = self.client.send(request).await;
        let (head, body) = answer
            .map_err(|error| anyhow!(describe(&error)))?
            .into_parts();
        let read = Limited::new(body, MAX_ANSWER).collect().await;
        let body = read.map_err(|error| match error.is::<LengthLimitError>() {
            true => anyhow!("it answers with more than {MAX_ANSWER} bytes; is this a kube-apiserver (--kubeconfig)?"),
            false => anyhow!("{error}"),
        })?;
        let body = body.to_bytes();
        if head.status.is_success() {
            return Ok(body.into());
        }
        let told: Option<Value> = serde_json::from_slice(&body).ok();
        let message = told.as_ref().and_then(|told| told["message"].as_str());
        let message = shown(message.unwrap_or("without a reason"));
        let next = match head.status {
            StatusCode::UNAUTHORIZED => "; check the credential of the kubeconfig (--kubeconfig)",
            StatusCode::FORBIDDEN => {
                "; the ClusterRole system:service-account-issuer-discovery has the right to read both documents"
            }
            StatusCode::NOT_FOUND => "; is it there, and is this a kube-apiserver (--kubeconfig)?",
            _ => "",
        };
        bail!("{}: {message}{next}", head.status.as_u16())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_account_is_a_namespace_and_a_name() {
        let account: ServiceAccount = "shop/web.v2".parse().unwrap();
        assert_eq!(account.to_string(), "shop/web.v2");
        for wrong in [
            "",
            "web",
            "/",
            "shop/",
            "/web",
            "a/b/c",
            "../x",
            "shop/We b",
            "shop/web?x",
        ] {
            assert!(wrong.parse::<ServiceAccount>().is_err(), "{wrong}");
        }
    }
}
