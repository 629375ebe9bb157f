//! Disks of other programs: what `qemu-img` makes is imported as it is, or not at all.
#![allow(missing_docs)]

mod common;

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::{World, noise, prints, without_log};

const MIB: usize = 1 << 20;

fn run(program: &str, world: &World, line: &str) {
    let mut command = Command::new(program);
    command.args(line.split_whitespace()).current_dir(world.path("."));
    let output = command.output().unwrap_or_else(|error| panic!("{program}: {error}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {line}: {said}");
}

fn qemu_img(world: &World, line: &str) {
    run("qemu-img", world, line);
}

fn qemu_io(world: &World, file: &str, commands: &[&str]) {
    let mut command = Command::new("qemu-io");
    command.current_dir(world.path(".")).args(["-f", "qcow2", "-d", "unmap", file]);
    for line in commands {
        command.args(["-c", line]);
    }
    assert!(command.output().unwrap().status.success(), "{commands:?}");
}

/// The content of an image or snapshot.
fn content(world: &World, image: &str) -> Vec<u8> {
    let output = world.rbd_command(&format!("export --no-progress {image} -")).output().unwrap();
    assert!(output.status.success(), "{image}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap()
}

/// A disk of 24 MiB with data at three places.
fn disk(world: &World) -> Vec<u8> {
    let mut bytes = vec![0; 24 * MIB];
    for at in [0, 5 * MIB + 12288, 24 * MIB - 4096] {
        bytes[at..at + 4096].copy_from_slice(&noise(4096));
    }
    world.file("disk.raw", &bytes);
    bytes
}

const FORMATS: &[(&str, &str, &str)] = &[
    ("d.qcow2", "qcow2", "compat=1.1"),
    ("old.qcow2", "qcow2", "compat=0.10"),
    ("d.vmdk", "vmdk", "subformat=monolithicSparse"),
    ("stream.vmdk", "vmdk", "subformat=streamOptimized"),
    ("d.vhd", "vpc", "subformat=dynamic,force_size=on"),
    ("fixed.vhd", "vpc", "subformat=fixed,force_size=on"),
    ("d.vhdx", "vhdx", "subformat=dynamic"),
];

fn make(world: &World) -> Vec<u8> {
    let bytes = disk(world);
    for (name, format, options) in FORMATS {
        qemu_img(world, &format!("convert -f raw -O {format} -o {options} disk.raw {name}"));
    }
    bytes
}

#[test]
fn every_format_is_told_by_its_content_and_takes_the_space_of_its_data() {
    let world = World::new();
    let bytes = make(&world);
    for (name, ..) in FORMATS {
        world.silently(&[&format!("import --no-progress {name} i")]);
        assert!(content(&world, "i") == bytes, "{name}");
        assert_eq!(
            world.rbd("du i").out,
            "NAME  PROVISIONED  USED  \ni          24 MiB  12 KiB\n",
            "{name}"
        );
        world.silently(&["rm --no-progress i"]);
    }
}

#[test]
fn packed_files_are_unpacked() {
    let world = World::new();
    let bytes = make(&world);
    let names = FORMATS.iter().map(|(name, ..)| *name).chain(["disk.raw"]);
    for name in names {
        for (program, ending) in [("gzip", "gz"), ("xz", "xz"), ("zstd", "zst")] {
            run(program, &world, &format!("-q -k -f -1 {name}"));
            world.silently(&[&format!("import --no-progress {name}.{ending} i")]);
            assert!(content(&world, "i") == bytes, "{name}.{ending}");
            world.silently(&["rm --no-progress i"]);
        }
    }
    // Several streams in one file, as parallel packers write them.
    let twice = [read(&world.path("disk.raw.zst")), read(&world.path("disk.raw.zst"))].concat();
    world.file("twice.zst", &twice);
    world.silently(&["import --no-progress twice.zst i"]);
    assert!(content(&world, "i") == [&bytes[..], &bytes[..]].concat());
}

#[test]
fn pipes_are_taken_as_they_are_unless_a_format_is_named() {
    let world = World::new();
    let bytes = make(&world);
    let import = |line: &str, file: &str| {
        let ran = world.rbd_piped(line, &read(&world.path(file)));
        assert_eq!((ran.status, ran.err.as_str()), (0, ""), "{line} < {file}");
    };
    import("import --no-progress - plain", "d.qcow2");
    assert!(content(&world, "plain") == read(&world.path("d.qcow2")));
    run("gzip", &world, "-k d.vmdk");
    for (n, (format, file)) in
        [("qcow2", "d.qcow2"), ("auto", "d.vhdx"), ("auto", "d.vmdk.gz"), ("vhd", "fixed.vhd")]
            .into_iter()
            .enumerate()
    {
        import(&format!("import --no-progress --source-format {format} - i{n}"), file);
        assert!(content(&world, &format!("i{n}")) == bytes, "{format} {file}");
    }
    world.silently(&["import --no-progress --source-format raw d.vhd raw"]);
    assert!(content(&world, "raw") == read(&world.path("d.vhd")));
    // The name says that it is a disk, whatever its first bytes look like.
    std::fs::copy(world.path("d.qcow2"), world.path("odd.raw")).unwrap();
    world.silently(&["import --no-progress odd.raw odd"]);
    assert!(content(&world, "odd") == read(&world.path("d.qcow2")));
}

#[test]
fn internal_snapshots_become_snapshots() {
    let world = World::new();
    qemu_img(&world, "create -q -f qcow2 s.qcow2 24M");
    let mut states = Vec::new();
    let steps: [(&str, &[&str]); 3] = [
        ("one", &["write -P 1 0 8M"]),
        ("two", &["write -P 2 1M 64k", "discard 2M 1M", "write -P 0 3M 64k"]),
        ("three", &["write -P 3 20M 64k", "write -P 1 2M 4k"]),
    ];
    for (name, commands) in steps {
        qemu_io(&world, "s.qcow2", commands);
        qemu_img(&world, &format!("snapshot -c {name} s.qcow2"));
        states.push(name);
    }
    qemu_img(&world, "resize -q s.qcow2 32M");
    qemu_io(&world, "s.qcow2", &["write -P 4 30M 1M", "discard 0 64k"]);
    world.silently(&["import --no-progress s.qcow2 i"]);
    for name in states {
        qemu_img(&world, &format!("convert -l {name} -f qcow2 -O raw s.qcow2 back"));
        // QEMU shows old states with the size of the present one.
        let wanted = read(&world.path("back"));
        assert!(content(&world, &format!("i@{name}")) == wanted[..24 * MIB], "{name}");
    }
    qemu_img(&world, "convert -f qcow2 -O raw s.qcow2 back");
    assert!(content(&world, "i") == read(&world.path("back")));
    let usage = world.rbd("du i").out;
    let used: Vec<_> = usage
        .lines()
        .skip(1)
        .map(|line| line.split_whitespace().collect::<Vec<_>>()[3..].join(" "))
        .collect();
    // What a state has changed, and no more. Without the zeros.
    assert_eq!(used, ["8 MiB", "64 KiB", "68 KiB", "1 MiB", "9.1 MiB"], "{usage}");
}

#[test]
fn a_chain_is_followed_in_the_directory_that_is_named() {
    let world = World::new();
    std::fs::create_dir(world.path("images")).unwrap();
    qemu_img(&world, "create -q -f qcow2 images/base.qcow2 8M");
    qemu_io(&world, "images/base.qcow2", &["write -P 1 0 4M"]);
    qemu_img(&world, "create -q -f qcow2 -F qcow2 -b base.qcow2 images/top.qcow2 16M");
    qemu_io(&world, "images/top.qcow2", &["write -P 2 1M 64k", "write -P 3 12M 64k"]);
    qemu_img(&world, "convert -f qcow2 -O raw images/top.qcow2 back");
    let refused = world.marcot("import --no-progress images/top.qcow2 i");
    assert_eq!(
        (refused.err.as_str(), refused.status),
        (
            "marcot: 'images/top.qcow2': it needs the file 'base.qcow2', and no directory is allowed from which \
             other files are read; --backing-dir names a directory where they may lie\n\
             marcot: import failed: (13) Permission denied\n",
            13
        )
    );
    assert_eq!(world.rbd("ls"), prints(""));
    world.silently(&["import --no-progress --backing-dir images images/top.qcow2 i"]);
    assert!(content(&world, "i") == read(&world.path("back")));
    // Not from another directory.
    std::fs::create_dir(world.path("other")).unwrap();
    let refused = world.rbd("import --no-progress --backing-dir other images/top.qcow2 j");
    assert_eq!(refused.status, 13, "{}", refused.err);
}

#[test]
fn a_disk_that_is_cut_off_or_damaged_leaves_nothing() {
    let world = World::new();
    make(&world);
    for (name, ..) in FORMATS {
        run("gzip", &world, &format!("-k {name}"));
        run("xz", &world, &format!("-k {name}"));
        run("zstd", &world, &format!("-q -k {name}"));
        for (ending, status) in [("", 5), (".gz", 5), (".xz", 5), (".zst", 5)] {
            let whole = read(&world.path(&format!("{name}{ending}")));
            // Behind the first tables, and before the data at the end.
            let cut = match ending {
                "" if *name != "stream.vmdk" => whole.len() - 2049,
                _ => whole.len() / 2,
            };
            let file = format!("cut-{name}{ending}");
            world.file(&file, &whole[..cut]);
            let format = if name.starts_with("fixed") { "--source-format vhd" } else { "" };
            let ran = world.marcot(&format!("import --no-progress {format} {file} i"));
            let status = if name.starts_with("fixed") && ending.is_empty() { 22 } else { status };
            assert_eq!(ran.status, status, "{file}: {}", ran.err);
            assert_eq!(ran.err.lines().count(), 2, "{}", ran.err);
            assert!(ran.err.contains(&file), "{}", ran.err);
            assert!(world.rbd("pool stats").out.starts_with("Total Images: 0\n"), "{file}");
        }
    }
    // The checksum of a packed stream is verified to the end.
    world.file("noise", &noise(MIB));
    for (program, ending) in [("zstd", "zst"), ("xz", "xz"), ("gzip", "gz")] {
        run(program, &world, "-q -k noise");
        let mut whole = read(&world.path(&format!("noise.{ending}")));
        let at = whole.len() / 2;
        whole[at] ^= 4;
        world.file(&format!("flipped.{ending}"), &whole);
        let ran = without_log(world.rbd(&format!("import --no-progress flipped.{ending} i")));
        assert_eq!(ran.status, 5, "{ending}: {}", ran.err);
    }
    assert!(world.rbd("pool stats").out.starts_with("Total Images: 0\n"));
}

#[test]
fn what_is_not_read_says_what_helps() {
    let world = World::new();
    disk(&world);
    qemu_img(
        &world,
        "convert -f raw -O vmdk -o subformat=twoGbMaxExtentSparse disk.raw split.vmdk",
    );
    qemu_img(&world, "create -q -f vpc d.vhd 8M");
    world.file("plain", &noise(MIB));
    for (line, status, says) in [
        ("import split.vmdk i", 95, "'qemu-img convert'"),
        ("import --source-format qcow2 d.vhd i", 22, "it is no qcow2 image"),
        ("import --source-format vhdx plain i", 22, "it is no VHDX disk"),
        ("import --source-format vmdk plain i", 22, "it is no VMDK disk"),
        ("import --source-format vhd plain i", 22, "it is no VHD disk"),
        ("import --backing-dir nosuch d.vhd i", 2, "'nosuch'"),
    ] {
        let ran = world.marcot(line);
        assert_eq!(ran.status, status, "{line}: {}", ran.err);
        assert!(ran.err.contains(says), "{line}: {}", ran.err);
    }
    assert_eq!(world.rbd("ls"), prints(""));
}

/// What `qemu-img check` says of a clean image, and its content.
fn assert_clean(world: &World, file: &str, bytes: &[u8]) {
    qemu_img(world, &format!("check -q -f qcow2 {file}"));
    let wanted = world.file("wanted.raw", bytes);
    qemu_img(world, &format!("compare -f qcow2 -F raw {file} {wanted}"));
}

#[test]
fn an_image_is_exported_as_a_clean_qcow2_and_keeps_its_holes() {
    let world = World::new();
    let bytes = disk(&world);
    world.silently(&[
        "import --no-progress disk.raw i",
        "snap create --no-progress i@s",
        "export --no-progress --export-format qcow2 i i.qcow2",
    ]);
    assert_clean(&world, "i.qcow2", &bytes);
    // A header, four tables, and three clusters of 64 KiB.
    assert_eq!(read(&world.path("i.qcow2")).len(), 8 << 16);
    // To a pipe: the same bytes. And back.
    let line = "export --no-progress --export-format qcow2 i@s -";
    let piped = world.rbd_command(line).output().unwrap().stdout;
    assert!(piped == read(&world.path("i.qcow2")));
    world.silently(&["import --no-progress i.qcow2 back"]);
    assert!(content(&world, "back") == bytes);
    // What exists is not overwritten, and a size may be odd.
    assert_eq!(world.rbd("export --export-format qcow2 i i.qcow2").status, 17);
    let odd = noise(5 * MIB + 1536);
    world.file("odd", &odd);
    world.silently(&[
        "import --no-progress odd o",
        "export --no-progress --export-format qcow2 o o.qcow2",
    ]);
    assert_clean(&world, "o.qcow2", &odd);
    assert!(world.rbd("export --export-format qcow3 o x").status != 0);
}

#[test]
fn a_large_image_with_scattered_data_is_exported_by_what_it_holds() {
    let world = World::new();
    world.silently(&["create --size 2T big"]);
    let file = std::fs::File::create(world.path("sparse.raw")).unwrap();
    file.set_len(3 << 40).unwrap();
    for n in 0..40_u64 {
        use std::os::unix::fs::FileExt;
        file.write_all_at(&noise(4096), n * (70 << 30) + n * 4096).unwrap();
    }
    world.silently(&[
        "import --no-progress sparse.raw i",
        "export --no-progress --export-format qcow2 i i.qcow2",
        "export --no-progress --export-format qcow2 big big.qcow2",
    ]);
    qemu_img(&world, "check -q -f qcow2 i.qcow2");
    qemu_img(&world, "check -q -f qcow2 big.qcow2");
    qemu_img(&world, "compare -f qcow2 -F raw i.qcow2 sparse.raw");
    assert!(std::fs::metadata(world.path("i.qcow2")).unwrap().len() < 16 << 20);
}

/// A server that ends with the test.
struct Nbd(std::process::Child);

impl Drop for Nbd {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn qemu_nbd(world: &World, format: &str, file: &str) -> Nbd {
    let socket = world.path("nbd.sock");
    let _ = std::fs::remove_file(&socket);
    let mut command = Command::new("qemu-nbd");
    command.current_dir(world.path(".")).args(["-r", "-t", "-f", format, "-x", "the disk", "-k"]);
    let server = Nbd(command.arg(&socket).arg(file).spawn().unwrap());
    common::await_that("qemu-nbd listens", || {
        std::os::unix::net::UnixStream::connect(&socket).is_ok()
    });
    server
}

#[test]
fn an_nbd_export_is_imported_and_its_holes_stay_holes() {
    let world = World::new();
    let bytes = make(&world);
    let url = format!("nbd+unix:///the%20disk?socket={}", world.path("nbd.sock").display());
    let server = qemu_nbd(&world, "qcow2", "d.qcow2");
    world.silently(&[&format!("import --no-progress {url} i")]);
    assert!(content(&world, "i") == bytes);
    assert_eq!(world.rbd("du i").out, "NAME  PROVISIONED  USED  \ni          24 MiB  12 KiB\n");
    let other = world.rbd(&format!("import --no-progress {} j", url.replace("the%20", "no%20")));
    assert_eq!(other.status, 2, "{}", other.err);
    drop(server);
    // What an export holds is taken as it is, unless a format is named.
    let _server = qemu_nbd(&world, "raw", "d.vhdx");
    world.silently(&[
        &format!("import --no-progress {url} plain"),
        &format!("import --no-progress --source-format vhdx {url} disk"),
    ]);
    assert!(content(&world, "plain") == read(&world.path("d.vhdx")));
    assert!(content(&world, "disk") == bytes);
}

/// A way to a server by TCP on which each connection breaks after so many bytes. Returns its port, and a count of the
/// connections.
fn breaking_way(to: std::path::PathBuf, bytes_max: usize) -> (u16, Arc<AtomicUsize>) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let count: Arc<AtomicUsize> = Arc::default();
    let connections = Arc::clone(&count);
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let mut client = client.unwrap();
            connections.fetch_add(1, Ordering::Relaxed);
            let Ok(mut server) = UnixStream::connect(&to) else { return };
            let (mut asks, mut is_asked) =
                (client.try_clone().unwrap(), server.try_clone().unwrap());
            std::thread::spawn(move || std::io::copy(&mut asks, &mut is_asked));
            std::thread::spawn(move || {
                let mut answers = (&mut server).take(bytes_max as u64);
                let _ = std::io::copy(&mut answers, &mut client);
                let _ = client.shutdown(std::net::Shutdown::Both);
                let _ = server.shutdown(std::net::Shutdown::Both);
            });
        }
    });
    (port, count)
}

