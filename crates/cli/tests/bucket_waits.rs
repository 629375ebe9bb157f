//! Guests whose requests wait for the service, and others that go on meanwhile with what is at hand.
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

use bucket_guest::{has_answer, host_that_has_fetched_nothing, serve};
use bucket_host::Host;
use common::noise;
use marcot_s3_test::{Fault, Server};
use nbd_client::{FLUSH, FUA, NbdClient, READ, TRIM};

/// Tells the answer to a request that was left for later.
const COOKIE: u64 = 7;
const MIB: u64 = 1 << 20;

/// Asks for a read, and leaves its answer for later.
fn ask_for_read(client: &mut NbdClient, offset: u64, length: u32) {
    client.send(&nbd_client::request(nbd_client::READ, 0, COOKIE, offset, length));
}

fn read_answer(client: &mut NbdClient, length: usize) -> Vec<u8> {
    assert_eq!(client.simple(), (0, COOKIE));
    client.bytes(length)
}

#[test]
fn what_is_at_hand_is_read_and_written_while_other_reads_wait_for_the_service() {
    const LENGTH: u32 = 64 << 10;
    let service = Server::plain();
    let (two, content) = host_that_has_fetched_nothing(&service);
    let server = serve(&two, "gold");
    let mut waiting = NbdClient::connect(&server.socket, "gold/vm");
    let mut other = NbdClient::connect(&server.socket, "gold/vm");
    let expected = |offset: u64| &content[offset as usize..offset as usize + LENGTH as usize];

    // Nothing of the image is here, neither the pages of its map nor its data. Its thread answers all the same.
    service.set_away(Some(Fault::Cut));
    ask_for_read(&mut waiting, 6 * MIB, LENGTH);
    for _ in 0..3 {
        assert_eq!(other.ask(FLUSH, 0, 0, 0), 0);
    }
    service.set_away(None);
    assert!(read_answer(&mut waiting, LENGTH as usize) == expected(6 * MIB));

    // Some data is here, and writing has begun.
    assert!(other.read(0, LENGTH).unwrap() == expected(0));
    assert_eq!(other.write(0, 2 * MIB, &content[..4096]), 0);
    service.set_away(Some(Fault::Cut));
    // It does not begin at a block.
    ask_for_read(&mut waiting, 3 * MIB + 512, LENGTH);
    for _ in 0..200 {
        assert!(other.read(0, LENGTH).unwrap() == expected(0));
    }
    assert_eq!(other.write(0, 2 * MIB, &content[4096..8192]), 0);
    assert!(other.read(2 * MIB, 4096).unwrap() == content[4096..8192]);
    service.set_away(None);
    assert!(read_answer(&mut waiting, LENGTH as usize) == expected(3 * MIB + 512));
}

#[test]
fn what_is_at_hand_is_read_and_written_while_other_writes_wait_for_the_service() {
    let service = Server::plain();
    let (two, content) = host_that_has_fetched_nothing(&service);
    let mut server = serve(&two, "gold");
    let mut waiting = NbdClient::connect(&server.socket, "gold/vm");
    let mut other = NbdClient::connect(&server.socket, "gold/vm");

    // The map says of no block where it lies. A flush after the write does not wait for it.
    service.set_away(Some(Fault::Cut));
    waiting.send(&nbd_client::write(0, 3, MIB, &[1; 8192]));
    for _ in 0..3 {
        assert_eq!(other.ask(FLUSH, 0, 0, 0), 0);
    }
    assert!(!has_answer(&waiting));
    service.set_away(None);
    assert_eq!(waiting.simple(), (0, 3));
    assert!(other.read(MIB, 8192).unwrap() == [1; 8192]);
    drop((waiting, other));
    assert_eq!(server.stop(), Some(0));

    // All pages are here, but no head says yet where the log begins.
    let server = serve(&two, "gold");
    let mut waiting = NbdClient::connect(&server.socket, "gold/vm");
    let mut other = NbdClient::connect(&server.socket, "gold/vm");
    assert!(other.read(0, 4096).unwrap() == content[..4096]);
    service.set_away(Some(Fault::Cut));
    waiting.send(&nbd_client::write(0, 3, 2 * MIB, &[2; 4096]));
    for _ in 0..200 {
        assert!(other.read(0, 4096).unwrap() == content[..4096]);
    }
    assert!(!has_answer(&waiting));
    service.set_away(None);
    assert_eq!(waiting.simple(), (0, 3));

    // The rest of a block is not here. What overlaps such a write and comes after it is carried out after it.
    service.set_away(Some(Fault::Cut));
    let at = 7 * MIB;
    waiting.send(&nbd_client::write(0, 4, at + 512, &[3; 8192]));
    waiting.send(&nbd_client::write(0, 5, at + 4096, &[4; 4096]));
    waiting.send(&nbd_client::request(TRIM, 0, 6, at + 1024, 512));
    waiting.send(&nbd_client::request(READ, 0, 7, at, 16384));
    for i in 0..50 {
        assert_eq!(other.write(0, 2 * MIB, &[i; 4096]), 0);
        assert!(other.read(2 * MIB, 4096).unwrap() == [i; 4096]);
    }
    assert!(!has_answer(&waiting));
    service.set_away(None);
    let mut expected = content[at as usize..at as usize + 16384].to_vec();
    expected[512..8704].fill(3);
    expected[4096..8192].fill(4);
    expected[1024..1536].fill(0);
    let mut answered = Vec::new();
    for _ in 0..4 {
        let (errno, cookie) = waiting.simple();
        assert_eq!(errno, 0);
        if cookie == 7 {
            assert!(waiting.bytes(16384) == expected);
        }
        answered.push(cookie);
    }
    answered.sort_unstable();
    assert_eq!(answered, [4, 5, 6, 7]);

    // One that is acknowledged only when durable.
    service.set_away(Some(Fault::Cut));
    waiting.send(&nbd_client::write(FUA, 8, at - 1000, &[5; 100]));
    assert!(other.read(at, 16384).unwrap() == expected);
    assert!(!has_answer(&waiting));
    service.set_away(None);
    assert_eq!(waiting.simple(), (0, 8));
    // The process is killed. All that was durable is there for the next one.
    drop((waiting, other));
    drop(server);
    let server = serve(&two, "gold");
    let mut client = NbdClient::connect(&server.socket, "gold/vm");
    assert!(client.read(at - 1000, 100).unwrap() == [5; 100]);
    assert!(client.read(at, 16384).unwrap() == expected);
}

