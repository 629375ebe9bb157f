//! `migration prepare --import-only` from files and servers: usable at once, copied behind, and never other data than the
//! source had.
#![allow(missing_docs)]

mod common;
#[path = "common/http.rs"]
mod http;
#[path = "common/server.rs"]
mod server;

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::Ordering;

use common::{World, noise};
use http::{Manner, Server};

const MIB: usize = 1 << 20;

fn content(world: &World, image: &str) -> Vec<u8> {
    world.rbd_command(&format!("export --no-progress {image} -")).output().unwrap().stdout
}

fn qemu(program: &str, world: &World, line: &str) {
    let mut command = Command::new(program);
    command.args(line.split_whitespace()).current_dir(world.path("."));
    assert!(command.output().unwrap().status.success(), "{program} {line}");
}

fn qemu_io(world: &World, format: &str, commands: &[&str], file: &str) {
    let mut command = Command::new("qemu-io");
    command.current_dir(world.path(".")).args(["-f", format]);
    for line in commands {
        command.args(["-c", line]);
    }
    assert!(command.arg(file).output().unwrap().status.success(), "{commands:?}");
}

/// A disk of 40 MiB with 3 MiB of data.
fn disk() -> Vec<u8> {
    let mut bytes = vec![0; 40 * MIB];
    bytes[..MIB].copy_from_slice(&noise(MIB));
    bytes[30 * MIB + 512..32 * MIB + 512].copy_from_slice(&noise(2 * MIB));
    bytes
}

