use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::facts::{IdentitySource, PodPhase};
use crate::ids::{ClientId, ResourceId};
use proptest::prelude::*;

thread_local! {
    /// How many pods and bindings this thread's index has looked at.
    pub(super) static LOOKED_AT: Cell<usize> = const { Cell::new(0) };
}

fn host(n: u8) -> HostKey {
    HostKey::from_provider_id(&format!("azure:///subscriptions/s/resourceGroups/rg/providers/Microsoft.Compute/virtualMachineScaleSets/set{n}/virtualMachines/0")).unwrap()
}

fn identity(namespace: &str, name: &str, variant: u8) -> IdentityFacts {
    let resource_id = ResourceId::parse(&format!("/subscriptions/s/resourceGroups/rg/providers/Microsoft.ManagedIdentity/userAssignedIdentities/{namespace}-{name}-{variant}")).unwrap();
    IdentityFacts {
        key: ObjectKey::new(namespace, name),
        client_id: ClientId::parse(&format!("00000000-0000-0000-0000-0000000000{variant:02x}"))
            .unwrap(),
        source: IdentitySource::UserAssigned { resource_id },
        namespaced: variant == 2,
    }
}

fn binding(
    namespace: &str,
    name: &str,
    identity: &str,
    selector: &str,
    weight: i32,
) -> BindingFacts {
    BindingFacts {
        key: ObjectKey::new(namespace, name),
        identity: identity.into(),
        selector: selector.into(),
        weight,
        service_accounts: Vec::new(),
    }
}

fn pod(
    namespace: &str,
    name: &str,
    selector: &str,
    node: Option<&str>,
    phase: PodPhase,
) -> PodFacts {
    PodFacts {
        key: ObjectKey::new(namespace, name),
        uid: "uid".into(),
        labels: BTreeMap::from([(BINDING_LABEL.to_owned(), selector.to_owned())]),
        service_account: "default".into(),
        node: node.map(Into::into),
        addresses: Vec::new(),
        host_network: false,
        phase,
    }
}

fn live(namespace: &str, name: &str, selector: &str) -> PodFacts {
    pod(namespace, name, selector, Some("n1"), PodPhase::Live)
}

fn index(scope: Scope) -> DesiredState {
    let mut index = DesiredState::new(scope);
    index.apply_node("n1", Some(host(1)));
    index
}

fn sides(deltas: &[Delta]) -> Vec<(bool, bool)> {
    deltas
        .iter()
        .map(|d| (d.before.is_some(), d.after.is_some()))
        .collect()
}

const NEW: (bool, bool) = (false, true);
const CHANGED: (bool, bool) = (true, true);
const GONE: (bool, bool) = (true, false);

#[test]
fn an_assignment_appears_when_the_last_piece_does_and_goes_with_the_first() {
    let mut index = index(Scope::Namespaced);
    assert!(index.apply_pod(live("a", "p", "x")).is_empty());
    assert!(
        index
            .apply_binding(binding("a", "b", "id", "x", 0))
            .is_empty()
    );
    let new = index.apply_identity(identity("a", "id", 0));
    assert_eq!(sides(&new), [NEW]);
    let after = new[0].after.as_ref().unwrap();
    assert_eq!(after.host.as_deref(), Some(&host(1)));
    assert_eq!(index.get(&after.key()), Some(after));
    assert_eq!(
        sides(&index.apply_identity(identity("a", "id", 1))),
        [CHANGED]
    );
    assert_eq!(sides(&index.apply_node("n1", Some(host(2)))), [CHANGED]);
    assert_eq!(
        sides(&index.delete_binding(&ObjectKey::new("a", "b"))),
        [GONE]
    );
    assert_eq!(index.assignments().count(), 0);
}

#[test]
fn a_repeated_event_changes_nothing() {
    let mut index = index(Scope::Namespaced);
    index.apply_binding(binding("a", "b", "id", "x", 0));
    index.apply_identity(identity("a", "id", 0));
    assert_eq!(index.apply_pod(live("a", "p", "x")).len(), 1);
    assert!(index.apply_pod(live("a", "p", "x")).is_empty());
    assert!(index.apply_identity(identity("a", "id", 0)).is_empty());
    assert!(
        index
            .apply_binding(binding("a", "b", "id", "x", 0))
            .is_empty()
    );
    assert!(index.apply_node("n1", Some(host(1))).is_empty());
}

