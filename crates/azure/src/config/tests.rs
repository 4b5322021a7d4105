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
    let user = read(&format!(
        r#"{{"useManagedIdentityExtension":"true","userAssignedIdentityID":"{ID}","unknown":1}}"#
    ))
    .unwrap();
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
fn federation_is_what_the_webhook_says_where_nothing_else_is_said() {
    let webhook = |name: &str| match name {
        "AZURE_CLIENT_ID" => Some(ID.to_owned()),
        "AZURE_TENANT_ID" => Some("t".to_owned()),
        "AZURE_FEDERATED_TOKEN_FILE" => Some("/token".to_owned()),
        "AZURE_AUTHORITY_HOST" => Some("https://login.microsoftonline.us/".to_owned()),
        _ => None,
    };
    let config = CloudConfig::from_variables(webhook, None).unwrap();
    assert!(
        matches!(&config.credential, Credential::Federated { token_file, .. } if token_file == Path::new("/token"))
    );
    assert_eq!(
        config.endpoints.authority.host_str(),
        Some("login.microsoftonline.us")
    );
    let dedicated = |name: &str| match name {
        "CLIENT_ID" => Some(ID.to_owned()),
        "TENANT_ID" | "CLIENT_SECRET" => Some("x".to_owned()),
        other => webhook(other),
    };
    let config = CloudConfig::from_variables(dedicated, None).unwrap();
    assert!(matches!(config.credential, Credential::Secret { .. }));
    let file = read(&format!(r#"{{"tenantId":"t","aadClientId":"{ID}","useFederatedWorkloadIdentityExtension":true,"aadFederatedTokenFile":"/t"}}"#)).unwrap();
    assert!(matches!(file.credential, Credential::Federated { .. }));
    let missing = read(&format!(
        r#"{{"tenantId":"t","aadClientId":"{ID}","aadClientCertPath":"/nowhere.pfx"}}"#
    ));
    assert!(
        missing
            .unwrap_err()
            .to_string()
            .starts_with("aadClientCertPath /nowhere.pfx: ")
    );
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
    let error = read(r#"{"tenantId":"t","aadClientId":"x","aadClientSecret":"hush"}"#).unwrap_err();
    assert!(error.to_string().starts_with("aadClientId: "));
    let error =
        read(r#"{"cloud":"AzureMoonCloud","useManagedIdentityExtension":true}"#).unwrap_err();
    assert!(error.to_string().contains("unknown cloud"));
}
