//! Images in a bucket that one host serves, and what other hosts see of it; and a service that goes away.
#![allow(missing_docs)]

#[path = "common/bucket_host.rs"]
mod bucket_host;
mod common;
#[path = "../../serve/tests/support/nbd_client.rs"]
mod nbd_client;
#[path = "common/server.rs"]
mod server;

use bucket_host::Host;
use common::{await_that, noise};
use marcot_s3_test::{ACCESS_KEY, Fault, SECRET_KEY, Server};
use nbd_client::{FLUSH, NbdClient};

const EIO: u32 = 5;

fn serve(host: &Host<'_>, options: &str) -> server::Server {
    server::Server::start_prepared(&host.world, options, |command| {
        host.set_environment(command, ACCESS_KEY);
    })
}

#[test]
fn guests_get_errors_after_the_time_out_and_go_on_when_the_service_is_back() {
    let service = Server::plain();
    let (host, other) = (Host::new(&service), Host::new(&service));
    host.works("pool create gold --backend s3://bucket/prefix");
    host.works("create gold/vm --size 4M");
    let mut server = serve(&host, "--io-timeout 1 gold");
    let mut client = NbdClient::connect(&server.socket, "gold/vm");
    let content = noise(1 << 20);
    assert_eq!(client.write(0, 0, &content[..1 << 19]), 0);
    assert_eq!(client.ask(FLUSH, 0, 0, 0), 0);

    service.set_away(Some(Fault::Cut));
    assert_eq!(client.write(0, 1 << 19, &content[1 << 19..]), 0);
    assert_eq!(client.ask(FLUSH, 0, 0, 0), EIO);
    assert!(client.read(0, 1 << 20).unwrap() == content);
    assert_eq!(client.ask(FLUSH, 0, 0, 0), EIO);

    service.set_away(None);
    await_that("a flush succeeds", || client.ask(FLUSH, 0, 0, 0) == 0);
    drop(client);
    assert_eq!(server.stop(), Some(0));
    let log = std::fs::read_to_string(&server.log).unwrap();
    assert_eq!(log.matches("waiting for it").count(), 1, "{log}");
    assert_eq!(log.matches("works again").count(), 1, "{log}");
    assert!(!log.contains(SECRET_KEY), "{log}");

    other.works("pool attach gold --backend s3://bucket/prefix");
    let exported = other.world.path("vm.raw");
    other.works(&format!("export --no-progress gold/vm {}", exported.display()));
    assert!(std::fs::read(exported).unwrap()[..1 << 20] == content);
}
