//! Secrets: one is read when it is needed and wiped from memory when dropped; changes are watched by metadata alone. The node
//! agent calls this for service principals' credentials. No error or log of this file quotes a Secret's content.
//!
//! Needs the verbs `get`, `list` and `watch` on the Secrets that AzureIdentities name.

use std::collections::BTreeMap;
use std::pin::pin;

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Secret;
use kube::core::PartialObjectMeta;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client};
use podid_policy::facts::ObjectKey;
use tokio_util::sync::CancellationToken;
use zeroize::{Zeroize as _, Zeroizing};

/// Why a Secret cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// It is not there.
    #[error(
        "Secret {0} does not exist; create it, or correct spec.clientPassword of the AzureIdentity"
    )]
    Absent(ObjectKey),
    /// This process may not read it.
    #[error(
        "Secret {0} may not be read; allow `get` on secrets in its namespace to podid's service account"
    )]
    Forbidden(ObjectKey),
    /// The API server did not answer as it should.
    #[error("Secret {key} could not be read: {reason}")]
    Unavailable {
        /// The Secret.
        key: ObjectKey,
        /// What went wrong.
        reason: String,
    },
}

impl SecretError {
    /// Whether another attempt may succeed without anybody changing anything.
    pub fn is_transient(&self) -> bool {
        matches!(self, SecretError::Unavailable { .. })
    }
}

/// The decoded fields of a Secret; each is wiped when dropped.
pub type SecretData = BTreeMap<String, Zeroizing<Vec<u8>>>;

/// Reads a Secret once.
///
/// # Errors
/// [`SecretError`].
pub async fn read(client: &Client, key: &ObjectKey) -> Result<SecretData, SecretError> {
    let api: Api<Secret> = Api::namespaced(client.clone(), &key.namespace);
    let secret = api.get(&key.name).await.map_err(|error| match error {
        kube::Error::Api(status) if status.code == 404 => SecretError::Absent(key.clone()),
        kube::Error::Api(status) if status.code == 403 => SecretError::Forbidden(key.clone()),
        error => SecretError::Unavailable {
            key: key.clone(),
            // A text of serde or of the API server may quote the content.
            reason: match error {
                kube::Error::Api(status) => format!("the API server answered {}", status.code),
                kube::Error::SerdeError(_) => "the answer is not a Secret".to_owned(),
                other => other.to_string(),
            },
        },
    })?;
    let data = secret.data.unwrap_or_default();
    let mut read = SecretData::new();
    for (name, mut value) in data {
        read.insert(name, Zeroizing::new(std::mem::take(&mut value.0)));
        value.0.zeroize();
    }
    Ok(read)
}

/// Watches the metadata of one Secret until shutdown, and calls `changed` when it is first seen, when its resource version
/// changes, and when it is gone. An interruption is logged and retried, as often as it takes.
pub async fn watch(
    client: Client,
    key: ObjectKey,
    changed: impl Fn(),
    shutdown: CancellationToken,
) {
    let api: Api<PartialObjectMeta<Secret>> = Api::namespaced(client, &key.namespace);
    let config = watcher::Config::default().fields(&format!("metadata.name={}", key.name));
    let events = watcher::watcher(api, config).default_backoff();
    let mut events = pin!(events);
    let mut seen: Option<String> = None;
    let mut listed = None;
    loop {
        let event = tokio::select! {
            () = shutdown.cancelled() => return,
            event = events.next() => event,
        };
        let now = match event {
            None => return,
            Some(Err(error)) => {
                tracing::warn!(secret = %key, reason = %error, "a Secret's changes cannot be seen; check that RBAC allows list and watch on it");
                continue;
            }
            Some(Ok(Event::Init)) => {
                listed = None;
                continue;
            }
            Some(Ok(Event::InitApply(object))) => {
                listed = object.metadata.resource_version;
                continue;
            }
            Some(Ok(Event::InitDone)) => listed.take(),
            Some(Ok(Event::Apply(object))) => object.metadata.resource_version,
            Some(Ok(Event::Delete(_))) => None,
        };
        if now.is_none() || now != seen {
            changed();
        }
        seen = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::Store;
    use serde_json::json;

    #[tokio::test]
    async fn a_secret_is_read_and_its_absence_explained() {
        let store = Store::default();
        let key = ObjectKey::new("shop", "sp");
        let error = read(&store.client("me"), &key).await.unwrap_err();
        assert!(matches!(error, SecretError::Absent(_)) && !error.is_transient());
        assert!(
            error
                .to_string()
                .starts_with("Secret shop/sp does not exist")
        );
        store.put(json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "sp" },
            "data": { "clientSecret": "aHVzaA==" },
        }));
        let data = read(&store.client("me"), &key).await.unwrap();
        assert_eq!(&**data["clientSecret"], b"hush");
        store.cut("me");
        assert!(
            read(&store.client("me"), &key)
                .await
                .unwrap_err()
                .is_transient()
        );
    }
}
