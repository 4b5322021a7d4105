//! From an object id to the AzureIdentity that has it. No object states it; the identity's tokens do.

use std::collections::HashMap;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use parking_lot::Mutex;
use podid_policy::facts::ObjectKey;
use podid_policy::ids::ClientId;
use podid_policy::verdict::RequestedIdentity;
use serde_json::Value;

use crate::caller::index::Decision;
use crate::context::Context;
use crate::http::response::Refusal;
use crate::token::cache::CachedToken;
use crate::token::grant::{Asker, pod};

/// A pod with more identities cannot name all of them by object id.
const MAX_TRIED: usize = 16;
/// Identities whose object id is remembered; beyond this all are forgotten.
const MAX_KNOWN: usize = 1024;

/// The object ids that were seen in tokens, by AzureIdentity. It counts as long as the identity's client id stays the same.
#[derive(Debug, Default)]
pub(crate) struct ObjectIds(Mutex<HashMap<ObjectKey, (ClientId, ClientId)>>);

/// The AzureIdentity with this object id among those that the asker is granted.
///
/// # Errors
/// An identity's token cannot be had, and it may be the one.
pub(crate) async fn object(
    context: &Context,
    asker: Asker<'_>,
    id: &ClientId,
    resource: &str,
) -> Result<Option<ObjectKey>, Refusal> {
    let pod = pod(context, asker)?;
    let candidates = {
        let index = context.index.read();
        let mut keys: Vec<_> = index.granted_identities().into_keys().collect();
        keys.sort();
        let decide = |key| index.decide(&pod, &RequestedIdentity::Object(Some(key)));
        keys.into_iter().map(decide).collect::<Vec<_>>()
    };
    let granted = candidates
        .into_iter()
        .filter_map(|decision| match decision {
            Decision::Grant(identity) => Some((identity, true)),
            Decision::NotYet(identity) => Some((identity, false)),
            Decision::Exempt(_) | Decision::Refused(_) => None,
        });
    let mut missing = None;
    for (identity, is_ready) in granted.take(MAX_TRIED) {
        let known = context.object_ids.0.lock().get(&identity.key).cloned();
        let known = known.filter(|(client, _)| *client == identity.client_id);
        let found = match known {
            Some((_, object)) => Some(object),
            None if is_ready => {
                asker.attest(context, &pod).await?;
                match context.cache.get(&identity, resource, false).await {
                    Ok((token, _)) => object_id(&token),
                    Err(error) => {
                        missing = Some(Refusal::Source(error));
                        continue;
                    }
                }
            }
            None => {
                missing = Some(Refusal::NotAssigned {
                    pod: pod.key.clone(),
                    identity: identity.key.clone(),
                });
                continue;
            }
        };
        let Some(found) = found else { continue };
        let matches = found == *id;
        context
            .object_ids
            .learn(identity.key.clone(), (identity.client_id.clone(), found));
        if matches {
            return Ok(Some(identity.key.clone()));
        }
    }
    missing.map_or(Ok(None), Err)
}

impl ObjectIds {
    fn learn(&self, identity: ObjectKey, ids: (ClientId, ClientId)) {
        let mut known = self.0.lock();
        if known.len() >= MAX_KNOWN && !known.contains_key(&identity) {
            known.clear();
        }
        known.insert(identity, ids);
    }
}

/// The claim `oid` of a token, which podid's own issuer wrote.
fn object_id(token: &CachedToken) -> Option<ClientId> {
    let body: Value = serde_json::from_slice(&token.body(Timestamp::now())).ok()?;
    // The first is the primary tenant's, where there are several.
    let first = body.get(0).unwrap_or(&body);
    let claims = first["access_token"].as_str()?.split('.').nth(1)?;
    let claims = URL_SAFE_NO_PAD.decode(claims).ok()?;
    let claims: Value = serde_json::from_slice(&claims).ok()?;
    ClientId::parse(claims["oid"].as_str()?).ok()
}
