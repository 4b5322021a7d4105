//! When the broker is asked, and what people are told.

use podid_policy::facts::IdentitySource;
use podid_policy::ids::ClientId;

use super::*;

fn facts(name: &str, client_id: char) -> IdentityFacts {
    let client_id = format!(
        "{}-0000-0000-0000-000000000000",
        client_id.to_string().repeat(8)
    );
    IdentityFacts {
        key: ObjectKey::new("shop", name),
        client_id: ClientId::parse(&client_id).unwrap(),
        source: IdentitySource::Federated {
            resource_id: None,
            tenant: None,
            audience: None,
        },
        namespaced: false,
    }
}

fn refused(kind: ErrorKind, retry_after: Option<u64>) -> ClientError {
    ClientError::Refused {
        status: 403,
        kind,
        message: "az identity federated-credential create".to_owned(),
        retry_after: retry_after.map(Duration::from_secs),
    }
}

fn reason(checks: &Checks, facts: &IdentityFacts) -> Option<String> {
    let outcome = checks.outcome(&facts.key)?.as_ref();
    Some(outcome.map_or_else(|failure| failure.reason.clone(), |()| "works".to_owned()))
}

/// Checks with one identity, seen now.
fn seen(works: bool) -> (Checks, IdentityFacts, Instant) {
    let (mut checks, facts, now) = (Checks::default(), facts("reader", 'a'), Instant::now());
    assert!(checks.on_seen(&facts, works, true, now));
    (checks, facts, now)
}

#[test]
fn a_refusal_is_told_at_once_with_what_the_broker_says() {
    let (mut checks, facts, now) = seen(false);
    assert_eq!(checks.due(now, |_| true).len(), 1);
    assert_eq!(reason(&checks, &facts), None);
    checks.on_checked(
        &facts,
        Err(refused(ErrorKind::CredentialMissing, None)),
        now,
    );
    let Some(Err(failure)) = checks.outcome(&facts.key) else {
        panic!("not told");
    };
    assert_eq!(failure.reason, "CredentialMissing");
    assert_eq!(failure.text, "az identity federated-credential create");
    assert_eq!(checks.next_due(|_| true), Some(now + FIRST_RETRY));
    checks.on_checked(&facts, Ok(()), now);
    assert_eq!(reason(&checks, &facts).as_deref(), Some("works"));
    assert_eq!(checks.next_due(|_| true), Some(now + CHECK_INTERVAL));
}

#[test]
fn the_broker_is_asked_ever_less_often_and_not_before_it_says() {
    let (mut checks, facts, now) = seen(false);
    for _ in 0..20 {
        checks.on_checked(
            &facts,
            Err(refused(ErrorKind::CredentialMissing, None)),
            now,
        );
    }
    assert_eq!(checks.next_due(|_| true), Some(now + MAX_RETRY));
    checks.on_checked(&facts, Err(refused(ErrorKind::Propagating, Some(60))), now);
    assert_eq!(
        checks.next_due(|_| true),
        Some(now + Duration::from_secs(60))
    );
}

#[test]
fn a_broker_that_does_not_answer_is_told_of_when_it_lasts() {
    let (mut checks, facts, now) = seen(false);
    for _ in 1..REPORT_AFTER {
        checks.on_checked(&facts, Err(refused(ErrorKind::Unavailable, None)), now);
        assert_eq!(reason(&checks, &facts), None);
    }
    checks.on_checked(&facts, Err(refused(ErrorKind::Unavailable, None)), now);
    assert_eq!(reason(&checks, &facts).as_deref(), Some(BROKER_UNAVAILABLE));
}

#[test]
fn what_works_stays_so_while_the_broker_is_away_but_not_without_its_credential() {
    let (mut checks, facts, now) = seen(true);
    for _ in 0..10 {
        checks.on_checked(&facts, Err(refused(ErrorKind::Unavailable, None)), now);
    }
    assert_eq!(reason(&checks, &facts).as_deref(), Some("works"));
    checks.on_checked(
        &facts,
        Err(refused(ErrorKind::CredentialMissing, None)),
        now,
    );
    assert_eq!(
        reason(&checks, &facts).as_deref(),
        Some("CredentialMissing")
    );
}

#[test]
fn other_facts_are_checked_anew_and_an_answer_about_the_former_is_dropped() {
    let (mut checks, before, now) = seen(true);
    assert!(!checks.on_seen(&before, true, false, now));
    assert!(checks.due(now, |_| true).is_empty());
    let after = facts("reader", 'b');
    assert!(checks.on_seen(&after, false, true, now));
    checks.on_checked(&before, Ok(()), now);
    assert_eq!(reason(&checks, &after), None);
    assert_eq!(checks.due(now, |_| true), [after]);
}

#[test]
fn what_has_no_service_account_is_not_asked_about() {
    let (mut checks, facts, now) = seen(false);
    assert!(checks.due(now, |_| false).is_empty());
    assert_eq!(checks.next_due(|_| false), None);
    checks.on_blocked(&facts.key, NO_ACCOUNT, "no");
    assert_eq!(reason(&checks, &facts).as_deref(), Some(NO_ACCOUNT));
}

#[test]
fn what_waited_for_its_service_account_is_asked_about_at_once() {
    let (mut checks, facts, _) = seen(true);
    checks.on_blocked(&facts.key, NO_ACCOUNT, "no");
    assert_eq!(checks.due(Instant::now(), |_| true), [facts]);
}

#[test]
fn a_new_leader_goes_by_the_conditions() {
    let (mut checks, facts, now) = seen(false);
    checks.on_checked(
        &facts,
        Err(refused(ErrorKind::CredentialMissing, None)),
        now,
    );
    checks.restart(|_| true, now);
    assert_eq!(reason(&checks, &facts).as_deref(), Some("works"));
}
