//! Cloud configuration: `azure.json` of the cloud provider, or environment variables in its place, Azure Workload Identity's
//! included. The controller reads it at its start and whenever the file changes; no error quotes a secret of it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use podid_policy::ids::{ClientId, IdError, ResourceId};
use zeroize::Zeroizing;

use crate::certificate::Certificate;
use crate::clouds::{self, CloudError};
use crate::endpoints::Endpoints;
use crate::fields::{Fields, fold};
use crate::imds::Identity;

/// The largest file in bytes that is read, of `azure.json`, tokens and certificates; real ones have a few KiB.
const MAX_FILE: u64 = 1024 * 1024;

/// Why the configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("--cloudconfig {path}: {reason}")]
    Unreadable {
        /// The file.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The cloud is not known.
    #[error(transparent)]
    Cloud(#[from] CloudError),
    /// An id is malformed.
    #[error("{field}: {cause}")]
    Malformed {
        /// Its name in the file.
        field: &'static str,
        /// What is wrong with it.
        cause: IdError,
    },
    /// A switch is neither on nor off.
    #[error("{0}: expected true or false")]
    NotABool(&'static str),
    /// A field seems to name the managed identity, and does not in this spelling.
    #[error(
        "{0} is not a field of azure.json, so that another identity would be used: write userAssignedIdentityID, with the client id or the resource id of the identity"
    )]
    UnknownField(String),
    /// There is no usable credential.
    #[error(
        "no credential: set useManagedIdentityExtension (USE_MSI), or tenantId, aadClientId and aadClientSecret (TENANT_ID, CLIENT_ID, CLIENT_SECRET), or AZURE_TENANT_ID, AZURE_CLIENT_ID and AZURE_FEDERATED_TOKEN_FILE"
    )]
    NoCredential,
    /// The certificate cannot be used.
    #[error("aadClientCertPath {path}: {cause}")]
    Certificate {
        /// Its file.
        path: String,
        /// What is wrong with it.
        cause: String,
    },
}

/// The credential with which the controller calls Azure Resource Manager.
#[derive(Clone)]
pub enum Credential {
    /// A managed identity of the node.
    ManagedIdentity(Identity),
    /// A service principal with a secret.
    Secret {
        /// The tenant.
        tenant: Arc<str>,
        /// The application.
        client_id: ClientId,
        /// Its secret.
        secret: Arc<Zeroizing<String>>,
    },
    /// A service principal with a certificate.
    Certificate {
        /// The tenant.
        tenant: Arc<str>,
        /// The application.
        client_id: ClientId,
        /// Its certificate and key.
        certificate: Arc<Certificate>,
    },
    /// An application or managed identity that trusts the cluster's service account tokens (workload identity federation).
    Federated {
        /// The tenant.
        tenant: Arc<str>,
        /// The application or managed identity.
        client_id: ClientId,
        /// The file in which the kubelet keeps a valid token.
        token_file: PathBuf,
    },
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ManagedIdentity(Identity::System) => f.write_str("the system-assigned identity"),
            Self::ManagedIdentity(Identity::Client(id)) => {
                write!(f, "the user-assigned identity {}", id.redacted())
            }
            Self::ManagedIdentity(Identity::Resource(id)) => {
                write!(f, "the user-assigned identity {id}")
            }
            Self::Secret { client_id, .. } => {
                write!(f, "the service principal {}", client_id.redacted())
            }
            Self::Certificate { client_id, .. } => {
                let id = client_id.redacted();
                write!(f, "the service principal {id} with its certificate")
            }
            Self::Federated {
                client_id,
                token_file,
                ..
            } => {
                let (id, file) = (client_id.redacted(), token_file.display());
                write!(f, "the federated identity {id} with the token in {file}")
            }
        }
    }
}

/// The configuration: endpoints and credential.
#[derive(Debug, Clone)]
pub struct CloudConfig {
    /// The endpoints of the cloud.
    pub endpoints: Endpoints,
    /// The controller's credential.
    pub credential: Credential,
}

/// The names of fields in errors, which are others in the environment than in the file.
#[derive(Default)]
struct Names {
    managed_identity: &'static str,
    user_assigned: &'static str,
    client_id: &'static str,
}

