//! The CustomResourceDefinitions.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;

/// The definitions as they are kept in the source, one YAML document each.
const SOURCES: [&str; 4] = [
    include_str!("crds/azureidentities.yaml"),
    include_str!("crds/azureidentitybindings.yaml"),
    include_str!("crds/azureassignedidentities.yaml"),
    include_str!("crds/azurepodidentityexceptions.yaml"),
];

/// Why the definitions could not be read or printed: a fault of the build, not of its user.
#[derive(Debug, thiserror::Error)]
#[error("a CustomResourceDefinition of this build is malformed: {0}")]
pub struct CrdError(String);

/// The four CustomResourceDefinitions.
///
/// # Errors
/// [`CrdError`] when a definition does not parse.
pub fn all() -> Result<Vec<CustomResourceDefinition>, CrdError> {
    SOURCES
        .iter()
        .map(|source| serde_saphyr::from_str(source).map_err(|e| CrdError(e.to_string())))
        .collect()
}

/// The four definitions as one YAML stream for `kubectl apply -f -`.
///
/// # Errors
/// [`CrdError`] when a definition does not parse.
pub fn yaml() -> Result<String, CrdError> {
    let mut stream = String::new();
    for crd in all()? {
        stream.push_str("---\n");
        stream.push_str(&serde_saphyr::to_string(&crd).map_err(|e| CrdError(e.to_string()))?);
    }
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_printed_stream_reads_back_as_the_four_definitions() {
        let printed = yaml().unwrap();
        let read: Vec<CustomResourceDefinition> = serde_saphyr::from_multiple(&printed).unwrap();
        assert_eq!(read, all().unwrap());
        let names: Vec<_> = read
            .iter()
            .filter_map(|crd| crd.metadata.name.as_deref())
            .collect();
        assert_eq!(
            names,
            [
                "azureidentities.aadpodidentity.k8s.io",
                "azureidentitybindings.aadpodidentity.k8s.io",
                "azureassignedidentities.aadpodidentity.k8s.io",
                "azurepodidentityexceptions.aadpodidentity.k8s.io",
            ]
        );
    }
}
