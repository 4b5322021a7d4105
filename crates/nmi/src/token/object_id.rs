//! Object id: finds the AzureIdentity that has the `object_id` of a request. No Kubernetes object states it, but the claim `oid` of
//! the identity's tokens does.
//!
//! `grant.rs` calls it. It guards Azure against being asked for a token of every identity each time: `object_id_cache.rs` keeps what tokens said.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use podid_policy::facts::ObjectKey;
use podid_policy::ids::ClientId;
use podid_policy::verdict::RequestedIdentity;
use serde_json::Value;

use crate::caller::index::Decision;
use crate::context::Context;
use crate::refusal::Refusal;
use crate::token::cache::CachedToken;
use crate::token::grant::{Requester, pod};

/// Identities that one request may fetch tokens of; of a pod that is granted more, some cannot be named by object id.
const MAX_TRIED: usize = 16;

/// The AzureIdentity with this object id, among those that the requester is granted.
///
/// # Errors
/// No token came of an identity that may be the one.
pub(crate) async fn resolve(
    context: &Context,
    requester: Requester<'_>,
    id: &ClientId,
    resource: &str,
) -> Result<Option<ObjectKey>, Refusal> {
    let pod = pod(context, requester)?;
    let candidates = {
        let index = context.index.read();
        let mut keys: Vec<_> = index.granted_identities().into_keys().collect();
        keys.sort();
        let wanted = |key| RequestedIdentity::Object {
            id: id.clone(),
            identity: Some(key),
        };
        let decide = |key| index.decide(&pod, &wanted(key));
        keys.into_iter().map(decide).collect::<Vec<_>>()
    };
    let granted = candidates
        .into_iter()
        .filter_map(|decision| match decision {
            Decision::Grant(identity) => Some((identity, None)),
            Decision::Pending { identity, refusal } => {
                let not_assigned = Refusal::NotAssigned {
                    pod: pod.key.clone(),
                    identity: identity.key.clone(),
                    refusal,
                };
                Some((identity, Some(not_assigned)))
            }
            Decision::Exempt(_) | Decision::Refused(_) => None,
        });
    let mut missing = None;
    for (identity, not_assigned) in granted.take(MAX_TRIED) {
        let known = context
            .object_id_cache
            .get(&identity.key, &identity.client_id);
        let found = match (known, not_assigned) {
            (Some(object), _) => Some(object),
            (None, None) => {
                requester.attest(&pod).await?;
                match context.cache.get(&identity, resource, false).await {
                    Ok((token, _)) => object_id(&token),
                    Err(error) => {
                        missing = Some(Refusal::Source(error));
                        continue;
                    }
                }
            }
            (None, Some(not_assigned)) => {
                missing = Some(not_assigned);
                continue;
            }
        };
        let Some(found) = found else { continue };
        let matches = found == *id;
        context
            .object_id_cache
            .insert(identity.key.clone(), identity.client_id.clone(), found);
        if matches {
            return Ok(Some(identity.key.clone()));
        }
    }
    missing.map_or(Ok(None), Err)
}

/// The claim `oid` of a token. Its signature needs no check, because the token came from Azure over podid's own connection.
fn object_id(token: &CachedToken) -> Option<ClientId> {
    let body: Value = serde_json::from_slice(&token.body(Timestamp::now())).ok()?;
    // Of several tenants' tokens the first is the primary tenant's.
    let first = body.get(0).unwrap_or(&body);
    let claims = first["access_token"].as_str()?.split('.').nth(1)?;
    let claims = URL_SAFE_NO_PAD.decode(claims).ok()?;
    let claims: Value = serde_json::from_slice(&claims).ok()?;
    ClientId::parse(claims["oid"].as_str()?).ok()
}
