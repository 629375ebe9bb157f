//! Images that `qemu-img` makes are read as it reads them, and damaged ones end in an error.
#![allow(missing_docs)]

mod support;

use std::path::Path;
use std::sync::Arc;

use marcot_foreign::file::FileSource;
use marcot_foreign::open::{self, Directory};
use marcot_foreign::{ErrorKind, Format, Source};
use support::{Memory, Scratch, pattern};

const MIB: u64 = 1 << 20;

fn open_file(path: &Path) -> Arc<dyn Source> {
    let container = Arc::new(FileSource::new(std::fs::File::open(path).unwrap()).unwrap());
    let format = open::recognise(container.as_ref()).unwrap();
    assert_ne!(format, Format::Raw, "{path:?} is not recognised");
    let mut files = Directory::open(path.parent().unwrap()).unwrap();
    open::open_at(container, format, path, &mut files).unwrap()
}

/// Reads the disk by its map of holes, in steps of odd length.
fn content(disk: &dyn Source) -> marcot_foreign::Result<Vec<u8>> {
    let size_bytes = disk.size_bytes();
    let mut bytes = vec![0; size_bytes as usize];
    let mut at = 0;
    while at < size_bytes {
        let extents = disk.extents(at, size_bytes - at)?;
        assert!(!extents.is_empty(), "no extent at {at}");
        for extent in extents {
            assert_eq!(extent.offset, at, "extents have gaps");
            assert!(extent.length > 0 && extent.offset + extent.length <= size_bytes);
            let end = at + extent.length;
            while extent.data && at < end {
                let length = (end - at).min(777_777);
                disk.read_at(at, &mut bytes[at as usize..(at + length) as usize])?;
                at += length;
            }
            at = end;
        }
    }
    Ok(bytes)
}

fn data_bytes(disk: &dyn Source) -> u64 {
    let (mut at, mut sum) = (0, 0);
    while at < disk.size_bytes() {
        for extent in disk.extents(at, disk.size_bytes() - at).unwrap() {
            sum += if extent.data { extent.length } else { 0 };
            at = extent.offset + extent.length;
        }
    }
    sum
}

/// Every format that `qemu-img` writes and we read: a name, the format, its options.
const MADE: &[(&str, &str, &str)] = &[
    ("v2", "qcow2", "compat=0.10"),
    ("v3", "qcow2", "compat=1.1"),
    ("small-clusters", "qcow2", "cluster_size=512"),
    ("large-clusters", "qcow2", "cluster_size=2M"),
    ("subclusters", "qcow2", "extended_l2=on,cluster_size=128k"),
    ("preallocated", "qcow2", "preallocation=metadata"),
    ("data-file", "qcow2", "data_file=DATA"),
    ("raw-data-file", "qcow2", "data_file=DATA,data_file_raw=on"),
    ("sparse", "vmdk", "subformat=monolithicSparse"),
    ("zeroed-grains", "vmdk", "subformat=monolithicSparse,zeroed_grain=on"),
    ("stream", "vmdk", "subformat=streamOptimized"),
    ("dynamic", "vpc", "subformat=dynamic,force_size=on"),
    ("rounded", "vpc", "subformat=dynamic"),
    ("fixed", "vpc", "subformat=fixed,force_size=on"),
    ("dynamic", "vhdx", "subformat=dynamic"),
    ("fixed", "vhdx", "subformat=fixed"),
    ("small-blocks", "vhdx", "block_size=1M"),
];

