//! AzureIdentity: a managed identity or service principal in Azure that bindings grant to pods, and how its tokens are had.

use kube::CustomResource;
use kube::ResourceExt as _;
use podid_policy::facts::{IdentityFacts, IdentitySource, ObjectKey};
use podid_policy::ids::{ClientId, ResourceId};
use serde::{Deserialize, Serialize};

use crate::{BEHAVIOR_ANNOTATION, ObjectError, required, text_of};

/// `spec` of an AzureIdentity.
#[derive(CustomResource, Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "aadpodidentity.k8s.io",
    version = "v1",
    kind = "AzureIdentity",
    plural = "azureidentities",
    namespaced,
    schema = "disabled"
)]
#[serde(rename_all = "camelCase")]
pub struct AzureIdentitySpec {
    /// 0: user-assigned managed identity; 1: service principal with a secret; 2: with a certificate.
    #[serde(rename = "type", default)]
    pub kind: i64,
    /// The ARM id of the user-assigned identity.
    #[serde(
        rename = "resourceID",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    pub resource_id: Option<String>,
    /// The older spelling.
    #[serde(
        rename = "ResourceID",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    pub legacy_resource_id: Option<String>,
    /// The application (client) id.
    #[serde(rename = "clientID", default, skip_serializing_if = "Option::is_none")]
    pub client_id: Option<String>,
    /// The older spelling.
    #[serde(rename = "ClientID", default, skip_serializing_if = "Option::is_none")]
    pub legacy_client_id: Option<String>,
    /// The Secret with a service principal's credential.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_password: Option<SecretReference>,
    /// The older spelling.
    #[serde(
        rename = "ClientPassword",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    pub legacy_client_password: Option<SecretReference>,
    /// The tenant of a service principal.
    #[serde(rename = "tenantID", default, skip_serializing_if = "Option::is_none")]
    pub tenant_id: Option<String>,
    /// The older spelling.
    #[serde(rename = "TenantID", default, skip_serializing_if = "Option::is_none")]
    pub legacy_tenant_id: Option<String>,
    /// Further tenants of a service principal, of which each request gets a token too.
    #[serde(
        rename = "auxiliaryTenantIDs",
        alias = "AuxiliaryTenantIDs",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    pub auxiliary_tenant_ids: Option<Vec<String>>,
    /// The authority's base URL where it is not the cloud's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ad_endpoint: Option<String>,
    /// The older spelling.
    #[serde(
        rename = "ADEndpoint",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    pub legacy_ad_endpoint: Option<String>,
    /// Tokens come by federation: nothing is attached to a machine, and no Secret is needed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub federation: Option<Federation>,
}

/// How a Kubernetes token becomes a token of the identity; an empty block is enough.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Federation {
    /// The audience that the federated credential in Azure names, where it is not the cloud's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audience: Option<String>,
}

/// The most auxiliary tenants of one identity: Azure Resource Manager takes three auxiliary tokens in a request (header
/// `x-ms-authorization-auxiliary`).
const MAX_AUXILIARY_TENANTS: usize = 3;

/// Reasons of the condition `Ready` that last until somebody repairs the identity, a role or a credential. The controller writes them,
/// and the node agent holds no request that waits for such an identity.
pub const LASTING_REFUSALS: [&str; 5] = [
    "IdentityNotFound",
    "IdentityRoleMissing",
    "RefusedByAzure",
    "HostRoleMissing",
    "CredentialRefused",
];

/// Names a Secret.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct SecretReference {
    /// Its name.
    #[serde(default, alias = "Name")]
    pub name: String,
    /// Its namespace; the AzureIdentity's own when empty.
    #[serde(default, alias = "Namespace")]
    pub namespace: String,
}

impl AzureIdentitySpec {
    /// Whether a field is in the older spelling.
    pub fn is_legacy(&self) -> bool {
        self.legacy_resource_id.is_some()
            || self.legacy_client_id.is_some()
            || self.legacy_client_password.is_some()
            || self.legacy_tenant_id.is_some()
            || self.legacy_ad_endpoint.is_some()
    }
}

