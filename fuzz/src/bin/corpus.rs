//! Makes the corpus: structures that marcot wrote, cut from a small pool, and what clients say.
//!
//! usage: corpus DIRECTORY
//!
//! What is in the directory and was not made by this stays.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use marcot::{CloneOptions, CreateOptions, ErrorKind, Store};
use marcot_format::group::GroupHeader;
use marcot_format::page::peek_page;
use marcot_format::segment::SEGMENT_HEADER_BYTES;
use marcot_format::table::TABLE_PAGE_BYTES;
use marcot_serve::control::message::{Answer, encode_answer, encode_command};
use marcot_serve::control::{Command, ExtentRow, Reply, UsageRow, Watcher};

type Outcome = Result<(), Box<dyn std::error::Error>>;

fn main() -> Outcome {
    let directory = PathBuf::from(std::env::args().nth(1).ok_or("usage: corpus DIRECTORY")?);
    let store = directory.join("store-to-cut-up");
    make_pool(&store)?;
    cut_pool(&store.join("pools/rbd"), &directory)?;
    keep(&directory, "record", "store", &fs::read(store.join("store"))?)?;
    fs::remove_dir_all(&store)?;
    clients(&directory)?;
    control(&directory)?;
    texts(&directory)?;
    pools(&directory)?;
    Ok(())
}

/// Kinds of changes to a hostile pool, and changes of each; their numbers go over its files.
const POOL_CHANGES: [u8; 2] = [13, 8];

fn pools(directory: &Path) -> io::Result<()> {
    for kind in 0..POOL_CHANGES[0] {
        let changes: Vec<u8> = (0..POOL_CHANGES[1])
            .flat_map(|i| [kind, i * 5 + kind, i * 3, i, i * 7 + kind, i, kind, i % 3])
            .collect();
        keep(directory, "hostile_pool", &format!("kind-{kind:02}"), &changes)?;
    }
    keep(directory, "hostile_pool", "unchanged", &[])
}

fn keep(directory: &Path, target: &str, name: &str, bytes: &[u8]) -> io::Result<()> {
    let place = directory.join(target);
    fs::create_dir_all(&place)?;
    fs::write(place.join(name), bytes)
}

fn make_pool(directory: &Path) -> Outcome {
    let store = Store::open(directory)?;
    let pool = store.pool("rbd")?;
    let options = CreateOptions::sized(1 << 40);
    let id = pool.create("parent", &options)?;
    let mut parent = pool.open(id)?;
    for i in 0..40 {
        parent.write_at(i * 12_288, &[i as u8 + 1; 4096])?;
    }
    parent.write_at(3 << 30, &vec![7; 3 << 20])?;
    parent.discard(4096, 1 << 20)?;
    parent.set_metadata("key", "value")?;
    parent.snapshot("s")?;
    parent.protect("s")?;
    parent.snapshot("t")?;
    parent.close()?;
    let child = pool.snapshot(id, "s").clone_to(&pool, "child", &CloneOptions::default())?;
    let mut child = pool.open(child)?;
    child.write_at(5000, &[9; 9000])?;
    child.close()?;
    Ok(())
}

fn files(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() { found.extend(files(&path)?) } else { found.push(path) }
    }
    found.sort();
    Ok(found)
}

/// At most this many structures of a kind from one segment.
const OF_A_KIND_MAX: usize = 4;

fn cut_pool(pool: &Path, directory: &Path) -> Outcome {
    keep(directory, "record", "pool", &fs::read(pool.join("pool"))?)?;
    for (kind, part) in [("name", "names"), ("head", "images"), ("child", "children")] {
        let records = files(&pool.join(part))?;
        let records = records.iter().filter(|path| !path.ends_with("lock"));
        for (i, path) in records.enumerate() {
            keep(directory, "record", &format!("{kind}-{i}"), &fs::read(path)?)?;
        }
    }
    for (i, path) in files(&pool.join("segments"))?.iter().enumerate() {
        let bytes = fs::read(path)?;
        let header = &bytes[..SEGMENT_HEADER_BYTES];
        let (target, step) = match path.file_name().and_then(|n| n.to_str()).map(|n| &n[..1]) {
            Some("d") => ("group_header", 4096),
            Some("m") => ("map_page", 512),
            _ => ("table_page", TABLE_PAGE_BYTES),
        };
        keep(directory, "segment_header", &format!("segment-{i}"), header)?;
        let mut kept = 0;
        for at in (SEGMENT_HEADER_BYTES..bytes.len()).step_by(step) {
            let rest = &bytes[at..];
            let length = match target {
                "group_header" => GroupHeader::peek(rest).ok().map(|blocks| blocks * 4096),
                "map_page" => peek_page(rest).ok(),
                _ => Some(TABLE_PAGE_BYTES),
            };
            if let Some(length) = length.filter(|_| kept < OF_A_KIND_MAX) {
                keep(directory, target, &format!("{i}-{kept}"), &rest[..length])?;
                kept += 1;
            }
        }
    }
    Ok(())
}

fn option(number: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = b"IHAVEOPT".to_vec();
    bytes.extend(number.to_be_bytes());
    bytes.extend((data.len() as u32).to_be_bytes());
    bytes.extend(data);
    bytes
}

fn string(text: &str) -> Vec<u8> {
    let mut bytes = (text.len() as u32).to_be_bytes().to_vec();
    bytes.extend(text.as_bytes());
    bytes
}

