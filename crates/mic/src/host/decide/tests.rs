//! The pure decision, as tables: what is known of a host in, the next action and its commit out.

use std::collections::BTreeMap;

use podid_policy::facts::ObjectKey;
use rstest::rstest;

use super::*;
use crate::host::Trouble;
use crate::host::cloud::Fault;
use crate::testing::{host, id};

/// The time of every decision, in seconds after the start.
const NOW: u64 = 1000;

/// A host and what surrounds it.
struct Case {
    start: Instant,
    host: Host,
    config: Config,
    quarantine: Quarantine,
    may_be_needed: Vec<usize>,
}

impl Case {
    fn new() -> Self {
        Self {
            start: Instant::now(),
            host: Host::new(Arc::new(host(1))),
            config: Config::new("mic", "system"),
            quarantine: Quarantine::default(),
            may_be_needed: Vec::new(),
        }
    }

    fn at(&self, second: u64) -> Instant {
        self.start + Duration::from_secs(second)
    }

    /// These are wanted since long.
    fn wanted(mut self, ids: &[usize]) -> Self {
        for n in ids {
            let who = AssignmentKey {
                pod: ObjectKey::new("ns", "pod"),
                identity: format!("id{n}").into(),
            };
            self.host.want(&id(*n), who, self.at(0));
        }
        self
    }

    /// Azure has shown these at this second.
    fn seen(mut self, ids: &[usize], second: u64) -> Self {
        let shown = HostIdentities {
            user: ids.iter().map(|n| (id(*n), None)).collect(),
            etag: Some("1".to_owned()),
            ..HostIdentities::default()
        };
        self.host.on_read(self.at(second), shown, |_| None);
        self
    }

    /// podid owns these, and the record says the same.
    fn owned(mut self, ids: &[usize]) -> Self {
        self.host.recall(owned(ids));
        self
    }

    fn unwanted_since(mut self, n: usize, second: u64) -> Self {
        let since = self.at(second);
        self.host.demand.unwanted_since.insert(id(n), since);
        self
    }

    fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    fn decide(&self) -> Decision {
        self.host.decide(&Surroundings {
            now: self.at(NOW),
            config: &self.config,
            quarantine: &self.quarantine,
            client_id: &|_| None,
            may_be_needed: &|needed| self.may_be_needed.iter().any(|n| id(*n) == *needed),
        })
    }

    fn refuse(&mut self, n: usize, second: u64) {
        let (why, now) = ((Fault::IdentityNotFound, "no"), self.at(second));
        let unit = self.config.retry_interval;
        self.quarantine
            .refuse(&id(n), &Arc::new(host(2)), why, now, unit);
    }

    fn trouble(&mut self, until: u64) {
        self.host.trouble = Some(Trouble {
            until: self.at(until),
            attempts: 1,
            fault: Fault::Throttled,
            text: String::new(),
            ends_with_read: false,
        });
    }
}

fn owned(ids: &[usize]) -> Owned {
    ids.iter().map(|n| (id(*n), None)).collect()
}

/// An action in short, with times in seconds after the start.
#[derive(Debug, PartialEq)]
enum Short {
    Wait(u64),
    Read,
    Verify(usize),
    Record(Vec<usize>),
    Patch {
        attach: Vec<usize>,
        detach: Vec<usize>,
    },
    Retire,
}

fn short(case: &Case, action: Action) -> Short {
    let numbers = |ids: Vec<ResourceId>| {
        let number = |id: &ResourceId| id.name().trim_start_matches("id").parse().unwrap();
        ids.iter().map(number).collect::<Vec<usize>>()
    };
    match action {
        Action::Wait(until) => Short::Wait((until.unwrap() - case.start).as_secs()),
        Action::Read => Short::Read,
        Action::Verify(id) => Short::Verify(numbers(vec![id])[0]),
        Action::Record(owned) => Short::Record(numbers(owned.into_keys().collect())),
        Action::Patch(_, change) => Short::Patch {
            attach: numbers(change.attach),
            detach: numbers(change.detach),
        },
        Action::Retire => Short::Retire,
    }
}

fn patch(attach: &[usize], detach: &[usize]) -> Short {
    Short::Patch {
        attach: attach.to_vec(),
        detach: detach.to_vec(),
    }
}

