//! No secret appears in an error, in what Debug shows, or in the log, even where the service repeats it and
//! everything is logged.

use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use marcot_backend::object::service::Condition;
use marcot_backend::object::{Environment, Location, Policy, connect_with};
use marcot_s3_test::{ACCESS_KEY, BUCKET, Fault, Kind, Server};
use marcot_store::World;

const SECRET: &str = "very-secret-key";
const TOKEN: &str = "very-secret-token";
/// What a request with a signature has and nothing else.
const OF_SIGNATURE: &str = "Signature=";
/// The secret part of a signature of Azure in a URL.
const OF_URL: &str = "c2VjcmV0LXNpZ25hdHVyZQ";

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn clean(what: &str, text: &str) {
    for secret in [SECRET, TOKEN, OF_SIGNATURE, OF_URL] {
        assert!(!text.contains(secret), "{secret} is in {what}: {text}");
    }
}

#[test]
fn no_secret_is_shown_anywhere() {
    let log = Log::default();
    let writer = log.clone();
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(move || writer.clone())
        .with_ansi(false)
        .init();

    let server = Server::plain();
    let policy = Policy {
        first_pause: Duration::from_millis(1),
        pause_max: Duration::from_millis(5),
        give_up_after: Some(Duration::from_millis(50)),
        wait_when_refused: true,
        ..Policy::command()
    };
    let s3 = Environment::of(&[
        ("AWS_ACCESS_KEY_ID", ACCESS_KEY),
        ("AWS_SECRET_ACCESS_KEY", SECRET),
        ("AWS_SESSION_TOKEN", TOKEN),
    ]);
    let sas = format!("sv=2024&sig={OF_URL}%3D");
    let azure = Environment::of(&[
        ("AZURE_STORAGE_SAS_TOKEN", sas.as_str()),
        ("AZURE_STORAGE_ACCOUNT", "account"),
    ]);
    for (scheme, environment) in [("s3", s3), ("az", azure)] {
        let location = Location::parse(&format!("{scheme}://{BUCKET}/pool")).unwrap();
        let location = location.with_endpoint(&server.url()).unwrap();
        let world = World::system();
        let timeout = Duration::from_secs(20);
        let connection = connect_with(&location, &world, &environment, timeout).unwrap();
        let settled = connection.settled(policy);
        clean("a location", &format!("{location} {location:?} {environment:?}"));
        for fault in [
            Fault::Refuse(403, "SignatureDoesNotMatch"),
            Fault::Refuse(400, "ExpiredToken"),
            Fault::Refuse(500, "InternalError"),
            Fault::Refuse(301, "PermanentRedirect"),
            Fault::Refuse(418, "Teapot"),
            Fault::Foreign(200),
            Fault::Cut,
            Fault::HalfBody,
        ] {
            server.set_away(Some(fault));
            let errors = [
                settled.get("a").map(drop).err(),
                settled.list("a", None).map(drop).err(),
                settled.service().put("a", b"1", &Condition::Absent).map(drop).err(),
                settled.service().remove("a").err(),
            ];
            server.set_away(None);
            for error in errors.into_iter().flatten() {
                clean(
                    "an error",
                    &format!("{error} {error:?} {}", std::io::Error::from(error.clone())),
                );
            }
        }
        server.plan(Kind::Put, Fault::DoneThenCut);
        let _ = settled.create("b", b"1");
    }
    drop(server);
    let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert!(log.contains("does not work"), "the log was kept");
    clean("the log", &log);
}
