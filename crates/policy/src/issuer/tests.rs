//! Checks of an issuer: each fault is found by its reason, with a cause and a next step, and what is right is not called wrong.

use std::time::Duration;

use super::*;

const ISSUER: &str = "https://oidc.example.com/cluster-1";

fn key(id: &str) -> Key {
    Key {
        id: id.to_owned(),
        kind: "RSA".to_owned(),
        algorithm: Some("RS256".to_owned()),
        material: id.as_bytes().to_vec(),
        bits: 2048,
    }
}

fn good() -> Evidence {
    Evidence {
        issuer: ISSUER.to_owned(),
        token: Ok(TokenClaims {
            issuer: ISSUER.to_owned(),
            key: Some("k1".to_owned()),
            algorithm: "RS256".to_owned(),
        }),
        api_issuer: ISSUER.to_owned(),
        api_keys: vec![key("k1"), key("k0")],
        published: Some(Published {
            addresses: Ok(vec!["20.50.60.70".parse().unwrap()]),
            discovery: Ok(Discovery {
                issuer: ISSUER.to_owned(),
                jwks_uri: jwks_url(ISSUER),
                algorithms: vec!["RS256".to_owned()],
            }),
            keys: Some(Ok(KeySet {
                keys: vec![key("k0"), key("k1")],
                bytes: 900,
                max_age: Some(3600),
            })),
        }),
    }
}

fn published(evidence: &mut Evidence) -> &mut Published {
    evidence.published.as_mut().unwrap()
}

fn discovery(evidence: &mut Evidence) -> &mut Discovery {
    published(evidence).discovery.as_mut().unwrap()
}

fn set(evidence: &mut Evidence) -> &mut KeySet {
    let keys = published(evidence).keys.as_mut().unwrap();
    keys.as_mut().unwrap()
}

fn token(evidence: &mut Evidence) -> &mut TokenClaims {
    evidence.token.as_mut().unwrap()
}

/// The reasons that are found after a change of what is good, each with the outcome of its check.
fn reasons(change: impl FnOnce(&mut Evidence)) -> Vec<(Reason, Outcome)> {
    let mut evidence = good();
    change(&mut evidence);
    let found = checks(&evidence).into_iter().filter_map(|check| {
        let finding = check.finding?;
        assert!(!finding.cause.is_empty() && !finding.next.is_empty());
        Some((finding.reason, check.outcome))
    });
    found.collect()
}

#[test]
fn what_is_right_passes_every_check() {
    let all = checks(&good());
    let bad: Vec<_> = all
        .iter()
        .filter(|check| check.outcome != Outcome::Ok)
        .collect();
    assert!(bad.is_empty(), "{bad:#?}");
    assert_eq!(all.len(), 11);
}

#[test]
fn a_url_that_entra_cannot_use_is_named() {
    for (issuer, reason) in [
        ("http://oidc.example.com", Reason::NotHttps),
        ("HTTPS://oidc.example.com", Reason::NotHttps),
        ("", Reason::NotHttps),
        ("https://kubernetes.default.svc", Reason::ClusterInternal),
        (
            "https://kubernetes.default.svc.cluster.local:6443/",
            Reason::ClusterInternal,
        ),
        ("https://Kubernetes.Default.SVC./x", Reason::ClusterInternal),
        ("https://localhost:6443", Reason::ClusterInternal),
        ("https://api", Reason::ClusterInternal),
        ("https://", Reason::MalformedUrl),
        ("https:///x", Reason::MalformedUrl),
        ("https://a.example.com/x?y=1", Reason::MalformedUrl),
        ("https://a.example.com/#x", Reason::MalformedUrl),
        ("https://user:word@a.example.com", Reason::MalformedUrl),
        ("https://a.example.com/ ", Reason::MalformedUrl),
    ] {
        assert_eq!(usable_url(issuer).unwrap_err().reason, reason, "{issuer}");
    }
    for issuer in [
        ISSUER,
        "https://eastus.oic.prod-aks.azure.com/72f9/6f1c/",
        "https://oidc.example.com:8443/$web/",
        "https://20.50.60.70/x",
        "https://[2603:1030::1]:443/x",
    ] {
        assert_eq!(usable_url(issuer), Ok(()), "{issuer}");
    }
}

#[test]
fn the_documents_are_below_the_issuer_with_one_slash() {
    for issuer in ["https://a.example.com/x", "https://a.example.com/x/"] {
        assert_eq!(
            discovery_url(issuer),
            "https://a.example.com/x/.well-known/openid-configuration"
        );
        assert_eq!(jwks_url(issuer), "https://a.example.com/x/openid/v1/jwks");
    }
}