#[test]
fn what_qemu_img_makes_is_read_as_it_reads_it() {
    let scratch = Scratch::new();
    // One that ends with a block, and one that does not.
    for (size_bytes, size_name) in [(37 * MIB, "37M"), (5 * MIB + 3 * 512, "odd")] {
        let raw = scratch.file("raw", &pattern(size_bytes));
        for (name, format, options) in MADE {
            let file = scratch.path(&format!("{name}-{size_name}.{format}"));
            let data = scratch.path(&format!("{name}-{size_name}.data"));
            let options = options.replace("DATA", data.to_str().unwrap());
            scratch
                .qemu_img(&["convert", "-f", "raw", "-O", format, "-o", &options], &[&raw, &file]);
            let back = scratch.path("back");
            scratch.qemu_img(&["convert", "-f", format, "-O", "raw"], &[&file, &back]);
            let wanted = std::fs::read(&back).unwrap();
            let disk = open_file(&file);
            assert_eq!(disk.size_bytes(), wanted.len() as u64, "{name}.{format} {size_name}");
            assert!(content(disk.as_ref()).unwrap() == wanted, "{name}.{format} {size_name}");
        }
        for kind in ["zlib", "zstd"] {
            let file = scratch.path(&format!("packed-{size_name}-{kind}.qcow2"));
            let options = format!("compression_type={kind}");
            scratch.qemu_img(
                &["convert", "-f", "raw", "-c", "-O", "qcow2", "-o", &options],
                &[&raw, &file],
            );
            let disk = open_file(&file);
            assert!(content(disk.as_ref()).unwrap() == pattern(size_bytes), "{kind} {size_name}");
        }
    }
}

#[test]
fn holes_stay_holes() {
    let scratch = Scratch::new();
    let raw = scratch.path("raw");
    std::fs::File::create(&raw).unwrap().set_len(64 << 30).unwrap();
    scratch.qemu_io(&raw, "raw", &["write -P 7 20G 64k", "write -P 8 41G 4k"]);
    for (format, options) in [
        ("qcow2", ""),
        ("vmdk", ""),
        ("vmdk", "subformat=streamOptimized"),
        ("vpc", "force_size=on"),
        ("vhdx", ""),
    ] {
        let file = scratch.path(&format!("sparse-{options}.{format}"));
        let mut arguments = vec!["convert", "-f", "raw", "-O", format];
        if !options.is_empty() {
            arguments.extend(["-o", options]);
        }
        scratch.qemu_img(&arguments, &[&raw, &file]);
        let disk = open_file(&file);
        assert_eq!(disk.size_bytes(), 64 << 30);
        let data = data_bytes(disk.as_ref());
        // VHDX has blocks of 32 MiB and more.
        assert!((1..=256 * MIB).contains(&data), "{format} {options}: {data}");
    }
}

#[test]
fn zeros_that_are_written_are_no_data() {
    let scratch = Scratch::new();
    for options in ["compat=1.1", "extended_l2=on"] {
        let file = scratch.path("zeros.qcow2");
        scratch.qemu_img_with(&["create", "-q", "-f", "qcow2", "-o", options], &[&file], &["16M"]);
        scratch.qemu_io(&file, "qcow2", &["write -P 5 0 2M", "write -z 1M 1M", "write -z 8M 1M"]);
        let disk = open_file(&file);
        assert_eq!(data_bytes(disk.as_ref()), MIB, "{options}");
        let bytes = content(disk.as_ref()).unwrap();
        assert!(bytes[..MIB as usize].iter().all(|b| *b == 5));
        assert!(bytes[MIB as usize..].iter().all(|b| *b == 0));
    }
}

#[test]
fn parts_of_clusters_come_from_the_file_below() {
    let scratch = Scratch::new();
    let base = scratch.path("base.qcow2");
    scratch.qemu_img_with(&["create", "-q", "-f", "qcow2"], &[&base], &["3M"]);
    scratch.qemu_io(&base, "qcow2", &["write -P 1 0 3M"]);
    let middle = scratch.path("middle.qcow2");
    let options =
        ["create", "-q", "-f", "qcow2", "-o", "extended_l2=on", "-F", "qcow2", "-b", "base.qcow2"];
    scratch.qemu_img_with(&options, &[&middle], &["8M"]);
    scratch.qemu_io(
        &middle,
        "qcow2",
        &["write -P 2 100k 4k", "write -z 1M 8k", "write -P 3 5M 2k"],
    );
    let top = scratch.path("top.qcow2");
    scratch
        .qemu_img(&["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", "middle.qcow2"], &[&top]);
    scratch.qemu_io(&top, "qcow2", &["write -P 4 2M 10k"]);
    let back = scratch.path("back");
    scratch.qemu_img(&["convert", "-f", "qcow2", "-O", "raw"], &[&top, &back]);
    let disk = open_file(&top);
    assert!(content(disk.as_ref()).unwrap() == std::fs::read(&back).unwrap());
    assert!(data_bytes(disk.as_ref()) < 4 * MIB);
}

