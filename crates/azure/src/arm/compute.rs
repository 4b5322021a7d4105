//! The `identity` of virtual machines and scale sets.

use std::collections::{BTreeMap, BTreeSet};

use http::Method;
use podid_policy::ids::{ClientId, HostKey, HostKind, ResourceId};
use reqwest::Url;
use serde_json::{Map, Value, json};

use super::Arm;
use super::throttle::Class;
use crate::endpoints::join;
use crate::error::Error;
#[cfg(doc)]
use crate::error::ErrorKind;

/// Since this version writes may be made conditional on an ETag.
const API_VERSION: &str = "2024-11-01";
/// Azure refuses more entries, removals included, in one request.
const MAX_ENTRIES: usize = 150;

/// Which identities a host has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostIdentity {
    /// Whether it has a system-assigned identity.
    pub system: bool,
    /// Its user-assigned identities, spelt as Azure spells them, with their client ids where Azure tells them: not while the
    /// host changes, and never of a flexible scale set.
    pub user: BTreeMap<ResourceId, Option<ClientId>>,
    /// The version of the host that was read.
    pub etag: Option<String>,
}

impl Arm {
    /// Reads a host. One request.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] when the host does not exist, [`ErrorKind::Forbidden`] without the role to read it.
    pub async fn identities(&self, host: &HostKey) -> Result<HostIdentity, Error> {
        let url = self.url(host);
        let answer = self
            .call(
                host.subscription(),
                Class::Read,
                Method::GET,
                url,
                None,
                None,
            )
            .await?;
        Ok(read(&answer.body))
    }

    /// Attaches and detaches identities, given what a read has just shown, and waits until it is done. More entries than Azure
    /// takes at once are split; what was done before an error stays done. Each request holds only for the version that was read, so
    /// that what somebody else changed since, a system-assigned identity for one, is not undone by the type that goes with it.
    /// Gives the version after the change, where Azure tells it.
    ///
    /// # Errors
    /// [`ErrorKind::IdentityNotFound`] or [`ErrorKind::IdentityForbidden`] with the identities that spoil the request;
    /// [`ErrorKind::Conflict`] when the host changed meanwhile.
    pub async fn update(
        &self,
        host: &HostKey,
        observed: &HostIdentity,
        attach: &[ResourceId],
        detach: &[ResourceId],
    ) -> Result<Option<String>, Error> {
        let missing = attach.iter().filter(|id| !observed.user.contains_key(id));
        let present = detach
            .iter()
            .filter_map(|id| observed.user.get_key_value(id))
            .map(|(id, _)| id);
        let entries: Vec<(&ResourceId, Value)> = missing
            .map(|id| (id, json!({})))
            .chain(present.map(|id| (id, Value::Null)))
            .collect();
        let mut left: BTreeSet<ResourceId> = observed.user.keys().cloned().collect();
        let mut version = observed.etag.clone();
        for chunk in entries.chunks(MAX_ENTRIES) {
            for (id, value) in chunk {
                if value.is_null() {
                    left.remove(id);
                } else {
                    left.insert((*id).clone());
                }
            }
            let body = patch(observed, &left, chunk);
            let condition = version.map(|etag| ("if-match", etag));
            let answer = self
                .call(
                    host.subscription(),
                    Class::Write,
                    Method::PATCH,
                    self.url(host),
                    condition,
                    Some(&body),
                )
                .await?;
            version = answer.body["etag"].as_str().map(str::to_owned);
            self.settle(host, &answer).await.map_err(Error::begun)?;
        }
        Ok(version)
    }

    fn url(&self, host: &HostKey) -> Url {
        let kind = match host.kind() {
            HostKind::VirtualMachine => "virtualMachines",
            HostKind::ScaleSet => "virtualMachineScaleSets",
        };
        let path = [
            "subscriptions",
            host.subscription(),
            "resourceGroups",
            host.resource_group(),
            "providers",
            "Microsoft.Compute",
            kind,
            host.name(),
        ];
        let mut url = join(&self.0.base, &path);
        url.query_pairs_mut()
            .append_pair("api-version", API_VERSION);
        url
    }
}

/// The request's body. Taking the last identity away changes the type.
fn patch(
    observed: &HostIdentity,
    left: &BTreeSet<ResourceId>,
    entries: &[(&ResourceId, Value)],
) -> Value {
    if left.is_empty() {
        let kind = if observed.system {
            "SystemAssigned"
        } else {
            "None"
        };
        return json!({ "identity": { "type": kind } });
    }
    let kind = if observed.system {
        "SystemAssigned, UserAssigned"
    } else {
        "UserAssigned"
    };
    let map: Map<String, Value> = entries
        .iter()
        .map(|(id, value)| (id.as_str().to_owned(), value.clone()))
        .collect();
    json!({ "identity": { "type": kind, "userAssignedIdentities": map } })
}

fn read(body: &Value) -> HostIdentity {
    let identity = &body["identity"];
    let kind = identity["type"].as_str().unwrap_or_default();
    let user = identity["userAssignedIdentities"]
        .as_object()
        .into_iter()
        .flatten()
        .filter_map(|(id, shown)| {
            let client = shown["clientId"].as_str();
            let client = client.and_then(|text| ClientId::parse(text).ok());
            Some((ResourceId::parse(id).ok()?, client))
        })
        .collect();
    HostIdentity {
        system: kind.to_ascii_lowercase().contains("systemassigned"),
        user,
        etag: body["etag"].as_str().map(str::to_owned),
    }
}