#[rstest]
#[case::nothing_is_left(Case::new(), Short::Retire)]
#[case::the_record_of_nothing_is_deleted(
    Case::new().with(|c| c.host.on_recorded(owned(&[1]))),
    Short::Record(vec![])
)]
#[case::not_read_yet(Case::new().wanted(&[1]), Short::Read)]
#[case::read_too_long_ago(Case::new().wanted(&[1]).seen(&[1], NOW - 181), Short::Read)]
#[case::a_host_at_rest_is_read_less_often(
    Case::new().wanted(&[1]).seen(&[1], 0).seen(&[1], NOW - 181),
    Short::Wait(NOW - 181 + 360)
)]
#[case::back_off(
    Case::new().wanted(&[1]).with(|c| c.trouble(NOW + 7)),
    Short::Wait(NOW + 7)
)]
#[case::the_back_off_is_over(Case::new().wanted(&[1]).with(|c| c.trouble(NOW)), Short::Read)]
#[case::what_will_be_attached_is_recorded_first(
    Case::new().wanted(&[1]).seen(&[], NOW),
    Short::Record(vec![1])
)]
#[case::then_it_is_attached(
    Case::new().wanted(&[1]).seen(&[], NOW).owned(&[1]),
    patch(&[1], &[])
)]
#[case::an_old_read_is_renewed_before_an_attach(
    Case::new().wanted(&[1]).seen(&[], NOW - 31).owned(&[1]),
    Short::Read
)]
#[case::it_is_there(Case::new().wanted(&[1]).seen(&[1], NOW).owned(&[1]), Short::Wait(NOW + 180))]
#[case::it_lingers(
    Case::new().seen(&[1], NOW).owned(&[1]).unwanted_since(1, NOW - 10),
    Short::Wait(NOW + 20)
)]
#[case::it_has_lingered(
    Case::new().seen(&[1], NOW).owned(&[1]).unwanted_since(1, NOW - 30),
    patch(&[], &[1])
)]
#[case::it_may_be_needed_by_a_pod_whose_host_is_unknown(
    Case::new().seen(&[1], NOW).owned(&[1]).unwanted_since(1, 0).with(|c| c.may_be_needed = vec![1]),
    Short::Wait(NOW + 30)
)]
#[case::it_may_be_needed_and_nothing_lingers(
    Case::new().seen(&[1], NOW).owned(&[1]).unwanted_since(1, 0).with(|c| {
        c.may_be_needed = vec![1];
        c.config.linger = Duration::ZERO;
    }),
    Short::Wait(NOW + 5)
)]
#[case::what_others_attached_stays(
    Case::new().wanted(&[1]).seen(&[1, 9], NOW).owned(&[1]).unwanted_since(9, 0),
    Short::Wait(NOW + 180)
)]
#[case::what_somebody_else_detached_is_forgotten(
    Case::new().wanted(&[1]).seen(&[1], NOW).owned(&[1, 2]),
    Short::Record(vec![1])
)]
#[case::another_client_id(
    Case::new().wanted(&[1]).seen(&[1], NOW).with(|c| { c.host.doubts.mismatched.insert(id(1)); }),
    Short::Verify(1)
)]
#[case::another_client_id_that_nobody_wants(
    Case::new().wanted(&[1]).seen(&[1], NOW).with(|c| { c.host.doubts.mismatched.insert(id(2)); }),
    Short::Wait(NOW + 180)
)]
#[case::a_dead_one_is_detached_first(
    Case::new().wanted(&[1, 2]).seen(&[1], NOW).owned(&[1, 2])
        .with(|c| { c.host.doubts.dead.insert(id(1)); }),
    patch(&[], &[1])
)]
#[case::a_dead_one_of_others_stays(
    Case::new().wanted(&[1]).seen(&[1], NOW).with(|c| { c.host.doubts.dead.insert(id(1)); }),
    Short::Wait(NOW + 180)
)]
#[case::a_refused_one_waits_for_its_turn(
    Case::new().wanted(&[1]).seen(&[], NOW).with(|c| c.refuse(1, NOW - 10)),
    Short::Wait(NOW - 10 + 60)
)]
#[case::a_refused_one_is_tried_alone(
    Case::new().wanted(&[1, 2]).seen(&[2], NOW).owned(&[1, 2]).with(|c| c.refuse(1, NOW - 60)),
    patch(&[1], &[])
)]
#[case::the_others_go_first(
    Case::new().wanted(&[1, 2]).seen(&[], NOW).owned(&[2]).with(|c| c.refuse(1, NOW - 60)),
    patch(&[2], &[])
)]
#[case::half_of_a_refused_batch(
    Case::new().wanted(&[1, 2]).seen(&[], NOW).owned(&[1])
        .with(|c| { c.host.doubts.suspects.bisect(&[id(1), id(2)], true); }),
    patch(&[1], &[])
)]
#[case::what_is_not_suspect_goes_before_that_half(
    Case::new().wanted(&[1, 2, 3]).seen(&[], NOW).owned(&[3])
        .with(|c| { c.host.doubts.suspects.bisect(&[id(1), id(2)], true); }),
    patch(&[3], &[])
)]
fn the_next_action(#[case] case: Case, #[case] expected: Short) {
    let decision = case.decide();
    assert_eq!(short(&case, decision.action), expected);
}

