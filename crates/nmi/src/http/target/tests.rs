use super::*;
use proptest::prelude::*;
use rstest::rstest;

#[rstest]
#[case("/metadata/identity/oauth2/token")]
#[case("/metadata/identity/oauth2/token/")]
#[case("//metadata/identity/oauth2/token")]
#[case("/METADATA/identity/oauth2/token")]
fn clients_spellings_are_the_token_endpoint(#[case] path: &str) {
    assert_eq!(endpoint(path), Endpoint::Token);
}

#[rstest]
#[case("/metadata/Identity/oauth2/token")]
#[case("/metadata/identity/oauth2/token/x")]
#[case("/metadata/identity/oauth2/tokenx")]
#[case("/metadata/identity/oauth2%2ftoken")]
#[case("/metadata/identity\\oauth2\\token")]
#[case("/metadata\\identity/oauth2/token")]
#[case("/metadata/./identity/oauth2/token")]
#[case("/metadata/instance/../identity/oauth2/token")]
#[case("/metadata/instance/%2e%2e/identity/oauth2/token")]
#[case("/metadata/instance/%252e%252e/identity/oauth2/token")]
#[case("/metadata//identity/oauth2/token")]
#[case("/metadata/identity;x=1/oauth2/token")]
#[case("/metadata/%69dentity/oauth2/token")]
#[case("/metadata/identity%00/oauth2/token")]
#[case("///metadata/identity/oauth2/token")]
#[case("/metadata/identity/getplatformmetadata")]
#[case("/metadata/identity/info/x")]
#[case("/metadata/identity/inf%6f")]
#[case("/metadata/identity")]
#[case("/metadata/")]
#[case("/x/../metadata/identity/oauth2/token")]
fn odd_spellings_are_seen_through(#[case] path: &str) {
    assert_eq!(endpoint(path), Endpoint::Identity);
}

#[test]
fn other_categories_are_told_when_spelt_plainly() {
    assert_eq!(
        endpoint("/metadata/instance/compute"),
        Endpoint::Category("instance")
    );
    assert_eq!(
        endpoint("/Metadata/versions/"),
        Endpoint::Category("versions")
    );
    assert_eq!(endpoint("/metadata/instance/%63ompute"), Endpoint::Unknown);
    assert_eq!(endpoint("/metadata/instance//compute"), Endpoint::Unknown);
    assert_eq!(endpoint("/host/token"), Endpoint::Host);
    assert_eq!(endpoint("/host/token/"), Endpoint::Host);
    assert_eq!(endpoint("/host/tokens"), Endpoint::Unknown);
    assert_eq!(endpoint("*"), Endpoint::Unknown);
}

const CLIENT: &str = "6f1c0000-0000-0000-0000-0000000022ab";
const ARM: &str = "/subscriptions/s/resourceGroups/r/providers/Microsoft.ManagedIdentity/userAssignedIdentities/n";

fn wanted(query: &str) -> Result<RequestedIdentity, QueryError> {
    token_request(&format!("api-version=2018-02-01&resource=r&{query}")).map(|r| r.selector.wanted)
}

#[test]
fn a_resource_is_kept_to_the_byte() {
    let resource = |query: &str| {
        token_request(&format!("resource={query}&api-version=2019-08-01"))
            .map(|r| r.resource.into_owned())
    };
    assert_eq!(resource("https://x//").unwrap(), "https://x//");
    assert_eq!(resource("https%3A%2F%2Fx%2F").unwrap(), "https://x/");
    assert_eq!(resource("api://a+b").unwrap(), "api://a b");
    assert_eq!(resource(""), Err(QueryError::NoResource));
    assert_eq!(resource("%ff"), Err(QueryError::Resource));
    assert_eq!(resource(&"x".repeat(2000)), Err(QueryError::Resource));
}

#[test]
fn every_name_for_an_identity_selects() {
    let client = RequestedIdentity::Client(ClientId::parse(CLIENT).unwrap());
    let arm = RequestedIdentity::Resource(ResourceId::parse(ARM).unwrap());
    assert_eq!(
        wanted(&format!("client_id={}", CLIENT.to_uppercase())),
        Ok(client)
    );
    for name in ["msi_res_id", "mi_res_id", "resource_id", "msi-res-id"] {
        assert_eq!(wanted(&format!("{name}={ARM}")), Ok(arm.clone()));
    }
    assert_eq!(wanted("client_id=&msi_res_id="), Ok(RequestedIdentity::Any));
    assert_eq!(
        wanted("xms_cc=cp1&authority=http://x&principal_id=1"),
        Ok(RequestedIdentity::Any)
    );
    assert_eq!(
        wanted(&format!("object_id={CLIENT}")),
        Ok(RequestedIdentity::Object(None)),
        "which nothing is, until it is traced"
    );
}

#[rstest]
#[case("client_id=a&client_id=a", QueryError::Twice("client_id"))]
#[case("msi_res_id=a&mi_res_id=b", QueryError::Twice("msi_res_id"))]
#[case("resource=again", QueryError::Twice("resource"))]
#[case("client_id=x", QueryError::Selector("client_id"))]
#[case("msi_res_id=../x", QueryError::Selector("msi_res_id"))]
#[case("client_id=a&msi_res_id=b", QueryError::TwoSelectors)]
#[case("client_id=a&client%5Fid=a", QueryError::Twice("client_id"))]
#[case("object_id=x", QueryError::Selector("object_id"))]
fn contradictions_are_refused(#[case] query: &str, #[case] error: QueryError) {
    assert_eq!(wanted(query), Err(error));
}

#[test]
fn a_version_that_has_identities_is_needed() {
    for query in [
        "resource=r",
        "resource=r&api-version=",
        "resource=r&api-version=2017-04-02",
        "resource=r&api-version=latest",
        "resource=r&api-version=2021-13-01",
        "resource=r&api-version=2021-01-32",
        "resource=r&api-version=2021-02-01-preview",
        "resource=r&api-version=20210201",
        "",
    ] {
        assert_eq!(token_request(query), Err(QueryError::ApiVersion), "{query}");
    }
    assert!(token_request("resource=r&api-version=2025-04-07").is_ok());
}

proptest! {
    /// However `metadata/identity` is dressed up, it is not taken for something that may be passed on.
    #[test]
    fn no_dress_hides_the_identity_endpoints(
        before in prop::sample::select(vec!["/", "//", "/./", "/%2e/", "/x/../", "/%2F", "\\", "/;a/", "/%5c"]),
        between in prop::sample::select(vec!["/", "//", "\\", "%2f", "%252f", "/./", "/x/../", "/%2e%2e/metadata/", "%5C"]),
        identity in prop::sample::select(vec!["identity", "IDENTITY", "%69dentity", "iden%74ity", "identity;a=b", "identity%00", "%2569dentity"]),
        after in "(/[a-z0-9%./;]{0,12}){0,3}",
    ) {
        let path = format!("{before}metadata{between}{identity}{after}");
        prop_assert!(!matches!(endpoint(&path), Endpoint::Category(_)), "{path}");
    }

    #[test]
    fn nothing_panics(path in "\\PC*", query in "\\PC*") {
        let _ = endpoint(&path);
        let _ = token_request(&query);
    }
}
