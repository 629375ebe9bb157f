//! Disks on an HTTP server are imported, with requests for ranges and without.
#![allow(missing_docs)]

mod common;

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use common::{World, noise};

const MIB: usize = 1 << 20;

/// How a server behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manner {
    Ranges,
    Whole,
    /// Every third answer is cut off.
    CutsSome,
    /// All bodies are cut off.
    Cuts,
    /// Another tag with every answer.
    Changes,
    Status(u16),
    /// Says that it sends a range, and sends all.
    Lies,
}

struct Server {
    address: String,
    manner: Arc<Mutex<Manner>>,
    sent_bytes: Arc<AtomicUsize>,
    requests: Arc<AtomicUsize>,
}

impl Server {
    /// Serves one file under any path, until the test ends.
    fn new(file: Vec<u8>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let manner = Arc::new(Mutex::new(Manner::Ranges));
        let (sent_bytes, requests) = (Arc::default(), Arc::default());
        let server = Self { address, manner, sent_bytes, requests };
        let shared = (server.manner.clone(), server.sent_bytes.clone(), server.requests.clone());
        let file = Arc::new(file);
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let (file, shared) = (file.clone(), shared.clone());
                std::thread::spawn(move || answer(client.unwrap(), &file, &shared));
            }
        });
        server
    }

    fn set(&self, manner: Manner) {
        *self.manner.lock().unwrap() = manner;
    }

    fn url(&self, name: &str) -> String {
        format!("http://{}/dir/{name}?token=secret", self.address)
    }
}

type Shared = (Arc<Mutex<Manner>>, Arc<AtomicUsize>, Arc<AtomicUsize>);

/// Answers the requests of one connection. It ends with an error when the client has gone.
fn answer(client: TcpStream, file: &[u8], (manner, sent, requests): &Shared) -> Option<()> {
    let mut lines = BufReader::new(client.try_clone().ok()?);
    let mut client = client;
    loop {
        let mut range = None;
        loop {
            let mut line = String::new();
            if lines.read_line(&mut line).ok()? == 0 {
                return None;
            }
            if let Some(text) = line.to_ascii_lowercase().strip_prefix("range: bytes=") {
                let (first, last) = text.trim().split_once('-')?;
                let last: usize = last.parse().ok()?;
                range = Some((first.parse::<usize>().ok()?, last.min(file.len() - 1)));
            }
            if line == "\r\n" {
                break;
            }
        }
        let count = requests.fetch_add(1, Ordering::Relaxed);
        let manner = *manner.lock().unwrap();
        if let Manner::Status(status) = manner {
            client
                .write_all(format!("HTTP/1.1 {status} X\r\nContent-Length: 0\r\n\r\n").as_bytes())
                .ok()?;
            continue;
        }
        let tag = if manner == Manner::Changes { count } else { 0 };
        let (status, body, more) = match range {
            Some((first, last)) if manner != Manner::Whole => {
                let body = if manner == Manner::Lies { file } else { &file[first..=last] };
                (206, body, format!("Content-Range: bytes {first}-{last}/{}\r\n", file.len()))
            }
            _ => (200, file, String::new()),
        };
        let length = body.len();
        let head = format!(
            "HTTP/1.1 {status} X\r\nETag: \"{tag}\"\r\nContent-Length: {length}\r\n{more}\r\n"
        );
        client.write_all(head.as_bytes()).ok()?;
        let cut = manner == Manner::Cuts || manner == Manner::CutsSome && count % 3 == 2;
        let body = if cut { &body[..length / 2] } else { body };
        client.write_all(body).ok()?;
        sent.fetch_add(body.len(), Ordering::Relaxed);
        if cut {
            return None;
        }
    }
}

fn content(world: &World, image: &str) -> Vec<u8> {
    world.rbd_command(&format!("export --no-progress {image} -")).output().unwrap().stdout
}

/// A disk of 64 MiB with 2 MiB of data, and the same as qcow2.
fn disk(world: &World) -> (Vec<u8>, Vec<u8>) {
    let mut bytes = vec![0; 64 * MIB];
    bytes[30 * MIB..32 * MIB].copy_from_slice(&noise(2 * MIB));
    let raw = world.file("disk.raw", &bytes);
    let qcow2 = world.path("d.qcow2");
    let made = Command::new("qemu-img")
        .args(["convert", "-f", "raw", "-O", "qcow2", &raw])
        .arg(&qcow2)
        .status();
    assert!(made.unwrap().success());
    (bytes, std::fs::read(qcow2).unwrap())
}

