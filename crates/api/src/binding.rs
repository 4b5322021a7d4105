//! AzureIdentityBinding: binds an AzureIdentity to the pods that its selector names.

use kube::CustomResource;
use kube::ResourceExt as _;
use podid_policy::facts::{BindingFacts, ObjectKey};
use serde::{Deserialize, Serialize};

use crate::{ObjectError, required};

/// `spec` of an AzureIdentityBinding.
#[derive(CustomResource, Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "aadpodidentity.k8s.io",
    version = "v1",
    kind = "AzureIdentityBinding",
    namespaced,
    schema = "disabled"
)]
#[serde(rename_all = "camelCase")]
pub struct AzureIdentityBindingSpec {
    /// The name of an AzureIdentity in the same namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub azure_identity: Option<String>,
    /// The older spelling.
    #[serde(
        rename = "AzureIdentity",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    pub legacy_azure_identity: Option<String>,
    /// The value of the pod label `aadpodidbinding`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<String>,
    /// The older spelling.
    #[serde(rename = "Selector", default, skip_serializing_if = "Option::is_none")]
    pub legacy_selector: Option<String>,
    /// The highest wins when a request names no identity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<i32>,
    /// The older spelling.
    #[serde(rename = "Weight", default, skip_serializing_if = "Option::is_none")]
    pub legacy_weight: Option<i32>,
    /// Limits the binding to these service accounts; empty means any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub service_accounts: Vec<String>,
}

impl AzureIdentityBindingSpec {
    /// Whether a field is in the older spelling.
    pub fn is_legacy(&self) -> bool {
        self.legacy_azure_identity.is_some()
            || self.legacy_selector.is_some()
            || self.legacy_weight.is_some()
    }
}

impl AzureIdentityBinding {
    /// The few fields that the rules need.
    ///
    /// # Errors
    /// [`ObjectError`] names the field that is missing.
    pub fn facts(&self) -> Result<BindingFacts, ObjectError> {
        let spec = &self.spec;
        let identity = required(
            "spec.azureIdentity",
            &spec.azure_identity,
            &spec.legacy_azure_identity,
        )?;
        let selector = required("spec.selector", &spec.selector, &spec.legacy_selector)?;
        Ok(BindingFacts {
            key: ObjectKey::new(&self.namespace().unwrap_or_default(), &self.name_any()),
            identity: identity.into(),
            selector: selector.into(),
            weight: spec.legacy_weight.or(spec.weight).unwrap_or_default(),
            service_accounts: spec
                .service_accounts
                .iter()
                .map(|s| s.as_str().into())
                .collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_spellings_give_the_same_facts() {
        let article = r#"
apiVersion: "aadpodidentity.k8s.io/v1"
kind: AzureIdentityBinding
metadata:
  name: myapp-azure-identity-binding
spec:
  AzureIdentity: reader-id
  Selector: myapp
"#;
        let read = |yaml: &str| {
            serde_saphyr::from_str::<AzureIdentityBinding>(yaml)
                .unwrap()
                .facts()
        };
        let legacy = read(article).unwrap();
        assert_eq!(
            (&*legacy.identity, &*legacy.selector),
            ("reader-id", "myapp")
        );
        let today = article
            .replace("  AzureIdentity:", "  azureIdentity:")
            .replace("  Selector:", "  selector:");
        assert_eq!(read(&today).unwrap(), legacy);
        let error = read(&article.replace("Selector", "selectr")).unwrap_err();
        assert_eq!(
            error,
            ObjectError::Missing {
                field: "spec.selector"
            }
        );
    }
}
