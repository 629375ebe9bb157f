//! Limits of what clients take from a server (memory, descriptors, lists, log lines), and that other clients
//! are still served.
#![allow(missing_docs)]

mod common;
#[path = "../../serve/tests/support/nbd_client.rs"]
mod nbd_client;
#[path = "common/server.rs"]
mod server;

use std::io::Read as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::{World, noise};
use marcot_serve::nbd::{CLIENTS_BYTES_MAX, wire::PAYLOAD_BYTES_MAX};
use nbd_client::{
    ACK, ERR_POLICY, ERR_UNKNOWN, FLUSH, GO, INFO, LIST, NbdClient, READ, SERVER, WRITE, ask,
    option, option_reply, request,
};
use server::Server;

/// Memory that a connection has in addition to the memory that all share.
const CONNECTION_BYTES_MIN: usize = 192 << 10;
/// Memory that the image's map and the allocator take in addition.
const SLACK_BYTES: usize = 48 << 20;
/// Background work of the server has ended after this time.
const SETTLE_TIME: Duration = Duration::from_secs(20);

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + SETTLE_TIME;
    while !done() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Waits until a new client is greeted: the server turns clients away until it has seen that others
/// have gone.
fn until_there_is_room(socket: &Path) {
    until("clients that have gone keep others out", || {
        let mut stream = UnixStream::connect(socket).unwrap();
        stream.read_exact(&mut [0; 18]).is_ok()
    });
}

/// Sends the largest READ and receives nothing of its reply.
fn takes_no_reply(server: &Server) -> UnixStream {
    let mut client = NbdClient::connect(&server.socket, "rbd/t");
    client.send(&request(READ, 0, 1, 0, PAYLOAD_BYTES_MAX));
    client.0
}

/// Sends a WRITE without the last part of its data.
fn withholds_bytes(server: &Server) -> UnixStream {
    let mut client = NbdClient::connect(&server.socket, "rbd/t");
    client.send(&request(WRITE, 0, 1, 512 << 20, PAYLOAD_BYTES_MAX));
    client.send(&noise(5 << 20));
    client.0
}

#[test]
fn clients_that_stop_in_the_middle_cost_a_bounded_sum_and_nobody_waits_for_them() {
    let world = World::new();
    world.silently(&["create -s 1G t"]);
    let mut server = Server::start(&world, "");
    let mut honest = NbdClient::connect(&server.socket, "rbd/t");
    assert_eq!(honest.write(0, 0, &[1; 4096]), 0);
    let before = server.resident_bytes();
    let mut crowd: Vec<UnixStream> = (0..60).map(|_| takes_no_reply(&server)).collect();
    crowd.extend((0..8).map(|_| withholds_bytes(&server)));
    // Longer than the memory that is left, so these requests are carried out in the smallest parts.
    let data = noise(9 << 20);
    for offset in [64 << 20, 100_000_001] {
        assert_eq!(honest.write(0, offset, &data), 0);
        assert!(honest.read(offset, data.len() as u32).unwrap() == data);
    }
    std::thread::sleep(Duration::from_millis(500));
    let bytes = server.resident_bytes().saturating_sub(before);
    let most = CLIENTS_BYTES_MAX + crowd.len() * CONNECTION_BYTES_MIN + SLACK_BYTES;
    println!("{} clients: {bytes} bytes", crowd.len());
    assert!(bytes < most, "{bytes} bytes for {} clients", crowd.len());
    drop(crowd);
    until("the memory of clients that have left is not given back", || {
        server.resident_bytes() < before + SLACK_BYTES
    });
    assert!(honest.read(64 << 20, data.len() as u32).unwrap() == data);
    assert_eq!(server.stop(), Some(0));
}

