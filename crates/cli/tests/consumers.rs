//! What programs that call `rbd` do with it: their own sequences, with their options as they give them and answers
//! read as they read them. Commands that map devices are in `scripts/test.d/mapped-devices.sh`, `ceph` and `rados` in
//! `other_programs.rs`.
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

/// The bytes of an image or a snapshot.
fn content(world: &World, spec: &str) -> Vec<u8> {
    let output = world.rbd_command(&format!("export --no-progress {spec} -")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// Writes into an image, with a difference of one extent.
fn write(world: &World, spec: &str, offset: u64, bytes: &[u8]) {
    let mut stream = b"rbd diff v1\nw".to_vec();
    stream.extend(offset.to_le_bytes());
    stream.extend((bytes.len() as u64).to_le_bytes());
    stream.extend(bytes);
    stream.push(b'e');
    let ran = world.rbd_piped(&format!("import-diff --no-progress - {spec}"), &stream);
    assert_eq!(ran.status, 0, "{}", ran.err);
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
    // What the kernel's driver cannot map is switched off, and a key of the image is set.
    let features = |line: &str| {
        let features = rbd.json(line)["features"].clone();
        features.as_array().unwrap().iter().map(|name| name.as_str().unwrap().to_string()).collect()
    };
    let before: Vec<String> = features("info vm-100-disk-0 --format json");
    assert!(before.iter().any(|name| name == "fast-diff"), "{before:?}");
    rbd.run("feature disable vm-100-disk-0 deep-flatten,fast-diff,object-map");
    let after: Vec<String> = features("info vm-100-disk-0 --format json");
    assert_eq!(after, ["layering", "exclusive-lock"]);
    rbd.run("feature enable vm-100-disk-0 object-map,fast-diff");
    rbd.run("config image set P/vm-100-disk-0 rbd_cache_policy writeback");
    assert_eq!(rbd.run("config image get P/vm-100-disk-0 rbd_cache_policy"), "writeback\n");
    // A template goes only after its clones.
    assert_eq!(rbd.status("snap unprotect base-1-disk-0 --snap __base__"), 16);
    rbd.all(&["snap purge vm-100-disk-0", "rm vm-100-disk-0"]);
    rbd.all(&["snap unprotect base-1-disk-0 --snap __base__", "snap purge base-1-disk-0"]);
    rbd.run("rm base-1-disk-0");
    assert_eq!(rbd.run("ls"), "");
}

/// Proxmox in a namespace of the pool.
#[test]
fn proxmox_with_a_namespace() {
    let world = world();
    world.silently(&["namespace create P/vms"]);
    let options = "-p P --namespace vms -c ceph.conf -m 10.0.0.1 --auth_supported none";
    let rbd = Program { world: &world, options };
    rbd.all(&[
        "create --image-format 2 --size 8 base-1-disk-0",
        "snap create --snap __base__ base-1-disk-0",
    ]);
    rbd.all(&[
        "snap protect base-1-disk-0 --snap __base__",
        "clone P/vms/base-1-disk-0 --snap __base__ P/vms/vm-1-disk-0",
    ]);
    let rows = rbd.json("ls -l --format json");
    let clone = rows.as_array().unwrap().iter().find(|row| row["image"] == "vm-1-disk-0").unwrap();
    assert_eq!(clone["parent"]["pool_namespace"], "vms");
    assert_eq!(rbd.json("info vm-1-disk-0 --format json")["parent"]["image"], "base-1-disk-0");
    assert_eq!(rbd.json("ls --format json").as_array().unwrap().len(), 2);
    rbd.all(&["rm vm-1-disk-0", "snap unprotect base-1-disk-0 --snap __base__"]);
    rbd.all(&["snap purge base-1-disk-0", "rm base-1-disk-0"]);
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

/// Incus moves a volume to another server: first its snapshots, one after the other, then what came later.
#[test]
fn incus_sends_a_volume_with_its_snapshots() {
    let world = world();
    world.silently(&["pool create Q", "import --no-progress disk.raw P/volume"]);
    let from = Program { world: &world, options: "--id admin --cluster ceph --pool P" };
    let to = Program { world: &world, options: "--id admin --cluster ceph --pool Q" };
    from.run("snap create --snap snapshot_1 volume");
    write(&world, "P/volume", MIB as u64, &noise(4096));
    from.run("snap create --snap snapshot_2 volume");
    to.run(&format!("create --image-feature layering --data-pool Q --size {}B volume", 2 * MIB));
    for (since, until) in [
        ("", "@snapshot_1"),
        ("--from-snap snapshot_1", "@snapshot_2"),
        ("--from-snap snapshot_2", ""),
    ] {
        let sent = format!("{} export-diff {since} volume{until} -", from.options);
        piped(&world, &sent, &format!("{} import-diff - volume", to.options));
    }
    assert_eq!(to.column("snap ls volume --format json", "name"), ["snapshot_1", "snapshot_2"]);
    for which in ["volume", "volume@snapshot_1", "volume@snapshot_2"] {
        assert!(
            content(&world, &format!("P/{which}")) == content(&world, &format!("Q/{which}")),
            "{which}"
        );
    }
    assert_eq!(from.run("ls"), "volume\n");
    to.all(&["snap purge volume", "rm volume"]);
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

/// OpenNebula's backups: a full one with its snapshot, increments, and an image that is restored from them.
#[test]
fn opennebula_backs_up_and_restores() {
    let world = world();
    let rbd = Program { world: &world, options: "--id admin --keyfile key --conf ceph.conf" };
    rbd.all(&["import --image-format 2 disk.raw P/one-7", "snap create P/one-7@one_backup_0"]);
    rbd.run("export --export-format 2 P/one-7@one_backup_0 full.rbd2");
    write(&world, "P/one-7", 0, &noise(8192));
    rbd.run("snap create P/one-7@one_backup_1");
    rbd.run("export-diff --from-snap one_backup_0 P/one-7@one_backup_1 one.rbdiff");
    rbd.run("snap rm P/one-7@one_backup_0");
    let full = std::fs::read(world.path("full.rbd2")).unwrap();
    let restore = format!("{} import --export-format 2 - P/one-8", rbd.options);
    assert_eq!(world.rbd_piped(&restore, &full).status, 0);
    let one = std::fs::read(world.path("one.rbdiff")).unwrap();
    assert_eq!(world.rbd_piped(&format!("{} import-diff - P/one-8", rbd.options), &one).status, 0);
    assert!(content(&world, "P/one-7") == content(&world, "P/one-8"));
    assert_eq!(
        rbd.column("snap ls P/one-8 --format json", "name"),
        ["one_backup_0", "one_backup_1"]
    );
    rbd.all(&["snap purge P/one-8", "rm P/one-8", "snap purge P/one-7", "rm P/one-7"]);
    assert_eq!(rbd.run("ls P"), "");
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

/// Cinder's backup driver: a backup image, and increments from the last snapshot.
#[test]
fn cinder_backs_up_by_differences() {
    let world = world();
    world.silently(&["pool create backups", "import --no-progress disk.raw P/volume-1"]);
    let who = "--id cinder --cluster ceph --conf ceph.conf";
    let rbd = Program { world: &world, options: "" };
    rbd.run(&format!("create --pool backups --size 2 volume-1.backup.base {who}"));
    let mut last: Option<String> = None;
    for round in 1..=3u64 {
        let snap = format!("backup.{round}.snap");
        rbd.run(&format!("snap create P/volume-1@{snap} {who}"));
        let since = last.as_ref().map_or(String::new(), |snap| format!("--from-snap {snap}"));
        let sent = format!("export-diff {who} {since} P/volume-1@{snap} -");
        piped(&world, &sent, &format!("import-diff {who} - backups/volume-1.backup.base"));
        let (kept, backup) =
            (format!("P/volume-1@{snap}"), format!("backups/volume-1.backup.base@{snap}"));
        assert!(content(&world, &kept) == content(&world, &backup), "{snap}");
        if let Some(last) = last.replace(snap) {
            rbd.run(&format!("snap rm P/volume-1@{last} {who}"));
        }
        write(&world, "P/volume-1", round * 65536, &noise(4096));
    }
    // Restore: the whole of a backup, and nobody has it open.
    rbd.run(&format!(
        "export --pool backups volume-1.backup.base@backup.2.snap restored.raw {who}"
    ));
    assert_eq!(std::fs::read(world.path("restored.raw")).unwrap().len(), 2 * MIB);
    let status =
        rbd.json(&format!("status --pool backups --format=json volume-1.backup.base {who}"));
    assert_eq!(status["watchers"], Value::Array(Vec::new()));
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
    for list in ["showmapped --format json", "device list --format=json --device-type krbd"] {
        assert_eq!(rbd.json(list), Value::Array(Vec::new()), "{list}");
    }
    assert_eq!(world.called("rbd-nbd", "list-mapped --format=json").out, "[]\n");
    assert_eq!(world.called("rados", "lspools").out, "P\nrbd\n");
}
