//! Commands on images that a server has open.
#![allow(missing_docs)]

mod common;

use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use common::{WAIT_MAX, World, await_listening, noise, prints};

/// A server that is ended with the test.
struct Server(Child);

impl Server {
    fn start(world: &World) -> Self {
        Self::start_with(world, "")
    }

    fn start_with(world: &World, options: &str) -> Self {
        let mut child = world
            .rbd_command(&format!("serve --socket nbd.sock {options}"))
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        await_listening(&mut child);
        Self(child)
    }

    fn stop(&mut self) -> Option<i32> {
        let pid = rustix::process::Pid::from_child(&self.0);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        self.0.wait().unwrap().code()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_scrub_keeps_to_its_rate_while_images_are_in_use() {
    let world = World::new();
    world.file("f", &noise(8 << 20));
    world.silently(&["import --no-progress f t"]);
    let mut server = Server::start(&world);
    let client = open_export(&world, "rbd/t");
    let start = Instant::now();
    let scrubbed = world.rbd("check --scrub --rate 16M --no-progress");
    assert_eq!((scrubbed.status, scrubbed.err.as_str()), (0, ""));
    assert!(scrubbed.out.contains("8 MiB of data: all is well"), "{}", scrubbed.out);
    assert!(start.elapsed() >= Duration::from_millis(450), "{:?}", start.elapsed());
    let refused = world.rbd("check --rate 16M");
    assert_eq!(refused.status, 22, "{}", refused.err);
    drop(client);
    assert_eq!(server.stop(), Some(0));
}

/// The shortest negotiation that makes a server open an export: newstyle with NBD_OPT_GO, and the reply.
fn open_export(world: &World, name: &str) -> std::os::unix::net::UnixStream {
    use std::io::{Read, Write};
    let mut socket = std::os::unix::net::UnixStream::connect(world.path("nbd.sock")).unwrap();
    socket.set_read_timeout(Some(WAIT_MAX)).unwrap();
    let mut greeting = [0; 18];
    socket.read_exact(&mut greeting).unwrap();
    let mut request = 3u32.to_be_bytes().to_vec();
    request.extend(b"IHAVEOPT");
    request.extend(7u32.to_be_bytes());
    request.extend((4 + name.len() as u32 + 2).to_be_bytes());
    request.extend((name.len() as u32).to_be_bytes());
    request.extend(name.as_bytes());
    request.extend(0u16.to_be_bytes());
    socket.write_all(&request).unwrap();
    loop {
        let mut head = [0; 20];
        socket.read_exact(&mut head).unwrap();
        let word = |at: usize| u32::from_be_bytes(head[at..at + 4].try_into().unwrap());
        let mut body = vec![0; word(16) as usize];
        socket.read_exact(&mut body).unwrap();
        assert!(word(12) < 1 << 31, "refused: {}", String::from_utf8_lossy(&body));
        if word(12) == 1 {
            return socket;
        }
    }
}

#[test]
fn a_removed_snapshot_goes_with_its_last_child_while_the_parent_is_served() {
    for last in ["flatten --no-progress c", "rm --no-progress c"] {
        let world = World::new();
        world.silently(&[
            "create -s 16M p",
            "snap create --no-progress p@s",
            "clone --rbd-default-clone-format 2 p@s c",
        ]);
        let mut server = Server::start(&world);
        let client = open_export(&world, "rbd/p");
        world.silently(&["snap rm --no-progress p@s"]);
        assert!(world.rbd("snap ls --all p").out.contains("trash"), "nothing waits for the child");
        world.silently(&[last]);
        assert_eq!(world.rbd("snap ls --all p"), prints(""), "{last}");
        drop(client);
        assert_eq!(server.stop(), Some(0));
    }
}

#[test]
fn every_command_works_while_an_image_is_served() {
    let world = World::new();
    world.file("f", &noise(8 << 20));
    world.silently(&["import --no-progress f t"]);
    let mut server = Server::start(&world);
    let client = open_export(&world, "rbd/t");
    assert!(world.rbd("status t").out.starts_with("Watchers:\n\twatcher="));
    assert!(world.rbd("ls -l").out.contains("excl"));
    world.silently(&[
        "snap create --no-progress t@s",
        "snap protect t@s",
        "clone t@s c",
        "clone --rbd-default-clone-format 2 t@s c2",
        "resize --no-progress -s 16M t",
        "export --no-progress c c.raw",
        "cp --no-progress t copy",
    ]);
    assert!(std::fs::read(world.path("c.raw")).unwrap() == noise(8 << 20));
    assert_eq!(world.rbd("diff --from-snap s t"), prints(""));
    assert!(world.rbd("du t").out.contains("<TOTAL>"));
    let refused = world.rbd("rm t --no-progress");
    assert_eq!(refused.status, 39);
    assert!(refused.err.starts_with("rbd: "), "{}", refused.err);
    drop(client);
    assert_eq!(server.stop(), Some(0));
    assert!(!world.path("nbd.sock").exists());
    assert!(world.rbd("info t").out.contains("size 16 MiB"));
    assert_eq!(world.rbd("status t"), prints("Watchers: none\n"));
}

/// Opens exports and disconnects: the server keeps them open for a while.
fn leave_open(world: &World, names: &[&str]) {
    for name in names {
        drop(open_export(world, name));
    }
}

#[test]
fn what_a_server_keeps_open_without_a_client_gives_way_at_once() {
    let world = World::new();
    world.file("f", &noise(1 << 20));
    world.silently(&["import --no-progress f t", "snap create --no-progress t@s"]);
    let mut server = Server::start(&world);
    leave_open(&world, &["rbd/t@s", "rbd/t"]);
    world.silently(&["snap rm --no-progress t@s"]);
    leave_open(&world, &["rbd/t"]);
    world.silently(&["bench --io-type read --io-size 4K --io-total 4K t"]);
    leave_open(&world, &["rbd/t"]);
    world.silently(&["check --repair --no-progress", "gc --no-progress"]);
    leave_open(&world, &["rbd/t"]);
    world.silently(&["rm --no-progress t", "create -s 1M t"]);
    leave_open(&world, &["rbd/t"]);
    assert_eq!(server.stop(), Some(0));
}

#[test]
fn a_server_that_only_reads_gives_way_too() {
    let world = World::new();
    world.file("f", &noise(1 << 20));
    world.silently(&["import --no-progress f t"]);
    let mut server = Server::start_with(&world, "--read-only");
    leave_open(&world, &["rbd/t"]);
    world.silently(&["gc --no-progress"]);
    leave_open(&world, &["rbd/t"]);
    world.silently(&["rm --no-progress t"]);
    assert_eq!(server.stop(), Some(0));
}

#[test]
fn what_a_client_uses_is_refused_and_the_user_is_named() {
    let world = World::new();
    world.silently(&["create -s 16M t", "create -s 16M u", "snap create --no-progress t@s"]);
    let mut server = Server::start(&world);
    let clients = [open_export(&world, "rbd/t@s"), open_export(&world, "rbd/u")];
    let by = format!("in use by process {}: nbd, 1 connection", server.0.id());
    for command in ["snap rm --no-progress t@s", "rm --no-progress u"] {
        let refused = world.rbd(command);
        assert_eq!(refused.status, 16, "{command}: {}", refused.err);
        assert!(refused.err.contains(&by), "{command}: {}", refused.err);
    }
    drop(clients);
    world.silently(&["snap rm --no-progress t@s", "rm --no-progress u"]);
    assert_eq!(server.stop(), Some(0));
}

#[test]
fn a_command_of_another_process_keeps_the_image_open() {
    let world = World::new();
    let content = noise(24 << 20);
    world.file("f", &content);
    world.silently(&["import --no-progress f t"]);
    let mut server = Server::start_with(&world, "--idle-time-s 0");
    leave_open(&world, &["rbd/t"]);
    // It is read while the server checks several times for idle images.
    let mut export = world
        .rbd_command("export --no-progress t -")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = export.stdout.take().unwrap();
    let mut read = vec![0; content.len()];
    for part in read.chunks_mut(6 << 20) {
        std::thread::sleep(Duration::from_millis(700));
        std::io::Read::read_exact(&mut output, part).unwrap();
    }
    drop(output);
    let ended = export.wait_with_output().unwrap();
    assert_eq!(
        (ended.status.code(), String::from_utf8_lossy(&ended.stderr).as_ref()),
        (Some(0), "")
    );
    assert!(read == content);
    assert_eq!(server.stop(), Some(0));
}

#[test]
fn a_command_goes_on_when_the_server_that_it_reads_from_is_stopped() {
    let world = World::new();
    let content = noise(24 << 20);
    world.file("f", &content);
    world.silently(&["import --no-progress f t"]);
    let mut server = Server::start(&world);
    let client = open_export(&world, "rbd/t");
    let mut export = world
        .rbd_command("export --no-progress t -")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = export.stdout.take().unwrap();
    let mut read = vec![0; 1 << 20];
    std::io::Read::read_exact(&mut output, &mut read).unwrap();
    drop(client);
    assert_eq!(server.stop(), Some(0));
    std::io::Read::read_to_end(&mut output, &mut read).unwrap();
    let ended = export.wait_with_output().unwrap();
    assert_eq!(
        (ended.status.code(), String::from_utf8_lossy(&ended.stderr).as_ref()),
        (Some(0), "")
    );
    assert!(read == content);
}

fn signal(child: &Child, signal: rustix::process::Signal) {
    rustix::process::kill_process(rustix::process::Pid::from_child(child), signal).unwrap();
}

#[test]
fn a_stopped_owner_keeps_nobody_waiting() {
    use rustix::process::Signal;
    let world = World::new();
    world.file("f", &noise(1 << 20));
    world.silently(&["import --no-progress f t", "import --no-progress f u"]);
    let mut server = Server::start(&world);
    let clients = [open_export(&world, "rbd/t"), open_export(&world, "rbd/u")];
    signal(&server.0, Signal::STOP);
    let advice = format!("kill -CONT {}", server.0.id());
    let start = Instant::now();
    for (command, says) in [
        ("status t", format!("client.{}", server.0.id())),
        ("diff t", "1048576  data".to_string()),
        ("du", "<TOTAL>".to_string()),
        ("info t", "size 1 MiB".to_string()),
    ] {
        let ran = world.rbd(command);
        assert_eq!(ran.status, 0, "{command}: {}", ran.err);
        assert!(ran.out.contains(&says), "{command}: {}", ran.out);
        assert_eq!(ran.err.contains(&advice), command != "info t", "{command}: {}", ran.err);
    }
    // Three commands that wait once each, also the one that queries two images.
    assert!(start.elapsed() < Duration::from_secs(25), "{:?}", start.elapsed());
    let refused = world.rbd("rm --no-progress t");
    assert_eq!(refused.status, 16, "{}", refused.err);
    assert!(refused.err.contains(&advice), "{}", refused.err);
    // A command that needs the owner can be ended by a signal, and leaves nothing behind.
    for (line, by, status) in [
        ("export --no-progress t out", Signal::INT, 130),
        ("cp --no-progress t copy", Signal::TERM, 143),
    ] {
        let child = world.rbd_command(line).stderr(Stdio::piped()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(500));
        signal(&child, by);
        let ended = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&ended.stderr).into_owned();
        assert_eq!(ended.status.code(), Some(status), "{line}: {said}");
    }
    let left = std::fs::read_dir(world.path("")).unwrap().map(|e| e.unwrap().file_name());
    let left: Vec<_> = left.filter(|name| name.to_string_lossy().contains("out")).collect();
    assert!(left.is_empty(), "{left:?}");
    assert!(world.rbd("pool stats").out.starts_with("Total Images: 2\n"));
    signal(&server.0, Signal::CONT);
    drop(clients);
    assert_eq!(server.stop(), Some(0));
}

#[test]
fn differences_are_imported_and_exported_through_the_owner() {
    let world = World::new();
    world.silently(&["create a --size 1"]);
    let mut server = Server::start(&world);
    let client = open_export(&world, "a");
    let of_rbd = |name: &str| {
        let streams = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/streams");
        std::fs::read(streams.join(name)).unwrap()
    };
    let import = |bytes: &[u8]| world.rbd_piped("import-diff --no-progress - a", bytes);
    assert_eq!(import(&of_rbd("to-s1")), prints(""));
    let next = of_rbd("s1-to-s2");
    // The server's client might write meanwhile. What it has written must not be lost with the part.
    let cut = import(&next[..next.len() - 1]);
    assert!(cut.status == 74 && cut.err.contains("a part of the difference"), "{cut:?}");
    assert_eq!(import(&next), prints(""));
    let line = "export-diff --no-progress --from-snap s1 a@s2 -";
    assert!(world.rbd_command(line).output().unwrap().stdout == next);
    drop(client);
    assert_eq!(server.stop(), Some(0));
}

#[test]
fn a_refusal_says_how_the_image_gets_free() {
    let world = World::new();
    world.silently(&["create --size 8M a"]);
    let mut server = Server::start(&world);
    let client = open_export(&world, "rbd/a");
    let remedy = "let its NBD clients disconnect, or end the server, process ";
    for line in ["rm --no-progress a", "bench a --io-type write --io-total 1M"] {
        let ran = world.marcot(line);
        assert_eq!(ran.status, 16, "{line}: {}", ran.err);
        let last = ran.err.lines().last().unwrap_or_default();
        assert!(last.starts_with(&format!("marcot: {remedy}")), "{line}: {}", ran.err);
        // Scripts drop such lines.
        let ran = world.rbd(line);
        let last = ran.err.lines().last().unwrap_or_default();
        assert!(last.contains(&format!(" -1 librbd: {remedy}")), "{line}: {}", ran.err);
    }
    // That does not help where something else is in the way.
    world.silently(&["snap create --no-progress a@s", "snap protect a@s"]);
    let protected = world.marcot("snap rm --no-progress a@s");
    assert!(protected.err.ends_with("'marcot snap unprotect rbd/a@s' makes it removable\n"));
    assert_eq!(world.marcot("snap protect a@s").err, "marcot: snap is already protected\n");
    drop(client);
    assert_eq!(server.stop(), Some(0));
}
