//! What programs that call `rbd` do with it: their own sequences, with their options as they give them and answers
//! read as they read them. Commands that map devices are in `scripts/test.d/mapped-devices.sh`.
#![allow(missing_docs)]

mod common;

use std::process::{Command, Stdio};

use common::{World, noise};
use serde_json::Value;

const MIB: usize = 1 << 20;

/// A program: the store, and the options that it gives with every command.
struct Program<'a> {
    world: &'a World,
    options: &'a str,
}

impl Program<'_> {
    /// Runs a command that must succeed, and returns what it prints.
    fn run(&self, line: &str) -> String {
        let ran = self.world.rbd(&format!("{} {line}", self.options));
        assert_eq!(ran.status, 0, "{line}: {}", ran.err);
        ran.out
    }

    fn all(&self, lines: &[&str]) {
        lines.iter().for_each(|line| drop(self.run(line)));
    }

    fn json(&self, line: &str) -> Value {
        serde_json::from_str(&self.run(line)).unwrap()
    }

    fn status(&self, line: &str) -> i32 {
        self.world.rbd(&format!("{} {line}", self.options)).status
    }

    /// The values of a key, for each element of an answer.
    fn column(&self, line: &str, key: &str) -> Vec<Value> {
        let answer = self.json(line);
        answer.as_array().unwrap().iter().map(|row| row[key].clone()).collect()
    }
}

/// Pipes one command of `rbd` into another one, as these programs do.
fn piped(world: &World, from: &str, to: &str) {
    let mut from = world.rbd_command(from);
    let mut sender = from.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut to: Command = world.rbd_command(to);
    let received = to.stdin(sender.stdout.take().unwrap()).output().unwrap();
    assert!(sender.wait().unwrap().success());
    assert!(received.status.success(), "{}", String::from_utf8_lossy(&received.stderr));
}

fn world() -> World {
    let world = World::new();
    world.silently(&["pool create P"]);
    world.file("disk.raw", &noise(2 * MIB));
    world.file("key", b"secret");
    world.file("ceph.conf", b"[global]\n");
    world
}

#[test]
fn proxmox() {
    let world = world();
    let options = "-p P -c ceph.conf -m 10.0.0.1,10.0.0.2 --auth_supported cephx -n client.admin --keyring key";
    let rbd = Program { world: &world, options };
    rbd.all(&[
        "create --image-format 2 --size 8 base-1-disk-0",
        "snap create --snap __base__ base-1-disk-0",
    ]);
    rbd.run("snap protect base-1-disk-0 --snap __base__");
    let base = rbd.json("info base-1-disk-0 --format json --snap __base__");
    assert_eq!((&base["size"], &base["protected"]), (&Value::from(8 * MIB), &Value::from("true")));
    assert_eq!(base["format"], 2);
    rbd.run("clone P/base-1-disk-0 --snap __base__ P/vm-100-disk-0");
    let listed = rbd.json("ls -l --format json");
    let rows = listed.as_array().unwrap();
    let clone = rows.iter().find(|row| row["image"] == "vm-100-disk-0").unwrap();
    assert_eq!(clone["parent"]["image"], "base-1-disk-0");
    assert_eq!(clone["parent"]["snapshot"], "__base__");
    assert!(rows.iter().any(|row| row["snapshot"] == "__base__" && row["protected"] == "true"));
    rbd.run("resize --size 16 vm-100-disk-0");
    assert_eq!(rbd.json("info vm-100-disk-0 --format json")["size"], 16 * MIB);
    rbd.run("snap create --snap before vm-100-disk-0");
    assert_eq!(rbd.column("snap ls vm-100-disk-0 --format json", "name"), ["before"]);
    rbd.all(&["snap rollback --snap before vm-100-disk-0", "snap rm --snap before vm-100-disk-0"]);
    let usage = rbd.json("du vm-100-disk-0 --format json");
    assert!(usage["images"][0]["used_size"].is_u64(), "{usage}");
    let import = "-c ceph.conf --dest-pool P import --export-format 1 - vm-101-disk-0";
    piped(&world, &format!("{options} export --export-format 1 vm-100-disk-0 -"), import);
    rbd.all(&["rename vm-101-disk-0 vm-102-disk-0", "rm vm-102-disk-0"]);
    // A template goes only after its clones.
    assert_eq!(rbd.status("snap unprotect base-1-disk-0 --snap __base__"), 16);
    rbd.all(&["snap purge vm-100-disk-0", "rm vm-100-disk-0"]);
    rbd.all(&["snap unprotect base-1-disk-0 --snap __base__", "snap purge base-1-disk-0"]);
    rbd.run("rm base-1-disk-0");
    assert_eq!(rbd.run("ls"), "");
}

