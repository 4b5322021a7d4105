//! What the metadata service tells beside tokens, and may be told to any pod.

use bytes::Bytes;
use http::Uri;
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use http::{Request, Response};
use http_body_util::Full;
use podid_policy::facts::IdentitySource;
use serde_json::{Value, json};
use tokio::sync::OnceCell;

use crate::context::Context;
use crate::http::request::Answer;
use crate::http::response::{JSON, Refusal};
use crate::http::target::info_request;
use crate::token::grant::{self, Asker};

/// The versions of the protocol that have identities, as far as they are known.
const VERSIONS: [&str; 29] = [
    "2018-02-01",
    "2018-04-02",
    "2018-10-01",
    "2019-02-01",
    "2019-03-11",
    "2019-04-30",
    "2019-06-01",
    "2019-06-04",
    "2019-08-01",
    "2019-08-15",
    "2019-11-01",
    "2020-06-01",
    "2020-07-15",
    "2020-09-01",
    "2020-10-01",
    "2020-12-01",
    "2021-01-01",
    "2021-02-01",
    "2021-03-01",
    "2021-05-01",
    "2021-10-01",
    "2021-11-01",
    "2021-11-15",
    "2021-12-13",
    "2023-07-01",
    "2023-11-15",
    "2024-03-15",
    "2024-07-17",
    "2025-04-07",
];
/// What the metadata service is asked for its tenant.
const INFO: &str = "/metadata/identity/info?api-version=2018-02-01";
/// Tenants are GUIDs or domain names.
const MAX_TENANT: usize = 255;

/// The tenant that the node's metadata service gives tokens of, once it has told.
pub(crate) type NodeTenant = OnceCell<String>;

/// Which tenant the identity is of that the caller is granted.
pub(crate) async fn tenant(
    context: &Context,
    asker: Asker<'_>,
    target: &Uri,
) -> Result<Answer, Refusal> {
    let named = info_request(target.query().unwrap_or_default())?;
    // Whoever names an identity by its object id gets the answer for that of the token for Azure's own API.
    let resource = "https://management.azure.com/";
    let wanted = grant::wanted(context, asker, &named, resource).await?;
    let (_, identity) = grant::granted(context, asker, &wanted).await?;
    let tenant = match &identity.source {
        IdentitySource::ServicePrincipal { tenant, .. } => tenant.to_string(),
        IdentitySource::UserAssigned { .. } => context
            .tenant
            .get_or_try_init(|| ask(context))
            .await?
            .clone(),
    };
    Ok(told(&json!({ "tenantId": tenant })))
}

/// Which versions of the protocol there are.
pub(crate) fn versions() -> Answer {
    told(&json!({ "apiVersions": VERSIONS }))
}

fn told(body: &Value) -> Answer {
    let mut answer = Response::new(Full::new(body.to_string().into()));
    answer.headers_mut().insert(CONTENT_TYPE, JSON);
    answer
}

async fn ask(context: &Context) -> Result<String, Refusal> {
    let mut request = Request::new(Bytes::new());
    *request.uri_mut() = Uri::from_static(INFO);
    request.headers_mut().insert(
        HeaderName::from_static("metadata"),
        HeaderValue::from_static("true"),
    );
    let answer = context.upstream.forward(request).await?;
    let body: Value = serde_json::from_slice(answer.body()).unwrap_or_default();
    let tenant = body["tenantId"].as_str().filter(|tenant| {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'.';
        answer.status().is_success() && tenant.len() <= MAX_TENANT && tenant.bytes().all(plain)
    });
    tenant.map(str::to_owned).ok_or(Refusal::NoTenant)
}
