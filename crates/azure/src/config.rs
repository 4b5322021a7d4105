//! The cloud provider's configuration: `azure.json`, or the environment variables in its place.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use podid_policy::ids::{ClientId, IdError};
use serde::{Deserialize, Deserializer};
use zeroize::Zeroizing;

use crate::clouds::{self, CloudError};
use crate::endpoints::Endpoints;

/// Larger files are refused.
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
        "no credential: set useManagedIdentityExtension (USE_MSI), or tenantId, aadClientId and aadClientSecret (TENANT_ID, CLIENT_ID, CLIENT_SECRET)"
    )]
    NoCredential,
}

/// Who the controller is towards Azure Resource Manager.
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
        }
    }
}

/// The configuration: where Azure is, and who asks.
#[derive(Debug, Clone)]
pub struct CloudConfig {
    /// Where Azure is.
    pub endpoints: Endpoints,
    /// Who asks.
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
}

/// Both `true` and `"true"` are found in the wild.
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
        let size = std::fs::metadata(path)
            .map_err(|error| unreadable(error.to_string()))?
            .len();
        if size > MAX_FILE {
            return Err(unreadable("larger than 1 MiB".to_owned()));
        }
        let text =
            Zeroizing::new(std::fs::read(path).map_err(|error| unreadable(error.to_string()))?);
        let json = serde_json::from_slice(&text).map_err(|error| {
            // serde's own text may quote a secret.
            unreadable(format!(
                "not the expected JSON (line {}, column {})",
                error.line(),
                error.column()
            ))
        })?;
        Self::from_json(json, environment_file)
    }

    /// Reads the variables that stand for the file: `CLOUD`, `TENANT_ID`, `CLIENT_ID`, `CLIENT_SECRET`, `USE_MSI` and
    /// `USER_ASSIGNED_MSI_CLIENT_ID`.
    ///
    /// # Errors
    /// [`ConfigError`] names what is missing or wrong.
    pub fn from_variables(
        variable: impl Fn(&str) -> Option<String>,
        environment_file: Option<&Path>,
    ) -> Result<Self, ConfigError> {
        let text = |name: &str| variable(name).unwrap_or_default();
        let json = AzureJson {
            cloud: text("CLOUD"),
            tenant_id: text("TENANT_ID"),
            aad_client_id: text("CLIENT_ID"),
            aad_client_secret: Zeroizing::new(text("CLIENT_SECRET")),
            use_managed_identity_extension: text("USE_MSI").eq_ignore_ascii_case("true"),
            user_assigned_identity_id: text("USER_ASSIGNED_MSI_CLIENT_ID"),
        };
        Self::from_json(json, environment_file)
    }

    fn from_json(json: AzureJson, environment_file: Option<&Path>) -> Result<Self, ConfigError> {
        let client_id = |field: &'static str, text: &str| {
            ClientId::parse(text.trim()).map_err(|cause| ConfigError::Malformed { field, cause })
        };
        let credential = if json.use_managed_identity_extension {
            let id = json.user_assigned_identity_id.trim();
            let client_id = match id {
                "" => None,
                id => Some(client_id("userAssignedIdentityID", id)?),
            };
            Credential::ManagedIdentity { client_id }
        } else if [
            &json.tenant_id,
            &json.aad_client_id,
            &*json.aad_client_secret,
        ]
        .iter()
        .any(|text| text.trim().is_empty())
        {
            return Err(ConfigError::NoCredential);
        } else {
            Credential::Secret {
                tenant: json.tenant_id.trim().into(),
                client_id: client_id("aadClientId", &json.aad_client_id)?,
                secret: Arc::new(json.aad_client_secret),
            }
        };
        Ok(Self {
            endpoints: clouds::endpoints(json.cloud.trim(), environment_file)?,
            credential,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "6f1c0000-0000-0000-0000-0000000022ab";

    fn read(text: &str) -> Result<CloudConfig, ConfigError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        CloudConfig::from_file(file.path(), None)
    }

    #[test]
    fn the_three_modes_of_aks_are_read() {
        let system = read(r#"{"cloud":"AzurePublicCloud","useManagedIdentityExtension":true,"userAssignedIdentityID":"","aadClientId":"msi","aadClientSecret":"msi"}"#).unwrap();
        assert_eq!(
            format!("{:?}", system.credential),
            "the system-assigned identity"
        );
        let user = read(&format!(r#"{{"useManagedIdentityExtension":"true","userAssignedIdentityID":"{ID}","unknown":1}}"#)).unwrap();
        assert!(matches!(
            user.credential,
            Credential::ManagedIdentity { client_id: Some(_) }
        ));
        let principal = read(&format!(r#"{{"tenantId":"t","aadClientId":"{ID}","aadClientSecret":"hush","useManagedIdentityExtension":false}}"#)).unwrap();
        let Credential::Secret { secret, .. } = &principal.credential else {
            panic!("not a service principal");
        };
        assert_eq!(secret.as_str(), "hush");
        assert!(!format!("{principal:?}").contains("hush"));
    }

    #[test]
    fn variables_stand_for_the_file() {
        let variables = |name: &str| match name {
            "USE_MSI" => Some("True".to_owned()),
            "USER_ASSIGNED_MSI_CLIENT_ID" => Some(ID.to_owned()),
            _ => None,
        };
        let config = CloudConfig::from_variables(variables, None).unwrap();
        assert!(matches!(
            config.credential,
            Credential::ManagedIdentity { client_id: Some(_) }
        ));
        let nothing = CloudConfig::from_variables(|_| None, None);
        assert!(matches!(nothing, Err(ConfigError::NoCredential)));
    }

    #[test]
    fn a_broken_file_is_explained_without_quoting_it() {
        let error = read(r#"{"aadClientSecret": hush}"#)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("line 1") && !error.contains("hush"),
            "{error}"
        );
        let error =
            read(r#"{"tenantId":"t","aadClientId":"x","aadClientSecret":"hush"}"#).unwrap_err();
        assert!(error.to_string().starts_with("aadClientId: "));
        let error =
            read(r#"{"cloud":"AzureMoonCloud","useManagedIdentityExtension":true}"#).unwrap_err();
        assert!(error.to_string().contains("unknown cloud"));
    }
}
