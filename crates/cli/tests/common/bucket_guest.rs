//! Guests of images in a bucket, on hosts that serve them.

#![allow(dead_code, missing_docs, reason = "each test uses a part of it")]

use marcot_s3_test::{ACCESS_KEY, Server};

use crate::bucket_host::Host;
use crate::common::noise;
use crate::nbd_client::NbdClient;
use crate::server;

/// Serves images of a host.
pub fn serve(host: &Host<'_>, options: &str) -> server::Server {
    server::Server::start_prepared(&host.world, options, |command| {
        host.set_environment(command, ACCESS_KEY);
    })
}

/// A host that uses the pool `gold`, into which another host has imported the image `vm`, and the content of that.
pub fn host_that_has_fetched_nothing(service: &Server) -> (Host<'_>, Vec<u8>) {
    let (one, two) = (Host::new(service), Host::new(service));
    let (source, content) = (one.world.path("source.raw"), noise(8 << 20));
    std::fs::write(&source, &content).unwrap();
    one.works("pool create gold --backend s3://bucket/prefix");
    one.works(&format!("import --no-progress {} gold/vm", source.display()));
    two.works("pool attach gold --backend s3://bucket/prefix");
    (two, content)
}

/// True where the client could receive something now.
pub fn has_answer(client: &NbdClient) -> bool {
    client.0.set_nonblocking(true).unwrap();
    let peeked = rustix::net::recv(&client.0, &mut [0_u8; 1], rustix::net::RecvFlags::PEEK);
    client.0.set_nonblocking(false).unwrap();
    peeked.is_ok()
}