#[test]
fn whatever_others_open_no_guest_fails_for_lack_of_descriptors() {
    const IMAGES: usize = 60;
    let world = World::new();
    world.silently(&["create -s 1G t"]);
    let images: Vec<String> = (0..IMAGES).map(|i| format!("many{i}")).collect();
    images.iter().for_each(|name| world.silently(&[&format!("create -s 16M {name}")]));
    let mut server = Server::start_with_descriptors(&world, 512, "");
    let mut honest = NbdClient::connect(&server.socket, "rbd/t");
    let piece = noise(1 << 20);
    // Some writes are flushed and some are not; they use several segments.
    let mut turn = 0;
    let mut works = |honest: &mut NbdClient| {
        for _ in 0..40 {
            assert_eq!(honest.write(0, (turn % 512) << 20, &piece), 0, "piece {turn}");
            if turn % 16 == 0 {
                assert_eq!(honest.ask(FLUSH, 0, 0, 0), 0, "flush {turn}");
            }
            turn += 1;
        }
    };
    let (mut crowd, mut refused) = (Vec::new(), Vec::new());
    for name in &images {
        let mut client = ask(&server.socket, GO, name);
        match option_reply(&mut client) {
            (ERR_POLICY, text) => {
                assert!(!text.contains(&b'/'), "a path, or another's name");
                refused.push(name);
            }
            (3, _) => {
                assert_eq!(option_reply(&mut client).0, ACK);
                client.send(&nbd_client::write(0, 1, 0, &piece[..4096]));
                assert_eq!(client.simple(), (0, 1), "{name}");
                crowd.push(client);
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(!refused.is_empty() && crowd.len() > 5, "{} opened", crowd.len());
    works(&mut honest);
    // Connections that are opened and closed take no descriptors from images either.
    let sockets: Vec<UnixStream> = (0..300).map(|_| server.connect()).collect();
    works(&mut honest);
    for client in &mut crowd {
        client.send(&nbd_client::write(1, 2, 8192, &piece[..4096]));
        assert_eq!(client.simple(), (0, 2));
    }
    let log = std::fs::read_to_string(&server.log).unwrap();
    assert!(log.contains("--images-max"), "{log}");
    assert!(!log.contains("Too many open files"), "{log}");
    drop(sockets);
    crowd.clear();
    until_there_is_room(&server.socket);
    until("an unused image does not make room", || {
        let mut client = ask(&server.socket, INFO, refused[0]);
        option_reply(&mut client).0 == 3
    });
    works(&mut honest);
    assert_eq!(server.stop(), Some(0));
}

#[test]
fn many_pools_take_one_descriptor_each_and_none_from_a_guest() {
    const POOLS: usize = 60;
    const DESCRIPTORS: u64 = 400;
    let world = World::new();
    world.silently(&["create -s 1G t"]);
    let pools: Vec<String> = (0..POOLS).map(|i| format!("p{i}")).collect();
    for pool in &pools {
        let directory = world.path(&format!("other/pools/{pool}"));
        world.silently(&[
            &format!("--store other pool create {pool}"),
            &format!("--store other create -s 16M {pool}/x"),
            &format!("--store other create -s 16M {pool}/y"),
            &format!("pool attach {pool} --backend {}", directory.display()),
        ]);
    }
    let mut server = Server::start_with_descriptors(&world, DESCRIPTORS, "");
    let mut honest = NbdClient::connect(&server.socket, "rbd/t");
    let piece = noise(1 << 20);
    let mut turn = 0;
    let mut works = |honest: &mut NbdClient| {
        for _ in 0..20 {
            assert_eq!(honest.write(0, (turn % 512) << 20, &piece), 0, "piece {turn}");
            if turn % 8 == 0 {
                assert_eq!(honest.ask(FLUSH, 0, 0, 0), 0, "flush {turn}");
            }
            turn += 1;
        }
    };
    let mut others = Vec::new();
    for name in ["p0/x", "p0/y"] {
        let mut client = ask(&server.socket, GO, name);
        if option_reply(&mut client).0 == 3 {
            assert_eq!(option_reply(&mut client).0, ACK);
            client.send(&nbd_client::write(0, 1, 0, &piece[..4096]));
            assert_eq!(client.simple(), (0, 1), "{name}");
            others.push(client);
        }
    }
    assert!(!others.is_empty());
    // Many clients use each pool at a time, and all pools are in one list.
    let mut crowd: Vec<NbdClient> = Vec::new();
    for pool in &pools {
        for image in ["x", "y"] {
            crowd.push(ask(&server.socket, INFO, &format!("{pool}/{image}")));
            if crowd.len() > 40 {
                option_reply(&mut crowd.remove(0));
            }
        }
    }
    works(&mut honest);
    let mut client = NbdClient::new(server.connect());
    client.bytes(18);
    client.send(&option(LIST, b""));
    let mut listed = 0;
    while option_reply(&mut client).0 == SERVER {
        listed += 1;
    }
    assert_eq!(listed, 1 + 2 * POOLS);
    works(&mut honest);
    let held = server.open_files();
    let is_pool = |path: &&PathBuf| path.parent().is_some_and(|parent| parent.ends_with("pools"));
    let mut directories: Vec<&PathBuf> = held.iter().filter(is_pool).collect();
    let count = directories.len();
    directories.sort();
    directories.dedup();
    assert_eq!((count, directories.len()), (POOLS + 1, POOLS + 1), "{held:?}");
    assert!(held.len() as u64 <= DESCRIPTORS);
    drop((crowd, others));
    assert_eq!(server.stop(), Some(0));
    let log = std::fs::read_to_string(&server.log).unwrap();
    assert!(!log.contains("Too many open files"), "{log}");
}

#[test]
fn too_few_descriptors_are_an_error_at_the_start() {
    let world = World::new();
    world.silently(&["ls"]);
    let ran = world.rbd("serve --socket nbd.sock --images-max 100000000");
    assert_eq!(ran.status, 24);
    assert!(ran.err.contains("ulimit -n") && ran.err.contains("--images-max"), "{}", ran.err);
    assert!(!world.path("nbd.sock").exists());
}

#[test]
fn clients_are_told_no_paths_and_write_no_lines_of_the_log() {
    let world = World::new();
    world.silently(&["create -s 16M t", "pool create broken", "create -s 16M broken/x"]);
    let mut server = Server::start(&world, "");
    std::fs::remove_file(world.path("store/pools/broken/pool")).unwrap();
    let forged = "rbd/no\n2026-01-01T00:00:00.000000Z ERROR marcot: forged \x1b[2J";
    let mut client = ask(&server.socket, INFO, forged);
    let (kind, text) = option_reply(&mut client);
    assert_eq!((kind, &*text), (ERR_UNKNOWN, &b"the export does not exist"[..]));
    let mut client = ask(&server.socket, INFO, "broken/x");
    let (kind, text) = option_reply(&mut client);
    let text = String::from_utf8(text).unwrap();
    assert!(kind >> 31 == 1 && !text.contains('/') && !text.contains("broken"), "{text}");

    // A pool that cannot be read is left out of the list. The others are listed.
    let mut client = NbdClient::new(server.connect());
    client.bytes(18);
    client.send(&option(LIST, b""));
    assert_eq!(option_reply(&mut client), (SERVER, b"\0\0\0\x05rbd/t".to_vec()));
    assert_eq!(option_reply(&mut client).0, ACK);

    let said = || std::fs::read_to_string(&server.log).unwrap();
    until("the log does not say what was left out", || said().contains("left out of the list"));
    let log = said();
    assert!(!log.contains('\x1b'), "{log}");
    assert!(!log.lines().any(|line| line.starts_with("2026-01-01T00:00:00.000000Z")), "{log}");
    let uid = rustix::process::getuid().as_raw();
    let peer = format!("peer=\"uid {uid} pid {}\"", std::process::id());
    assert!(log.lines().any(|line| line.contains("refused") && line.contains(&peer)), "{log}");
    assert_eq!(server.stop(), Some(0));
}

#[test]
fn the_last_sector_of_an_odd_image_can_be_used_and_info_says_what_is() {
    const BYTES: usize = 1_000_001;
    let world = World::new();
    world.file("f", &noise(BYTES));
    world.silently(&["import --no-progress f t"]);
    let mut server = Server::start(&world, "");
    let mut client = NbdClient::connect(&server.socket, "rbd/t");
    let size = || world.marcot("info --format json t").out;
    assert_eq!(client.write(0, 999_936, &[[5; 65].as_slice(), &[0; 447]].concat()), 0);
    assert!(size().contains("\"size\":1000001"), "{}", size());
    assert_eq!(client.write(1, 999_936, &[6; 512]), 0);
    assert!(size().contains("\"size\":1000448"), "{}", size());
    drop(client);
    assert_eq!(server.stop(), Some(0));
    let log = std::fs::read_to_string(&server.log).unwrap();
    assert!(log.contains("no multiple of 512") && log.contains("grown to whole sectors"), "{log}");
    world.silently(&["export --no-progress t g"]);
    let exported = std::fs::read(world.path("g")).unwrap();
    assert_eq!(exported.len(), 1_000_448);
    assert!(exported[999_936..] == [6; 512] && exported[..999_936] == noise(BYTES)[..999_936]);
}

#[test]
fn a_log_that_cannot_be_written_stops_no_server() {
    let world = World::new();
    world.silently(&["create -s 1M t"]);
    let server = Server::start_with_log(&world, "/dev/full".into(), "--idle-time-s 0");
    let mut client = NbdClient::connect(&server.socket, "rbd/t");
    assert_eq!(client.write(0, 0, &[1; 4096]), 0);
    assert_eq!(client.ask(FLUSH, 0, 0, 0), 0);
    // Closing and opening images writes log lines.
    drop(client);
    let mut again = NbdClient::connect(&server.socket, "rbd/t");
    assert_eq!(again.read(0, 4096).unwrap(), [1; 4096]);
}
