//! Object ids that tokens have shown, by AzureIdentity.
//!
//! `object_id.rs` fills and reads it, so that a pod that names an identity by object id costs Azure a token only once.

use std::collections::HashMap;

use parking_lot::Mutex;
use podid_policy::facts::ObjectKey;
use podid_policy::ids::ClientId;

/// Identities whose object id is kept; when one more comes, all are dropped, which bounds the memory.
const MAX_KNOWN: usize = 1024;

/// The client id and the object id of each AzureIdentity.
#[derive(Debug, Default)]
pub(crate) struct ObjectIdCache(Mutex<HashMap<ObjectKey, (ClientId, ClientId)>>);

impl ObjectIdCache {
    /// The object id of the identity, if it is known and the identity still has this client id.
    pub(crate) fn get(&self, identity: &ObjectKey, client_id: &ClientId) -> Option<ClientId> {
        let known = self.0.lock();
        let (client, object) = known.get(identity)?;
        (client == client_id).then(|| object.clone())
    }

    /// Keeps an object id.
    pub(crate) fn insert(&self, identity: ObjectKey, client_id: ClientId, object_id: ClientId) {
        let mut known = self.0.lock();
        if known.len() >= MAX_KNOWN && !known.contains_key(&identity) {
            known.clear();
        }
        known.insert(identity, (client_id, object_id));
    }
}
