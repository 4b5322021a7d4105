use super::FaultOwner::{Cluster, Identity, Tenant};
use super::FederationFault::*;
use super::Healing::{After, FreshAssertion, Never};
use super::*;
use crate::error::{Error, Service};
use http::HeaderMap;
use rstest::rstest;
use serde_json::json;

const WIF: &str =
    "https://learn.microsoft.com/entra/workload-id/workload-identity-federation Trace ID";
const CASE: &str = "Please note that the matching is done using a case-sensitive comparison. Check your federated identity credential Subject, Audience and Issuer against the presented assertion.";
const SUBJECT: &str = "system:serviceaccount:podid-identities:shop.reader";
const ISSUER: &str = "https://eastus.oic.prod-aks.azure.com/72f988bf-0000-0000-0000-2d7cd011db47/a1b2c3d4-0000-0000-0000-000000000000/";

/// An answer as Entra gives it.
fn body(error: &str, number: u64, text: &str) -> Value {
    let (trace, time) = (
        "0d3b1c9e-5d3e-4b0a-9b57-6d5b1b6c0a00",
        "2026-11-27 09:15:02Z",
    );
    json!({
        "error": error,
        "error_description": format!("AADSTS{number}: {text} Trace ID: {trace} Correlation ID: {trace} Timestamp: {time}"),
        "error_codes": [number], "timestamp": time, "trace_id": trace, "correlation_id": trace,
        "error_uri": format!("https://login.microsoftonline.com/error?code={number}"),
    })
}

fn seconds(wait: u64) -> Healing {
    After(Duration::from_secs(wait))
}

#[rstest]
#[case(400, body("invalid_request", 70021, &format!("No matching federated identity record found for presented assertion. Assertion Issuer: '{ISSUER}'. Assertion Subject: '{SUBJECT}'. Assertion Audience: 'api://AzureADTokenExchange'. {WIF}")), CredentialMissing, Identity, seconds(60))]
#[case(401, body("invalid_client", 70021, &format!("No matching federated identity record found for presented assertion. Assertion Issuer: '{ISSUER}'. {WIF}")), CredentialMissing, Identity, seconds(60))]
#[case(
    401,
    body(
        "invalid_client",
        70025,
        "The client '6f1c0000-0000-0000-0000-0000000022ab'(reader) has no configured federated identity credentials."
    ),
    CredentialMissing,
    Identity,
    seconds(60)
)]
#[case(401, body("invalid_client", 700_211, &format!("No matching federated identity record found for presented assertion issuer '{ISSUER}'. {CASE} {WIF}")), CredentialMissing, Identity, seconds(60))]
#[case(401, body("invalid_client", 700_213, &format!("No matching federated identity record found for presented assertion subject '{SUBJECT}'. {CASE} {WIF}")), CredentialMissing, Identity, seconds(60))]
#[case(401, body("invalid_client", 700_212, &format!("No matching federated identity record found for presented assertion audience 'podid-broker'. {CASE} {WIF}")), CredentialMismatch, Identity, Never)]
#[case(
    401,
    body(
        "invalid_client",
        7_002_121,
        "No matching federated identity record found for presented assertion audience."
    ),
    CredentialMismatch,
    Identity,
    Never
)]
#[case(401, body("invalid_client", 7_002_138, &format!("No matching federated identity record found for presented assertion subject '{SUBJECT}'. The subject matches with case-insensitive comparison, but not with case-sensitive comparison.")), CredentialMismatch, Identity, Never)]
#[case(
    400,
    body(
        "invalid_request",
        70_022_204,
        "The audience of the federated identity credential is for another cloud."
    ),
    CredentialMismatch,
    Identity,
    Never
)]
#[case(
    400,
    body(
        "unauthorized_client",
        700_016,
        "Application with identifier '6f1c0000-0000-0000-0000-0000000022ab' was not found in the directory 'Contoso'. This can happen if the application has not been installed by the administrator of the tenant or consented to by any user in the tenant."
    ),
    UnknownClient,
    Identity,
    seconds(60)
)]
#[case(
    400,
    body(
        "invalid_request",
        90002,
        "Tenant '72f988bf' not found. Check to make sure you have the correct tenant ID and are signing into the correct cloud."
    ),
    UnknownTenant,
    Identity,
    Never
)]
#[case(
    400,
    body("invalid_request", 90061, "Request to External OIDC endpoint failed."),
    IssuerUnreachable,
    Cluster,
    seconds(30)
)]
#[case(
    400,
    body("invalid_request", 50166, "Request to External OIDC endpoint failed."),
    IssuerUnreachable,
    Cluster,
    seconds(30)
)]
#[case(
    400,
    body(
        "invalid_request",
        501_661,
        "Request to External OIDC endpoint failed."
    ),
    IssuerUnreachable,
    Cluster,
    seconds(30)
)]
#[case(
    401,
    body(
        "invalid_client",
        700_222,
        "AAD-issued tokens may not be used for federated identity flows."
    ),
    IssuerRefused,
    Cluster,
    Never
)]
#[case(
    401,
    body(
        "invalid_client",
        700_223,
        "Workload identity federation is constrained or disabled by a policy of the tenant."
    ),
    TenantRefused,
    Tenant,
    Never
)]
#[case(
    401,
    body(
        "invalid_client",
        700_238,
        "Workload identity federation for the specified issuer is blocked by a policy of the tenant."
    ),
    TenantRefused,
    Tenant,
    Never
)]
#[case(
    401,
    body(
        "invalid_client",
        700_024,
        "Client assertion is not within its valid time range. Current time: 2026-11-27T09:15:02.0000000Z, assertion valid from 2026-11-27T07:00:00.0000000Z, expiry time of assertion 2026-11-27T08:00:00.0000000Z."
    ),
    AssertionExpired,
    Cluster,
    FreshAssertion
)]
#[case(
    401,
    body(
        "invalid_client",
        700_027,
        "The certificate with identifier used to sign the client assertion is not registered on application. [Reason - The key was not found.]"
    ),
    AssertionUnverified,
    Cluster,
    FreshAssertion
)]
#[case(401, body("invalid_client", 7_000_272, &format!("The certificate with identifier k1 used to sign the federated credential could not be found in the metadata of identity provider {ISSUER}. Please validate that your Identity Provider's metadata exposes the key used to sign the incoming token.")), AssertionUnverified, Cluster, FreshAssertion)]
fn an_answer_tells_whose_fault_it_is_and_whether_time_heals_it(
    #[case] status: u16,
    #[case] body: Value,
    #[case] fault: FederationFault,
    #[case] owner: FaultOwner,
    #[case] healing: Healing,
) {
    let error = of(status, &body);
    assert_eq!(error.federation_fault(), Some(fault));
    assert_eq!((fault.owner(), fault.healing()), (owner, healing));
    assert_eq!(error.is_transient(), fault == IssuerUnreachable);
    let wait = match healing {
        After(wait) => Some(wait),
        Never | FreshAssertion => None,
    };
    assert_eq!(error.retry_after(), wait);
    assert!(error.to_string().ends_with(fault.advice()), "{error}");
}

