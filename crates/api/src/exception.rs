//! AzurePodIdentityException: exempts pods by their labels, so that the node agent forwards their requests to the metadata service
//! unchanged.

use std::collections::BTreeMap;

use kube::CustomResource;
use kube::ResourceExt as _;
use podid_policy::facts::{ExceptionFacts, ObjectKey};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::ObjectError;

/// `spec` of an AzurePodIdentityException.
#[derive(CustomResource, Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "aadpodidentity.k8s.io",
    version = "v1",
    kind = "AzurePodIdentityException",
    namespaced,
    schema = "disabled"
)]
#[serde(rename_all = "camelCase")]
pub struct AzurePodIdentityExceptionSpec {
    /// Labels of which any one exempts a pod. Values may be unquoted booleans or numbers.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub pod_labels: BTreeMap<String, Value>,
    /// The older spelling.
    #[serde(
        rename = "PodLabels",
        default,
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub legacy_pod_labels: BTreeMap<String, Value>,
}

impl AzurePodIdentityException {
    /// The few fields that the rules need.
    ///
    /// # Errors
    /// [`ObjectError`] when there is no label, or one with a value that is no text, boolean or number.
    pub fn facts(&self) -> Result<ExceptionFacts, ObjectError> {
        let spec = &self.spec;
        let pod_labels: BTreeMap<_, _> = spec
            .legacy_pod_labels
            .iter()
            .chain(&spec.pod_labels)
            .map(|(key, value)| Ok((key.clone(), label_value(value)?)))
            .collect::<Result<_, ObjectError>>()?;
        if pod_labels.is_empty() {
            return Err(ObjectError::Missing {
                field: "spec.podLabels",
            });
        }
        let key = ObjectKey::new(&self.namespace().unwrap_or_default(), &self.name_any());
        Ok(ExceptionFacts { key, pod_labels })
    }
}

fn label_value(value: &Value) -> Result<String, ObjectError> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Bool(_) | Value::Number(_) => Ok(value.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => Err(ObjectError::Unsupported {
            field: "spec.podLabels",
            value: value.to_string().chars().take(100).collect(),
            allowed: "a label's value is text",
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(yaml: &str) -> Result<ExceptionFacts, ObjectError> {
        serde_saphyr::from_str::<AzurePodIdentityException>(yaml)
            .unwrap()
            .facts()
    }

    #[test]
    fn the_articles_unquoted_boolean_is_a_label() {
        let article = r#"
apiVersion: "aadpodidentity.k8s.io/v1"
kind: AzurePodIdentityException
metadata:
  name: aad-identity-exception
spec:
  PodLabels:
    noaad: true
"#;
        let facts = read(article).unwrap();
        assert_eq!(
            facts.pod_labels,
            [("noaad".to_owned(), "true".to_owned())].into()
        );
        assert_eq!(
            read(&article.replace("true", "[x]"))
                .unwrap_err()
                .to_string(),
            "spec.podLabels: [\"x\"] is not supported; a label's value is text"
        );
        let empty = read(&article.replace("PodLabels", "podlabels"));
        assert_eq!(
            empty.unwrap_err(),
            ObjectError::Missing {
                field: "spec.podLabels"
            }
        );
    }
}
