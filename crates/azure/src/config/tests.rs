use super::*;
use rstest::rstest;

/// The same identity by its ARM id.
const ARM_ID: &str = "/subscriptions/s/resourcegroups/g/providers/Microsoft.ManagedIdentity/userAssignedIdentities/kubelet";
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
    assert_eq!(own(user), Identity::Client(ClientId::parse(ID).unwrap()));
    let principal = read(&format!(r#"{{"tenantId":"t","aadClientId":"{ID}","aadClientSecret":"hush","useManagedIdentityExtension":false}}"#)).unwrap();
    let Credential::Secret { secret, .. } = &principal.credential else {
        panic!("not a service principal");
    };
    assert_eq!(secret.as_str(), "hush");
    assert!(!format!("{principal:?}").contains("hush"));
}

/// The managed identity of a configuration.
fn own(config: CloudConfig) -> Identity {
    match config.credential {
        Credential::ManagedIdentity(identity) => identity,
        other => panic!("{other:?}"),
    }
}

#[rstest]
#[case::other_case("useManagedIdentityExtension: true\nuserAssignedIdentityId: {}")]
#[case::upper_case("USEMANAGEDIDENTITYEXTENSION: True\nUSERASSIGNEDIDENTITYID: '{}'")]
#[case::yaml(
    "cloud: AzureCloud\nuseManagedIdentityExtension: yes\nuserAssignedIdentityID: {} # of the kubelet"
)]
#[case::nulls(r#"{"cloud":null,"tenantId":null,"useManagedIdentityExtension":true,"aadClientSecret":null,"userAssignedIdentityID":"{}"}"#)]
#[case::mark("\u{feff}{\"useManagedIdentityExtension\":true,\"userAssignedIdentityID\":\" {} \"}")]
fn the_identity_of_the_node_is_found_in_every_form(#[case] file: &str) {
    let client = read(&file.replace("{}", ID)).unwrap();
    assert_eq!(own(client), Identity::Client(ClientId::parse(ID).unwrap()));
    let resource = read(&file.replace("{}", ARM_ID)).unwrap();
    assert_eq!(
        own(resource),
        Identity::Resource(ResourceId::parse(ARM_ID).unwrap())
    );
}

#[rstest]
#[case(
    "userAssignedIdentityClientId",
    ID,
    "userAssignedIdentityClientId is not a field"
)]
#[case(
    "userAssignedMSIClientID",
    ID,
    "userAssignedMSIClientID is not a field"
)]
#[case(
    "userAssignedIdentityID",
    "reader-id",
    "userAssignedIdentityID: \"reader-id\" is not a GUID"
)]
#[case(
    "userAssignedIdentityID",
    "/subscriptions/s/resourceGroups/g/providers/Microsoft.Compute/virtualMachines/v",
    "is not the resource id of a user-assigned"
)]
#[case(
    "UserAssignedIdentityId: 6f1c0000-0000-0000-0000-0000000022aa\nuserAssignedIdentityID",
    ID,
    "have different values"
)]
#[case("useManagedIdentityExtension", "maybe", "different values")]
fn no_other_identity_is_used(#[case] field: &str, #[case] value: &str, #[case] told: &str) {
    let file = format!("useManagedIdentityExtension: true\n{field}: {value}\n");
    let error = read(&file).unwrap_err().to_string();
    assert!(error.contains(told), "{error}");
}

#[test]
fn a_switch_that_is_neither_on_nor_off_is_refused() {
    let principal = format!("tenantId: t\naadClientId: {ID}\naadClientSecret: hush\n");
    for (word, on) in [("Yes", true), ("1", true), ("off", false), ("null", false)] {
        let file = format!("{principal}useManagedIdentityExtension: {word}\n");
        let credential = read(&file).unwrap().credential;
        let managed = matches!(credential, Credential::ManagedIdentity(_));
        assert_eq!(managed, on, "{word}");
    }
    let error = read(&format!("{principal}useManagedIdentityExtension: ture\n")).unwrap_err();
    assert_eq!(
        error.to_string(),
        "useManagedIdentityExtension: expected true or false"
    );
}

#[test]
fn variables_stand_for_the_file() {
    let variables = |name: &str| match name {
        "USE_MSI" => Some("True".to_owned()),
        "USER_ASSIGNED_MSI_CLIENT_ID" => Some(ID.to_owned()),
        _ => None,
    };
    let config = CloudConfig::from_variables(variables, None).unwrap();
    assert_eq!(own(config), Identity::Client(ClientId::parse(ID).unwrap()));
    let by_resource = |name: &str| match name {
        "USER_ASSIGNED_MSI_CLIENT_ID" => Some(ARM_ID.to_owned()),
        other => variables(other),
    };
    let config = CloudConfig::from_variables(by_resource, None).unwrap();
    assert_eq!(
        own(config),
        Identity::Resource(ResourceId::parse(ARM_ID).unwrap())
    );
    for (variable, value) in [
        ("USE_MSI", "maybe"),
        ("USER_ASSIGNED_MSI_CLIENT_ID", "reader"),
    ] {
        let wrong = |name: &str| match name {
            name if name == variable => Some(value.to_owned()),
            other => variables(other),
        };
        let error = CloudConfig::from_variables(wrong, None).unwrap_err();
        assert!(
            error.to_string().starts_with(&format!("{variable}: ")),
            "{error}"
        );
    }
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
    let error = read("{\"aadClientSecret\": \"hush\n")
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
