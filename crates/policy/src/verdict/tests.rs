use super::*;
use crate::facts::{IdentitySource, PodPhase};
use proptest::prelude::*;

fn guid(n: u8) -> String {
    format!("00000000-0000-0000-0000-0000000000{n:02x}")
}

fn identity(namespace: &str, name: &str, n: u8) -> IdentityFacts {
    let resource_id = ResourceId::parse(&format!(
        "/subscriptions/s/resourceGroups/rg/providers/Microsoft.ManagedIdentity/userAssignedIdentities/{name}"
    ))
    .unwrap();
    IdentityFacts {
        key: ObjectKey::new(namespace, name),
        client_id: ClientId::parse(&guid(n)).unwrap(),
        source: IdentitySource::UserAssigned { resource_id },
        namespaced: false,
    }
}

fn binding(namespace: &str, identity: &str, selector: &str, weight: i32) -> BindingFacts {
    BindingFacts {
        key: ObjectKey::new(namespace, &format!("{identity}-{selector}")),
        identity: identity.into(),
        selector: selector.into(),
        weight,
        service_accounts: vec![],
    }
}

fn pod(namespace: &str, selector: Option<&str>) -> PodFacts {
    PodFacts {
        key: ObjectKey::new(namespace, "pod"),
        uid: "uid".into(),
        labels: selector
            .map(|s| (BINDING_LABEL.to_owned(), s.to_owned()))
            .into_iter()
            .collect(),
        service_account: "default".into(),
        node: Some("node".into()),
        addresses: vec![],
        host_network: false,
        phase: PodPhase::Live,
    }
}

fn ask<'a>(
    scope: Scope,
    bindings: &'a [&'a BindingFacts],
    identities: &'a [&'a IdentityFacts],
    pod: &PodFacts,
    wanted: &RequestedIdentity,
) -> Verdict<'a> {
    authorize(
        PolicyObjects {
            scope,
            bindings,
            identities,
            exceptions: &[],
            pick_first: false,
        },
        pod,
        wanted,
    )
}