#[test]
fn a_disk_is_read_by_ranges_and_also_as_one_stream() {
    let world = World::new();
    let (bytes, qcow2) = disk(&world);
    let server = Server::new(qcow2);
    for (n, manner) in [Manner::Ranges, Manner::Whole, Manner::CutsSome].into_iter().enumerate() {
        server.set(manner);
        world.silently(&[&format!("import --no-progress {} i{n}", server.url("d.qcow2"))]);
        assert!(content(&world, &format!("i{n}")) == bytes, "{manner:?}");
    }
    // The image gets the name of the file, without the query.
    server.set(Manner::Ranges);
    world.silently(&[&format!("import --no-progress {}", server.url("named.qcow2"))]);
    assert!(content(&world, "named.qcow2") == bytes);
    // What is named as raw is raw.
    world.silently(&[&format!("import --no-progress {} raw", server.url("d.raw"))]);
    assert!(content(&world, "raw") == std::fs::read(world.path("d.qcow2")).unwrap());
}

#[test]
fn packed_disks_come_as_a_stream() {
    let world = World::new();
    let (bytes, _) = disk(&world);
    for file in ["disk.raw", "d.qcow2"] {
        let path = world.path(file);
        assert!(Command::new("zstd").args(["-q", "-k"]).arg(&path).status().unwrap().success());
        let server = Server::new(std::fs::read(world.path(&format!("{file}.zst"))).unwrap());
        for manner in [Manner::Ranges, Manner::Whole] {
            server.set(manner);
            world.silently(&[&format!(
                "import --no-progress {} i",
                server.url(&format!("{file}.zst"))
            )]);
            assert!(content(&world, "i") == bytes, "{file} {manner:?}");
            world.silently(&["rm --no-progress i"]);
        }
    }
}

#[test]
fn an_answer_that_is_none_leaves_no_image_and_tells_no_secret() {
    let world = World::new();
    let server = Server::new(disk(&world).1);
    for (manner, status) in [
        (Manner::Status(404), 2),
        (Manner::Status(403), 13),
        (Manner::Status(503), 5),
        (Manner::Cuts, 5),
        (Manner::Changes, 5),
        (Manner::Lies, 5),
    ] {
        server.set(manner);
        let ran = world.marcot(&format!("import --no-progress {} i", server.url("d.qcow2")));
        assert_eq!(ran.status, status, "{manner:?}: {}", ran.err);
        assert_eq!(ran.err.lines().count(), 2, "{}", ran.err);
        assert!(!ran.err.contains("secret") && ran.err.contains("/dir/d.qcow2"), "{}", ran.err);
        assert!(world.rbd("pool stats").out.starts_with("Total Images: 0\n"), "{manner:?}");
    }
    let ran = world.marcot("import --no-progress http://127.0.0.1:9/x i");
    assert_eq!(ran.status, 111, "{}", ran.err);
}

/// Data that were discarded leave a long file with little in it.
#[test]
fn only_what_holds_data_is_asked_for() {
    let world = World::new();
    let file = world.path("d.qcow2");
    let run = |program: &str, arguments: &[&str]| {
        assert!(
            Command::new(program).args(arguments).arg(&file).output().unwrap().status.success()
        );
    };
    run("qemu-img", &["create", "-q", "-f", "qcow2", "-o", "size=64M"]);
    run(
        "qemu-io",
        &["-f", "qcow2", "-d", "unmap", "-c", "write -P 5 0 40M", "-c", "discard 1M 38M"],
    );
    let whole = std::fs::read(&file).unwrap();
    assert!(whole.len() > 40 * MIB);
    let server = Server::new(whole);
    world.silently(&[&format!("import --no-progress {} i", server.url("d.qcow2"))]);
    let (sent, requests) = (&server.sent_bytes, &server.requests);
    let (sent, requests) = (sent.load(Ordering::Relaxed), requests.load(Ordering::Relaxed));
    assert!(sent < 14 * MIB && requests < 20, "{sent} bytes in {requests} requests");
    let bytes = content(&world, "i");
    assert!(bytes[..MIB].iter().all(|b| *b == 5) && bytes[MIB..39 * MIB].iter().all(|b| *b == 0));
    assert!(bytes[39 * MIB..40 * MIB].iter().all(|b| *b == 5));
}
