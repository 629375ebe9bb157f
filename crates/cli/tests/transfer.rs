//! Import, export and copy: sparse, and complete or not at all.
#![allow(missing_docs)]

mod common;

use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::process::Stdio;
use std::time::Duration;

use common::{World, await_that, noise, prints, says, without_log};

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
        without_log(world.rbd("import f i")),
        says(
            "rbd: image creation failed\n\rImporting image: 0% complete...failed.\n\
             rbd: import failed: (17) File exists\n",
            17
        )
    );
    assert_eq!(
        without_log(world.rbd("export i f")),
        says("rbd: export error: (17) File exists\n", 17)
    );
    assert_eq!(
        without_log(world.rbd("export i nodir/f")),
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

/// Waits until the pool has `count` images, including incomplete ones.
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

/// Waits for the end of a process that should end soon. Returns the status that a shell would give it.
fn status_soon(child: &mut std::process::Child) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code().unwrap_or_else(|| 128 + status.signal().unwrap());
        }
        if std::time::Instant::now() > deadline {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("it goes on");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn an_export_into_a_pipe_that_nobody_reads_is_ended_by_a_signal() {
    use rustix::process::Signal;
    let world = World::new();
    world.file("f", &noise(4 * MIB));
    world.silently(&["import --no-progress f i", "create -s 1G hole"]);
    for (image, signal, status) in
        [("i", Signal::INT, 130), ("i", Signal::TERM, 143), ("hole", Signal::TERM, 143)]
    {
        let line = format!("export --no-progress {image} -");
        let mut export = world.rbd_command(&line).stdout(Stdio::piped()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(500));
        let pid = rustix::process::Pid::from_child(&export);
        rustix::process::kill_process(pid, signal).unwrap();
        assert_eq!(status_soon(&mut export), status, "{image} {signal:?}");
    }
}

#[test]
fn an_export_that_is_stuck_is_ended_and_its_file_removed() {
    let world = World::new();
    world.file("f", &noise(MIB));
    world.silently(&["import --no-progress f i"]);
    // Its partial file is a FIFO that nobody opens for reading. So is the one that a later run could go on with.
    let line =
        "mkfifo .out.marcot-partial .out.marcot-partial.$$; exec ./rbd export --no-progress i out";
    let mut export = std::process::Command::new("sh")
        .args(["-c", line])
        .current_dir(world.path(""))
        .env("MARCOT_STORE", world.path("store"))
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_millis(300));
    let pid = rustix::process::Pid::from_child(&export);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert_eq!(status_soon(&mut export), 143);
    let partial = world.path(&format!(".out.marcot-partial.{}", export.id()));
    assert!(partial.symlink_metadata().is_err());
}

/// Runs a shell command line in the world's directory.
fn shell(world: &World, line: &str) -> (i32, String) {
    let ran = std::process::Command::new("sh")
        .args(["-c", line])
        .current_dir(world.path(""))
        .env("MARCOT_STORE", world.path("store"))
        .output()
        .unwrap();
    (ran.status.code().unwrap_or(-1), String::from_utf8_lossy(&ran.stderr).into_owned())
}

#[test]
fn standard_input_and_output_that_are_closed_are_no_success() {
    let world = World::new();
    world.file("f", &noise(MIB));
    world.silently(&["import --no-progress f i"]);
    let (status, said) = shell(&world, "./rbd export --no-progress i - >&-");
    assert_eq!(status, 9, "{said}");
    assert!(said.contains("standard output is closed"), "{said}");
    let (status, said) = shell(&world, "./rbd import --no-progress - j <&-");
    assert_eq!(status, 9, "{said}");
    assert!(said.contains("standard input is closed"), "{said}");
    assert_eq!(shell(&world, "./rbd ls >&-").0, 9);
    assert_eq!(shell(&world, "./rbd ls >/dev/full").0, 28);
    assert_eq!(shell(&world, "./rbd export --no-progress i - >/dev/full").0, 28);
    assert_eq!(shell(&world, "./rbd ls >/dev/null"), (0, String::new()));
    assert_eq!(shell(&world, "./rbd export --no-progress i - >/dev/null"), (0, String::new()));
    // With all three closed, no file that is opened gets one of their numbers.
    assert_eq!(shell(&world, "./rbd export --no-progress i out <&- >&- 2>&-").0, 0);
    assert!(std::fs::read(world.path("out")).unwrap() == noise(MIB));
    assert_eq!(shell(&world, "./rbd create -s 1M k <&- >&- 2>&-").0, 0);
    assert_eq!(world.rbd("ls"), prints("i\nk\n"));
    // The reader of the pipe has ended.
    let (status, said) = shell(&world, "{ ./rbd help; echo $? >&2; } | true");
    assert!(status == 0 && matches!(said.as_str(), "0\n" | "141\n"), "{said}");
}

#[test]
fn holes_cost_nothing_however_large_the_image_and_small_its_objects() {
    let world = World::new();
    let block = noise(4096);
    let sparse = std::fs::File::create(world.path("f")).unwrap();
    sparse.set_len(8 << 40).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, &block, 4 << 40).unwrap();
    world.silently(&[
        "import --no-progress --object-size 4K f i",
        "cp --no-progress i j",
        "export --no-progress j out",
    ]);
    let (status, said) = shell(&world, "./rbd export --no-progress i - >piped");
    assert_eq!((status, said.as_str()), (0, ""));
    for name in ["out", "piped"] {
        let file = std::fs::File::open(world.path(name)).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 8 << 40, "{name}");
        assert!(file.metadata().unwrap().blocks() * 512 <= MIB as u64, "{name}");
        let mut back = vec![0; 4096];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut back, 4 << 40).unwrap();
        assert!(back == block, "{name}");
    }
    // After existing content of a file, and over it.
    world.silently(&["create -s 1M hole"]);
    let (status, said) = shell(&world, "{ printf ab; ./rbd export --no-progress hole -; } >behind");
    assert_eq!((status, said.as_str()), (0, ""));
    let behind = std::fs::read(world.path("behind")).unwrap();
    assert!(behind.len() == MIB + 2 && behind.starts_with(b"ab\0"));
    world.file("over", &noise(2 * MIB));
    let (status, said) = shell(&world, "./rbd export --no-progress hole - 1<>over");
    assert_eq!((status, said.as_str()), (0, ""));
    let over = std::fs::read(world.path("over")).unwrap();
    assert!(over[..MIB].iter().all(|byte| *byte == 0) && over[MIB..] == noise(2 * MIB)[MIB..]);
}

#[test]
fn a_thick_image_has_all_its_space_and_reads_as_zeros() {
    let world = World::new();
    let stored = || {
        let store = marcot::Store::open(&world.path("store")).unwrap();
        store.pool_stats(&store.pool("rbd").unwrap()).unwrap().allocated_bytes
    };
    let ran = world.rbd("create a --size 20M --thick-provision");
    let lines: String = (20..=100)
        .step_by(20)
        .map(|percent| format!("\rThick provisioning: {percent}% complete..."))
        .collect();
    assert_eq!(ran, says(&format!("{lines}\rThick provisioning: 100% complete...done.\n"), 0));
    assert!(stored() >= 20 << 20, "{}", stored());
    assert_eq!(world.rbd("du a"), prints("NAME  PROVISIONED  USED  \na          20 MiB  20 MiB\n"));
    let zeros = world.rbd_command("export --no-progress a -").output().unwrap().stdout;
    assert!(zeros.len() == 20 * MIB && zeros.iter().all(|byte| *byte == 0));
}