#[test]
fn a_connection_by_tcp_that_breaks_is_taken_up_again() {
    let world = World::new();
    let mut bytes = vec![0; 24 * MIB];
    bytes[MIB..20 * MIB].copy_from_slice(&noise(19 * MIB));
    world.file("noise.raw", &bytes);
    let _server = qemu_nbd(&world, "raw", "noise.raw");
    // Each connection brings one request of 4 MiB, and the start of another one.
    let (port, connections) = breaking_way(world.path("nbd.sock"), 6 * MIB);
    world.silently(&[&format!("import --no-progress nbd://127.0.0.1:{port}/the%20disk i")]);
    assert!(content(&world, "i") == bytes);
    assert!(connections.load(Ordering::Relaxed) > 2);
    // Where no connection brings anything, there is no image.
    let (port, connections) = breaking_way(world.path("nbd.sock"), 64 << 10);
    let refused = world.rbd(&format!("import --no-progress nbd://127.0.0.1:{port}/the%20disk j"));
    assert_eq!(refused.status, 5, "{}", refused.err);
    assert!(connections.load(Ordering::Relaxed) > 2);
    assert_eq!(world.rbd("ls").out, "i\n");
}

#[test]
fn a_server_of_nonsense_and_none_at_all_end_in_a_sentence() {
    use std::io::{Read, Write};
    let world = World::new();
    let socket = world.path("s");
    let url = format!("nbd+unix:///x?socket={}", socket.display());
    let none = world.marcot(&format!("import --no-progress {url} i"));
    assert_eq!((none.status, none.err.lines().count()), (2, 2), "{}", none.err);
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let hello = [&b"NBDMAGIC"[..], b"IHAVEOPT", &[0, 3]].concat();
    let reply = |option: u32, kind: u32, length: u32, data: &[u8]| {
        let head = [option, kind, length].map(u32::to_be_bytes).concat();
        [&0x0003_e889_0455_65a9_u64.to_be_bytes()[..], &head, data].concat()
    };
    let answers = [
        b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(),
        hello.clone(),
        [hello.clone(), reply(8, 1, u32::MAX, &[])].concat(),
        // A size that no disk has.
        [
            hello.clone(),
            reply(8, 1 << 31 | 1, 0, &[]),
            reply(7, 3, 12, &[0, 0, 255, 255, 255, 255, 255, 255, 255, 255, 0, 1]),
            reply(7, 1, 0, &[]),
        ]
        .concat(),
        // A whole negotiation, and then a reply to a request that nobody has sent.
        [
            hello,
            reply(8, 1 << 31 | 1, 0, &[]),
            reply(7, 3, 12, &[0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1]),
            reply(7, 1, 0, &[]),
            vec![0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0, 9, 9, 9, 9, 9, 9, 9, 9],
        ]
        .concat(),
    ];
    for answer in answers {
        let ran = std::thread::scope(|scope| {
            let server = scope.spawn(|| {
                let (mut client, _) = listener.accept().unwrap();
                client.write_all(&answer).unwrap();
                client.shutdown(std::net::Shutdown::Write).unwrap();
                let _ = client.read_to_end(&mut Vec::new());
            });
            let ran = world.marcot(&format!("import --no-progress {url} i"));
            server.join().unwrap();
            ran
        });
        assert!([5, 22].contains(&ran.status), "{}: {}", ran.status, ran.err);
        assert_eq!(ran.err.lines().count(), 2, "{}", ran.err);
        assert!(world.rbd("pool stats").out.starts_with("Total Images: 0\n"));
    }
}