#[test]
fn incus_and_lxd() {
    let world = world();
    let rbd = Program { world: &world, options: "--id admin --cluster ceph --pool P" };
    let bare = Program { world: &world, options: "--id admin --cluster ceph" };
    assert!(bare.run("--version").contains(' '));
    bare.run("pool init P");
    rbd.run("create --image-feature layering --size 8388608B image_1");
    rbd.all(&["snap create --snap readonly image_1", "snap protect --snap readonly image_1"]);
    bare.run("clone --image-feature layering P/image_1@readonly P/container_a");
    assert_eq!(rbd.run("children --image image_1 --snap readonly"), "P/container_a\n");
    let info = rbd.run("info container_a");
    let parent = info.lines().find_map(|line| line.trim().strip_prefix("parent: "));
    assert_eq!(parent, Some("P/image_1@readonly"));
    assert_eq!(rbd.json("info --format json container_a")["size"], 8 * MIB);
    rbd.all(&[
        "snap create --snap snapshot_1 container_a",
        "snap rename container_a@snapshot_1 container_a@snapshot_2",
    ]);
    assert_eq!(rbd.column("snap ls --format json container_a", "name"), ["snapshot_2"]);
    rbd.all(&[
        "snap rollback --snap snapshot_2 container_a",
        "resize --size 16777216B container_a",
    ]);
    rbd.run("resize --allow-shrink --size 8388608B container_a");
    assert!(rbd.json("du --format json container_a")["images"].is_array());
    bare.run("cp P/container_a P/container_b");
    rbd.run("mv container_a deleted_a");
    // It tells apart what is in use (16) and what is gone (2).
    assert_eq!(rbd.status("snap unprotect --snap readonly image_1"), 16);
    rbd.all(&["snap rm deleted_a@snapshot_2", "rm deleted_a", "rm container_b"]);
    assert_eq!(rbd.status("rm deleted_a"), 2);
    rbd.all(&["snap unprotect --snap readonly image_1", "snap purge image_1", "rm image_1"]);
}

#[test]
fn opennebula() {
    let world = world();
    let rbd = Program { world: &world, options: "--id admin --keyfile key --conf ceph.conf" };
    rbd.all(&[
        "create --image-format 2 --size 8 P/one-1",
        "import --image-format 2 disk.raw P/one-2",
    ]);
    // It greps these lines.
    assert!(rbd.run("info P/one-2").lines().any(|line| line.trim() == "format: 2"));
    rbd.all(&[
        "snap create P/one-2@snap",
        "snap protect P/one-2@snap",
        "clone P/one-2@snap P/one-2-10-0",
    ]);
    assert!(rbd.run("info P/one-2-10-0").lines().any(|line| line.trim() == "parent: P/one-2@snap"));
    assert_eq!(rbd.run("children P/one-2@snap"), "P/one-2-10-0\n");
    rbd.all(&["flatten P/one-2-10-0", "copy P/one-2-10-0 P/one-3", "rename P/one-3 P/one-4"]);
    rbd.all(&["resize --size 16 P/one-4", "export P/one-4 out.raw", "trash move P/one-4"]);
    let exported = std::fs::read(world.path("out.raw")).unwrap();
    assert!(exported[..2 * MIB] == noise(2 * MIB) && exported.len() == 16 * MIB);
    assert_eq!(rbd.column("snap ls P/one-2 --format json", "name"), ["snap"]);
    assert!(rbd.json("du P/one-2 --format json")["images"][0]["used_size"].is_u64());
    rbd.all(&[
        "snap unprotect P/one-2@snap",
        "snap rm P/one-2@snap",
        "rm P/one-2",
        "rm P/one-2-10-0",
    ]);
    assert_eq!(rbd.run("ls -p P"), "one-1\n");
}

#[test]
fn cinder_and_nova() {
    let world = world();
    let rbd = Program { world: &world, options: "" };
    let who = "--id cinder --cluster ceph --conf ceph.conf";
    rbd.run(&format!("import --dest-pool P --order 22 disk.raw volume-1 {who}"));
    rbd.run(&format!("export --pool P volume-1 volume.raw {who}"));
    assert_eq!(std::fs::read(world.path("volume.raw")).unwrap(), noise(2 * MIB));
    let status = rbd.json(&format!("status --pool P --format=json volume-1 {who}"));
    assert_eq!(status["watchers"], Value::Array(Vec::new()));
    rbd.run("import --pool P disk.raw instance_disk --image-format=2 --id nova --conf ceph.conf");
    rbd.run("snap create P/instance_disk@snap");
    rbd.run("export --pool P --image instance_disk --path out.raw --snap snap --id nova --conf ceph.conf");
    assert_eq!(std::fs::read(world.path("out.raw")).unwrap(), noise(2 * MIB));
}

#[test]
fn benji_and_backy2() {
    let world = world();
    let rbd = Program { world: &world, options: "" };
    rbd.all(&["import disk.raw P/a", "snap create --no-progress P/a@one"]);
    let extents = rbd.json("diff --whole-object --format=json P/a@one");
    let first = &extents[0];
    assert_eq!((&first["offset"], &first["exists"]), (&Value::from(0), &Value::from("true")));
    assert!(first["length"].is_u64(), "{first}");
    rbd.run("snap create P/a@two --no-progress");
    let unchanged = rbd.json("diff --whole-object --format=json --from-snap one P/a@two");
    assert_eq!(unchanged, Value::Array(Vec::new()));
    assert_eq!(rbd.column("snap ls P/a --format=json", "name"), ["one", "two"]);
    rbd.all(&["snap rm --no-progress P/a@one", "snap rm P/a@two"]);
}

#[test]
fn rexray_and_ceph_csi() {
    let world = world();
    let rbd = Program { world: &world, options: "" };
    rbd.run(
        "create --pool P --object-size 4M --image-feature layering,exclusive-lock --size 8 volume",
    );
    assert_eq!(rbd.column("ls -p P -l --format json", "image"), ["volume"]);
    assert_eq!(rbd.json("info --pool P --format json volume")["name"], "volume");
    assert_eq!(
        rbd.json("status --pool P --format json volume")["watchers"],
        Value::Array(Vec::new())
    );
    rbd.run("rm --pool P --no-progress volume");
}
