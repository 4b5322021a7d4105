//! Info: the tenant of a pod's identity, and the versions of the metadata service's protocol.
//!
//! `request.rs` calls it for `/metadata/identity/info` and `/metadata/versions`.

use http::Uri;
use podid_policy::facts::IdentitySource;
use serde_json::Value;

use crate::context::Context;
use crate::http::passthrough;
use crate::http::response::{Answer, json};
use crate::http::target::{Dialect, info_request};
use crate::refusal::Refusal;
use crate::token::grant::{self, Requester};

/// The known versions of the protocol that have identities.
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
/// What the metadata service is asked for, to learn the tenant of user-assigned identities.
const INFO: &str = "/metadata/identity/info?api-version=2018-02-01";
/// Longest tenant in bytes: it is a GUID or a domain name.
const MAX_TENANT: usize = 255;

/// Answers which tenant the identity is of that the requester is granted.
///
/// # Errors
/// It is granted none, or the metadata service does not say its tenant.
pub(crate) async fn tenant(
    context: &Context,
    requester: Requester<'_>,
    target: &Uri,
) -> Result<Answer, Refusal> {
    let dialect = Dialect::of(&context.config);
    let wanted = info_request(target.query().unwrap_or_default(), dialect)?;
    // An object id is resolved with a token, here of the audience that every identity has tokens for.
    let resource = "https://management.azure.com/";
    let granted = async || {
        let wanted = grant::resolve(context, requester, &wanted, resource).await?;
        grant::granted(context, requester, &wanted).await
    };
    let (_, identity) = grant::held(context, requester, granted).await?;
    let tenant = match &identity.source {
        IdentitySource::ServicePrincipal { tenant, .. } => tenant.to_string(),
        IdentitySource::Federated {
            tenant: Some(tenant),
            ..
        } => tenant.to_string(),
        IdentitySource::UserAssigned { .. } | IdentitySource::Federated { .. } => context
            .tenant
            .get_or_try_init(|| ask(context))
            .await?
            .clone(),
    };
    Ok(json(serde_json::json!({ "tenantId": tenant }).to_string()))
}

/// Answers which versions of the protocol there are.
pub(crate) fn versions() -> Answer {
    json(serde_json::json!({ "apiVersions": VERSIONS }).to_string())
}

async fn ask(context: &Context) -> Result<String, Refusal> {
    let answer = passthrough::ask(context, Uri::from_static(INFO)).await?;
    let body: Value = serde_json::from_slice(answer.body()).unwrap_or_default();
    let tenant = body["tenantId"].as_str().filter(|tenant| {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'.';
        answer.status().is_success() && tenant.len() <= MAX_TENANT && tenant.bytes().all(plain)
    });
    tenant.map(str::to_owned).ok_or(Refusal::NoTenant)
}
