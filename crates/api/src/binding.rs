//! AzureIdentityBinding: binds an AzureIdentity to the pods that its selector names, and to service accounts where it is limited.
//!
//! A definition without `spec.serviceAccounts`, as AAD Pod Identity's is, has the API server prune the field. So that such a binding
//! does not open to every labelled pod, the limit is also read from what survives: mic's annotation [`LIMIT`], else what
//! `kubectl apply` has noted.

use kube::CustomResource;
use kube::ResourceExt as _;
use podid_policy::facts::{BindingFacts, ObjectKey};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{ObjectError, required};

/// mic's annotation with the service accounts that the binding is limited to, separated by commas; `*` where an operator has opened it.
pub const LIMIT: &str = "aadpodidentity.k8s.io/service-accounts";
/// The value of [`LIMIT`] that opens a binding.
const OPEN: &str = "*";
/// The manifest that `kubectl apply` was given, whatever the API server has pruned of it.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

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
            service_accounts: self
                .limit()
                .into_iter()
                .map(|account| account.into())
                .collect(),
        })
    }

    /// The service accounts that the binding is limited to, also when the API server has pruned the field; empty means any.
    pub fn limit(&self) -> Vec<String> {
        if !self.spec.service_accounts.is_empty() {
            return self.spec.service_accounts.clone();
        }
        match self.annotations().get(LIMIT).map(String::as_str) {
            Some(OPEN) => Vec::new(),
            Some(limit) => limit.split(',').map(str::to_owned).collect(),
            None => self.applied_limit(),
        }
    }

    /// Whether the field of the limit is gone and the limit is known all the same.
    pub fn is_pruned(&self) -> bool {
        self.spec.service_accounts.is_empty() && !self.limit().is_empty()
    }

    /// The value that [`LIMIT`] must have; `None` where it has it, or where the binding is not limited by its spec.
    pub fn new_limit(&self) -> Option<String> {
        let limit = self.spec.service_accounts.join(",");
        let is_noted = self.annotations().get(LIMIT) == Some(&limit);
        (!self.spec.service_accounts.is_empty() && !is_noted).then_some(limit)
    }

    fn applied_limit(&self) -> Vec<String> {
        let applied = self.annotations().get(LAST_APPLIED);
        let applied = applied.and_then(|text| serde_json::from_str::<Value>(text).ok());
        let limit = applied.as_ref().map(|a| &a["spec"]["serviceAccounts"]);
        let accounts = limit.and_then(Value::as_array).into_iter().flatten();
        accounts
            .filter_map(|a| a.as_str().map(str::to_owned))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    /// What the API server has left of `spec.serviceAccounts`, the annotations, and who may use the binding.
    #[rstest]
    #[case::open(&[], &[], &[])]
    #[case::limited(&["a"], &[], &["a"])]
    #[case::the_spec_counts_most(&["a"], &[(LIMIT, "b")], &["a"])]
    #[case::pruned(&[], &[(LIMIT, "a,b")], &["a", "b"])]
    #[case::opened_by_hand(&[], &[(LIMIT, "*"), (LAST_APPLIED, r#"{"spec":{"serviceAccounts":["a"]}}"#)], &[])]
    #[case::pruned_when_it_was_made(&[], &[(LAST_APPLIED, r#"{"spec":{"serviceAccounts":["a"]}}"#)], &["a"])]
    #[case::applied_without(&[], &[(LAST_APPLIED, r#"{"spec":{}}"#)], &[])]
    #[case::an_empty_limit_opens_nothing(&[], &[(LIMIT, "")], &[""])]
    fn a_pruned_binding_stays_limited(
        #[case] spec: &[&str],
        #[case] annotations: &[(&str, &str)],
        #[case] limit: &[&str],
    ) {
        let mut binding = AzureIdentityBinding::new("b", AzureIdentityBindingSpec::default());
        binding.spec.service_accounts = spec.iter().map(ToString::to_string).collect();
        let annotations = annotations.iter();
        binding.metadata.annotations = Some(
            annotations
                .map(|(name, value)| (name.to_string(), value.to_string()))
                .collect(),
        );
        assert_eq!(binding.limit(), limit);
        assert_eq!(binding.is_pruned(), spec.is_empty() && !limit.is_empty());
        assert_eq!(binding.new_limit().is_some(), !spec.is_empty());
    }

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