fn spec(format: &str, stream: &str) -> String {
    format!(r#"{{"type":"{format}","stream":{stream}}}"#)
}

fn file(path: &Path) -> String {
    format!(r#"{{"type":"file","file_path":"{}"}}"#, path.display())
}

fn prepare(world: &World, spec: &str, image: &str) {
    world.file("spec.json", spec.as_bytes());
    let line = format!("migration prepare --import-only --source-spec-path spec.json {image}");
    world.silently(&[&line]);
}

fn finish(world: &World, image: &str) {
    world.silently(&[
        &format!("migration execute {image} --no-progress"),
        &format!("migration commit {image} --no-progress"),
    ]);
}

#[test]
fn every_format_and_place_is_a_source() {
    let world = World::new();
    let bytes = disk();
    world.file("d.raw", &bytes);
    for (format, ours) in
        [("qcow2", "qcow"), ("qcow2", "qcow2"), ("vmdk", "vmdk"), ("vhdx", "vhdx")]
    {
        let name = format!("d.{ours}");
        qemu("qemu-img", &world, &format!("convert -f raw -O {format} d.raw {name}"));
        prepare(&world, &spec(ours, &file(&world.path(&name))), ours);
    }
    prepare(&world, &spec("raw", &file(&world.path("d.raw"))), "raw");
    let server = Server::new(bytes.clone());
    let stream = format!(r#"{{"type":"http","url":"{}"}}"#, server.url("d.raw"));
    prepare(&world, &spec("raw", &stream), "http");
    let sent = server.sent_bytes.load(Ordering::Relaxed);
    assert!(sent < MIB, "{sent} bytes are read before anybody reads the image");
    let images = ["qcow", "qcow2", "vmdk", "vhdx", "raw", "http"];
    for image in images {
        assert!(content(&world, image) == bytes, "{image}");
        world.silently(&[&format!("migration execute {image} --no-progress")]);
    }
    drop(server);
    for name in ["d.raw", "d.qcow", "d.qcow2", "d.vmdk", "d.vhdx"] {
        std::fs::remove_file(world.path(name)).unwrap();
    }
    for image in images {
        assert!(content(&world, image) == bytes, "{image} needs its source no more");
        world.silently(&[&format!("migration commit {image} --no-progress")]);
        assert!(content(&world, image) == bytes, "{image}");
        let used = world.rbd(&format!("du {image}")).out;
        assert!(used.contains("40 MiB  3.") || used.contains("40 MiB    3 MiB"), "{used}");
    }
}

#[test]
fn a_path_that_is_relative_is_found_from_everywhere() {
    let world = World::new();
    let bytes = disk();
    world.file("d.raw", &bytes);
    prepare(&world, &spec("raw", r#"{"type":"file","file_path":"d.raw"}"#), "i");
    let mut command = world.rbd_command("export --no-progress i -");
    assert!(command.current_dir("/").output().unwrap().stdout == bytes);
}

#[test]
fn a_server_reads_what_is_not_copied_yet_while_it_is_copied() {
    let world = World::new();
    let mut bytes = disk();
    let source = Server::new(disk());
    let stream = format!(r#"{{"type":"http","url":"{}"}}"#, source.url("d.raw"));
    prepare(&world, &spec("raw", &stream), "i");
    let mut server = server::Server::start(&world, "");
    let url = format!("nbd+unix:///rbd/i?socket={}", server.socket.display());
    let read = |name: &str| {
        qemu("qemu-img", &world, &format!("convert -n -f raw -O raw {url} {name}"));
        std::fs::read(world.path(name)).unwrap()
    };
    std::fs::File::create(world.path("out.raw")).unwrap().set_len(40 << 20).unwrap();
    assert!(read("out.raw") == bytes);
    qemu_io(&world, "raw", &["write -P 7 1000 5000", "flush"], &url);
    bytes[1000..6000].fill(7);
    assert!(read("out.raw") == bytes);
    world.silently(&["migration execute i --no-progress"]);
    source.set(Manner::Status(500));
    assert!(read("out.raw") == bytes);
    world.silently(&["migration commit i --no-progress"]);
    assert!(read("out.raw") == bytes);
    assert_eq!(server.stop(), Some(0));
    assert!(content(&world, "i") == bytes);
}

/// Processes that end with the test.
struct Running(Vec<Child>);

impl Drop for Running {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[test]
fn a_slow_source_keeps_only_those_waiting_who_need_it() {
    let world = World::new();
    let mut bytes = disk();
    let source = Server::new(disk());
    let stream = format!(r#"{{"type":"http","url":"{}"}}"#, source.url("d.raw"));
    prepare(&world, &spec("raw", &stream), "i");
    let server = server::Server::start(&world, "");
    let url = format!("nbd+unix:///rbd/i?socket={}", server.socket.display());
    qemu_io(&world, "raw", &["write -P 7 1M 1M", "read 30M 4k"], &url);
    bytes[MIB..2 * MIB].fill(7);
    source.set(Manner::Holds);
    let before = source.requests.load(Ordering::Relaxed);
    let mut write = Command::new("qemu-io");
    write.args(["-f", "raw", "-c", "write -P 9 31000000 100", &url]).stdout(Stdio::null());
    let execute = world.rbd_command("migration execute i --no-progress").spawn().unwrap();
    let mut waiting = Running(vec![write.spawn().unwrap(), execute]);
    bytes[31_000_000..31_000_100].fill(9);
    while source.requests.load(Ordering::Relaxed) == before {
        std::thread::yield_now();
    }
    // One that had to wait for the source would wait for ever.
    for _ in 0..5 {
        let mut read = Command::new("timeout");
        read.args(["60", "qemu-io", "-f", "raw", "-c", "read -P 7 1M 1M", &url]);
        let told = read.output().unwrap();
        let said = String::from_utf8_lossy(&told.stdout).into_owned();
        assert!(told.status.success() && !said.contains("failed"), "{said}");
    }
    for child in &mut waiting.0 {
        assert_eq!(child.try_wait().unwrap(), None, "it needs the source");
    }
    source.set(Manner::Ranges);
    for child in &mut waiting.0 {
        assert!(child.wait().unwrap().success());
    }
    source.set(Manner::Status(500));
    world.silently(&["migration commit i --no-progress"]);
    drop(server);
    assert!(content(&world, "i") == bytes);
}

#[test]
fn a_file_that_changes_is_an_io_error_and_never_other_data() {
    let world = World::new();
    world.file("d.raw", &disk());
    let path = world.path("d.raw");
    prepare(&world, &spec("raw", &file(&path)), "i");
    let mut other = disk();
    other[5] ^= 1;
    std::fs::write(&path, &other).unwrap();
    let failed = world.marcot("export --no-progress i -");
    assert_eq!((failed.status, failed.out.as_str()), (5, ""));
    let why = "the source that rbd/i is migrated from cannot be read: it has changed since 'migration prepare'";
    assert!(failed.err.contains(why), "{}", failed.err);
    assert_eq!(world.rbd("migration execute i --no-progress").status, 5);
    // A file on a server, told by its tag.
    let server = Server::new(disk());
    let stream = format!(r#"{{"type":"http","url":"{}"}}"#, server.url("d.raw"));
    prepare(&world, &spec("raw", &stream), "h");
    server.set(Manner::Changes);
    assert_eq!(world.rbd("export --no-progress h -").status, 5);
    world.silently(&["migration abort i --no-progress", "migration abort h --no-progress"]);
    assert_eq!(world.rbd("ls").out, "");
    assert!(std::fs::read(&path).unwrap() == other, "the source stays as it is");
}

#[test]
fn snapshots_of_the_source_are_snapshots_at_once() {
    let world = World::new();
    let (old, bytes) = (noise(3 * MIB), disk());
    world.file("old.raw", &old);
    world.file("d.raw", &bytes);
    let listed = format!(
        r#"{{"type":"raw","stream":{},"snapshots":[{{"type":"raw","name":"old","stream":{}}}]}}"#,
        file(&world.path("d.raw")),
        file(&world.path("old.raw"))
    );
    prepare(&world, &listed, "i");
    assert!(content(&world, "i@old") == old);
    assert!(content(&world, "i") == bytes);
    // Internal ones of qcow2: only what was written since the last one is left to the source.
    qemu("qemu-img", &world, "create -q -f qcow2 d.qcow2 8M");
    qemu_io(&world, "qcow2", &["write -P 1 0 1M"], "d.qcow2");
    qemu("qemu-img", &world, "snapshot -c one d.qcow2");
    qemu_io(&world, "qcow2", &["write -P 2 512k 1M", "write -z -u 0 64k"], "d.qcow2");
    prepare(&world, &spec("qcow", &file(&world.path("d.qcow2"))), "q");
    let mut one = vec![0; 8 * MIB];
    one[..MIB].fill(1);
    let mut now = one.clone();
    now[MIB / 2..MIB * 3 / 2].fill(2);
    now[..64 << 10].fill(0);
    assert!(content(&world, "q@one") == one);
    assert!(content(&world, "q") == now);
    finish(&world, "q");
    std::fs::remove_file(world.path("d.qcow2")).unwrap();
    assert!(content(&world, "q@one") == one);
    assert!(content(&world, "q") == now);
    finish(&world, "i");
    assert!(content(&world, "i@old") == old);
    assert!(content(&world, "i") == bytes);
}

#[test]
fn what_is_no_source_is_refused_in_a_sentence_and_leaves_nothing() {
    let world = World::new();
    world.file("d.raw", &disk());
    let server = Server::new(disk());
    server.set(Manner::Whole);
    let http = format!(r#"{{"type":"http","url":"{}"}}"#, server.url("d.raw"));
    let keys = format!(
        r#"{{"type":"s3","url":"{}","access_key":"a","secret_key":"b"}}"#,
        server.url("d.raw")
    );
    let password = server.url("d.raw").replace("http://", "http://someone:secret@");
    let password = format!(r#"{{"type":"http","url":"{password}"}}"#);
    std::fs::write(world.path("cut.qcow2"), &b"QFI\xfb\0\0\0\x03"[..]).unwrap();
    let native = r#"{"type":"native","pool_name":"rbd","image_name":"x","snap_name":"s"}"#;
    for (spec, status, words) in [
        (spec("raw", &http), 95, "answers no requests for ranges"),
        (spec("raw", &keys), 95, "keys are not kept in an image"),
        (spec("raw", &password), 95, "a password is not kept in an image"),
        (spec("qcow", &file(&world.path("cut.qcow2"))), 5, "cut.qcow2"),
        (native.to_string(), 95, "'deep copy' copies it"),
        (spec("raw", r#"{"type":"file","file_path":"/tmp"}"#), 22, "neither a file nor"),
        (spec("raw", r#"{"type":"nbd","uri":"nbd://"}"#), 22, "nbd://HOST"),
        ("x".repeat(70_000), 74, "no JSON object"),
        (format!(r#"{{"type":"raw","stream":{http},"snapshots":5}}"#), 95, "ranges"),
    ] {
        world.file("spec.json", spec.as_bytes());
        let line = "migration prepare --import-only --source-spec-path spec.json i";
        let refused = world.marcot(line);
        assert_eq!(refused.status, status, "{}", refused.err);
        assert!(refused.err.contains(words), "{}", refused.err);
        assert!(!refused.err.contains("secret"), "{}", refused.err);
        assert_eq!(world.rbd("ls").out, "");
    }
}

#[test]
fn a_signature_in_a_url_is_not_shown() {
    let world = World::new();
    let bytes = disk();
    let server = Server::new(bytes.clone());
    let stream = format!(r#"{{"type":"http","url":"{}"}}"#, server.url("d.raw?signature=secret"));
    prepare(&world, &spec("raw", &stream), "i");
    for line in ["status i", "status i --format json", "status i --format xml", "info i"] {
        let told = world.rbd(line);
        assert_eq!(told.status, 0, "{line}: {}", told.err);
        assert!(!told.out.contains("secret"), "{line}: {}", told.out);
    }
    let status = world.rbd("status i").out;
    assert!(status.contains("/d.raw\"}"), "{status}");
    assert!(content(&world, "i") == bytes, "it is read with the signature");
}
