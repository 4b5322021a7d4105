use super::*;
use proptest::prelude::*;

fn id(n: u8) -> ResourceId {
    ResourceId::parse(&format!("/subscriptions/s/resourceGroups/rg/providers/Microsoft.ManagedIdentity/userAssignedIdentities/id{n}")).unwrap()
}

fn ids(of: &[u8]) -> BTreeSet<ResourceId> {
    of.iter().map(|n| id(*n)).collect()
}

const LINGER: Duration = Duration::from_secs(30);

fn planned(wanted: &[u8], observed: &[u8], owned: &[u8], immutable: &[u8], waited: u64) -> Plan {
    let sets = [wanted, observed, owned, immutable].map(ids);
    let host = HostView {
        wanted: &sets[0],
        observed: &sets[1],
        owned: &sets[2],
        immutable: &sets[3],
    };
    plan(host, |_| Duration::from_secs(waited), LINGER)
}

#[test]
fn the_missing_is_attached_and_only_what_is_ours_is_detached() {
    let plan = planned(&[1, 2], &[2, 3, 4, 5], &[2, 3, 4], &[4], 60);
    assert_eq!(plan.attach, [id(1)]);
    assert_eq!(plan.detach, [id(3)]);
    assert_eq!(
        plan.leave,
        [(id(4), Leave::Immutable), (id(5), Leave::NotOurs)]
    );
}

#[test]
fn what_pods_left_lingers() {
    let plan = planned(&[], &[1], &[1], &[], 10);
    assert!(plan.detach.is_empty());
    assert_eq!(plan.next_due(), Some(Duration::from_secs(20)));
    assert_eq!(planned(&[], &[1], &[1], &[], 30).detach, [id(1)]);
}

#[test]
fn what_somebody_else_detached_is_forgotten_unless_wanted() {
    let plan = planned(&[1], &[], &[1, 2], &[], 0);
    assert_eq!((plan.attach, plan.forget), (vec![id(1)], vec![id(2)]));
}

proptest! {
    #[test]
    fn carrying_out_a_plan_reaches_rest_and_never_removes_what_is_not_owned(
        wanted in proptest::collection::vec(0u8..12, 0..8),
        observed in proptest::collection::vec(0u8..12, 0..8),
        owned in proptest::collection::vec(0u8..12, 0..8),
        immutable in proptest::collection::vec(0u8..12, 0..4),
    ) {
        let plan = planned(&wanted, &observed, &owned, &immutable, 60);
        for gone in &plan.detach {
            prop_assert!(ids(&owned).contains(gone));
            prop_assert!(!ids(&immutable).contains(gone));
            prop_assert!(!ids(&wanted).contains(gone));
        }
        let mut after = ids(&observed);
        after.extend(plan.attach.iter().cloned());
        after.retain(|id| !plan.detach.contains(id));
        prop_assert!(after.is_superset(&ids(&wanted)));
        let mut kept = ids(&owned);
        kept.extend(plan.attach.iter().cloned());
        kept.retain(|id| !plan.detach.contains(id) && !plan.forget.contains(id));
        let wanted = ids(&wanted);
        let immutable = ids(&immutable);
        let view = HostView { wanted: &wanted, observed: &after, owned: &kept, immutable: &immutable };
        let rest = super::plan(view, |_| Duration::from_secs(60), LINGER);
        prop_assert!(rest.attach.is_empty() && rest.detach.is_empty() && rest.forget.is_empty());
    }
}
