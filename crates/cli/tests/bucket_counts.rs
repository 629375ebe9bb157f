//! What `perf image iostat` counts where the writes of a guest wait for the service.
#![allow(missing_docs)]

#[path = "common/bucket_guest.rs"]
mod bucket_guest;
#[path = "common/bucket_host.rs"]
mod bucket_host;
mod common;
#[path = "../../serve/tests/support/nbd_client.rs"]
mod nbd_client;
#[path = "common/server.rs"]
mod server;

use std::path::Path;

use bucket_guest::{has_answer, host_that_has_fetched_nothing, serve};
use common::noise;
use marcot_s3_test::{Fault, Server};
use marcot_serve::control::{self, Command, IoCount, Patience, Place, Reply, SOCKET_NAME};
use nbd_client::{FUA, NbdClient};

const MIB: u64 = 1 << 20;

/// The control socket of the only image that is open below a directory.
fn control_place(directory: &Path) -> Option<Place> {
    let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let (inner, files): (Vec<_>, Vec<_>) = entries.partition(|path| path.is_dir());
    match files.iter().any(|file| file.ends_with(SOCKET_NAME)) {
        true => {
            // The directories say which one it is: POOL/images/IMAGE.
            let mut names = directory.iter().rev().map(|name| name.display().to_string());
            let image = names.next().unwrap();
            let image = format!("{}/{image}", names.nth(1).unwrap());
            Some(Place::new(directory, &image))
        }
        false => inner.iter().find_map(|inner| control_place(inner)),
    }
}

/// What was written so far, as `perf image iostat` sees it.
fn written(place: &Place) -> IoCount {
    let status = control::ask(place, &Command::Status, &Patience::default(), &mut |_, _| {});
    let Ok(Reply::Status { watchers }) = status else { panic!("{status:?}") };
    watchers[0].io.writes
}

#[test]
fn a_long_write_counts_once_whichever_of_its_parts_ends_last() {
    let service = Server::plain();
    let (two, _) = host_that_has_fetched_nothing(&service);
    let server = serve(&two, "gold");
    let mut waiting = NbdClient::connect(&server.socket, "gold/vm");
    let mut other = NbdClient::connect(&server.socket, "gold/vm");
    // The page of the map is here then, and the log has begun.
    assert_eq!(other.write(0, 0, &[1; 4096]), 0);
    let place = control_place(&two.world.path(".")).unwrap();
    let before = written(&place);
    service.set_away(Some(Fault::Cut));
    // The rest of the first block is not here, so the first of the two parts waits, and the second does not.
    let length = 5 * MIB - 512;
    waiting.send(&nbd_client::write(FUA, 3, MIB + 512, &noise(length as usize)));
    assert!(other.read(0, 4096).unwrap() == [1; 4096]);
    assert!(!has_answer(&waiting));
    service.set_away(None);
    assert_eq!(waiting.simple(), (0, 3));
    let after = written(&place);
    assert_eq!((after.requests - before.requests, after.bytes - before.bytes), (1, length));
}