/// What the file says, or the environment in its place.
#[derive(Default)]
struct AzureJson {
    names: Names,
    cloud: String,
    tenant_id: String,
    client_id: String,
    client_secret: Zeroizing<String>,
    managed_identity: String,
    user_assigned: String,
    /// A field of the file that seems to stand for `user_assigned`.
    misspelt: Option<String>,
    certificate: String,
    certificate_password: Zeroizing<String>,
    federated: String,
    token_file: String,
}

/// What fields that name the managed identity begin with, whatever else tools make of their names.
const USER_ASSIGNED: &str = "userAssigned";
/// The field that names the managed identity.
const USER_ASSIGNED_ID: &str = "userAssignedIdentityID";
/// The switch of workload identity federation.
const FEDERATED: &str = "useFederatedWorkloadIdentityExtension";
/// The other fields of `azure.json` that are read.
const FIELDS: [&str; 9] = [
    "cloud",
    "tenantId",
    "aadClientId",
    "aadClientSecret",
    "aadClientCertPath",
    "aadClientCertPassword",
    "useManagedIdentityExtension",
    FEDERATED,
    "aadFederatedTokenFile",
];

impl AzureJson {
    fn parse(file: &[u8]) -> Result<Self, String> {
        let fields = Fields::parse(file, |folded| {
            folded.starts_with(&fold(USER_ASSIGNED))
                || FIELDS.iter().any(|name| fold(name) == folded)
        })?;
        let mut named = fields.starting_with(USER_ASSIGNED);
        let misspelt = named.find(|name| fold(name) != fold(USER_ASSIGNED_ID));
        Ok(Self {
            names: Names {
                managed_identity: "useManagedIdentityExtension",
                user_assigned: USER_ASSIGNED_ID,
                client_id: "aadClientId",
            },
            misspelt: misspelt.map(str::to_owned),
            cloud: fields.text("cloud"),
            tenant_id: fields.text("tenantId"),
            client_id: fields.text("aadClientId"),
            client_secret: fields.secret("aadClientSecret"),
            managed_identity: fields.text("useManagedIdentityExtension"),
            user_assigned: fields.text(USER_ASSIGNED_ID),
            certificate: fields.text("aadClientCertPath"),
            certificate_password: fields.secret("aadClientCertPassword"),
            federated: fields.text(FEDERATED),
            token_file: fields.text("aadFederatedTokenFile"),
        })
    }
}

/// The words of YAML and of Go for true and false; any other is refused, as it would choose another principal.
fn switch(field: &'static str, text: &str) -> Result<bool, ConfigError> {
    match text.trim().to_ascii_lowercase().as_str() {
        "true" | "t" | "yes" | "y" | "on" | "1" => Ok(true),
        "" | "false" | "f" | "no" | "n" | "off" | "0" => Ok(false),
        _ => Err(ConfigError::NotABool(field)),
    }
}

impl CloudConfig {
    /// Reads `azure.json`.
    ///
    /// # Errors
    /// [`ConfigError`] names what is missing or wrong.
    pub fn from_file(path: &Path, environment_file: Option<&Path>) -> Result<Self, ConfigError> {
        let unreadable = |reason: String| ConfigError::Unreadable {
            path: path.display().to_string(),
            reason,
        };
        let text = read_file(path).map_err(unreadable)?;
        Self::from_json(
            AzureJson::parse(&text).map_err(unreadable)?,
            environment_file,
        )
    }

