//! Refusals say what is wrong with the credentials and where they are from.

use marcot_backend::object::service::Condition;
use marcot_s3_test::{Dialect, Fault, Kind, Options};

use super::*;

fn as_user(server: &Server, variables: &[(&str, &str)]) -> Arc<dyn ObjectService> {
    let environment = Environment::of(variables);
    let connection = connect_with(&location(server), &World::system(), &environment, TIMEOUT);
    connection.unwrap().service()
}

#[test]
fn an_unknown_access_key_is_refused_with_its_source() {
    let server = Server::plain();
    let keys = [("AWS_ACCESS_KEY_ID", "AKOTHER"), ("AWS_SECRET_ACCESS_KEY", SECRET_KEY)];
    let sentence = refused(as_user(&server, &keys).get("a"));
    assert!(sentence.contains("does not know the access key from the environment"), "{sentence}");
}

#[test]
fn each_refusal_has_its_remedy() {
    let server = Server::plain();
    let service = service(&server);
    for (status, code, part) in [
        (403, "SignatureDoesNotMatch", "the secret key"),
        (400, "ExpiredToken", "log in again"),
        (403, "RequestTimeTooSkewed", "set the clock"),
        (403, "AccessDenied", "may not read objects in the bucket 'bucket'"),
    ] {
        server.plan(Kind::Get, Fault::Refuse(status, code));
        let sentence = refused(service.get("a"));
        assert!(sentence.contains(part), "{sentence}");
    }
}

#[test]
fn a_clock_that_the_service_refuses_is_named() {
    let server = Server::plain();
    server.set_dialect(Dialect { clock_ahead_s: 3600, ..Dialect::default() });
    let sentence = refused(service(&server).get("a"));
    assert!(sentence.contains("set the clock"), "{sentence}");
}

#[test]
fn a_reader_may_leave_markers_and_nothing_else() {
    let readers = vec![("AKREADER".to_string(), "/children/".to_string())];
    let server = Server::start(Options { readers, ..Options::default() });
    service(&server).put("pool", b"p", &Condition::Absent).unwrap();
    let keys = [("AWS_ACCESS_KEY_ID", "AKREADER"), ("AWS_SECRET_ACCESS_KEY", SECRET_KEY)];
    let reader = as_user(&server, &keys);
    assert_eq!(reader.get("pool").unwrap().bytes, b"p");
    assert_eq!(reader.list("", None).unwrap().objects.len(), 1);
    reader.put("children/1", b"", &Condition::Absent).unwrap();
    let sentence = refused(reader.put("images/1/head", b"", &Condition::Absent));
    assert!(sentence.contains("may not store objects in the bucket 'bucket'"), "{sentence}");
    assert!(refused(reader.remove("pool")).contains("may not remove objects"));
    assert_eq!(stored(&server, "pool").unwrap(), b"p");
}

#[test]
fn keys_of_a_file_are_read_again_after_a_refusal() {
    let server = Server::plain();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("keys");
    let write = |id: &str| {
        let text =
            format!("[default]\naws_access_key_id={id}\naws_secret_access_key={SECRET_KEY}\n");
        std::fs::write(&path, text).unwrap();
    };
    write("AKOLD");
    let location = location(&server).with_credentials(&path).unwrap();
    let none = Environment::of(&[]);
    let connection = connect_with(&location, &World::system(), &none, TIMEOUT).unwrap();
    let service = connection.service();
    let sentence = refused(service.get("a"));
    assert!(sentence.contains(path.to_str().unwrap()), "{sentence}");
    write(marcot_s3_test::ACCESS_KEY);
    assert_eq!(service.get("a"), Err(ServiceError::Absent));
    // A file that is gone stops a service that worked before only for a while.
    std::fs::remove_file(&path).unwrap();
    server.plan(Kind::Get, Fault::Refuse(403, "ExpiredToken"));
    refused(service.get("a"));
    assert!(is_unknown(&service.get("a")));
    write(marcot_s3_test::ACCESS_KEY);
    assert_eq!(service.get("a"), Err(ServiceError::Absent));
}

#[test]
fn no_credentials_anywhere_are_a_refusal_that_names_the_places() {
    let server = Server::plain();
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", free.local_addr().unwrap());
    drop(free);
    let sentence =
        refused(as_user(&server, &[("AWS_EC2_METADATA_SERVICE_ENDPOINT", &url)]).get("a"));
    assert!(sentence.contains("no credentials for the bucket 'bucket' were found"), "{sentence}");
    assert!(sentence.contains("--credentials FILE"), "{sentence}");
}
