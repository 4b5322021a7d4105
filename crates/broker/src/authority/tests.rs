//! The steps of the CA over its years, without a clock.

use jiff::{Timestamp, ToSpan as _};

use super::*;

fn at(days: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000).unwrap() + (days * 24).hours()
}

/// After all steps that are due, and how many.
fn settled(mut authority: Authority, now: Timestamp) -> (Authority, usize) {
    let mut steps = 0;
    while let Some(next) = authority.advance(now).unwrap() {
        authority = next;
        steps += 1;
        assert!(steps < 5, "it does not settle");
    }
    (authority, steps)
}

#[test]
fn a_successor_is_published_for_a_day_before_it_signs() {
    let first = Authority::new(at(0)).unwrap();
    assert_eq!(settled(first.clone(), at(244)).1, 0);
    let (published, steps) = settled(first.clone(), at(246));
    assert_eq!(steps, 1);
    assert_eq!(published.current.certificate, first.current.certificate);
    assert_eq!(published.bundle().matches("BEGIN CERTIFICATE").count(), 2);
    let next = published.next.clone().unwrap().certificate;
    let early = at(246) + 23.hours();
    assert_eq!(settled(published.clone(), early).1, 0);
    let (promoted, _) = settled(published, at(247) + 1.hour());
    assert_eq!(promoted.current.certificate, next);
    assert_eq!(promoted.previous.as_ref(), Some(&first.current.certificate));
    assert!(promoted.bundle().contains(&first.current.certificate.pem));
    let (later, _) = settled(promoted, at(366));
    assert_eq!(later.previous, None);
    assert_eq!(later.current.certificate, next);
}

#[test]
fn a_cluster_that_was_off_for_years_begins_anew() {
    let first = Authority::new(at(0)).unwrap();
    let (anew, _) = settled(first.clone(), at(1000));
    assert!(anew.current.certificate.expires > at(1300));
    assert!(!anew.bundle().contains(&first.current.certificate.pem));
}

#[test]
fn the_secret_holds_all_of_it() {
    let (authority, _) = settled(Authority::new(at(0)).unwrap(), at(250));
    let (authority, _) = settled(authority, at(252));
    let (authority, _) = settled(authority, at(252 + 250));
    let content = authority.content();
    let read = Authority::read(&content).unwrap().unwrap();
    assert_eq!(read.content(), content);
    assert_eq!(read.bundle(), authority.bundle());
    assert!(Authority::read(&SecretContent::new()).unwrap().is_none());
}

#[test]
fn a_secret_of_no_use_is_told_from_an_empty_one() {
    let mut content = Authority::new(at(0)).unwrap().content();
    content.insert("ca.crt".to_owned(), ByteString(b"x".to_vec()));
    assert!(Authority::read(&content).is_err());
}