#[test]
fn snapshots_are_states_and_their_changes_are_known() {
    let scratch = Scratch::new();
    let file = scratch.path("s.qcow2");
    scratch.qemu_img_with(&["create", "-q", "-f", "qcow2"], &[&file], &["64M"]);
    scratch.qemu_io(&file, "qcow2", &["write -P 1 0 8M"]);
    scratch.qemu_img(&["snapshot", "-c", "one"], &[&file]);
    scratch.qemu_io(&file, "qcow2", &["write -P 2 1M 64k", "discard 2M 1M"]);
    scratch.qemu_img(&["snapshot", "-c", "two"], &[&file]);
    scratch.qemu_io(&file, "qcow2", &["write -P 3 30M 64k"]);
    let disk = open_file(&file);
    let names: Vec<_> = disk.snapshots().iter().map(|s| s.name.as_str()).collect();
    assert_eq!(names, ["one", "two"]);
    for (index, name) in [(0, "one"), (1, "two")] {
        let back = scratch.path("back");
        scratch.qemu_img(&["convert", "-l", name, "-f", "qcow2", "-O", "raw"], &[&file, &back]);
        let state = disk.at_snapshot(index).unwrap();
        assert!(content(state.as_ref()).unwrap() == std::fs::read(&back).unwrap(), "{name}");
    }
    let changed = |from: &dyn Source, snapshot| -> u64 {
        let parts = from.changes(snapshot, 0, 64 * MIB).unwrap();
        parts.iter().filter(|part| part.data).map(|part| part.length).sum()
    };
    assert_eq!(changed(disk.at_snapshot(1).unwrap().as_ref(), 0), MIB + 64 * 1024);
    assert_eq!(changed(disk.as_ref(), 1), 64 * 1024);
}

#[test]
fn files_outside_of_the_directory_are_refused() {
    let scratch = Scratch::new();
    std::fs::create_dir(scratch.path("in")).unwrap();
    let secret = scratch.file("secret", &[7; 4096]);
    std::os::unix::fs::symlink(&secret, scratch.path("in/link")).unwrap();
    for name in ["../secret", "link", secret.to_str().unwrap(), "nbd://host/x", "json:{}", "none"] {
        let file = scratch.path("in/i.qcow2");
        scratch.qemu_img_with(
            &["create", "-q", "-u", "-f", "qcow2", "-F", "raw", "-b", name],
            &[&file],
            &["1M"],
        );
        let container = || Arc::new(FileSource::new(std::fs::File::open(&file).unwrap()).unwrap());
        let mut files = Directory::open(&scratch.path("in")).unwrap();
        let refused = open::open_at(container(), Format::Qcow2, &file, &mut files).err().unwrap();
        assert_eq!(refused.kind(), ErrorKind::Refused, "{name}: {refused}");
        let refused = open::open(container(), Format::Qcow2, &mut open::Nobody).err().unwrap();
        assert_eq!(refused.kind(), ErrorKind::Refused, "{name}: {refused}");
    }
}

#[test]
fn a_chain_that_is_a_circle_ends() {
    let scratch = Scratch::new();
    let (a, b) = (scratch.path("a.qcow2"), scratch.path("b.qcow2"));
    for (file, other) in [(&a, "b.qcow2"), (&b, "a.qcow2")] {
        scratch.qemu_img_with(
            &["create", "-q", "-u", "-f", "qcow2", "-F", "qcow2", "-b", other],
            &[file],
            &["1M"],
        );
    }
    let container = Arc::new(FileSource::new(std::fs::File::open(&a).unwrap()).unwrap());
    let mut files = Directory::open(scratch.path(".").as_path()).unwrap();
    let error = open::open_at(container, Format::Qcow2, &a, &mut files).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Damaged, "{error}");
}

