use super::*;
use proptest::prelude::*;
use rstest::rstest;

#[rstest]
#[case("/metadata/identity/oauth2/token")]
#[case("/metadata/identity/oauth2/token/")]
#[case("//metadata/identity/oauth2/token")]
#[case("///metadata/identity/oauth2/token")]
#[case("//////metadata/identity/oauth2/token/")]
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
#[case("/metadata/identity/getplatformmetadata")]
#[case("/metadata/identity/info/x")]
#[case("/metadata/identity/inf%6f")]
#[case("/metadata/identity")]
#[case("/metadata/")]
#[case("/x/../metadata/identity/oauth2/token")]
#[case("///./metadata/identity/oauth2/token")]
#[case("///metadata//identity/oauth2/token")]
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
    let query = format!("api-version=2018-02-01&resource=r&{query}");
    token_request(&query, Dialect::Imds).map(|r| r.wanted)
}

#[test]
fn a_resource_is_kept_to_the_byte() {
    let resource = |query: &str| {
        let query = format!("resource={query}&api-version=2019-08-01");
        token_request(&query, Dialect::Imds).map(|r| r.resource.into_owned())
    };
    assert_eq!(resource("https://x//").unwrap(), "https://x//");
    assert_eq!(resource("https%3A%2F%2Fx%2F").unwrap(), "https://x/");
    assert_eq!(resource("api://a+b").unwrap(), "api://a b");
    assert_eq!(resource(""), Err(QueryError::NoResource));
    assert_eq!(resource("%ff"), Err(QueryError::ResourceNotText));
    assert_eq!(resource("https://x%0a"), Err(QueryError::ControlInResource));
    assert_eq!(resource(&"x".repeat(2000)), Err(QueryError::LongResource));
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
        Ok(RequestedIdentity::Object {
            id: ClientId::parse(CLIENT).unwrap(),
            identity: None
        }),
        "which nothing is, until it is traced"
    );
}

#[rstest]
#[case("client_id=a&client_id=a", &["'client_id' is given twice"])]
#[case("msi_res_id=a&mi_res_id=b", &["'mi_res_id'", "'msi_res_id'", "twice"])]
#[case("resource=again", &["'resource' is given twice"])]
#[case("client_id=reader", &["'client_id' is malformed", "\"reader\" is not a GUID"])]
#[case("client_id=6f1c0000-0000-0000-0000-0000000022ab%0A", &["'client_id' is malformed", "line break"])]
#[case("mi_res_id=../x", &["'mi_res_id' is malformed", "\"../x\"", "userAssignedIdentities"])]
#[case("client_id=a&msi-res-id=b", &["'client_id' and 'msi-res-id' exclude"])]
#[case("client_id=a&client%5Fid=a", &["'client_id' is given twice"])]
#[case("object_id=x", &["'object_id' is malformed", "\"x\" is not a GUID"])]
fn contradictions_are_refused_by_the_names_that_were_sent(
    #[case] query: &str,
    #[case] said: &[&str],
) {
    let error = wanted(query).unwrap_err().to_string();
    for part in said {
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn clients_that_know_only_msi_endpoint_are_understood_where_that_is_wanted() {
    let old = |query: &str, dialect| token_request(query, dialect).map(|r| r.wanted);
    let client = RequestedIdentity::Client(ClientId::parse(CLIENT).unwrap());
    for version in [
        "",
        "&api-version=",
        "&api-version=2017-09-01",
        "&api-version=2018-02-01",
    ] {
        let query = format!("resource=r&clientid={CLIENT}{version}");
        assert_eq!(
            old(&query, Dialect::MsiEndpoint),
            Ok(client.clone()),
            "{query}"
        );
    }
    let query = format!("resource=r&api-version=2018-02-01&clientid={CLIENT}");
    assert_eq!(
        old(&query, Dialect::Imds),
        Ok(RequestedIdentity::Any),
        "as on a virtual machine"
    );
    let both = format!("resource=r&clientid={CLIENT}&client_id={CLIENT}");
    assert!(old(&both, Dialect::MsiEndpoint).is_err());
    for version in ["2017-04-02", "latest"] {
        let query = format!("resource=r&api-version={version}");
        assert_eq!(
            old(&query, Dialect::MsiEndpoint),
            Err(QueryError::ApiVersion)
        );
    }
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
        assert_eq!(
            token_request(query, Dialect::Imds),
            Err(QueryError::ApiVersion),
            "{query}"
        );
    }
    assert!(token_request("resource=r&api-version=2025-04-07", Dialect::Imds).is_ok());
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
        let _ = token_request(&query, Dialect::MsiEndpoint);
    }
}