#[test]
fn changes_that_still_come_are_waited_for() {
    let mut case = Case::new().seen(&[], NOW);
    let who = AssignmentKey {
        pod: ObjectKey::new("ns", "pod"),
        identity: "id1".into(),
    };
    let now = case.at(NOW);
    case.host.want(&id(1), who, now);
    let due = now + case.config.settle;
    assert_eq!(case.decide().action, Action::Wait(Some(due)));
}

#[test]
fn at_most_150_identities_go_into_one_patch() {
    let all: Vec<usize> = (0..160).collect();
    let case = Case::new().wanted(&all).seen(&[], NOW).owned(&all);
    let Action::Patch(_, change) = case.decide().action else {
        panic!("no PATCH");
    };
    assert_eq!(change.attach.len(), MAX_CHANGE);
}

#[test]
fn the_commit_takes_the_turn_that_the_decision_names() {
    let refused = |c: &mut Case| c.refuse(1, NOW - 60);
    let mut case = Case::new()
        .wanted(&[1])
        .seen(&[], NOW)
        .owned(&[1])
        .with(refused);
    let (decision, now) = (case.decide(), case.at(NOW));
    let planned = decision.planned.as_ref();
    assert_eq!(
        planned.and_then(|planned| planned.turn.clone()),
        Some(id(1))
    );
    case.host.commit(decision, now, &mut case.quarantine);
    let other = Arc::new(host(3));
    assert_eq!(case.quarantine.next_turn(&other, [id(1)].iter(), now), None);
}

#[test]
fn the_commit_claims_what_will_be_attached_and_a_refusal_gives_it_back() {
    let mut case = Case::new().wanted(&[1]).seen(&[], NOW);
    let (decision, now) = (case.decide(), case.at(NOW));
    let action = case.host.commit(decision, now, &mut case.quarantine);
    assert_eq!(action, Action::Record(owned(&[1])));
    case.host.on_recorded(owned(&[1]));
    let (decision, now) = (case.decide(), case.at(NOW));
    let Action::Patch(_, change) = case.host.commit(decision, now, &mut case.quarantine) else {
        panic!("no PATCH");
    };
    let conflict = crate::testing::azure::fault(Fault::Conflict, None);
    let (host, config) = (&mut case.host, &case.config);
    host.on_failed(now, config, &conflict, Some(&change), &mut case.quarantine);
    assert_eq!(case.host.ownership.owned, BTreeMap::new());
}

#[test]
fn the_linger_time_starts_with_the_first_plan_after_the_read() {
    let mut case = Case::new().seen(&[1], NOW).owned(&[1]);
    let (decision, now) = (case.decide(), case.at(NOW));
    let action = case.host.commit(decision, now, &mut case.quarantine);
    assert_eq!(short(&case, action), Short::Wait(NOW + 30));
    let since = case.host.demand.unwanted_since.get(&id(1));
    assert_eq!(since, Some(&now));
}

#[test]
fn with_nothing_left_to_do_trouble_is_over() {
    let mut case = Case::new().wanted(&[1]).seen(&[1], NOW).owned(&[1]);
    case.trouble(NOW);
    let (decision, now) = (case.decide(), case.at(NOW));
    case.host.commit(decision, now, &mut case.quarantine);
    assert!(case.host.trouble.is_none());
}