#[test]
fn pods_of_a_node_that_is_gone_keep_what_they_have_until_they_are_gone_too() {
    let mut index = index(Scope::Namespaced);
    index.apply_binding(binding("a", "b", "id", "x", 0));
    index.apply_identity(identity("a", "id", 0));
    index.apply_pod(live("a", "p", "x"));
    index.apply_pod(live("a", "q", "x"));
    assert!(index.delete_node("n1").is_empty());
    assert_eq!(sides(&index.delete_pod(&ObjectKey::new("a", "p"))), [GONE]);
    // A change of a pod is not its end.
    assert_eq!(sides(&index.apply_pod(live("a", "q", "y"))), [GONE]);
    let again = index.apply_pod(live("a", "q", "x"));
    assert_eq!(
        again[0].after.as_ref().unwrap().host.as_deref(),
        Some(&host(1))
    );
    index.delete_pod(&ObjectKey::new("a", "q"));
    let late = index.apply_pod(live("a", "r", "x"));
    assert_eq!(late[0].after.as_ref().unwrap().host, None);
    // It comes back, as another machine.
    assert_eq!(sides(&index.apply_node("n1", Some(host(2)))), [CHANGED]);
}

#[test]
fn finished_and_unscheduled_pods_do_not_count() {
    let mut index = index(Scope::Namespaced);
    index.apply_binding(binding("a", "b", "id", "x", 0));
    index.apply_identity(identity("a", "id", 0));
    assert!(
        index
            .apply_pod(pod("a", "p", "x", None, PodPhase::Live))
            .is_empty()
    );
    assert_eq!(sides(&index.apply_pod(live("a", "p", "x"))), [NEW]);
    let finished = pod("a", "p", "x", Some("n1"), PodPhase::Finished);
    assert_eq!(sides(&index.apply_pod(finished)), [GONE]);
}

#[test]
fn of_one_name_in_several_namespaces_the_pods_own_is_taken() {
    let mut index = index(Scope::AcrossNamespaces);
    for namespace in ["a", "b", "c"] {
        index.apply_binding(binding(namespace, "b", "id", "x", 0));
        index.apply_identity(identity(namespace, "id", 0));
    }
    let new = index.apply_pod(live("b", "p", "x"));
    assert_eq!(sides(&new), [NEW]);
    assert_eq!(&*new[0].after.as_ref().unwrap().identity.key.namespace, "b");
    let moved = index.delete_identity(&ObjectKey::new("b", "id"));
    assert_eq!(sides(&moved), [CHANGED]);
    assert_eq!(
        &*moved[0].after.as_ref().unwrap().identity.key.namespace,
        "a"
    );
}

#[test]
fn an_event_touches_only_its_own_pods() {
    let mut index = index(Scope::Namespaced);
    for n in 0..50 {
        let (name, selector) = (format!("p{n}"), format!("x{n}"));
        index.apply_binding(binding("a", &format!("b{n}"), "id", &selector, 0));
        index.apply_pod(live("a", &name, &selector));
    }
    assert_eq!(index.apply_identity(identity("a", "id", 0)).len(), 50);
    assert_eq!(index.delete_binding(&ObjectKey::new("a", "b7")).len(), 1);
    assert_eq!(index.delete_pod(&ObjectKey::new("a", "p8")).len(), 1);
    assert_eq!(index.assignments().count(), 48);
}

/// The rules applied to everything at once.
fn naive(index: &DesiredState) -> BTreeMap<AssignmentKey, Assignment> {
    let mut all: BTreeMap<AssignmentKey, Vec<Assignment>> = BTreeMap::new();
    for (key, pod) in &index.pods {
        for binding in index.bindings.values() {
            for identity in index.identities.values() {
                if grants(index.scope, binding, identity, pod.subject(key)) {
                    let node = pod.node.clone().unwrap();
                    let found = Assignment {
                        pod: key.clone(),
                        uid: pod.uid.clone(),
                        host: index.nodes.get(&node).cloned(),
                        node,
                        identity: identity.clone(),
                        binding: binding.clone(),
                    };
                    all.entry(found.key()).or_default().push(found);
                }
            }
        }
    }
    all.into_iter()
        .map(|(key, found)| {
            let home = key.pod.namespace.clone();
            let best = found.into_iter().min_by_key(|a| {
                let namespace = a.identity.key.namespace.clone();
                (
                    namespace != home,
                    namespace,
                    -a.binding.weight,
                    a.binding.key.name.clone(),
                )
            });
            (key, best.unwrap())
        })
        .collect()
}

#[derive(Debug, Clone)]
enum Act {
    Pod(PodFacts),
    NoPod(ObjectKey),
    Binding(BindingFacts),
    NoBinding(ObjectKey),
    Identity(IdentityFacts),
    NoIdentity(ObjectKey),
    Node(String, Option<u8>),
    NoNode(String),
}

fn key() -> impl Strategy<Value = ObjectKey> {
    ("[ab]", "[pq]").prop_map(|(namespace, name)| ObjectKey::new(&namespace, &name))
}

