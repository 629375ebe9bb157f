//! Import, export and copy: sparse, whole or not at all.
#![allow(missing_docs)]

mod common;

use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::process::Stdio;

use common::{World, await_that, noise, prints, says};

const MIB: usize = 1 << 20;

#[test]
fn progress_counts_objects_as_rbd_does() {
    let world = World::new();
    world.file("f8", &noise(8 * MIB));
    let twice =
        |label: &str| format!("\r{label}: 50% complete...\r{label}: 100% complete...done.\n");
    assert_eq!(world.rbd("import f8 i"), says(&twice("Importing image"), 0));
    assert_eq!(world.rbd("export i o"), says(&twice("Exporting image"), 0));
    assert_eq!(
        world.rbd("cp i j").err,
        "\rImage copy: 50% complete...\rImage copy: 100% complete...\r\
         Image copy: 100% complete...done.\n"
    );
    assert_eq!(world.rbd("rm j"), says(&twice("Removing image"), 0));
}

#[test]
fn odd_sizes_and_pipes_keep_every_byte() {
    let world = World::new();
    let bytes = noise(5_000_001);
    world.file("odd", &bytes);
    let ran = world.rbd_with_input("import - piped", &world.path("odd"));
    assert_eq!(ran, says("\rImporting image: 100% complete...done.\n", 0));
    world.silently(&["cp --no-progress piped copied", "export --no-progress copied back"]);
    assert!(std::fs::read(world.path("back")).unwrap() == bytes);
    let streamed = world.rbd_command("export --no-progress copied -").output().unwrap();
    assert!(streamed.stdout == bytes);
}

#[test]
fn zeros_take_no_space_on_either_side() {
    let world = World::new();
    let mut bytes = vec![0; 64 * MIB];
    bytes[20 * MIB..20 * MIB + 4096].copy_from_slice(&noise(4096));
    world.file("sparse", &bytes);
    world.silently(&["import --no-progress sparse i", "export --no-progress i out"]);
    assert_eq!(world.rbd("du i"), prints("NAME  PROVISIONED  USED \ni          64 MiB  4 KiB\n"));
    let exported = std::fs::metadata(world.path("out")).unwrap();
    assert_eq!((exported.len(), exported.mode() & 0o777), (64 << 20, 0o644));
    assert!(exported.blocks() * 512 <= MIB as u64, "{} blocks", exported.blocks());
    assert!(std::fs::read(world.path("out")).unwrap() == bytes);
}

#[test]
fn what_exists_is_never_overwritten() {
    let world = World::new();
    world.file("f", &noise(MIB));
    world.silently(&["import --no-progress f i"]);
    assert_eq!(
        world.rbd("import f i"),
        says(
            "rbd: image creation failed\n\rImporting image: 0% complete...failed.\n\
             rbd: import failed: (17) File exists\n",
            17
        )
    );
    assert_eq!(world.rbd("export i f"), says("rbd: export error: (17) File exists\n", 17));
    assert_eq!(
        world.rbd("export i nodir/f"),
        says("rbd: export error: (2) No such file or directory\n", 2)
    );
    assert_eq!(world.rbd("ls"), prints("i\n"));
}

#[test]
fn bad_files_are_refused_in_rbds_words() {
    let world = World::new();
    world.file("empty", b"");
    std::fs::create_dir(world.path("dir")).unwrap();
    assert_eq!(
        world.rbd("import nosuch i"),
        says("rbd: error opening nosuch\nrbd: import failed: (2) No such file or directory\n", 2)
    );
    assert_eq!(world.rbd("import dir i").status, 21);
    assert_eq!(world.rbd("import empty i").status, 25);
    assert_eq!(world.rbd("ls"), prints(""));
}

/// Waits until the pool has so many images, with those that are not whole yet.
fn await_images(world: &World, count: usize) {
    let first = format!("Total Images: {count}\n");
    await_that(&first, || world.rbd("pool stats").out.starts_with(&first));
}

#[test]
fn an_interrupted_import_leaves_nothing() {
    let world = World::new();
    let mut import = world
        .rbd_command("import --no-progress - i")
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = import.stdin.take().unwrap();
    input.write_all(&noise(12 * MIB)).unwrap();
    await_images(&world, 1);
    assert_eq!(world.rbd("ls"), prints(""), "a partial image must not be listed");
    let pid = rustix::process::Pid::from_child(&import);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let ended = import.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(130), "{}", String::from_utf8_lossy(&ended.stderr));
    drop(input);
    assert!(world.rbd("pool stats").out.starts_with("Total Images: 0\n"));
}

#[test]
fn what_a_killed_import_left_goes_with_the_next() {
    let world = World::new();
    let mut import =
        world.rbd_command("import --no-progress - i").stdin(Stdio::piped()).spawn().unwrap();
    let mut input = import.stdin.take().unwrap();
    input.write_all(&noise(8 * MIB)).unwrap();
    await_images(&world, 1);
    import.kill().unwrap();
    import.wait().unwrap();
    assert!(world.rbd("pool stats").out.starts_with("Total Images: 1\n"));
    world.file("f", &noise(MIB));
    world.silently(&["import --no-progress f j"]);
    assert_eq!(world.rbd("ls"), prints("j\n"));
    assert!(world.rbd("pool stats").out.starts_with("Total Images: 1\n"));
}