#[test]
fn issuers_are_compared_byte_for_byte() {
    for (other, hint) in [
        ("https://oidc.example.com/cluster-1/", "slash at the end"),
        ("https://OIDC.example.com/cluster-1", "capital letters"),
        ("https://oidc.example.com/cluster-1 ", "white space"),
        ("https://oidc.example.com/cluster-2", "another issuer;"),
    ] {
        let mut evidence = good();
        discovery(&mut evidence).issuer = other.to_owned();
        let found = checks(&evidence)
            .into_iter()
            .find_map(|check| check.finding)
            .unwrap();
        assert_eq!(found.reason, Reason::IssuerDiffers);
        assert!(found.cause.contains(hint), "{other:?}: {}", found.cause);
    }
    let by_tokens = reasons(|evidence| token(evidence).issuer = format!("{ISSUER}/"));
    assert_eq!(by_tokens, [(Reason::TokenIssuerDiffers, Outcome::Wrong)]);
    let by_one_server = reasons(|evidence| evidence.api_issuer = format!("{ISSUER}/"));
    assert_eq!(
        by_one_server,
        [(Reason::ApiServersDiffer, Outcome::Warning)]
    );
}

#[test]
fn without_a_token_the_api_servers_own_document_counts() {
    let none = || Err("403 no".to_owned());
    let unseen = (Reason::TokenNotSeen, Outcome::Unknown);
    assert_eq!(reasons(|evidence| evidence.token = none()), [unseen]);
    let differs = reasons(|evidence| {
        evidence.token = none();
        evidence.api_issuer = "https://kubernetes.default.svc".to_owned();
    });
    assert_eq!(differs, [(Reason::TokenIssuerDiffers, Outcome::Wrong)]);
    // Which key signs is not known, so that each one must be published.
    let missing = reasons(|evidence| {
        evidence.token = none();
        set(evidence).keys.remove(0);
    });
    assert_eq!(
        missing,
        [unseen, (Reason::SigningKeyMissing, Outcome::Wrong)]
    );
    let elliptic = reasons(|evidence| {
        evidence.token = none();
        evidence.api_keys[0].kind = "EC".to_owned();
    });
    assert_eq!(elliptic, [unseen, (Reason::NotRs256, Outcome::Wrong)]);
}

#[test]
fn addresses_that_the_internet_does_not_reach_are_named() {
    for local in [
        "10.0.0.4",
        "172.16.0.1",
        "192.168.1.1",
        "127.0.0.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "198.18.0.1",
        "203.0.113.1",
        "224.0.0.1",
        "255.255.255.255",
        "::1",
        "fe80::1",
        "fd00::1",
        "2001:db8::1",
        "::ffff:10.0.0.4",
    ] {
        let found = reasons(|evidence| {
            let addresses = published(evidence).addresses.as_mut().unwrap();
            addresses.push(local.parse().unwrap());
        });
        assert_eq!(found, [(Reason::NotPublic, Outcome::Wrong)], "{local}");
    }
    for public in [
        "20.50.60.70",
        "100.63.0.1",
        "172.32.0.1",
        "198.20.0.1",
        "2603:1030::1",
        "::ffff:20.0.0.1",
    ] {
        let found = reasons(|evidence| {
            published(evidence).addresses = Ok(vec![public.parse().unwrap()]);
        });
        assert_eq!(found, [], "{public}");
    }
    let unknown = reasons(|evidence| published(evidence).addresses = Err("not found".to_owned()));
    assert_eq!(unknown, [(Reason::NameNotFound, Outcome::Unknown)]);
}

#[test]
fn each_way_to_fail_has_its_reason_for_either_document() {
    let text = || "x".to_owned();
    for (error, reason) in [
        (FetchError::NameNotFound, Reason::NameNotFound),
        (FetchError::Unreachable(text()), Reason::Unreachable),
        (FetchError::TlsFailed(text()), Reason::TlsFailed),
        (
            FetchError::TimedOut(Duration::from_secs(10)),
            Reason::TimedOut,
        ),
        (FetchError::Redirected(301, text()), Reason::Redirected),
        (FetchError::Status(401), Reason::AccessRefused),
        (FetchError::Status(403), Reason::AccessRefused),
        (FetchError::Status(404), Reason::NotFound),
        (FetchError::Status(500), Reason::UnexpectedStatus),
        (FetchError::TooLarge(1), Reason::TooLarge),
        (FetchError::Malformed(text()), Reason::Malformed),
    ] {
        let wrong = [(reason, Outcome::Wrong)];
        let of_keys = reasons(|evidence| published(evidence).keys = Some(Err(error.clone())));
        assert_eq!(of_keys, wrong);
        let of_discovery = reasons(|evidence| {
            published(evidence).discovery = Err(error);
            published(evidence).keys = None;
        });
        assert_eq!(of_discovery, wrong);
    }
    let plain = reasons(|evidence| {
        discovery(evidence).jwks_uri = "http://oidc.example.com/keys".to_owned();
        published(evidence).keys = None;
    });
    assert_eq!(plain, [(Reason::JwksUriNotHttps, Outcome::Wrong)]);
}