impl AzureIdentity {
    /// The few fields that the rules need.
    ///
    /// # Errors
    /// [`ObjectError`] names the field that is missing or malformed.
    pub fn facts(&self) -> Result<IdentityFacts, ObjectError> {
        let spec = &self.spec;
        let namespace = self.namespace().unwrap_or_default();
        let client_id = required("spec.clientID", &spec.client_id, &spec.legacy_client_id)?;
        let client_id = ClientId::parse(client_id).map_err(|cause| ObjectError::Malformed {
            field: "spec.clientID",
            cause,
        })?;
        let source = match (spec.kind, &spec.federation) {
            (0 | 1, Some(federation)) => self.federated(federation)?,
            (2, Some(_)) => {
                return Err(ObjectError::Unsupported {
                    field: "spec.federation",
                    value: "an AzureIdentity of type 2 (certificate)".to_owned(),
                    allowed: "types 0 and 1 are; leave out spec.federation, or make it type 1",
                });
            }
            (0, None) => self.user_assigned()?,
            (1 | 2, None) => self.service_principal(&namespace)?,
            (other, _) => {
                return Err(ObjectError::Unsupported {
                    field: "spec.type",
                    value: other.to_string(),
                    allowed: "0, 1 and 2 are",
                });
            }
        };
        let namespaced = self
            .annotations()
            .get(BEHAVIOR_ANNOTATION)
            .is_some_and(|value| value.trim() == "namespaced");
        let key = ObjectKey::new(&namespace, &self.name_any());
        Ok(IdentityFacts {
            key,
            client_id,
            source,
            namespaced,
        })
    }

    fn user_assigned(&self) -> Result<IdentitySource, ObjectError> {
        let resource_id = self.resource_id()?;
        Ok(IdentitySource::UserAssigned { resource_id })
    }

    fn resource_id(&self) -> Result<ResourceId, ObjectError> {
        let field = "spec.resourceID";
        let text = required(field, &self.spec.resource_id, &self.spec.legacy_resource_id)?;
        ResourceId::parse(text).map_err(|cause| ObjectError::Malformed { field, cause })
    }

    fn federated(&self, federation: &Federation) -> Result<IdentitySource, ObjectError> {
        let spec = &self.spec;
        let named = text_of(&spec.resource_id, &spec.legacy_resource_id).is_some();
        let resource_id = match spec.kind {
            0 if named => Some(self.resource_id()?),
            _ => None,
        };
        let audience = text_of(&federation.audience, &None);
        // It comes into a command that operators paste.
        if audience.is_some_and(|text| !text.bytes().all(|b| b.is_ascii_graphic())) {
            return Err(ObjectError::Unsupported {
                field: "spec.federation.audience",
                value: "a text with blanks or control characters".to_owned(),
                allowed: "the audience of the federated credential is, such as api://AzureADTokenExchange",
            });
        }
        Ok(IdentitySource::Federated {
            resource_id,
            tenant: text_of(&spec.tenant_id, &spec.legacy_tenant_id).map(Into::into),
            audience: audience.map(Into::into),
        })
    }