    /// Reads the variables that stand for the file: `CLOUD`, `TENANT_ID`, `CLIENT_ID`, `CLIENT_SECRET`, `USE_MSI` and
    /// `USER_ASSIGNED_MSI_CLIENT_ID`; where these name no credential, what Azure Workload Identity's webhook puts into a pod:
    /// `AZURE_TENANT_ID`, `AZURE_CLIENT_ID`, `AZURE_FEDERATED_TOKEN_FILE` and `AZURE_AUTHORITY_HOST`.
    ///
    /// # Errors
    /// [`ConfigError`] names what is missing or wrong.
    pub fn from_variables(
        variable: impl Fn(&str) -> Option<String>,
        environment_file: Option<&Path>,
    ) -> Result<Self, ConfigError> {
        let text = |name: &str| variable(name).unwrap_or_default();
        let mut json = AzureJson {
            names: Names {
                managed_identity: "USE_MSI",
                user_assigned: "USER_ASSIGNED_MSI_CLIENT_ID",
                client_id: "CLIENT_ID",
            },
            cloud: text("CLOUD"),
            tenant_id: text("TENANT_ID"),
            client_id: text("CLIENT_ID"),
            client_secret: Zeroizing::new(text("CLIENT_SECRET")),
            managed_identity: text("USE_MSI"),
            user_assigned: text("USER_ASSIGNED_MSI_CLIENT_ID"),
            ..AzureJson::default()
        };
        json.token_file = text("AZURE_FEDERATED_TOKEN_FILE");
        let federated = !json.uses_managed_identity()?
            && json.client_secret.is_empty()
            && !json.token_file.is_empty();
        if !federated {
            return Self::from_json(json, environment_file);
        }
        json.names.client_id = "AZURE_CLIENT_ID";
        json.federated = "true".to_owned();
        json.tenant_id = text("AZURE_TENANT_ID");
        json.client_id = text("AZURE_CLIENT_ID");
        let mut config = Self::from_json(json, environment_file)?;
        let authority = text("AZURE_AUTHORITY_HOST");
        if !authority.is_empty() {
            config.endpoints.authority = clouds::parse_url("AZURE_AUTHORITY_HOST", &authority)?;
        }
        Ok(config)
    }

    fn from_json(json: AzureJson, environment_file: Option<&Path>) -> Result<Self, ConfigError> {
        Ok(Self {
            endpoints: clouds::endpoints(json.cloud.trim(), environment_file)?,
            credential: json.credential()?,
        })
    }
}

impl AzureJson {
    fn uses_managed_identity(&self) -> Result<bool, ConfigError> {
        switch(self.names.managed_identity, &self.managed_identity)
    }

    /// The first of these that is configured: managed identity, federation, client secret, certificate.
    fn credential(self) -> Result<Credential, ConfigError> {
        if self.uses_managed_identity()? {
            return self.identity_of_node().map(Credential::ManagedIdentity);
        }
        let tenant: Arc<str> = self.tenant_id.trim().into();
        let application = self.client_id.trim();
        if tenant.is_empty() || application.is_empty() {
            return Err(ConfigError::NoCredential);
        }
        let client_id = client_id(self.names.client_id, application)?;
        if switch(FEDERATED, &self.federated)? && !self.token_file.is_empty() {
            let token_file = PathBuf::from(self.token_file);
            return Ok(Credential::Federated {
                tenant,
                client_id,
                token_file,
            });
        }
        if !self.client_secret.trim().is_empty() {
            let secret = Arc::new(self.client_secret);
            return Ok(Credential::Secret {
                tenant,
                client_id,
                secret,
            });
        }
        if self.certificate.is_empty() {
            return Err(ConfigError::NoCredential);
        }
        let unusable = |cause: String| ConfigError::Certificate {
            path: self.certificate.clone(),
            cause,
        };
        let file = read_file(Path::new(&self.certificate)).map_err(unusable)?;
        let certificate = Certificate::read(&file, &self.certificate_password)
            .map_err(|error| unusable(error.to_string()))?;
        Ok(Credential::Certificate {
            tenant,
            client_id,
            certificate: Arc::new(certificate),
        })
    }

    /// The identity by its client id or its resource id; the system-assigned one only where nothing names another.
    fn identity_of_node(self) -> Result<Identity, ConfigError> {
        let (field, id) = (self.names.user_assigned, self.user_assigned.trim());
        if id.contains('/') {
            let id = ResourceId::parse(id);
            let id = id.map_err(|cause| ConfigError::Malformed { field, cause })?;
            return Ok(Identity::Resource(id));
        }
        if !id.is_empty() {
            return client_id(field, id).map(Identity::Client);
        }
        match self.misspelt {
            Some(name) => Err(ConfigError::UnknownField(name)),
            None => Ok(Identity::System),
        }
    }
}

fn client_id(field: &'static str, text: &str) -> Result<ClientId, ConfigError> {
    ClientId::parse(text).map_err(|cause| ConfigError::Malformed { field, cause })
}

/// A file's content, wiped when dropped.
pub(crate) fn read_file(path: &Path) -> Result<Zeroizing<Vec<u8>>, String> {
    let size = std::fs::metadata(path).map_err(|error| error.to_string())?;
    if size.len() > MAX_FILE {
        return Err("larger than 1 MiB".to_owned());
    }
    std::fs::read(path)
        .map(Zeroizing::new)
        .map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests;