#[test]
fn the_published_keys_are_the_api_servers() {
    let other = reasons(|evidence| set(evidence).keys[1].material = vec![7]);
    assert_eq!(other, [(Reason::KeyDiffers, Outcome::Wrong)]);
    let rotated = reasons(|evidence| {
        set(evidence).keys.remove(1);
    });
    assert_eq!(rotated[0], (Reason::SigningKeyMissing, Outcome::Wrong));
    let not_signing = reasons(|evidence| {
        set(evidence).keys.remove(0);
    });
    assert_eq!(not_signing, [(Reason::KeyMissing, Outcome::Warning)]);
    let one_more = reasons(|evidence| set(evidence).keys.push(key("k2")));
    assert_eq!(one_more, []);
}

#[test]
fn entra_keeps_the_first_hundred_keys() {
    let with = |before: usize, after: usize| {
        reasons(|evidence| {
            let keys = &mut set(evidence).keys;
            keys.splice(0..0, (0..before).map(|n| key(&format!("b{n}"))));
            keys.extend((0..after).map(|n| key(&format!("a{n}"))));
        })
    };
    // The signing key is the second of the two that are there already.
    assert_eq!(with(98, 0), []);
    assert_eq!(with(98, 1), [(Reason::TooManyKeys, Outcome::Warning)]);
    assert_eq!(with(99, 0), [(Reason::TooManyKeys, Outcome::Wrong)]);
    let none = reasons(|evidence| set(evidence).keys.clear());
    assert!(none.contains(&(Reason::NoKeys, Outcome::Wrong)));
}

#[test]
fn the_algorithm_is_rs256_and_the_key_long_enough() {
    let elliptic = reasons(|evidence| token(evidence).algorithm = "ES256".to_owned());
    assert_eq!(elliptic, [(Reason::NotRs256, Outcome::Wrong)]);
    let not_listed = reasons(|evidence| discovery(evidence).algorithms = vec!["ES256".to_owned()]);
    assert_eq!(not_listed, [(Reason::AlgorithmNotListed, Outcome::Warning)]);
    let short = reasons(|evidence| set(evidence).keys[1].bits = 1024);
    assert_eq!(short, [(Reason::SmallKey, Outcome::Warning)]);
    let short_but_idle = reasons(|evidence| set(evidence).keys[0].bits = 1024);
    assert_eq!(short_but_idle, []);
}

#[test]
fn caches_forget_within_a_day() {
    for (max_age, expected) in [
        (None, None),
        (Some(86_400), None),
        (Some(86_401), Some((Reason::LongCache, Outcome::Warning))),
    ] {
        let found = reasons(|evidence| set(evidence).max_age = max_age);
        assert_eq!(found, Vec::from_iter(expected), "{max_age:?}");
    }
}

#[test]
fn before_publishing_only_the_cluster_is_looked_at() {
    let mut evidence = good();
    evidence.published = None;
    token(&mut evidence).issuer = "https://kubernetes.default.svc".to_owned();
    let found = checks_before_publishing(&evidence);
    assert!(
        found.iter().all(|check| check.outcome == Outcome::Ok),
        "{found:#?}"
    );
    token(&mut evidence).algorithm = "ES384".to_owned();
    let found = checks_before_publishing(&evidence);
    assert!(found.iter().any(|check| check.outcome == Outcome::Wrong));
}

#[test]
fn nothing_foreign_reaches_the_terminal_as_it_is() {
    let hostile = "\u{1b}[31m\n\u{202e}é";
    assert_eq!(shown(hostile), "\\u{1b}[31m\\u{a}\\u{202e}\\u{e9}");
    assert_eq!(shown(&"x".repeat(1000)).chars().count(), MOST_SHOWN + 1);
    let mut evidence = good();
    token(&mut evidence).algorithm = hostile.to_owned();
    token(&mut evidence).key = Some(hostile.to_owned());
    discovery(&mut evidence).issuer = hostile.to_owned();
    discovery(&mut evidence).jwks_uri = hostile.to_owned();
    published(&mut evidence).keys = Some(Err(FetchError::Redirected(302, hostile.to_owned())));
    for check in checks(&evidence) {
        let finding = check.finding.map(|finding| finding.cause + &finding.next);
        let text = check.found + &finding.unwrap_or_default();
        assert!(
            text.is_ascii() && !text.contains(|c: char| c.is_control()),
            "{text:?}"
        );
    }
}
