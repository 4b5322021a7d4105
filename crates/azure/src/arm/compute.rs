//! ARM compute API: reads and patches the `identity` of a virtual machine or scale set. The controller's hosts call it. Each PATCH
//! is conditional on the ETag that was read (`If-Match`), so that a change by somebody else is never undone.

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

/// The first version with conditional writes by an ETag.
const API_VERSION: &str = "2024-11-01";
/// The most identities in one PATCH, removals included; Azure refuses more.
const MAX_ENTRIES: usize = 150;

/// The identities of a host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostIdentity {
    /// Whether it has a system-assigned identity.
    pub system: bool,
    /// Its user-assigned identities in Azure's spelling, with their client ids where Azure shows them: not while the host is being
    /// changed, and never for a flexible scale set.
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

    /// Attaches and detaches identities of a host that was just read, and waits until Azure has done it. Gives the ETag after the
    /// change, where Azure tells it.
    ///
    /// A change that is too large for one PATCH is made by several; the ones before an error stay done. Each PATCH holds only for
    /// the version that was read: it also writes the identity type, which could undo a system-assigned identity that somebody
    /// else has added since.
    ///
    /// # Errors
    /// [`ErrorKind::IdentityNotFound`] or [`ErrorKind::IdentityForbidden`] with the identities that Azure refuses;
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
            self.await_operation(host, &answer)
                .await
                .map_err(Error::after_acceptance)?;
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

/// The PATCH body. Without any identity left the type changes, too.
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
