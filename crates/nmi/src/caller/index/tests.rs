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

#[test]
fn the_pods_that_are_granted_an_identity_are_live_bound_and_not_exempted() {
    let mut index = index();
    index.apply_pod(pod("also", 2));
    let mut finished = pod("finished", 3);
    finished.phase = PodPhase::Finished;
    index.apply_pod(finished);
    let mut unbound = pod("unbound", 4);
    unbound.labels.clear();
    index.apply_pod(unbound);
    let mut exempt = pod("exempt", 5);
    exempt.labels.insert("who".to_owned(), "exempt".to_owned());
    index.apply_pod(exempt);
    index.apply_exception(ExceptionFacts {
        key: ObjectKey::new("shop", "exception"),
        pod_labels: [("who".to_owned(), "exempt".to_owned())].into(),
    });
    let names = |index: &Index| {
        let pods = index.pods_granted(&ObjectKey::new("shop", "reader"));
        pods.iter()
            .map(|pod| pod.key.name.to_string())
            .collect::<Vec<_>>()
    };
    assert_eq!(names(&index), ["also", "web"]);
    index.delete_binding(&binding().key);
    assert!(names(&index).is_empty());
}

#[test]
fn a_federated_identity_is_usable_without_being_attached() {
    let mut index = index();
    let wanted = RequestedIdentity::Any;
    let decide = |index: &Index| index.decide(&pod("web", 1), &wanted);
    assert!(matches!(decide(&index), Decision::Pending { .. }));
    let mut federated = identity();
    federated.source = IdentitySource::Federated {
        resource_id: identity().resource_id().cloned(),
        tenant: None,
        audience: None,
    };
    index.apply_identity(federated);
    assert!(matches!(decide(&index), Decision::Grant(_)));
}

fn assigned(state: AssignmentState) -> AssignedFacts {
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
    index.decide(&pod("web", 1), &RequestedIdentity::Any)
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
    assert!(matches!(decided(&index), Decision::Pending { .. }));
    index.apply_assigned(assigned(AssignmentState::Created));
    assert!(matches!(decided(&index), Decision::Pending { .. }));
    index.apply_assigned(assigned(AssignmentState::Assigned));
    assert!(matches!(decided(&index), Decision::Grant(_)));
    index.apply_assigned(AssignedFacts {
        deleting: true,
        ..assigned(AssignmentState::Assigned)
    });
    assert!(matches!(decided(&index), Decision::Pending { .. }));
    index.delete_assigned(&assigned(AssignmentState::Assigned).key);
    assert!(index.ready.is_empty());
    let mut managed = Index::new(Scope::Namespaced, false);
    managed.apply_identity(identity());
    managed.apply_binding(binding());
    assert!(matches!(decided(&managed), Decision::Grant(_)));
}

#[test]
fn what_is_deleted_grants_nothing() {
    let mut index = index();
    index.apply_assigned(assigned(AssignmentState::Assigned));
    assert_eq!(index.granted_identities().len(), 1);
    index.apply_binding(BindingFacts {
        selector: "elsewhere".into(),
        ..binding()
    });
    assert!(matches!(
        decided(&index),
        Decision::Refused(DenialReason::NoBinding { .. })
    ));
    assert!(index.granted_identities().is_empty());
    index.apply_binding(binding());
    index.delete_identity(&identity().key);
    assert!(matches!(
        decided(&index),
        Decision::Refused(DenialReason::NoIdentity { .. })
    ));
    index.delete_binding(&binding().key);
    assert!(matches!(
        decided(&index),
        Decision::Refused(DenialReason::NoBinding { .. })
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

mod addresses {
    //! Addresses pass between pods in any order of news: whoever has one is its only live holder, or nobody.

    use super::*;
    use proptest::prelude::*;

    const ADDRESSES: [&str; 4] = ["10.0.0.1", "10.0.0.2", "fd00::1", "fd00::2"];

    #[derive(Debug, Clone)]
    enum News {
        Applied {
            pod: usize,
            holds: [bool; 4],
            selector: bool,
            finished: bool,
            host_network: bool,
        },
        Deleted(usize),
    }

    fn news() -> impl Strategy<Value = News> {
        let applied = (0..4_usize, any::<[bool; 4]>(), any::<[bool; 3]>());
        prop_oneof![
            3 => applied.prop_map(|(pod, holds, [selector, finished, host_network])| News::Applied {
                pod, holds, selector, finished, host_network,
            }),
            1 => (0..4_usize).prop_map(News::Deleted),
        ]
    }

    fn selector(second: bool) -> &'static str {
        if second { "writer" } else { "reader" }
    }

    fn world() -> Index {
        let mut index = Index::new(Scope::Namespaced, false);
        for (name, client) in [("reader", "22ab"), ("writer", "33cd")] {
            let mut granted = identity();
            granted.key = ObjectKey::new("shop", name);
            granted.client_id =
                ClientId::parse(&format!("6f1c0000-0000-0000-0000-00000000{client}")).unwrap();
            index.apply_identity(granted);
            let mut by = binding();
            by.key = ObjectKey::new("shop", name);
            by.identity = name.into();
            by.selector = name.into();
            index.apply_binding(by);
        }
        index
    }

    fn facts(news: &News) -> Option<PodFacts> {
        let News::Applied {
            pod,
            holds,
            selector: second,
            finished,
            host_network,
        } = news
        else {
            return None;
        };
        let held = ADDRESSES.iter().zip(holds).filter(|(_, held)| **held);
        let mut facts = super::pod(&format!("pod-{pod}"), 9);
        facts.addresses = held.map(|(address, _)| address.parse().unwrap()).collect();
        facts.labels = [(BINDING_LABEL.to_owned(), selector(*second).to_owned())].into();
        facts.host_network = *host_network;
        if *finished {
            facts.phase = PodPhase::Finished;
        }
        Some(facts)
    }

    proptest! {
        #[test]
        fn belong_to_their_only_live_holder(history in proptest::collection::vec(news(), 1..40)) {
            let mut index = world();
            let mut truth: HashMap<usize, PodFacts> = HashMap::new();
            for event in &history {
                match (event, facts(event)) {
                    (News::Applied { pod, .. }, Some(facts)) => {
                        truth.insert(*pod, facts.clone());
                        index.apply_pod(facts);
                    }
                    (News::Deleted(pod), _) => {
                        truth.remove(pod);
                        index.delete_pod(&ObjectKey::new("shop", &format!("pod-{pod}")));
                    }
                    (News::Applied { .. }, None) => unreachable!(),
                }
                for address in ADDRESSES {
                    let address: IpAddr = address.parse().unwrap();
                    let holders: Vec<_> = truth
                        .values()
                        .filter(|pod| pod.is_live() && !pod.host_network && pod.addresses.contains(&address))
                        .collect();
                    match (index.caller(address), holders.as_slice()) {
                        (Caller::Pod(found), [only]) => {
                            prop_assert_eq!(&*found, *only);
                            let Decision::Grant(given) = index.decide(&found, &RequestedIdentity::Any) else {
                                panic!("nothing is given");
                            };
                            prop_assert_eq!(&*given.key.name, &*only.labels[BINDING_LABEL]);
                        }
                        (Caller::Ambiguous, [_, _, ..]) | (Caller::Unknown | Caller::NotYet, []) => {}
                        (found, holders) => prop_assert!(false, "{:?} for {} holders", found, holders.len()),
                    }
                }
            }
        }
    }
}