/// What clients say, as the specification of the protocol has it.
fn clients(directory: &Path) -> io::Result<()> {
    let infos = [&[0, 3][..], &[0, 1, 0, 2, 0, 3]].concat();
    let go = |number| option(number, &[string("rbd/vm"), infos.clone()].concat());
    let queries =
        [string("rbd/vm"), 2_u32.to_be_bytes().to_vec(), string("base:allocation"), string("x:y")];
    let context = |number| option(number, &queries.concat());
    let talks: [(&str, Vec<Vec<u8>>); 4] = [
        ("qemu", vec![option(8, b""), option(9, &queries.concat()), context(10), go(6), go(7)]),
        ("old", vec![option(1, b"rbd/vm")]),
        ("list", vec![option(3, b""), option(5, b""), option(99, b"data"), option(2, b"")]),
        ("missing", vec![option(6, &[string("odd"), vec![0, 0]].concat()), context(9), go(7)]),
    ];
    for (name, options) in talks {
        let bytes = [3_u32.to_be_bytes().to_vec(), options.concat()].concat();
        keep(directory, "nbd_negotiation", name, &bytes)?;
    }
    let request = |flags: u16, command: u16, offset: u64, length: u32, payload: &[u8]| {
        let mut bytes = 0x2560_9513_u32.to_be_bytes().to_vec();
        bytes.extend(flags.to_be_bytes());
        bytes.extend(command.to_be_bytes());
        bytes.extend(7_u64.to_be_bytes());
        bytes.extend(offset.to_be_bytes());
        bytes.extend(length.to_be_bytes());
        bytes.extend(payload);
        bytes
    };
    let mut all = Vec::new();
    for command in 0..9 {
        let payload: &[u8] = if command == 1 { b"payload!" } else { b"" };
        let one = request(0, command, 4096 * u64::from(command), 8, payload);
        all.extend(&one);
        let name = format!("command-{command}");
        keep(directory, "nbd_request", &name, &[&[6][..], &one].concat())?;
    }
    keep(directory, "nbd_request", "all", &[&[6][..], &all].concat())
}

fn control(directory: &Path) -> Outcome {
    let name = || "snap".to_owned();
    let commands = [
        Command::Checkpoint,
        Command::SnapCreate { name: name() },
        Command::SnapRemove { name: name(), force: true },
        Command::SnapRename { from: name(), to: name() },
        Command::Resize { size_bytes: 1 << 30, allow_shrink: true },
        Command::MetaSet { key: name(), value: "\u{1}\"ä".to_owned() },
        Command::Diff { from_snap: None, to_snap: Some(name()), offset: 0, length: 1 << 40 },
        Command::Write { offset: 4096, data: vec![1; 100] },
        Command::Status,
        Command::GiveWay,
    ];
    for (i, command) in commands.iter().enumerate() {
        let mut bytes = Vec::new();
        encode_command("pool/image", command, &mut bytes)?;
        keep(directory, "control_command", &format!("{i}"), &bytes)?;
    }
    let row = UsageRow {
        snapshot: Some(name()),
        snapshot_id: 1,
        provisioned_bytes: 2,
        used_bytes: u64::MAX,
    };
    let replies = [
        Reply::Done,
        Reply::Snapshot { id: 7 },
        Reply::Usage { rows: vec![row] },
        Reply::Diff { extents: vec![ExtentRow { offset: 1, length: 2, data: true }] },
        Reply::Data { data: vec![3; 50] },
        Reply::Extents { extents: vec![ExtentRow { offset: 1, length: 2, data: false }] },
        Reply::Status { watchers: vec![Watcher { pid: 1, usage: name(), ..Watcher::default() }] },
    ];
    let mut answers: Vec<Answer> =
        replies.into_iter().map(|reply| Answer::Reply { reply }).collect();
    answers.push(Answer::Begun);
    answers.push(Answer::Alive);
    answers.push(Answer::Progress { done: 1, total: 9 });
    answers.push(Answer::LongReply);
    answers.push(Answer::Error { kind: ErrorKind::Busy, message: name() });
    for (i, answer) in answers.iter().enumerate() {
        let mut bytes = Vec::new();
        encode_answer(answer, &mut bytes)?;
        keep(directory, "control_answer", &format!("{i}"), &bytes)?;
    }
    Ok(())
}

fn texts(directory: &Path) -> io::Result<()> {
    let sizes = ["0", "4096", "+5M", "10GiB", "10Gi", "16E", "15E", "18446744073709551615", "1.5G"];
    let specs = ["vm", "rbd/vm@s", "p/n/i@s", "a/b/c/d", "rbd//a", "a@b@c", "/a", "rbd/", "@s"];
    let lines = [
        "create\n--size\n10G\nrbd/vm",
        "snap\nprotect\nrbd/vm@s",
        "-p\nrbd\n--image\nvm\ninfo\n--format\njson",
        "clone\n--rbd-default-clone-format\n2\nt@s\nvm",
        "resize\n-s5G\nvm\n--allow-shrink",
        "serve\n--tcp\n[::1]:10809\n--connections-max\n5\na\nb",
        "help\nsnap\nls",
        "--\n-odd\n--",
        "bench\n--io-type\nwrite\n--io-size=4K\nvm\n--unknown=1",
    ];
    for (target, texts) in [("size", &sizes), ("spec", &specs), ("command_line", &lines)] {
        for (i, text) in texts.iter().enumerate() {
            keep(directory, target, &format!("{i}"), text.as_bytes())?;
        }
    }
    let sparse = [&[4, 0][..], &[0; 9], b"data", &[0; 8], b"more"].concat();
    keep(directory, "sparse_runs", "0", &sparse)
}
