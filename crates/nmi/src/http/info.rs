//! What the metadata service tells beside tokens, and may be told to any pod.

use bytes::Bytes;
use http::Request;
use http::Uri;
use http::header::{HeaderName, HeaderValue};
use podid_policy::facts::IdentitySource;
use serde_json::Value;

use crate::context::Context;
use crate::http::passthrough;
use crate::http::response::{Answer, json};
use crate::http::target::info_request;
use crate::refusal::Refusal;
use crate::token::grant::{self, Requester};

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

/// Which tenant the identity is of that the caller is granted.
pub(crate) async fn tenant(
    context: &Context,
    requester: Requester<'_>,
    target: &Uri,
) -> Result<Answer, Refusal> {
    let selector = info_request(target.query().unwrap_or_default())?;
    // Whoever names an identity by its object id gets the answer for that of the token for Azure's own API.
    let resource = "https://management.azure.com/";
    let wanted = grant::resolve(context, requester, &selector, resource).await?;
    let (_, identity) = grant::granted(context, requester, &wanted).await?;
    let tenant = match &identity.source {
        IdentitySource::ServicePrincipal { tenant, .. } => tenant.to_string(),
        IdentitySource::UserAssigned { .. } => context
            .tenant
            .get_or_try_init(|| ask(context))
            .await?
            .clone(),
    };
    Ok(json(serde_json::json!({ "tenantId": tenant }).to_string()))
}

/// Which versions of the protocol there are.
pub(crate) fn versions() -> Answer {
    json(serde_json::json!({ "apiVersions": VERSIONS }).to_string())
}

async fn ask(context: &Context) -> Result<String, Refusal> {
    let mut request = Request::new(Bytes::new());
    *request.uri_mut() = Uri::from_static(INFO);
    request.headers_mut().insert(
        HeaderName::from_static("metadata"),
        HeaderValue::from_static("true"),
    );
    let answer = passthrough::forward(context, request).await?;
    let body: Value = serde_json::from_slice(answer.body()).unwrap_or_default();
    let tenant = body["tenantId"].as_str().filter(|tenant| {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'.';
        answer.status().is_success() && tenant.len() <= MAX_TENANT && tenant.bytes().all(plain)
    });
    tenant.map(str::to_owned).ok_or(Refusal::NoTenant)
}