#[test]
fn what_is_at_hand_is_read_while_the_first_write_after_a_takeover_waits_for_the_service() {
    let service = Server::plain();
    let (one, two) = (Host::new(&service), Host::new(&service));
    one.works("pool create gold --backend s3://bucket/prefix");
    one.works("create gold/vm --size 8M");
    two.works("pool attach gold --backend s3://bucket/prefix");
    let content = noise(1 << 20);
    let server = serve(&one, "gold");
    let mut client = NbdClient::connect(&server.socket, "gold/vm");
    assert_eq!(client.write(0, 0, &content), 0);
    assert_eq!(client.ask(FLUSH, 0, 0, 0), 0);
    // It is killed, and so is the next one. The first one on the other host replays a log of this host, and the second
    // one a log of its own host.
    drop((client, server));
    for number in 1..3 {
        let server = serve(&two, "--force gold");
        let mut waiting = NbdClient::connect(&server.socket, "gold/vm");
        let mut other = NbdClient::connect(&server.socket, "gold/vm");
        assert!(other.read(0, 1 << 20).unwrap() == content);
        service.set_away(Some(Fault::Cut));
        waiting.send(&nbd_client::write(0, 3, number * 2 * MIB, &[number as u8; 8192]));
        for _ in 0..100 {
            assert!(other.read(0, 1 << 16).unwrap() == content[..1 << 16]);
        }
        assert!(!has_answer(&waiting));
        service.set_away(None);
        assert_eq!(waiting.simple(), (0, 3));
        for earlier in 1..=number {
            let written = other.read(earlier * 2 * MIB, 8192).unwrap();
            assert!(written == [earlier as u8; 8192], "{earlier} of {number}");
        }
        assert_eq!(other.ask(FLUSH, 0, 0, 0), 0);
    }
    let exported = two.world.path("vm.raw");
    two.works(&format!("export --no-progress gold/vm {}", exported.display()));
    let found = std::fs::read(exported).unwrap();
    assert!(found[..1 << 20] == content);
    assert!(two.works("check --no-progress gold").contains("all is well"));
}

#[test]
fn what_is_at_hand_is_used_while_a_long_write_waits_for_the_service_in_parts() {
    let service = Server::plain();
    let (two, content) = host_that_has_fetched_nothing(&service);
    let server = serve(&two, "gold");
    let mut waiting = NbdClient::connect(&server.socket, "gold/vm");
    let mut other = NbdClient::connect(&server.socket, "gold/vm");
    let long = noise(6 * MIB as usize + 700);

    // No page of the map is here. A second long write, which overlaps the first, comes before that one is answered.
    service.set_away(Some(Fault::Cut));
    waiting.send(&nbd_client::write(0, 3, MIB + 512, &long));
    waiting.send(&nbd_client::write(FUA, 4, 2 * MIB, &long[..5 * MIB as usize]));
    for _ in 0..3 {
        assert_eq!(other.ask(FLUSH, 0, 0, 0), 0);
    }
    assert!(!has_answer(&waiting));
    service.set_away(None);
    let mut answers = [waiting.simple(), waiting.simple()];
    answers.sort_unstable();
    assert_eq!(answers, [(0, 3), (0, 4)]);

    // It is killed. The second one was durable, and so is what came before it.
    drop((waiting, other));
    drop(server);
    let mut expected = content;
    expected[MIB as usize + 512..][..long.len()].copy_from_slice(&long);
    expected[2 * MIB as usize..7 * MIB as usize].copy_from_slice(&long[..5 * MIB as usize]);
    let server = serve(&two, "gold");
    let mut client = NbdClient::connect(&server.socket, "gold/vm");
    assert!(client.read(0, 8 << 20).unwrap() == expected);
}