/// Opens what may be anything, and reads all of it if that is not too much.
fn try_all(bytes: Vec<u8>, format: Format) -> marcot_foreign::Result<Vec<u8>> {
    let disk = open::open(Arc::new(Memory(bytes)), format, &mut open::Nobody)?;
    for index in 0..disk.snapshots().len().min(4) {
        disk.at_snapshot(index)?.extents(0, 0)?;
    }
    if disk.size_bytes() > 64 * MIB {
        disk.extents(0, disk.size_bytes())?;
        return Ok(Vec::new());
    }
    content(disk.as_ref())
}

#[test]
fn a_file_that_is_cut_off_is_an_error_and_never_other_bytes() {
    let scratch = Scratch::new();
    let bytes = pattern(3 * MIB);
    let raw = scratch.file("raw", &bytes);
    for (name, format, options) in MADE.iter().filter(|(name, ..)| !name.contains("data-file")) {
        let file = scratch.path(&format!("cut-{name}.{format}"));
        let options = options.to_string();
        scratch.qemu_img(&["convert", "-f", "raw", "-O", format, "-o", &options], &[&raw, &file]);
        let whole = std::fs::read(&file).unwrap();
        let format = Format::named(format).unwrap();
        let good = try_all(whole.clone(), format).unwrap();
        assert!(good[..bytes.len()] == bytes);
        let mut random = fastrand::Rng::with_seed(15);
        let near = [1, 511, 512, 513, 1024, 4096];
        let cuts = near.into_iter().filter(|cut| *cut < whole.len()).map(|cut| whole.len() - cut);
        let cuts: Vec<_> = cuts.chain((0..24).map(|_| random.usize(..whole.len()))).collect();
        for length in cuts {
            match try_all(whole[..length].to_vec(), format) {
                // What is cut off may be of no use, such as counts of references.
                Ok(read) => assert!(read == good, "{name} {format:?} cut to {length}"),
                Err(error) => assert!(
                    [ErrorKind::Damaged, ErrorKind::Invalid].contains(&error.kind()),
                    "{name} {format:?} cut to {length}: {error}"
                ),
            }
        }
    }
}

/// VMware writes the place of the tables into a footer, since they lie behind the grains.
#[test]
fn the_tables_of_a_stream_are_found_by_its_footer() {
    let scratch = Scratch::new();
    let raw = scratch.file("raw", &pattern(MIB));
    let file = scratch.path("stream.vmdk");
    let options = ["convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized"];
    scratch.qemu_img(&options, &[&raw, &file]);
    let mut bytes = std::fs::read(&file).unwrap();
    let footer = bytes[..512].to_vec();
    bytes[56..64].fill(0xff);
    bytes.resize(bytes.len().next_multiple_of(512) + 512, 0);
    bytes.extend(footer);
    bytes.extend([0; 512]);
    assert!(try_all(bytes.clone(), Format::Vmdk).unwrap() == pattern(MIB));
    bytes.truncate(bytes.len() - 512);
    assert_eq!(try_all(bytes, Format::Vmdk).unwrap_err().kind(), ErrorKind::Damaged);
}

#[test]
fn flipped_bits_neither_panic_nor_hang() {
    let scratch = Scratch::new();
    let raw = scratch.file("raw", &pattern(MIB));
    for (name, format, options) in MADE.iter().filter(|(name, ..)| !name.contains("data-file")) {
        let file = scratch.path(&format!("flip-{name}.{format}"));
        scratch.qemu_img(&["convert", "-f", "raw", "-O", format, "-o", options], &[&raw, &file]);
        let whole = std::fs::read(&file).unwrap();
        let format = Format::named(format).unwrap();
        let tables: Vec<_> = (0..whole.len()).filter(|at| whole[*at] != 0).take(500).collect();
        let mut random = fastrand::Rng::with_seed(16);
        for round in 0..90 {
            let mut bytes = whole.clone();
            // Most of them in what is not the data of the disk.
            let at = match round % 3 {
                0 => random.usize(..whole.len()),
                1 => tables[random.usize(..tables.len())],
                _ => random.usize(..whole.len().min(1 << 20)),
            };
            bytes[at] ^= 1 << random.u32(..8);
            let _ = try_all(bytes, format);
        }
    }
}
