//! Creations, reads and lists come to a certain end on a service that fails.

use marcot_backend::object::CreateError;
use marcot_backend::object::service::Condition;
use marcot_s3_test::{Chance, Dialect, Fault, Kind};
use marcot_store::{Clock, SystemClock};

use super::*;

#[test]
fn a_creation_ends_well_whatever_becomes_of_its_first_request() {
    for fault in [
        Fault::DoneThen(500, "InternalError"),
        Fault::DoneThen(409, "ConditionalRequestConflict"),
        Fault::DoneThenCut,
        Fault::Cut,
        Fault::CutThenDone(Duration::from_millis(50)),
        Fault::Refuse(409, "ConditionalRequestConflict"),
        Fault::Refuse(412, "PreconditionFailed"),
        Fault::Refuse(429, "SlowDown"),
        Fault::Refuse(503, "SlowDown"),
        Fault::Foreign(200),
        Fault::Foreign(502),
    ] {
        let server = Server::plain();
        let settled = connected(&server).settled(policy());
        settled.create("before", b"").unwrap();
        server.plan(Kind::Put, fault);
        let version = settled.create("a", b"1").unwrap();
        let object = settled.get("a").unwrap().unwrap();
        assert_eq!((object.bytes.as_slice(), object.version), (&b"1"[..], version), "{fault:?}");
    }
}

#[test]
fn a_request_that_lands_late_does_not_undo_what_came_after_it() {
    let server = Server::plain();
    let settled = connected(&server).settled(policy());
    server.plan(Kind::Put, Fault::CutThenDone(Duration::from_millis(100)));
    let version = settled.create("a", b"1").unwrap();
    settled.service().put("a", b"2", &Condition::Is(version)).unwrap();
    SystemClock.pause(Duration::from_millis(300));
    assert_eq!(settled.get("a").unwrap().unwrap().bytes, b"2");
}

#[test]
fn another_writers_object_is_reported_after_each_fault() {
    for fault in [
        Fault::Refuse(500, "InternalError"),
        Fault::DoneThenCut,
        Fault::Refuse(409, "ConditionalRequestConflict"),
    ] {
        let server = Server::plain();
        let settled = connected(&server).settled(policy());
        settled.create("a", b"theirs").unwrap();
        server.plan(Kind::Put, fault);
        match settled.create("a", b"mine") {
            Err(CreateError::Exists(object)) => assert_eq!(object.bytes, b"theirs"),
            outcome => panic!("{fault:?}: {outcome:?}"),
        }
    }
}

#[test]
fn an_outage_is_waited_for() {
    for fault in [Fault::Refuse(503, "SlowDown"), Fault::Cut, Fault::Foreign(502)] {
        let server = Server::plain();
        let settled = connected(&server).settled(policy());
        settled.create("a", b"1").unwrap();
        server.set_away(Some(fault));
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| settled.get("a"));
            let writer = scope.spawn(|| settled.create("b", b"2"));
            SystemClock.pause(Duration::from_millis(500));
            assert!(!reader.is_finished() && !writer.is_finished(), "{fault:?}");
            server.set_away(None);
            assert_eq!(reader.join().unwrap().unwrap().unwrap().bytes, b"1");
            writer.join().unwrap().unwrap();
        });
        assert_eq!(stored(&server, "b").unwrap(), b"2");
    }
}

#[test]
fn a_service_that_stays_away_is_given_up_with_the_reason() {
    let server = Server::plain();
    let patience = Policy { give_up_after: Some(Duration::from_millis(200)), ..policy() };
    let settled = connected(&server).settled(patience);
    server.set_away(Some(Fault::Refuse(503, "SlowDown")));
    let error = settled.get("a").unwrap_err().to_string();
    assert!(error.contains("503 SlowDown"), "{error}");
}

#[test]
fn one_change_a_second_is_enough() {
    let server = Server::plain();
    let change_interval = Some(Duration::from_millis(300));
    server.set_dialect(Dialect { change_interval, ..Dialect::default() });
    let settled = connected(&server).settled(policy());
    settled.put("a", b"1").unwrap();
    assert!(is_unknown(&settled.service().put("a", b"2", &Condition::None)));
    settled.put("a", b"2").unwrap();
    assert_eq!(stored(&server, "a").unwrap(), b"2");
}

#[test]
fn a_third_of_all_requests_may_fail() {
    for seed in 1..=3 {
        let server = Server::plain();
        let settled = connected(&server).settled(policy());
        server.set_chance(Some(Chance::new(seed, 333)));
        for number in 0..20 {
            let key = format!("a/{number:02}");
            let bytes = key.repeat(number).into_bytes();
            settled.create(&key, &bytes).unwrap();
            assert_eq!(settled.get(&key).unwrap().unwrap().bytes, bytes, "seed {seed}");
        }
        for number in 0..10 {
            settled.remove(&format!("a/{number:02}")).unwrap();
        }
        server.set_chance(None);
        // A request that seemed lost may still create an object that was removed since.
        let listed = settled.list_all("a/").unwrap();
        let late = listed.iter().filter(|object| object.key.as_str() < "a/10").count();
        assert_eq!(listed.len() - late, 10, "seed {seed}");
    }
}