fn act() -> impl Strategy<Value = Act> {
    let phase = prop_oneof![4 => Just(PodPhase::Live), 1 => Just(PodPhase::Finished)];
    let pods = (
        key(),
        "[xy]",
        proptest::option::weighted(0.8, "n[12]"),
        phase,
    )
        .prop_map(|(k, selector, node, phase)| {
            Act::Pod(pod(
                &k.namespace,
                &k.name,
                &selector,
                node.as_deref(),
                phase,
            ))
        });
    let bindings = (key(), "[pq]", "[xy]", 0..3i32)
        .prop_map(|(k, id, s, w)| Act::Binding(binding(&k.namespace, &k.name, &id, &s, w)));
    let identities =
        (key(), 0..3u8).prop_map(|(k, v)| Act::Identity(identity(&k.namespace, &k.name, v)));
    prop_oneof![
        4 => pods,
        1 => key().prop_map(Act::NoPod),
        3 => bindings,
        1 => key().prop_map(Act::NoBinding),
        3 => identities,
        1 => key().prop_map(Act::NoIdentity),
        1 => ("n[12]", proptest::option::of(0..3u8)).prop_map(|(n, h)| Act::Node(n, h)),
        1 => "n[12]".prop_map(Act::NoNode),
    ]
}

proptest! {
    #[test]
    fn the_index_agrees_with_the_rules_applied_to_everything(
        across in any::<bool>(),
        acts in proptest::collection::vec(act(), 0..60),
    ) {
        let scope = if across { Scope::AcrossNamespaces } else { Scope::Namespaced };
        let mut index = DesiredState::new(scope);
        let mut told: BTreeMap<AssignmentKey, Assignment> = BTreeMap::new();
        for act in acts {
            let deltas = match act {
                Act::Pod(pod) => index.apply_pod(pod),
                Act::NoPod(key) => index.delete_pod(&key),
                Act::Binding(binding) => index.apply_binding(binding),
                Act::NoBinding(key) => index.delete_binding(&key),
                Act::Identity(identity) => index.apply_identity(identity),
                Act::NoIdentity(key) => index.delete_identity(&key),
                Act::Node(name, set) => index.apply_node(&name, set.map(host)),
                Act::NoNode(name) => index.delete_node(&name),
            };
            for delta in deltas {
                prop_assert_ne!(&delta.before, &delta.after);
                let key = delta.before.as_ref().or(delta.after.as_ref()).unwrap().key();
                let known = match delta.after {
                    Some(after) => told.insert(key, after),
                    None => told.remove(&key),
                };
                prop_assert_eq!(known, delta.before);
            }
            prop_assert_eq!(&told, &naive(&index));
            prop_assert!(index.deleted_nodes.iter().all(|node| index.pods_by_node.of(node).count() > 0));
        }
        let unplaced: BTreeSet<_> = index.unplaced().map(Assignment::key).collect();
        let placeless = index.assignments().filter(|a| a.host.is_none()).map(Assignment::key);
        prop_assert_eq!(unplaced, placeless.collect());
        let all: BTreeMap<_, _> = index.assignments().map(|a| (a.key(), a.clone())).collect();
        prop_assert_eq!(all, told);
    }
}

/// What each of these events looks at in a cluster with so many pods, two to a binding.
fn looked_at(pods: usize) -> Vec<usize> {
    let mut index = index(Scope::Namespaced);
    for n in 0..pods / 2 {
        let (name, selector) = (format!("id{n}"), format!("s{n}"));
        index.apply_identity(identity("a", &name, 0));
        index.apply_binding(binding("a", &format!("b{n}"), &name, &selector, 0));
        for copy in 0..2 {
            let node = format!("n{}", n % 10);
            let name = format!("p{n}-{copy}");
            let pod = pod("a", &name, &selector, Some(&node), PodPhase::Live);
            assert_eq!(index.apply_pod(pod).len(), 1);
        }
    }
    let measured = |event: &mut dyn FnMut() -> Vec<Delta>| {
        let before = LOOKED_AT.get();
        event();
        LOOKED_AT.get() - before
    };
    let another = || live("a", "another", "s1");
    [
        measured(&mut || index.apply_pod(another())),
        measured(&mut || index.apply_pod(another())),
        measured(&mut || index.delete_pod(&another().key)),
        measured(&mut || index.apply_binding(binding("a", "b1", "id1", "s1", 7))),
        measured(&mut || index.apply_identity(identity("a", "id1", 1))),
        measured(&mut || index.delete_binding(&ObjectKey::new("a", "b1"))),
        measured(&mut || index.apply_node("new", Some(host(2)))),
    ]
    .to_vec()
}

#[test]
fn what_an_event_costs_does_not_depend_on_the_size_of_the_cluster() {
    let small = looked_at(40);
    assert_eq!(small, looked_at(4_000));
    assert!(small.iter().all(|n| *n < 12), "{small:?}");
    assert!(small[0] > 0 && small[3] > 0, "{small:?}");
}
