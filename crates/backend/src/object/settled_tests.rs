//! Tests of each outcome that a creation can have.

use super::super::retry::Policy;
use super::super::testing::{Plan, Planned, retry, unknown};
use super::*;

fn settled(plans: impl IntoIterator<Item = Plan>) -> (Settled, Arc<Planned>) {
    let service = Planned::new(plans);
    let (retry, _) = retry(Policy::command());
    (Settled::new(Arc::<Planned>::clone(&service), retry), service)
}

fn seen(service: &Planned) -> Vec<&'static str> {
    service.seen.lock().unwrap().clone()
}

fn conflict() -> Plan {
    Plan::Fails(ServiceError::Conflict)
}

#[test]
fn a_creation_that_succeeds_is_one_request() {
    let (settled, service) = settled([]);
    let version = settled.create("a", b"x").unwrap();
    assert_eq!(seen(&service), ["put"]);
    assert_eq!(settled.get("a").unwrap().unwrap().version, version);
}

#[test]
fn a_lost_answer_is_settled_by_reading_back() {
    let (settled, service) = settled([Plan::DoneUnknown]);
    let version = settled.create("a", b"x").unwrap();
    assert_eq!(seen(&service), ["put", "get"]);
    assert_eq!(service.memory.get("a").unwrap().version, version);
}

#[test]
fn a_creation_that_was_not_done_is_sent_again() {
    let (settled, service) = settled([Plan::Fails(unknown())]);
    settled.create("a", b"x").unwrap();
    assert_eq!(seen(&service), ["put", "get", "put"]);
    // The same where the service says that there is a conflict, with an object that does not exist.
    let (settled, service) = self::settled([conflict()]);
    settled.create("a", b"x").unwrap();
    assert_eq!(seen(&service), ["put", "get", "put"]);
}

#[test]
fn nothing_is_sent_again_before_reading_back_has_an_answer() {
    let (settled, service) =
        settled([Plan::DoneUnknown, Plan::Fails(unknown()), Plan::Fails(unknown())]);
    settled.create("a", b"x").unwrap();
    assert_eq!(seen(&service), ["put", "get", "get", "get"]);
}

#[test]
fn other_bytes_are_reported_whatever_the_answer_was() {
    for first in [Plan::After(b"other"), Plan::DoneUnknown, conflict()] {
        let (settled, service) = settled([first]);
        service.memory.put("a", b"other", &Condition::None).unwrap();
        match settled.create("a", b"x") {
            Err(CreateError::Exists(object)) => assert_eq!(object.bytes, b"other"),
            outcome => panic!("{outcome:?}"),
        }
        assert_eq!(service.memory.get("a").unwrap().bytes, b"other");
    }
}

#[test]
fn equal_bytes_count_as_created_since_a_lost_request_may_have_stored_them() {
    let (settled, service) = settled([Plan::After(b"x")]);
    settled.create("a", b"x").unwrap();
    assert_eq!(seen(&service), ["put", "get"]);
}

#[test]
fn a_creation_stops_where_the_service_refuses() {
    let refused = ServiceError::Refused("no".to_string());
    let (settled, service) = settled([Plan::Fails(refused.clone())]);
    assert_eq!(settled.create("a", b"x"), Err(CreateError::Service(refused)));
    assert_eq!(seen(&service), ["put"]);
}

#[test]
fn a_service_that_stays_away_is_given_up() {
    let (settled, service) = settled(vec![Plan::Fails(unknown()); 1000]);
    assert!(matches!(
        settled.create("a", b"x"),
        Err(CreateError::Service(ServiceError::Unknown(_)))
    ));
    assert!(seen(&service).len() > 10);
    assert_eq!(service.memory.get("a"), Err(ServiceError::Absent));
}

#[test]
fn reads_lists_and_removals_are_sent_again() {
    let fails_twice = || [Plan::Fails(unknown()), Plan::DoneUnknown, Plan::Done];
    let (settled, service) = settled([fails_twice(), fails_twice(), fails_twice()].concat());
    service.memory.put("a/1", b"12345", &Condition::None).unwrap();
    assert_eq!(settled.get_range("a/1", 1..3).unwrap().unwrap(), b"23");
    assert_eq!(settled.list("a/", None).unwrap().objects.len(), 1);
    settled.remove("a/1").unwrap();
    let expected = ["range", "list", "remove"].map(|kind| [kind; 3]).concat();
    assert_eq!(seen(&service), expected);
    assert_eq!(settled.get("a/1").unwrap(), None);
    assert_eq!(settled.list_all("a/").unwrap(), []);
}

#[test]
fn a_list_of_many_pages_is_whole() {
    let (settled, service) = settled([]);
    for number in 0..2500 {
        service.memory.put(&format!("a/{number:05}"), b"", &Condition::None).unwrap();
    }
    assert_eq!(settled.list_all("a/").unwrap().len(), 2500);
    assert_eq!(seen(&service), ["list"; 3]);
}
