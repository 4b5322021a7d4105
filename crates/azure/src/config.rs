//! Cloud configuration: `azure.json` of the cloud provider, or environment variables in its place, Azure Workload Identity's
//! included. The controller reads it at its start and whenever the file changes; no error quotes a secret of it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use podid_policy::ids::{ClientId, IdError};
use serde::{Deserialize, Deserializer};
use zeroize::Zeroizing;

use crate::certificate::Certificate;
use crate::clouds::{self, CloudError};
use crate::endpoints::Endpoints;

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
    /// A client id is malformed.
    #[error("{field}: {cause}")]
    Malformed {
        /// Its name in the file.
        field: &'static str,
        /// What is wrong with it.
        cause: IdError,
    },
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
    /// The node's managed identity: the system-assigned one, or the user-assigned one with this client id.
    ManagedIdentity {
        /// `None`: system-assigned.
        client_id: Option<ClientId>,
    },
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
            Self::ManagedIdentity { client_id: None } => {
                f.write_str("the system-assigned identity")
            }
            Self::ManagedIdentity {
                client_id: Some(id),
            } => write!(f, "the user-assigned identity {}", id.redacted()),
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

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct AzureJson {
    cloud: String,
    tenant_id: String,
    aad_client_id: String,
    aad_client_secret: Zeroizing<String>,
    #[serde(deserialize_with = "loose_bool")]
    use_managed_identity_extension: bool,
    #[serde(rename = "userAssignedIdentityID")]
    user_assigned_identity_id: String,
    aad_client_cert_path: String,
    aad_client_cert_password: Zeroizing<String>,
    #[serde(deserialize_with = "loose_bool")]
    use_federated_workload_identity_extension: bool,
    aad_federated_token_file: String,
}

/// Real files have both `true` and `"true"`.
fn loose_bool<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Loose {
        Bool(bool),
        Text(String),
    }
    Ok(match Loose::deserialize(deserializer)? {
        Loose::Bool(value) => value,
        Loose::Text(text) => text.eq_ignore_ascii_case("true"),
    })
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
        let json = serde_json::from_slice(&text).map_err(|error| {
            // The text of serde may quote a secret.
            unreadable(format!(
                "not the expected JSON (line {}, column {})",
                error.line(),
                error.column()
            ))
        })?;
        Self::from_json(json, environment_file)
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
            cloud: text("CLOUD"),
            tenant_id: text("TENANT_ID"),
            aad_client_id: text("CLIENT_ID"),
            aad_client_secret: Zeroizing::new(text("CLIENT_SECRET")),
            use_managed_identity_extension: text("USE_MSI").eq_ignore_ascii_case("true"),
            user_assigned_identity_id: text("USER_ASSIGNED_MSI_CLIENT_ID"),
            ..AzureJson::default()
        };
        let token_file = text("AZURE_FEDERATED_TOKEN_FILE");
        let federated = !json.use_managed_identity_extension
            && json.aad_client_secret.is_empty()
            && !token_file.is_empty();
        if !federated {
            return Self::from_json(json, environment_file);
        }
        json.tenant_id = text("AZURE_TENANT_ID");
        json.aad_client_id = text("AZURE_CLIENT_ID");
        json.use_federated_workload_identity_extension = true;
        json.aad_federated_token_file = token_file;
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
    /// The first of these that is configured: managed identity, federation, client secret, certificate.
    fn credential(self) -> Result<Credential, ConfigError> {
        let own = self.user_assigned_identity_id.trim();
        if self.use_managed_identity_extension {
            let client_id = (!own.is_empty()).then(|| client_id("userAssignedIdentityID", own));
            let client_id = client_id.transpose()?;
            return Ok(Credential::ManagedIdentity { client_id });
        }
        let tenant: Arc<str> = self.tenant_id.trim().into();
        let application = self.aad_client_id.trim();
        if tenant.is_empty() || application.is_empty() {
            return Err(ConfigError::NoCredential);
        }
        let client_id = client_id("aadClientId", application)?;
        let (token, certificate) = (&self.aad_federated_token_file, &self.aad_client_cert_path);
        if self.use_federated_workload_identity_extension && !token.is_empty() {
            let token_file = PathBuf::from(token);
            return Ok(Credential::Federated {
                tenant,
                client_id,
                token_file,
            });
        }
        if !self.aad_client_secret.trim().is_empty() {
            let secret = Arc::new(self.aad_client_secret);
            return Ok(Credential::Secret {
                tenant,
                client_id,
                secret,
            });
        }
        if certificate.is_empty() {
            return Err(ConfigError::NoCredential);
        }
        let unusable = |cause: String| ConfigError::Certificate {
            path: certificate.clone(),
            cause,
        };
        let file = read_file(Path::new(certificate)).map_err(unusable)?;
        let certificate = Certificate::read(&file, &self.aad_client_cert_password)
            .map_err(|error| unusable(error.to_string()))?;
        Ok(Credential::Certificate {
            tenant,
            client_id,
            certificate: Arc::new(certificate),
        })
    }
}

fn client_id(field: &'static str, text: &str) -> Result<ClientId, ConfigError> {
    ClientId::parse(text.trim()).map_err(|cause| ConfigError::Malformed { field, cause })
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
