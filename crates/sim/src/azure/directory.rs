//! Directory of the simulated Azure: identities, applications, role assignments, and the hosts with what is attached to them. The
//! state that all of its services share, under one lock.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;
use uuid::Uuid;

use super::federated_credentials::Federation;

/// A user-assigned managed identity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Identity {
    /// Its ARM id, as Azure spells it (`resourcegroups`).
    pub id: String,
    /// The application (client) id.
    pub client_id: String,
    /// The object id of its service principal.
    pub principal_id: String,
    /// Where it is.
    pub location: String,
}

/// Whether a host is one machine or a scale set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum HostKind {
    /// `Microsoft.Compute/virtualMachines`.
    VirtualMachine,
    /// `Microsoft.Compute/virtualMachineScaleSets`, uniform.
    ScaleSet,
}

/// A role, by its name in Azure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Role {
    /// Everything.
    Owner,
    /// Everything but grants.
    Contributor,
    /// To read.
    Reader,
    /// To change virtual machines and scale sets.
    VirtualMachineContributor,
    /// To create identities, and their federated credentials.
    ManagedIdentityContributor,
    /// To put identities on hosts.
    ManagedIdentityOperator,
    /// To read blobs. Nothing here checks it; storage would.
    StorageBlobDataReader,
}

impl Role {
    const ALL: [Self; 7] = [
        Self::Owner,
        Self::Contributor,
        Self::Reader,
        Self::VirtualMachineContributor,
        Self::ManagedIdentityContributor,
        Self::ManagedIdentityOperator,
        Self::StorageBlobDataReader,
    ];

    /// Its name and the GUID of its definition, the same in every Azure.
    pub fn definition(self) -> (&'static str, &'static str) {
        match self {
            Self::Owner => ("Owner", "8e3af657-a8ff-443c-a75c-2fe8c4bcb635"),
            Self::Contributor => ("Contributor", "b24988ac-6180-42a0-ab88-20f7382dd24c"),
            Self::Reader => ("Reader", "acdd72a7-3385-48ef-bd42-f606fba81ae7"),
            Self::VirtualMachineContributor => (
                "Virtual Machine Contributor",
                "9980e02c-c2be-4d73-94e8-173b1dc7cf3c",
            ),
            Self::ManagedIdentityContributor => (
                "Managed Identity Contributor",
                "e40ec5ca-96e0-45a2-b4ff-59039f2c2b59",
            ),
            Self::ManagedIdentityOperator => (
                "Managed Identity Operator",
                "f1a07417-d97a-45cb-824c-7a7467783830",
            ),
            Self::StorageBlobDataReader => (
                "Storage Blob Data Reader",
                "2a2b9908-6ea1-4ae2-8e65-a410df84e7d1",
            ),
        }
    }

    /// The role with this name, or whose definition's id ends so.
    pub fn find(text: &str) -> Option<Self> {
        let guid = text.rsplit('/').next().unwrap_or_default();
        Self::ALL.into_iter().find(|role| {
            let (name, id) = role.definition();
            name.eq_ignore_ascii_case(text) || id.eq_ignore_ascii_case(guid)
        })
    }

    fn allows(self, action: Action) -> bool {
        match action {
            Action::Read => self != Self::StorageBlobDataReader,
            Action::WriteHost => matches!(
                self,
                Self::Owner | Self::Contributor | Self::VirtualMachineContributor
            ),
            Action::Assign => matches!(
                self,
                Self::Owner | Self::Contributor | Self::ManagedIdentityOperator
            ),
            Action::WriteIdentity => matches!(
                self,
                Self::Owner | Self::Contributor | Self::ManagedIdentityContributor
            ),
            Action::Grant => self == Self::Owner,
        }
    }
}

/// What a caller of Resource Manager wants to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    Read,
    WriteHost,
    Assign,
    WriteIdentity,
    Grant,
}

/// An identity on a host.
#[derive(Debug, Clone)]
pub(super) struct Attached {
    /// As its writer spelt it.
    pub(super) id: String,
    pub(super) client_id: String,
    pub(super) principal_id: String,
    /// When the operation that put it there ends.
    pub(super) settled: Instant,
}

/// A virtual machine or scale set.
#[derive(Debug, Clone)]
pub(super) struct Host {
    pub(super) id: String,
    pub(super) location: String,
    /// The principal and client id of its system-assigned identity.
    pub(super) system: Option<(String, String)>,
    pub(super) user: BTreeMap<String, Attached>,
    pub(super) etag: u64,
    /// Until when a change is under way.
    pub(super) busy: Option<Instant>,
    /// How long a change takes; as configured when not set.
    pub(super) latency: Option<Duration>,
    /// Writes left, and when that was counted.
    pub(super) tokens: (f64, Instant),
}