fn of(status: u16, body: &Value) -> Error {
    from(status, &HeaderMap::new(), body)
}

fn from(status: u16, headers: &HeaderMap, body: &Value) -> Error {
    Error::from_federated_answer(status, headers, body.to_string().as_bytes())
}

/// The numbers are Entra's own; those that mean something else keep their kind.
#[test]
fn other_errors_have_no_fault() {
    for (status, body, kind) in [
        (
            400,
            body("invalid_resource", 500_011, "m"),
            ErrorKind::BadRequest,
        ),
        (
            429,
            body("invalid_client", 90055, "m"),
            ErrorKind::Throttled,
        ),
        (
            503,
            body("temporarily_unavailable", 90033, "m"),
            ErrorKind::Unavailable,
        ),
        (
            401,
            body("invalid_client", 7_000_215, "m"),
            ErrorKind::InvalidCredential,
        ),
        (502, json!("<html>"), ErrorKind::Unavailable),
    ] {
        let error = of(status, &body);
        assert_eq!((error.federation_fault(), error.kind()), (None, kind));
    }
}

/// A proxy may drop the list; the text begins with the number.
#[test]
fn the_number_is_read_of_the_text_where_there_is_no_list() {
    let body =
        json!({ "error": "invalid_client", "error_description": "AADSTS700213: No matching" });
    assert_eq!(of(401, &body).federation_fault(), Some(CredentialMissing));
    let body = json!({ "error": "invalid_client", "error_description": "see AADSTS700213: x" });
    assert_eq!(of(401, &body).federation_fault(), None);
}

#[test]
fn what_entra_asks_to_wait_counts_before_the_usual() {
    let mut headers = HeaderMap::new();
    headers.insert("retry-after", "7".parse().unwrap());
    for (status, number, error) in [
        (400, 90061, "invalid_request"),
        (429, 90055, "invalid_request"),
    ] {
        let error = from(status, &headers, &body(error, number, "m"));
        assert_eq!(error.retry_after(), Some(Duration::from_secs(7)));
    }
}

/// A throttled or failing Entra says nothing of the credential, whatever number its body has.
#[test]
fn a_status_of_the_moment_counts_before_the_number() {
    for (status, kind) in [
        (429, ErrorKind::Throttled),
        (500, ErrorKind::Unavailable),
        (503, ErrorKind::Unavailable),
    ] {
        let error = of(status, &body("invalid_client", 700_213, "m"));
        assert_eq!((error.federation_fault(), error.kind()), (None, kind));
    }
}

/// A service principal's secret or certificate is another matter, and its errors stay as they are.
#[test]
fn an_answer_to_another_credential_has_no_fault() {
    let body = body("unauthorized_client", 700_016, "m").to_string();
    let error = Error::from_answer(Service::Entra, 400, &HeaderMap::new(), body.as_bytes());
    assert_eq!(error.federation_fault(), None);
    assert!(error.to_string().contains("the secret and the tenant"));
}
