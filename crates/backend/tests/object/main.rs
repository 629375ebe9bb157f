//! The service room against a real HTTP server that behaves as services do, well or badly.

mod answers;
mod credentials;
mod place;
mod probe;
mod settled;

use std::sync::Arc;
use std::time::Duration;

use marcot_backend::object::service::{ObjectService, ServiceError};
use marcot_backend::object::{Connection, Environment, Location, Policy, connect_with};
use marcot_s3_test::{ACCESS_KEY, BUCKET, SECRET_KEY, Server};
use marcot_store::World;

/// Requests have this time. Only a hang reaches it, and tests of exactly that.
const TIMEOUT: Duration = Duration::from_secs(20);

/// Short pauses, and a time that only a hang reaches.
fn policy() -> Policy {
    Policy {
        first_pause: Duration::from_millis(5),
        pause_max: Duration::from_millis(400),
        give_up_after: Some(Duration::from_secs(30)),
        wait_when_refused: false,
        ..Policy::command()
    }
}

fn keys() -> Environment {
    Environment::of(&[("AWS_ACCESS_KEY_ID", ACCESS_KEY), ("AWS_SECRET_ACCESS_KEY", SECRET_KEY)])
}

fn location(server: &Server) -> Location {
    let location = Location::parse(&format!("s3://{BUCKET}/pool")).unwrap();
    location.with_endpoint(&server.url()).unwrap().with_region("us-east-1").unwrap()
}

fn connected(server: &Server) -> Connection {
    connect_with(&location(server), &World::system(), &keys(), TIMEOUT).unwrap()
}

fn service(server: &Server) -> Arc<dyn ObjectService> {
    connected(server).service()
}

/// The bytes of an object of the pool, as the server has it.
fn stored(server: &Server, key: &str) -> Option<Vec<u8>> {
    server.bytes(BUCKET, &format!("pool/{key}"))
}

fn is_unknown<T>(outcome: &Result<T, ServiceError>) -> bool {
    matches!(outcome, Err(ServiceError::Unknown(_)))
}

/// The sentence of an error that no repetition mends.
fn refused<T>(outcome: Result<T, ServiceError>) -> String {
    match outcome {
        Err(ServiceError::Refused(sentence)) => sentence,
        Err(error) => panic!("not refused: {error:?}"),
        Ok(_) => panic!("not refused"),
    }
}

fn invalid<T>(outcome: Result<T, ServiceError>) -> String {
    match outcome {
        Err(ServiceError::Invalid(sentence)) => sentence,
        Err(error) => panic!("not invalid: {error:?}"),
        Ok(_) => panic!("not invalid"),
    }
}