/// A long-running operation.
#[derive(Debug, Clone)]
pub(super) struct Operation {
    pub(super) query: String,
    pub(super) started: jiff::Timestamp,
    pub(super) ends: Instant,
    pub(super) error: Option<serde_json::Value>,
}

#[derive(Debug)]
struct Grant {
    principal: String,
    role: Role,
    scope: String,
}

/// An application with a secret, certificates, or both.
#[derive(Debug, Clone, Default)]
pub(super) struct Application {
    pub(super) principal_id: String,
    pub(super) secret: String,
    /// Certificates, in DER.
    pub(super) certificates: Vec<Vec<u8>>,
}

/// Who asks Entra for a token: an application, or a managed identity, which is one without a secret.
#[derive(Debug, Clone)]
pub(super) struct Principal {
    pub(super) application: Application,
    /// The ARM id of the managed identity.
    pub(super) identity: Option<String>,
}

/// Everything and everyone. Keys are ARM ids in lower case.
#[derive(Debug, Default)]
pub(super) struct Directory {
    pub(super) identities: BTreeMap<String, Identity>,
    pub(super) hosts: BTreeMap<String, Host>,
    pub(super) operations: HashMap<String, Operation>,
    pub(super) applications: HashMap<String, Application>,
    /// By client id in lower case, of identities and applications.
    pub(super) federations: HashMap<String, Federation>,
    /// Tenants next to the one of everyone.
    pub(super) tenants: HashSet<String>,
    /// Assertions that were presented; each is good for one use.
    pub(super) assertions: HashSet<String>,
    grants: Vec<Grant>,
}

pub(super) fn key(id: &str) -> String {
    id.to_ascii_lowercase()
}

pub(super) fn guid() -> String {
    Uuid::new_v4().to_string()
}

impl Directory {
    /// Creates an identity, or finds it. Says whether it is new.
    pub(super) fn create_identity(
        &mut self,
        subscription: &str,
        group: &str,
        name: &str,
        location: &str,
    ) -> (Identity, bool) {
        let id = format!(
            "/subscriptions/{subscription}/resourcegroups/{group}/providers/Microsoft.ManagedIdentity/userAssignedIdentities/{name}"
        );
        let new = !self.identities.contains_key(&key(&id));
        let identity = self.identities.entry(key(&id)).or_insert_with(|| Identity {
            id,
            client_id: guid(),
            principal_id: guid(),
            location: location.to_owned(),
        });
        (identity.clone(), new)
    }

    /// Deletes an identity with its federated credentials. Says whether there was one.
    pub(super) fn delete_identity(&mut self, id: &str) -> bool {
        let found = self.identities.remove(&key(id));
        if let Some(identity) = &found {
            self.federations.remove(&key(&identity.client_id));
        }
        found.is_some()
    }

    /// The application or managed identity with this client id.
    pub(super) fn principal(&self, client_id: &str) -> Option<Principal> {
        if let Some(application) = self.applications.get(&key(client_id)) {
            return Some(Principal {
                application: application.clone(),
                identity: None,
            });
        }
        let is_it = |identity: &&Identity| identity.client_id.eq_ignore_ascii_case(client_id);
        let identity = self.identities.values().find(is_it)?;
        Some(Principal {
            application: Application {
                principal_id: identity.principal_id.clone(),
                ..Application::default()
            },
            identity: Some(identity.id.clone()),
        })
    }

    pub(super) fn create_host(&mut self, id: &str, location: &str) {
        let host = Host {
            id: id.to_owned(),
            location: location.to_owned(),
            system: None,
            user: BTreeMap::new(),
            etag: 1,
            busy: None,
            latency: None,
            tokens: (12.0, Instant::now()),
        };
        self.hosts.insert(key(id), host);
    }

    pub(super) fn grant(&mut self, principal: &str, role: Role, scope: &str) {
        self.grants.push(Grant {
            principal: key(principal),
            role,
            scope: key(scope.trim_end_matches('/')),
        });
    }

    pub(super) fn may(&self, principal: &str, action: Action, on: &str) -> bool {
        let (principal, on) = (key(principal), key(on));
        self.grants.iter().any(|grant| {
            let within = on
                .strip_prefix(grant.scope.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
            grant.principal == principal && within && grant.role.allows(action)
        })
    }

    /// The identities of a host that its metadata service knows, `delay` after they settled.
    pub(super) fn usable(&self, host: &str, delay: Duration) -> Vec<Attached> {
        let now = Instant::now();
        self.hosts
            .get(&key(host))
            .into_iter()
            .flat_map(|host| host.user.values())
            .filter(|attached| attached.settled + delay <= now)
            .cloned()
            .collect()
    }
}
