//! A wrong place is named in one sentence, at once.

use std::net::TcpListener;

use marcot_s3_test::{Fault, Kind, Options};

use super::*;

#[test]
fn a_bucket_that_does_not_exist_is_named() {
    let server = Server::start(Options { buckets: Vec::new(), ..Options::default() });
    let service = service(&server);
    for sentence in [
        invalid(service.get("a")),
        invalid(service.list("", None)),
        invalid(service.put("a", b"", &marcot_backend::object::service::Condition::Absent)),
        invalid(service.remove("a")),
    ] {
        assert!(sentence.contains("there is no bucket 'bucket' at 127.0.0.1:"), "{sentence}");
    }
}

#[test]
fn a_wrong_region_is_answered_with_the_right_one() {
    let region = Some("eu-west-3".to_string());
    let server = Server::start(Options { region, ..Options::default() });
    let sentence = invalid(service(&server).get("a"));
    assert!(sentence.contains("use --region eu-west-3"), "{sentence}");
    let location = location(&server).with_region("eu-west-3").unwrap();
    let right = connect_with(&location, &World::system(), &keys(), TIMEOUT).unwrap();
    assert_eq!(right.service().get("a"), Err(ServiceError::Absent));
}

#[test]
fn an_endpoint_that_is_no_such_service_is_named_at_first_and_waited_for_later() {
    for status in [200, 404, 403, 400] {
        let server = Server::plain();
        let service = service(&server);
        let all = Fault::Foreign(status);
        server.set_away(Some(all));
        if status != 403 {
            let sentence = invalid(service.list("", None));
            assert!(sentence.contains("is not such a service: check the endpoint"), "{sentence}");
        }
        server.set_away(None);
        service.list("", None).unwrap();
        server.plan(Kind::List, all);
        let later = service.list("", None);
        assert_eq!(is_unknown(&later), status != 403, "{status}: {later:?}");
    }
}

#[test]
fn a_host_that_refuses_connections_is_named() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap();
    drop(free);
    let location = Location::parse("s3://bucket/x").unwrap();
    let location = location.with_endpoint(&format!("http://{address}")).unwrap();
    let connection = connect_with(&location, &World::system(), &keys(), TIMEOUT).unwrap();
    match connection.service().get("a") {
        Err(ServiceError::Unknown(why)) => {
            assert!(
                why.contains(&format!("{address} is not reached: it refuses connections")),
                "{why}"
            );
        }
        outcome => panic!("{outcome:?}"),
    }
}

#[test]
fn a_server_without_tls_is_named() {
    let server = Server::plain();
    let location = Location::parse("s3://bucket/x").unwrap();
    let location = location.with_endpoint(&format!("https://127.0.0.1:{}", server.port())).unwrap();
    let Ok(connection) = connect_with(&location, &World::system(), &keys(), TIMEOUT) else {
        return; // A host without certificates of authorities says so before.
    };
    let sentence = invalid(connection.service().get("a"));
    assert!(sentence.contains("is not secure"), "{sentence}");
}

#[test]
fn a_host_that_does_not_exist_is_named() {
    let location = Location::parse("s3://bucket/x").unwrap();
    let location = location.with_endpoint("http://no-such-host.invalid").unwrap();
    let connection = connect_with(&location, &World::system(), &keys(), TIMEOUT).unwrap();
    // Without any name server the lookup fails for now, and not for good.
    match connection.service().get("a") {
        Err(ServiceError::Invalid(why) | ServiceError::Unknown(why)) => {
            assert!(why.contains("host") && why.contains("no-such-host.invalid"), "{why}");
        }
        outcome => panic!("{outcome:?}"),
    }
}
