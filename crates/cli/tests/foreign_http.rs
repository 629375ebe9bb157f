//! Disks on an HTTP server are imported, with requests for ranges and without.
#![allow(missing_docs)]

mod common;
#[path = "common/http.rs"]
mod http;

use std::process::Command;
use std::sync::atomic::Ordering;

use common::{World, noise};
use http::{Manner, Server};

const MIB: usize = 1 << 20;

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

#[test]
fn a_server_with_tls_needs_a_certificate_of_an_authority_that_the_user_names() {
    let world = World::new();
    let (bytes, qcow2) = disk(&world);
    let (server, authority) = Server::with_tls(qcow2);
    world.file("authority.pem", authority.as_bytes());
    let port = server.address.rsplit_once(':').unwrap().1;
    let import = |host: &str, name: &str, authority: &str| {
        let line = format!("import --no-progress https://{host}:{port}/d.qcow2 {name}");
        common::ran(world.rbd_command(&line).env("SSL_CERT_FILE", world.path(authority)))
    };
    assert_eq!(import("localhost", "i", "authority.pem").status, 0);
    assert!(content(&world, "i") == bytes);
    // Another authority, and another name than that of the certificate.
    let (_, other) = Server::with_tls(Vec::new());
    world.file("other.pem", other.as_bytes());
    for (host, authority) in [("localhost", "other.pem"), ("127.0.0.1", "authority.pem")] {
        let refused = import(host, "j", authority);
        assert_ne!(refused.status, 0, "{host} {authority}");
        assert!(refused.err.contains("import failed"), "{}", refused.err);
        assert_eq!(world.rbd("ls").out, "i\n");
    }
    // It is the same for the source of a migration, and for who reads the image later.
    let url = format!("https://localhost:{port}/d.qcow2");
    let spec = format!(r#"{{"type":"qcow","stream":{{"type":"http","url":"{url}"}}}}"#);
    world.file("spec.json", spec.as_bytes());
    let ran = |line: &str, authority: &str| {
        world.rbd_command(line).env("SSL_CERT_FILE", world.path(authority)).output().unwrap()
    };
    let line = "migration prepare --import-only --source-spec-path spec.json m";
    assert!(ran(line, "authority.pem").status.success());
    assert!(ran("export --no-progress m -", "authority.pem").stdout == bytes);
    assert_eq!(ran("export --no-progress m -", "other.pem").status.code(), Some(5));
}
