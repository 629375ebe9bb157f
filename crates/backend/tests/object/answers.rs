//! What each answer of a service means, and that a request is sent once.

use marcot_backend::object::Dialect as Writing;
use marcot_backend::object::service::{Condition, Version};
use marcot_s3_test::{Dialect, Fault, Kind, Options};

use super::*;

#[test]
fn objects_are_stored_read_listed_and_removed() {
    let server = Server::start(Options {
        dialect: Dialect { page_objects: 3, ..Dialect::default() },
        ..Options::default()
    });
    let connection = connected(&server);
    let service = connection.service();
    let bytes: Vec<u8> = (0..200_000_u32).map(|i| i as u8).collect();
    let first = service.put("a/1", &bytes, &Condition::Absent).unwrap();
    let object = service.get("a/1").unwrap();
    assert_eq!((object.bytes == bytes, &object.version), (true, &first));
    assert_eq!(service.get_range("a/1", 1000..1010).unwrap(), bytes[1000..1010]);
    assert_eq!(service.get_range("a/1", 199_999..300_000).unwrap(), bytes[199_999..]);
    assert_eq!(service.get_range("a/1", 200_000..200_010).unwrap(), b"");
    assert_eq!(service.get_range("a/1", 5..5).unwrap(), b"");
    assert_eq!(service.get("a/2"), Err(ServiceError::Absent));
    assert_eq!(service.get_range("a/2", 0..1), Err(ServiceError::Absent));
    for key in ["a/3", "a/2", "a/4 π", "b"] {
        service.put(key, b"x", &Condition::None).unwrap();
    }
    let page = service.list("a/", None).unwrap();
    let listed: Vec<_> = page.objects.iter().map(|o| (o.key.as_str(), o.bytes)).collect();
    assert_eq!((listed, page.more), (vec![("a/1", 200_000), ("a/2", 1), ("a/3", 1)], true));
    assert!(page.objects[0].stored_s > 1_600_000_000);
    let rest = service.list("a/", Some("a/3")).unwrap();
    assert_eq!((rest.objects[0].key.as_str(), rest.objects.len(), rest.more), ("a/4 π", 1, false));
    assert_eq!(connection.settled(policy()).list_all("").unwrap().len(), 5);
    service.remove("a/1").unwrap();
    service.remove("a/1").unwrap();
    assert_eq!(service.get("a/1"), Err(ServiceError::Absent));
    assert_eq!(service.show("a/1"), "s3://bucket/pool/a/1");
    let (own, seen) = (connection.counts().now(), server.counts());
    assert_eq!((own.puts, own.gets, own.removes), (seen.puts, seen.gets, seen.deletes));
    assert_eq!((own.lists, own.total()), (seen.lists, seen.total()));
}

#[test]
fn conditions_decide_which_writer_wins() {
    let server = Server::plain();
    let service = service(&server);
    let first = service.put("a", b"1", &Condition::Absent).unwrap();
    assert_eq!(service.put("a", b"2", &Condition::Absent), Err(ServiceError::Conflict));
    let second = service.put("a", b"2", &Condition::Is(first.clone())).unwrap();
    assert_eq!(service.put("a", b"3", &Condition::Is(first)), Err(ServiceError::Conflict));
    assert_eq!(service.get("a").unwrap().version, second);
    let missing = service.put("b", b"1", &Condition::Is(second));
    assert_eq!((missing, stored(&server, "b")), (Err(ServiceError::Conflict), None));
}

#[test]
fn a_failed_request_is_sent_once_and_its_outcome_is_unknown() {
    let faults = [
        Fault::Refuse(500, "InternalError"),
        Fault::Refuse(503, "SlowDown"),
        Fault::Refuse(429, "TooManyRequests"),
        Fault::Refuse(408, "RequestTimeout"),
        Fault::Cut,
        Fault::DoneThenCut,
        Fault::DoneThen(500, "InternalError"),
    ];
    for fault in faults {
        let server = Server::plain();
        let service = service(&server);
        let version = service.put("a", b"1", &Condition::None).unwrap();
        for kind in [Kind::Put, Kind::Get, Kind::Delete, Kind::List] {
            let before = server.counts().total();
            server.plan(kind, fault);
            let unknown = match kind {
                Kind::Put => is_unknown(&service.put("a", b"1", &Condition::Is(version.clone()))),
                Kind::Get => is_unknown(&service.get("a")),
                Kind::Delete => is_unknown(&service.remove("b")),
                _ => is_unknown(&service.list("", None)),
            };
            assert!(unknown, "{kind:?} {fault:?}");
            assert_eq!(server.counts().total() - before, 1, "{kind:?} {fault:?}");
        }
    }
}