    fn service_principal(&self, namespace: &str) -> Result<IdentitySource, ObjectError> {
        let spec = &self.spec;
        let tenant = required("spec.tenantID", &spec.tenant_id, &spec.legacy_tenant_id)?;
        let secret = spec
            .legacy_client_password
            .as_ref()
            .or(spec.client_password.as_ref())
            .filter(|secret| !secret.name.is_empty())
            .ok_or(ObjectError::Missing {
                field: "spec.clientPassword.name",
            })?;
        let home = if secret.namespace.is_empty() {
            namespace
        } else {
            &secret.namespace
        };
        let authority = spec
            .legacy_ad_endpoint
            .as_deref()
            .or(spec.ad_endpoint.as_deref());
        let auxiliary = spec.auxiliary_tenant_ids.as_deref().unwrap_or_default();
        if auxiliary.len() > MAX_AUXILIARY_TENANTS {
            return Err(ObjectError::Unsupported {
                field: "spec.auxiliaryTenantIDs",
                value: format!("a list of {}", auxiliary.len()),
                allowed: "at most 3 tenants are",
            });
        }
        Ok(IdentitySource::ServicePrincipal {
            certificate: spec.kind == 2,
            tenant: tenant.into(),
            auxiliary_tenants: auxiliary.iter().map(|id| id.as_str().into()).collect(),
            secret: ObjectKey::new(home, &secret.name),
            authority: authority.filter(|url| !url.is_empty()).map(Into::into),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ARTICLE: &str = r#"
apiVersion: "aadpodidentity.k8s.io/v1"
kind: AzureIdentity
metadata:
  name: reader-id
  namespace: default
spec:
  type: 0
  ResourceID: /subscriptions/s/resourcegroups/rg/providers/Microsoft.ManagedIdentity/userAssignedIdentities/reader-id
  ClientID: 6f1c0000-0000-0000-0000-0000000022ab
"#;

    fn read(yaml: &str) -> AzureIdentity {
        serde_saphyr::from_str(yaml).unwrap()
    }

    #[test]
    fn both_spellings_give_the_same_facts() {
        let legacy = read(ARTICLE).facts().unwrap();
        let today = ARTICLE
            .replace("ResourceID", "resourceID")
            .replace("ClientID", "clientID");
        assert_eq!(read(&today).facts().unwrap(), legacy);
        assert_eq!(legacy.key.to_string(), "default/reader-id");
    }

    #[test]
    fn errors_name_the_field() {
        let error = |yaml: &str| read(yaml).facts().unwrap_err().to_string();
        assert!(
            error(&ARTICLE.replace("ClientID", "clientid"))
                .starts_with("spec.clientID is required")
        );
        assert!(error(&ARTICLE.replace("22ab", "22a")).starts_with("spec.clientID: "));
        assert!(
            error(&ARTICLE.replace("userAssignedIdentities", "x")).starts_with("spec.resourceID: ")
        );
        assert!(
            error(&ARTICLE.replace("type: 0", "type: 1")).starts_with("spec.tenantID is required")
        );
        assert!(error(&ARTICLE.replace("type: 0", "type: 7")).starts_with("spec.type: 7"));
    }

    fn federated(yaml: &str) -> Result<IdentitySource, ObjectError> {
        read(&format!("{yaml}  federation: {{}}\n"))
            .facts()
            .map(|facts| facts.source)
    }

    #[test]
    fn federation_needs_neither_a_resource_nor_a_secret() {
        let source = |resource_id, tenant: Option<&str>| IdentitySource::Federated {
            resource_id,
            tenant: tenant.map(Into::into),
            audience: None,
        };
        let id = read(ARTICLE).facts().unwrap().resource_id().cloned();
        assert!(id.is_some());
        assert_eq!(federated(ARTICLE), Ok(source(id, None)));
        let without: String = ARTICLE
            .lines()
            .filter(|line| !line.contains("ResourceID"))
            .fold(String::new(), |all, line| all + line + "\n");
        assert_eq!(federated(&without), Ok(source(None, None)));
        let application = without.replace("type: 0", "type: 1\n  TenantID: t");
        assert_eq!(federated(&application), Ok(source(None, Some("t"))));
        let audience = read(&format!(
            "{without}  federation: {{audience: 'api://own'}}\n"
        ));
        let IdentitySource::Federated { audience, .. } = audience.facts().unwrap().source else {
            panic!("not federated");
        };
        assert_eq!(audience.as_deref(), Some("api://own"));
    }

    #[test]
    fn federation_is_refused_where_it_cannot_be() {
        let certificate = ARTICLE.replace("type: 0", "type: 2");
        let error = federated(&certificate).unwrap_err().to_string();
        assert!(error.starts_with("spec.federation: "), "{error}");
        let blank = read(&format!("{ARTICLE}  federation: {{audience: 'a b'}}\n"));
        let error = blank.facts().unwrap_err().to_string();
        assert!(error.starts_with("spec.federation.audience: "), "{error}");
        let malformed = ARTICLE.replace("userAssignedIdentities", "x");
        let error = federated(&malformed).unwrap_err().to_string();
        assert!(error.starts_with("spec.resourceID: "), "{error}");
    }

    #[test]
    fn a_service_principal_keeps_its_secret_at_home_unless_told() {
        let yaml = ARTICLE.replace(
            "type: 0",
            "type: 2\n  tenantID: t\n  clientPassword: {Name: cert}",
        );
        let IdentitySource::ServicePrincipal {
            certificate,
            secret,
            ..
        } = read(&yaml).facts().unwrap().source
        else {
            panic!("not a service principal");
        };
        assert!(certificate);
        assert_eq!(secret, ObjectKey::new("default", "cert"));
    }
}
