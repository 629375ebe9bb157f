//! RBD's streams: `export-diff`, `import-diff`, `merge-diff`, and images with their snapshots. The files in
//! `tests/streams` were written by `rbd` 16.2.15 from an image with objects of 64 KiB.
#![allow(missing_docs)]

mod common;

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use common::{Ran, World, noise, without_log};

const MIB: u64 = 1 << 20;

fn of_rbd(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/streams").join(name)
}

fn stream_of(world: &World, line: &str) -> Vec<u8> {
    let output = world.rbd_command(line).output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

fn import_of_rbd(world: &World, name: &str, image: &str) -> Ran {
    world.rbd(&format!("import-diff --no-progress {} {image}", of_rbd(name).display()))
}

/// A difference with these records after its banner.
fn difference(records: &[u8]) -> Vec<u8> {
    [b"rbd diff v1\n", records].concat()
}

fn to(name: &str) -> Vec<u8> {
    [b"t", &u32::try_from(name.len()).unwrap().to_le_bytes()[..], name.as_bytes()].concat()
}

fn size(bytes: u64) -> Vec<u8> {
    [b"s", &bytes.to_le_bytes()[..]].concat()
}

fn write(offset: u64, data: &[u8]) -> Vec<u8> {
    let length = data.len() as u64;
    [b"w", &offset.to_le_bytes()[..], &length.to_le_bytes(), data].concat()
}

fn zero(offset: u64, length: u64) -> Vec<u8> {
    [b"z", &offset.to_le_bytes()[..], &length.to_le_bytes()].concat()
}

#[test]
fn an_image_that_rbd_exported_is_exported_again_with_the_same_bytes() {
    let world = World::new();
    let whole = of_rbd("whole");
    world.silently(&[&format!("import --no-progress --export-format 2 {} a", whole.display())]);
    let snaps = world.rbd("snap ls a --format json").out;
    assert!(snaps.contains(r#""name":"s1","size":1048576,"protected":"true""#), "{snaps}");
    assert!(snaps.contains(r#""name":"s2","size":2097152,"protected":"false""#), "{snaps}");
    let again = stream_of(&world, "export --no-progress --export-format 2 a -");
    assert!(again == std::fs::read(&whole).unwrap());
    // The differences too, and what they make of another image.
    let differences = [
        ("to-s1", "export-diff --no-progress a@s1 -"),
        ("s1-to-s2", "export-diff --no-progress --from-snap s1 a@s2 -"),
        ("s2-to-head", "export-diff --no-progress --from-snap s2 a -"),
    ];
    world.silently(&["create b --size 1 --object-size 64K"]);
    for (name, line) in differences {
        assert!(stream_of(&world, line) == std::fs::read(of_rbd(name)).unwrap(), "{name}");
        assert_eq!(import_of_rbd(&world, name, "b"), common::prints(""));
    }
    for state in ["", "@s1", "@s2"] {
        let export = |image| stream_of(&world, &format!("export --no-progress {image}{state} -"));
        assert!(export("a") == export("b"), "{state}");
    }
}

#[test]
fn merging_gives_what_rbd_gives_and_what_both_differences_give() {
    let world = World::new();
    let (first, second) = (of_rbd("to-s1"), of_rbd("s1-to-s2"));
    let line = format!("merge-diff --no-progress {} {} merged", first.display(), second.display());
    world.silently(&[&line, "create a --size 1", "create b --size 1"]);
    let merged = std::fs::read(world.path("merged")).unwrap();
    assert!(merged == std::fs::read(of_rbd("merged")).unwrap());
    import_of_rbd(&world, "to-s1", "a");
    import_of_rbd(&world, "s1-to-s2", "a");
    world.silently(&["import-diff --no-progress merged b"]);
    let export = |image| stream_of(&world, &format!("export --no-progress {image} -"));
    assert!(export("a") == export("b"));
}

#[test]
fn a_file_that_is_cut_anywhere_changes_nothing() {
    let world = World::new();
    world.silently(&["create a --size 1"]);
    import_of_rbd(&world, "to-s1", "a");
    let before = stream_of(&world, "export --no-progress --export-format 2 a -");
    let whole = std::fs::read(of_rbd("s1-to-s2")).unwrap();
    let ends = [0, 5, 11, 12, 14, 19, 20, 25, 26, 30, 35, 36, 50, 52, 3000, 4148, 4149, 5000];
    for end in ends.into_iter().chain([whole.len() - 1]) {
        world.file("cut", &whole[..end]);
        let ran = world.rbd("import-diff --no-progress cut a");
        assert_eq!(ran.status, 74, "{end}: {ran:?}");
        let after = stream_of(&world, "export --no-progress --export-format 2 a -");
        assert!(before == after, "{end}");
    }
    assert_eq!(import_of_rbd(&world, "s1-to-s2", "a"), common::prints(""));
}

#[test]
fn a_pipe_that_breaks_leaves_an_image_that_nobody_else_uses_as_it_was() {
    let world = World::new();
    world.silently(&["create a --size 1", "create empty --size 3"]);
    import_of_rbd(&world, "to-s1", "a");
    let state = |image: &str| {
        stream_of(&world, &format!("export --no-progress --export-format 2 {image} -"))
    };
    let before = (state("a"), state("empty"));
    let whole = std::fs::read(of_rbd("s1-to-s2")).unwrap();
    let first = std::fs::read(of_rbd("to-s1")).unwrap();
    for end in [12, 30, 4149, 5000, whole.len() - 1] {
        let ran = world.rbd_piped("import-diff --no-progress - a", &whole[..end]);
        assert_eq!(ran.status, 74, "{end}: {ran:?}");
        assert!(!ran.err.contains("a part of"), "{end}: {ran:?}");
        assert!(before.0 == state("a"), "{end}");
        world.rbd_piped("import-diff --no-progress - empty", &first[..end]);
        assert!(before.1 == state("empty"), "{end}");
    }
    let ran = world.rbd_piped("import-diff --no-progress - a", &whole);
    assert_eq!(ran, common::prints(""));
}

#[test]
fn differences_come_through_fifos_also_where_the_writer_is_late_and_slow() {
    let world = World::new();
    world.silently(&["create a --size 1"]);
    let names = ["first", "second"].map(|name| world.path(name));
    assert!(std::process::Command::new("mkfifo").args(&names).status().unwrap().success());
    // The shell makes such pipes of `<(...)`.
    let read = |line: &str, sources: &[(&PathBuf, &str)]| {
        let mut command = world.rbd_command(line);
        let mut reader = command.stdin(std::process::Stdio::null()).spawn().unwrap();
        for (fifo, source) in sources {
            let mut open = std::fs::OpenOptions::new();
            open.write(true).custom_flags(libc::O_NONBLOCK);
            let mut opened = None;
            // This fails until the command has opened it.
            common::await_that("the pipe is read", || {
                assert_eq!(reader.try_wait().unwrap(), None, "{line}");
                opened = open.open(fifo).ok();
                opened.is_some()
            });
            let mut fifo = opened.unwrap();
            for part in std::fs::read(of_rbd(source)).unwrap().chunks(1000) {
                fifo.write_all(part).unwrap();
                std::thread::yield_now();
            }
        }
        assert!(reader.wait().unwrap().success(), "{line}");
    };
    read("import-diff --no-progress first a", &[(&names[0], "to-s1")]);
    let whole = stream_of(&world, "export-diff --no-progress a@s1 -");
    assert!(whole == std::fs::read(of_rbd("to-s1")).unwrap());
    std::fs::copy(of_rbd("to-s1"), world.path("file")).unwrap();
    read("merge-diff --no-progress file second merged", &[(&names[1], "s1-to-s2")]);
    let merged = std::fs::read(world.path("merged")).unwrap();
    assert!(merged == std::fs::read(of_rbd("merged")).unwrap());
}

#[test]
fn a_part_that_stays_in_an_image_is_told_of() {
    let world = World::new();
    world.silently(&["create a --size 1"]);
    import_of_rbd(&world, "to-s1", "a");
    // Now the image is not as the snapshot with which the difference begins.
    world.file("more", &difference(&[write(900_000, &[1; 100]), b"e".to_vec()].concat()));
    world.silently(&["import-diff --no-progress more a"]);
    let whole = std::fs::read(of_rbd("s1-to-s2")).unwrap();
    let ran = world.rbd_piped("import-diff --no-progress - a", &whole[..whole.len() - 1]);
    assert_eq!(ran.status, 74);
    assert!(ran.err.contains("the image has a part of the difference"), "{ran:?}");
    assert_eq!(without_log(ran).err.lines().count(), 2);
    // Importing the whole of it makes up for that.
    assert_eq!(world.rbd_piped("import-diff --no-progress - a", &whole), common::prints(""));
}

#[test]
fn an_import_that_is_cut_anywhere_leaves_no_image() {
    let world = World::new();
    let whole = std::fs::read(of_rbd("whole")).unwrap();
    let some = (0..whole.len()).step_by(997);
    for end in some.chain([13, 22, 40, 60, 75, 110, 135, 150, 170, whole.len() - 1]) {
        if end == 0 {
            continue;
        }
        world.file("cut", &whole[..end]);
        let ran = world.rbd("import --no-progress --export-format 2 cut a");
        assert_eq!(ran.status, 33, "{end}: {ran:?}");
        let ran = world.rbd_piped("import --no-progress --export-format 2 - a", &whole[..end]);
        assert_eq!(ran.status, 33, "{end}: {ran:?}");
    }
    assert_eq!(world.rbd("ls"), common::prints(""));
    let pool = marcot::Store::open(&world.path("store")).unwrap().pool("rbd").unwrap();
    assert_eq!(pool.image_names(&marcot::Namespace::DEFAULT).unwrap(), [""; 0]);
}

#[test]
fn an_export_that_fails_leaves_no_file() {
    let world = World::new();
    world.silently(&["create a --size 1"]);
    import_of_rbd(&world, "to-s1", "a");
    import_of_rbd(&world, "s1-to-s2", "a");
    for line in ["export-diff --from-snap nosuch a x", "export-diff --from-snap s2 a@s1 x"] {
        assert_ne!(world.rbd(line).status, 0);
        let left: Vec<_> = std::fs::read_dir(world.path("")).unwrap().collect();
        assert!(left.iter().all(|entry| {
            let name = entry.as_ref().unwrap().file_name();
            name == "rbd" || name == "store"
        }));
    }
}

#[test]
fn random_histories_survive_the_way_through_streams() {
    let world = World::new();
    let mut random = fastrand::Rng::with_seed(
        std::env::var("MARCOT_TEST_SEED").map_or(7, |seed| seed.parse().expect("a seed")),
    );
    world.silently(&["create a --size 4", "create b --size 4", "create c --size 4"]);
    let (mut last, mut size_bytes) = (None::<String>, 4 * MIB);
    let mut merged = None::<PathBuf>;
    for round in 0..8 {
        let name = format!("s{round}");
        let mut records = to(&name);
        if random.u8(..) < 80 {
            size_bytes = random.u64(1..12) * MIB - random.u64(0..3) * 512;
        }
        records.extend(size(size_bytes));
        for _ in 0..random.usize(0..6) {
            let offset = random.u64(0..size_bytes);
            let length = random.u64(1..200_000).min(size_bytes - offset);
            match random.u8(0..3) {
                0 => records.extend(zero(offset, length)),
                _ => records.extend(write(offset, &noise(length as usize))),
            }
        }
        records.push(b'e');
        world.file("made", &difference(&records));
        world.silently(&["import-diff --no-progress made a"]);
        let since = last.iter().map(|s| format!("--from-snap {s} ")).collect::<String>();
        let objects = if random.bool() { "--whole-object " } else { "" };
        let path = world.path(&format!("d{round}"));
        world.silently(&[
            &format!("export-diff --no-progress {since}{objects}a@{name} {}", path.display()),
            &format!("import-diff --no-progress {} b", path.display()),
        ]);
        merged = Some(match merged {
            None => path,
            Some(before) => {
                let after = world.path(&format!("m{round}"));
                world.silently(&[&format!(
                    "merge-diff --no-progress {} {} {}",
                    before.display(),
                    path.display(),
                    after.display()
                )]);
                after
            }
        });
        last = Some(name);
    }
    let all = merged.unwrap();
    world.silently(&[
        &format!("import-diff --no-progress {} c", all.display()),
        "export --no-progress --export-format 2 a whole",
        "import --no-progress --export-format 2 whole d",
    ]);
    let export = |image: &str| stream_of(&world, &format!("export --no-progress {image} -"));
    assert!(export("a") == export("c"));
    for round in 0..8 {
        let state = |image: &str| export(&format!("{image}@s{round}"));
        assert!(state("a") == state("b") && state("a") == state("d"), "s{round}");
    }
}