fn refused(verdict: &Verdict<'_>) -> &'static str {
    match verdict {
        Verdict::Refused(reason) => reason.name(),
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn the_bound_identity_is_granted_and_nothing_else() {
    let (reader, writer) = (identity("a", "reader", 1), identity("a", "writer", 2));
    let bound = binding("a", "reader", "app", 0);
    let (bindings, identities) = ([&bound], [&reader, &writer]);
    let app = pod("a", Some("app"));
    let get = |pod: &PodFacts, wanted: &RequestedIdentity| match ask(
        Scope::Namespaced,
        &bindings,
        &identities,
        pod,
        wanted,
    ) {
        Verdict::Grant(identity) => identity.key.name.to_string(),
        other => refused(&other).to_owned(),
    };
    assert_eq!(get(&app, &RequestedIdentity::Any), "reader");
    assert_eq!(
        get(&app, &RequestedIdentity::Client(reader.client_id.clone())),
        "reader"
    );
    assert_eq!(
        get(&app, &RequestedIdentity::Client(writer.client_id.clone())),
        "NotGranted"
    );
    assert_eq!(
        get(
            &app,
            &RequestedIdentity::Resource(writer.resource_id().unwrap().clone())
        ),
        "NotGranted"
    );
    assert_eq!(get(&pod("a", None), &RequestedIdentity::Any), "NoLabel");
    assert_eq!(
        get(&pod("a", Some("App")), &RequestedIdentity::Any),
        "NoBinding"
    );
    assert_eq!(
        get(&pod("b", Some("app")), &RequestedIdentity::Any),
        "NoBinding"
    );
    let finished = PodFacts {
        phase: PodPhase::Finished,
        ..app.clone()
    };
    assert_eq!(get(&finished, &RequestedIdentity::Any), "NoBinding");
    assert_eq!(
        get(&PodFacts { node: None, ..app }, &RequestedIdentity::Any),
        "NoBinding"
    );
}

#[test]
fn an_object_id_grants_what_it_was_traced_to_if_that_is_granted() {
    let (reader, writer) = (identity("a", "reader", 1), identity("a", "writer", 2));
    let binding = binding("a", "reader", "app", 0);
    let app = pod("a", Some("app"));
    let get = |traced: Option<&IdentityFacts>| {
        let wanted = RequestedIdentity::Object {
            id: ClientId::parse(&guid(9)).unwrap(),
            identity: traced.map(|identity| identity.key.clone()),
        };
        let (bindings, identities) = ([&binding], [&reader, &writer]);
        match ask(Scope::Namespaced, &bindings, &identities, &app, &wanted) {
            Verdict::Grant(identity) => identity.key.name.to_string(),
            other => refused(&other).to_owned(),
        }
    };
    assert_eq!(get(Some(&reader)), "reader");
    assert_eq!(get(Some(&writer)), "NotGranted");
    assert_eq!(get(None), "NotGranted");
}

#[test]
fn a_binding_may_be_limited_to_service_accounts() {
    let reader = identity("a", "reader", 1);
    let limited = BindingFacts {
        service_accounts: vec!["batch".into()],
        ..binding("a", "reader", "app", 0)
    };
    let app = pod("a", Some("app"));
    let verdict = |p: &PodFacts| {
        matches!(
            ask(
                Scope::Namespaced,
                &[&limited],
                &[&reader],
                p,
                &RequestedIdentity::Any
            ),
            Verdict::Grant(_)
        )
    };
    assert!(!verdict(&app));
    assert!(verdict(&PodFacts {
        service_account: "batch".into(),
        ..app
    }));
}

#[test]
fn across_namespaces_stops_at_an_identity_that_is_kept_home() {
    let reader = identity("a", "reader", 1);
    let bound = binding("a", "reader", "app", 0);
    let other = pod("b", Some("app"));
    let (bindings, identities) = ([&bound], [&reader]);
    let verdict = ask(
        Scope::AcrossNamespaces,
        &bindings,
        &identities,
        &other,
        &RequestedIdentity::Any,
    );
    assert_eq!(verdict, Verdict::Grant(&reader));
    let home = IdentityFacts {
        namespaced: true,
        ..reader
    };
    assert_eq!(
        refused(&ask(
            Scope::AcrossNamespaces,
            &[&bound],
            &[&home],
            &other,
            &RequestedIdentity::Any
        )),
        "NoIdentity"
    );
}

#[test]
fn several_unnamed_need_a_weight() {
    let (one, two) = (identity("a", "one", 1), identity("a", "two", 2));
    let (light, heavy) = (binding("a", "one", "app", 0), binding("a", "two", "app", 5));
    let even = binding("a", "two", "app", 0);
    let app = pod("a", Some("app"));
    assert_eq!(
        ask(
            Scope::Namespaced,
            &[&light, &heavy],
            &[&one, &two],
            &app,
            &RequestedIdentity::Any
        ),
        Verdict::Grant(&two)
    );
    match ask(
        Scope::Namespaced,
        &[&light, &even],
        &[&one, &two],
        &app,
        &RequestedIdentity::Any,
    ) {
        Verdict::Refused(reason) => {
            assert_eq!(reason.name(), "Ambiguous");
            assert!(reason.to_string().contains("a/one, a/two"), "{reason}");
        }
        other => panic!("{other:?}"),
    }
}

fn service_principal(name: &str, tenant: &str) -> IdentityFacts {
    IdentityFacts {
        source: IdentitySource::ServicePrincipal {
            certificate: false,
            tenant: tenant.into(),
            auxiliary_tenants: vec![],
            secret: ObjectKey::new("a", name),
            authority: None,
        },
        ..identity("a", name, 1)
    }
}

#[test]
fn one_client_id_in_two_tenants_is_decided_by_weight_or_not_at_all() {
    let (one, two) = (
        service_principal("one", "tenant-1"),
        service_principal("two", "tenant-2"),
    );
    let wanted = RequestedIdentity::Client(one.client_id.clone());
    let app = pod("a", Some("app"));
    let decide = |identities: &[&IdentityFacts], weight: i32| {
        let bindings = [
            binding("a", "one", "app", 0),
            binding("a", "two", "app", weight),
        ];
        let bindings: Vec<_> = bindings.iter().collect();
        match ask(Scope::Namespaced, &bindings, identities, &app, &wanted) {
            Verdict::Grant(identity) => identity.key.name.to_string(),
            Verdict::Refused(reason) => format!("{}: {reason}", reason.name()),
            other @ Verdict::Exempt(_) => panic!("{other:?}"),
        }
    };
    let refused = decide(&[&one, &two], 0);
    assert!(refused.starts_with("AmbiguousClientId: "), "{refused}");
    for part in [
        "a/one (tenant tenant-1)",
        "a/two (tenant tenant-2)",
        &guid(1),
    ] {
        assert!(refused.contains(part), "{refused}");
    }
    assert_eq!(decide(&[&one, &two], 1), "two");
    // The same principal twice is no question.
    let again = service_principal("two", "TENANT-1");
    assert_eq!(decide(&[&one, &again], 0), "one");
    let (managed, other) = (identity("a", "one", 1), identity("a", "two", 1));
    assert!(decide(&[&managed, &other], 0).starts_with("AmbiguousClientId"));
    assert!(decide(&[&managed, &two], 0).starts_with("AmbiguousClientId"));
}

fn federated(name: &str, resource: Option<&str>, tenant: Option<&str>) -> IdentityFacts {
    let resource_id = resource.and_then(|name| identity("a", name, 1).resource_id().cloned());
    IdentityFacts {
        source: IdentitySource::Federated {
            resource_id,
            tenant: tenant.map(Into::into),
            audience: None,
        },
        ..identity("a", name, 1)
    }
}

#[test]
fn a_federated_identity_is_named_by_its_arm_id_where_it_says_one() {
    let reader = federated("reader", Some("reader"), None);
    let wanted = RequestedIdentity::Resource(reader.resource_id().unwrap().clone());
    let bound = binding("a", "reader", "app", 0);
    let (bindings, app) = ([&bound], pod("a", Some("app")));
    let decide = |identity: &IdentityFacts| {
        let identities = [identity];
        let verdict = ask(Scope::Namespaced, &bindings, &identities, &app, &wanted);
        verdict == Verdict::Grant(identity)
    };
    assert!(decide(&reader));
    assert!(!decide(&federated("reader", None, None)));
}

/// Two AzureIdentities with one client id, for a request by it.
#[test]
fn one_client_id_by_federation_is_of_one_principal_where_tenant_or_arm_id_say_so() {
    let attached = || identity("a", "one", 1);
    let (same, other) = (Some("one"), Some("else"));
    let cases = [
        (attached(), federated("two", same, None), true),
        (attached(), federated("two", other, None), false),
        // Whether it is a managed identity at all is not said.
        (attached(), federated("two", None, None), false),
        (
            federated("one", same, None),
            federated("two", same, Some("t")),
            true,
        ),
        (
            federated("one", None, Some("t")),
            federated("two", None, Some("T")),
            true,
        ),
        (
            federated("one", None, Some("t")),
            federated("two", None, Some("u")),
            false,
        ),
        (
            federated("one", None, None),
            federated("two", None, None),
            true,
        ),
        (
            federated("one", None, None),
            federated("two", None, Some("t")),
            false,
        ),
        (
            service_principal("one", "t"),
            federated("two", None, Some("T")),
            true,
        ),
        (
            service_principal("one", "t"),
            federated("two", None, Some("u")),
            false,
        ),
        (
            service_principal("one", "t"),
            federated("two", None, None),
            false,
        ),
    ];
    let bindings = [binding("a", "one", "app", 0), binding("a", "two", "app", 0)];
    let bindings: Vec<_> = bindings.iter().collect();
    for (one, two, is_same) in cases {
        let wanted = RequestedIdentity::Client(one.client_id.clone());
        let app = pod("a", Some("app"));
        let identities = [&one, &two];
        let verdict = ask(Scope::Namespaced, &bindings, &identities, &app, &wanted);
        match verdict {
            Verdict::Grant(granted) => assert!(is_same && *granted == one, "{one:?} {two:?}"),
            verdict => assert!(
                !is_same && refused(&verdict) == "AmbiguousClientId",
                "{one:?} {two:?}"
            ),
        }
    }
}

#[test]
fn who_is_not_granted_an_identity_is_told_which_it_asked_for() {
    let reader = identity("a", "reader", 1);
    let bound = binding("a", "reader", "app", 0);
    let (bindings, identities) = ([&bound], [&reader]);
    let id = ClientId::parse(&guid(7)).unwrap();
    let arm = ResourceId::parse("/subscriptions/s/resourceGroups/rg/providers/Microsoft.ManagedIdentity/userAssignedIdentities/x").unwrap();
    for (wanted, named) in [
        (
            RequestedIdentity::Client(id.clone()),
            format!("client_id {id}"),
        ),
        (
            RequestedIdentity::Resource(arm.clone()),
            format!("msi_res_id {arm}"),
        ),
        (
            RequestedIdentity::Object {
                id: id.clone(),
                identity: None,
            },
            format!("object_id {id}"),
        ),
    ] {
        let verdict = ask(
            Scope::Namespaced,
            &bindings,
            &identities,
            &pod("a", Some("app")),
            &wanted,
        );
        let Verdict::Refused(reason) = verdict else {
            panic!("{verdict:?}");
        };
        assert!(reason.to_string().contains(&named), "{reason}");
    }
}

#[test]
fn any_label_of_an_exception_in_the_pods_namespace_exempts() {
    let exception = ExceptionFacts {
        key: ObjectKey::new("a", "none"),
        pod_labels: [
            ("noaad".to_owned(), "true".to_owned()),
            ("x".to_owned(), "y".to_owned()),
        ]
        .into(),
    };
    let objects = PolicyObjects {
        scope: Scope::Namespaced,
        bindings: &[],
        identities: &[],
        exceptions: &[&exception],
        pick_first: false,
    };
    let mut app = pod("a", None);
    assert_eq!(
        refused(&authorize(objects, &app, &RequestedIdentity::Any)),
        "NoLabel"
    );
    app.labels.insert("noaad".into(), "True".into());
    assert_eq!(
        authorize(objects, &app, &RequestedIdentity::Any),
        Verdict::Exempt(exception.key.clone())
    );
    app.key = ObjectKey::new("b", "pod");
    assert_eq!(
        refused(&authorize(objects, &app, &RequestedIdentity::Any)),
        "NoLabel"
    );
}

proptest! {
    /// Whatever the cluster holds, a grant rests on a binding of the pod's own namespace with its label that names the identity.
    #[test]
    fn no_grant_without_a_binding_of_the_namespace(
        binds in prop::collection::vec((0..3u8, 0..4u8, 0..3u8, -1..2i32), 0..8),
        ids in prop::collection::vec((0..3u8, 0..4u8), 0..8),
        ns in 0..3u8, label in prop::option::of(0..3u8), want in prop::option::of(0..16u8),
    ) {
        let names = |p: &str, n: u8| format!("{p}{n}");
        let bindings: Vec<_> = binds.iter()
            .map(|(n, i, s, w)| binding(&names("ns", *n), &names("id", *i), &names("s", *s), *w)).collect();
        let identities: Vec<_> = ids.iter().map(|(n, i)| identity(&names("ns", *n), &names("id", *i), n * 4 + i)).collect();
        let app = pod(&names("ns", ns), label.map(|s| names("s", s)).as_deref());
        let wanted = want.map_or(RequestedIdentity::Any, |n| RequestedIdentity::Client(ClientId::parse(&guid(n)).unwrap()));
        let (b, i): (Vec<_>, Vec<_>) = (bindings.iter().collect(), identities.iter().collect());
        if let Verdict::Grant(identity) = ask(Scope::Namespaced, &b, &i, &app, &wanted) {
            prop_assert_eq!(&identity.key.namespace, &app.key.namespace);
            prop_assert!(bindings.iter().any(|b| b.key.namespace == app.key.namespace
                && b.identity == identity.key.name
                && app.labels.get(BINDING_LABEL).map(String::as_str) == Some(&*b.selector)));
            if let RequestedIdentity::Client(id) = &wanted {
                prop_assert_eq!(id, &identity.client_id);
            }
        }
    }
}
