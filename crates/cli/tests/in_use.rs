//! Commands on images that a server has open.
#![allow(missing_docs)]

mod common;

use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use common::{WAIT_MAX, World, await_listening, noise, prints};

/// A server that ends with the test.
struct Server(Child);

impl Server {
    fn start(world: &World) -> Self {
        let mut child = world
            .rbd_command("serve --socket nbd.sock")
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

/// The least that makes a server open an export: newstyle with NBD_OPT_GO, and an answer to it.
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