#[test]
fn a_creation_that_failed_is_not_taken_for_one_that_lost() {
    // The library reports the first of these as "already exists".
    for (fault, landed) in [
        (Fault::Refuse(409, "ConditionalRequestConflict"), false),
        (Fault::Refuse(409, "OperationAborted"), false),
        (Fault::DoneThen(409, "ConditionalRequestConflict"), true),
        (Fault::DoneThen(500, "InternalError"), true),
        (Fault::DoneThenCut, true),
        (Fault::Refuse(503, "SlowDown"), false),
    ] {
        let server = Server::plain();
        let service = service(&server);
        server.plan(Kind::Put, fault);
        assert!(is_unknown(&service.put("a", b"1", &Condition::Absent)), "{fault:?}");
        assert_eq!(stored(&server, "a").is_some(), landed, "{fault:?}");
    }
}

#[test]
fn a_lost_race_is_never_a_success_however_it_is_answered() {
    for (status, code) in [
        (412, "PreconditionFailed"),
        (409, "ConditionalRequestConflict"),
        (404, "NoSuchKey"),
        (500, "InternalError"),
    ] {
        let server = Server::plain();
        let lost_race = Some((status, code));
        server.set_dialect(Dialect { lost_race, ..Dialect::default() });
        let service = service(&server);
        let first = service.put("a", b"1", &Condition::Absent).unwrap();
        service.put("a", b"2", &Condition::Is(first.clone())).unwrap();
        let swap = service.put("a", b"3", &Condition::Is(first));
        let certain = matches!(status, 412 | 404);
        assert_eq!(swap == Err(ServiceError::Conflict), certain, "{status}: {swap:?}");
        assert_eq!(is_unknown(&swap), !certain, "{status}: {swap:?}");
        let create = service.put("a", b"4", &Condition::Absent);
        assert_eq!(create == Err(ServiceError::Conflict), status == 412, "{status}: {create:?}");
        assert_eq!(stored(&server, "a").unwrap(), b"2");
    }
}

#[test]
fn etags_are_sent_as_the_service_wants_them() {
    let server = Server::plain();
    let connection = connected(&server);
    let service = connection.service();
    let first = service.put("a", b"1", &Condition::Absent).unwrap();
    assert!(first.0.starts_with('"'), "exactly as the service gave it: {first:?}");
    server.set_dialect(Dialect { bare_etags: true, ..Dialect::default() });
    let condition = Condition::Is(first);
    assert_eq!(service.put("a", b"2", &condition), Err(ServiceError::Conflict));
    connection.set_dialect(Writing { bare_etags: true });
    service.put("a", b"2", &condition).unwrap();
    let other = Condition::Is(Version("\"0\"".to_string()));
    assert_eq!(service.put("a", b"3", &other), Err(ServiceError::Conflict));
}

#[test]
fn half_an_answer_is_no_answer() {
    let server = Server::plain();
    let service = service(&server);
    service.put("a", b"0123456789", &Condition::None).unwrap();
    server.plan(Kind::Get, Fault::HalfBody);
    assert!(is_unknown(&service.get("a")));
    server.plan(Kind::Get, Fault::HalfBody);
    assert!(is_unknown(&service.get_range("a", 2..8)));
    server.plan(Kind::List, Fault::HalfBody);
    assert!(is_unknown(&service.list("", None)));
    assert_eq!(service.get("a").unwrap().bytes, b"0123456789");
}

#[test]
fn a_slow_answer_is_waited_for_no_longer_than_its_time() {
    let server = Server::plain();
    let short = Duration::from_millis(300);
    let connection = connect_with(&location(&server), &World::system(), &keys(), short).unwrap();
    let service = connection.service();
    service.put("warm", b"", &Condition::None).unwrap();
    server.plan(Kind::Put, Fault::Slow(Duration::from_secs(2)));
    match service.put("a", b"1", &Condition::Absent) {
        Err(ServiceError::Unknown(why)) => assert!(why.contains("did not answer in time"), "{why}"),
        outcome => panic!("{outcome:?}"),
    }
    assert_eq!(stored(&server, "a").unwrap(), b"1");
}

#[test]
fn a_redirection_is_not_followed() {
    let server = Server::plain();
    let service = service(&server);
    server.plan(Kind::Put, Fault::Refuse(307, "TemporaryRedirect"));
    let sentence = invalid(service.put("a", b"1", &Condition::None));
    assert!(sentence.contains("check the endpoint and the region"), "{sentence}");
    assert_eq!(server.counts().total(), 1);
}
