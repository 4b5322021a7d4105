use super::*;
use podid_policy::facts::PodPhase;
use podid_policy::ids::{ClientId, ResourceId};

fn ip(last: u8) -> IpAddr {
    IpAddr::from([10, 0, 0, last])
}

fn pod(name: &str, last: u8) -> PodFacts {
    PodFacts {
        key: ObjectKey::new("shop", name),
        uid: name.into(),
        labels: [(BINDING_LABEL.to_owned(), "app".to_owned())].into(),
        service_account: "default".into(),
        node: Some("node".into()),
        addresses: vec![ip(last)],
        host_network: false,
        phase: PodPhase::Live,
    }
}

fn identity() -> IdentityFacts {
    IdentityFacts {
        key: ObjectKey::new("shop", "reader"),
        client_id: ClientId::parse("6f1c0000-0000-0000-0000-0000000022ab").unwrap(),
        source: IdentitySource::UserAssigned {
            resource_id: ResourceId::parse("/subscriptions/s/resourceGroups/r/providers/Microsoft.ManagedIdentity/userAssignedIdentities/reader").unwrap(),
        },
        namespaced: false,
    }
}

fn binding() -> BindingFacts {
    BindingFacts {
        key: ObjectKey::new("shop", "binding"),
        identity: "reader".into(),
        selector: "app".into(),
        weight: 0,
        service_accounts: Vec::new(),
    }
}

fn assigned(state: State) -> AssignedFacts {
    AssignedFacts {
        key: ObjectKey::new("default", "web-shop-reader"),
        pod: ObjectKey::new("shop", "web"),
        identity: ObjectKey::new("shop", "reader"),
        binding: None,
        node: "node".into(),
        state,
        deleting: false,
    }
}

fn index() -> Index {
    let mut index = Index::new(Scope::Namespaced, true);
    index.apply_pod(pod("web", 1));
    index.apply_identity(identity());
    index.apply_binding(binding());
    index
}

fn decided(index: &Index) -> Decision {
    index.decide(&pod("web", 1), &Wanted::Any)
}

#[test]
fn an_address_belongs_to_one_live_pod() {
    let mut index = index();
    let Caller::Pod(web) = index.caller(ip(1)) else {
        panic!("not known");
    };
    assert_eq!(&*web.key.name, "web");
    index.apply_pod(pod("other", 1));
    assert_eq!(index.caller(ip(1)), Caller::Ambiguous);
    index.apply_pod(PodFacts {
        phase: PodPhase::Finished,
        ..pod("web", 1)
    });
    assert!(matches!(index.caller(ip(1)), Caller::Pod(pod) if &*pod.key.name == "other"));
    index.delete_pod(&ObjectKey::new("shop", "other"));
    assert_eq!(index.caller(ip(1)), Caller::Unknown);
    assert!(index.addresses.is_empty());
}

#[test]
fn a_host_network_pod_is_never_found_by_the_nodes_address() {
    let mut index = Index::new(Scope::Namespaced, true);
    index.apply_pod(PodFacts {
        host_network: true,
        ..pod("agent", 1)
    });
    assert_eq!(index.caller(ip(1)), Caller::Unknown);
}

#[test]
fn an_unknown_caller_may_be_a_pod_whose_address_is_not_told_yet() {
    let mut index = Index::new(Scope::Namespaced, true);
    index.apply_pod(PodFacts {
        addresses: Vec::new(),
        ..pod("new", 1)
    });
    assert_eq!(index.caller(ip(1)), Caller::NotYet);
    index.apply_pod(pod("new", 1));
    assert!(matches!(index.caller(ip(1)), Caller::Pod(_)));
    assert_eq!(index.caller(ip(2)), Caller::Unknown);
}

#[test]
fn an_identity_is_granted_when_it_is_on_the_host() {
    let mut index = index();
    assert!(matches!(decided(&index), Decision::NotYet(_)));
    index.apply_assigned(assigned(State::Created));
    assert!(matches!(decided(&index), Decision::NotYet(_)));
    index.apply_assigned(assigned(State::Assigned));
    assert!(matches!(decided(&index), Decision::Grant(_)));
    index.apply_assigned(AssignedFacts {
        deleting: true,
        ..assigned(State::Assigned)
    });
    assert!(matches!(decided(&index), Decision::NotYet(_)));
    index.delete_assigned(&assigned(State::Assigned).key);
    assert!(index.ready.is_empty());
    let mut managed = Index::new(Scope::Namespaced, false);
    managed.apply_identity(identity());
    managed.apply_binding(binding());
    assert!(matches!(decided(&managed), Decision::Grant(_)));
}

#[test]
fn what_is_deleted_grants_nothing() {
    let mut index = index();
    index.apply_assigned(assigned(State::Assigned));
    assert_eq!(index.granted_identities().len(), 1);
    index.apply_binding(BindingFacts {
        selector: "elsewhere".into(),
        ..binding()
    });
    assert!(matches!(
        decided(&index),
        Decision::Refused(Reason::NoBinding { .. })
    ));
    assert!(index.granted_identities().is_empty());
    index.apply_binding(binding());
    index.delete_identity(&identity().key);
    assert!(matches!(
        decided(&index),
        Decision::Refused(Reason::NoIdentity { .. })
    ));
    index.delete_binding(&binding().key);
    assert!(matches!(
        decided(&index),
        Decision::Refused(Reason::NoBinding { .. })
    ));
    assert!(index.selectors.is_empty());
}

#[test]
fn an_exception_counts_in_its_own_namespace() {
    let mut index = index();
    let exception = |namespace: &str| ExceptionFacts {
        key: ObjectKey::new(namespace, "exception"),
        pod_labels: [(BINDING_LABEL.to_owned(), "app".to_owned())].into(),
    };
    index.apply_exception(exception("other"));
    assert_eq!(index.exemption(&pod("web", 1)), None);
    index.apply_exception(exception("shop"));
    assert_eq!(index.exemption(&pod("web", 1)), Some(exception("shop").key));
    assert!(matches!(decided(&index), Decision::Exempt(_)));
    index.delete_exception(&exception("shop").key);
    assert_eq!(index.exemption(&pod("web", 1)), None);
    assert_eq!(index.exception_keys(), [exception("other").key]);
}
