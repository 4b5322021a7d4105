use super::*;
use rstest::rstest;

const ID: &str = "/subscriptions/s/resourcegroups/rg.x(1)/providers/microsoft.managedidentity/userassignedidentities/gone";

fn answer(service: Service, status: u16, body: &str) -> Error {
    Error::from_answer(service, status, &HeaderMap::new(), body.as_bytes())
}

#[test]
fn a_missing_identity_is_named() {
    let inner = format!(
        "Identity operation for resource '/x' failed with error 'Failed to perform resource identity operation. Status: 'BadRequest'. Response: '{{\"error\":{{\"code\":\"BadRequest\",\"message\":\"Resource '{ID}' was not found.\"}}}}'.'."
    );
    let body =
        serde_json::json!({ "error": { "code": "FailedIdentityOperation", "message": inner } });
    let error = answer(Service::Arm, 400, &body.to_string());
    assert_eq!(error.kind(), ErrorKind::IdentityNotFound);
    assert_eq!(error.identities(), [ResourceId::parse(ID).unwrap()]);
    assert!(error.to_string().contains("az identity show"));
}

#[test]
fn every_identity_without_a_role_is_named() {
    let other = ID.replace("gone", "closed");
    let body = serde_json::json!({ "error": { "code": "LinkedAuthorizationFailed", "message": format!(
        "The client 'a' with object id 'b' has permission to perform action 'Microsoft.Compute/virtualMachines/write' on scope '/s'; however, it does not have permission to perform action 'assign/action' on the linked scope(s) '{ID},{other}' or the linked scope(s) are invalid."
    ) } });
    let error = answer(Service::Arm, 403, &body.to_string());
    assert_eq!(error.kind(), ErrorKind::IdentityForbidden);
    assert_eq!(error.identities().len(), 2);
}

#[rstest]
#[case(
    Service::Arm,
    403,
    r#"{"error":{"code":"AuthorizationFailed","message":"m"}}"#,
    ErrorKind::Forbidden
)]
#[case(
    Service::Arm,
    404,
    r#"{"code":"ResourceNotFound","message":"m"}"#,
    ErrorKind::NotFound
)]
#[case(
    Service::Arm,
    429,
    r#"{"error":{"code":"OperationNotAllowed","message":"m"}}"#,
    ErrorKind::Throttled
)]
#[case(
    Service::Arm,
    409,
    r#"{"error":{"code":"OperationNotAllowed","message":"m"}}"#,
    ErrorKind::Conflict
)]
#[case(Service::Arm, 412, "", ErrorKind::Conflict)]
#[case(Service::Arm, 502, "<html>", ErrorKind::Unavailable)]
#[case(Service::Arm, 401, "{}", ErrorKind::InvalidCredential)]
#[case(Service::Arm, 403, "<html>", ErrorKind::Malformed)]
#[case(Service::Arm, 404, "<html>", ErrorKind::Malformed)]
#[case(Service::Arm, 404, "", ErrorKind::NotFound)]
#[case(Service::Arm, 429, "<html>", ErrorKind::Throttled)]
#[case(
    Service::Imds,
    400,
    r#"{"error":"invalid_request","error_description":"Identity not found"}"#,
    ErrorKind::IdentityNotFound
)]
#[case(
    Service::Imds,
    400,
    r#"{"error":"invalid_request","error_description":"Required"}"#,
    ErrorKind::BadRequest
)]
#[case(Service::Imds, 404, "", ErrorKind::Unavailable)]
#[case(Service::Imds, 410, "", ErrorKind::Unavailable)]
#[case(
    Service::Entra,
    401,
    r#"{"error":"invalid_client","error_description":"AADSTS7000215"}"#,
    ErrorKind::InvalidCredential
)]
#[case(
    Service::Entra,
    400,
    r#"{"error":"invalid_resource","error_description":"AADSTS500011"}"#,
    ErrorKind::BadRequest
)]
#[case(
    Service::Entra,
    400,
    r#"{"error":"temporarily_unavailable"}"#,
    ErrorKind::Unavailable
)]
fn answers_are_classified(
    #[case] service: Service,
    #[case] status: u16,
    #[case] body: &str,
    #[case] kind: ErrorKind,
) {
    let error = answer(service, status, body);
    assert_eq!(error.kind(), kind);
    assert_eq!(error.status(), Some(status));
}

#[test]
fn texts_are_one_bounded_line() {
    let body = serde_json::json!({ "error": "invalid_client", "error_description": format!("AADSTS1: {}\r\nTrace ID: x", "y".repeat(5000)) });
    let error = answer(Service::Entra, 401, &body.to_string());
    assert_eq!(error.message().len(), MAX_MESSAGE);
    assert!(!error.to_string().contains("Trace"));
}

#[test]
fn retry_after_is_read_in_both_forms_and_bounded() {
    let read = |text: &str| {
        let mut headers = HeaderMap::new();
        headers.insert("retry-after", text.parse().unwrap());
        retry_after(&headers)
    };
    assert_eq!(read("7"), Some(Duration::from_secs(7)));
    assert_eq!(read("99999"), Some(MAX_RETRY_AFTER));
    assert_eq!(read("Wed, 21 Oct 2015 07:28:00 GMT"), Some(Duration::ZERO));
    assert_eq!(read("soon"), None);
}

#[test]
fn a_failed_operation_is_classified_by_its_error() {
    let error = serde_json::json!({ "code": "OperationPreempted", "message": "newer" });
    assert_eq!(
        Error::from_operation("Failed", &error).kind(),
        ErrorKind::Conflict
    );
    let error = Error::from_operation("Canceled", &Value::Null);
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert!(error.to_string().contains("ended as Canceled"));
    let error = serde_json::json!({ "code": "VMExtensionProvisioningError", "message": "m" });
    let error = Error::from_operation("Failed", &error);
    assert_eq!(error.kind(), ErrorKind::HostRefused);
}
