//! Names of other users are printed so that neither a terminal nor a reader of lines takes them for control
//! characters.
#![allow(missing_docs)]

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use common::World;
use marcot::printable::is_control;
use marcot_format::frame::{FrameKind, decode_message, encode_message};
use marcot_format::record::{
    AttachedRecord, ChildRecord, HeadRecord, MetaRecord, NameRecord, PoolRecord, SnapshotRecord,
};

/// A name that moves the cursor, ends its line, forges the next line, and changes the direction of text.
const EVIL: &str = "e\u{1b}]0;owned\u{7}\u{9b}2J\r\nforged\u{2028}\u{202e}\u{2066}\u{7f}\t<&\"";

/// The file name for a name: see `escape` in the engine.
fn file_name(name: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte >= 0x80;
    let byte =
        |byte: u8| if plain(byte) { vec![byte] } else { format!("%{byte:02x}").into_bytes() };
    String::from_utf8(name.bytes().flat_map(byte).collect()).unwrap()
}

fn read<T: prost::Message + Default>(kind: FrameKind, path: &Path) -> T {
    decode_message(kind, &std::fs::read(path).unwrap()).unwrap().0
}

fn write<T: prost::Message>(kind: FrameKind, path: &Path, message: &T) {
    std::fs::write(path, encode_message(kind, message)).unwrap();
}

fn image_of(pool: &Path, name: &str) -> u64 {
    read::<NameRecord>(FrameKind::Name, &pool.join("names/@").join(name)).image_id
}

fn change_head(pool: &Path, image: u64, change: impl FnOnce(&mut HeadRecord)) {
    let path = pool.join(format!("images/{image:016x}/head"));
    let mut head = read(FrameKind::Head, &path);
    change(&mut head);
    write(FrameKind::Head, &path, &head);
}

/// A pool of ours, `own`, and an attached pool of an attacker, `h`. It has hostile names
/// wherever a record or a file contains a name.
fn hostile_world() -> World {
    let world = World::new();
    world.silently(&["pool create own", "create own/img --size 8M"]);
    world.silently(&["snap create --no-progress own/img@s", "snap protect own/img@s"]);
    world.silently(&["clone own/img@s own/kid"]);
    let theirs = world.path("theirs");
    let at_theirs = |line: &str| {
        let ran = world.rbd(&format!("--store {} {line}", theirs.display()));
        assert_eq!(ran.status, 0, "{ran:?}");
    };
    for line in [
        "pool create h",
        "create h/img --size 8M",
        "snap create --no-progress h/img@s",
        "snap protect h/img@s",
        "clone h/img@s h/kid",
        "namespace create h/n",
    ] {
        at_theirs(line);
    }
    for (pool, other) in [(theirs.join("pools/h"), false), (world.path("store/pools/own"), true)] {
        poison_heads(&pool);
        poison_children(&pool);
        if !other {
            poison_files(&pool);
        }
    }
    let backend = theirs.join("pools/h");
    let attached = world.marcot(&format!("pool attach h --backend {}", backend.display()));
    assert_eq!(attached.status, 0, "{attached:?}");
    // One more pool, which is damaged, in a directory with a hostile name.
    let broken = world.path(&format!("b{}", EVIL.replace('/', "")));
    std::fs::create_dir(&broken).unwrap();
    std::fs::write(broken.join("pool"), "rot").unwrap();
    let directory = broken.to_str().unwrap().to_owned();
    let record = AttachedRecord { directory, pool_id: 77, ..AttachedRecord::default() };
    write(FrameKind::Attached, &world.path("store/attached/broken"), &record);
    std::fs::write(world.path("store/attached").join(file_name(EVIL)), "rot").unwrap();
    world
}

fn poison_heads(pool: &Path) {
    change_head(pool, image_of(pool, "img"), |head| {
        let first = head.snapshots[0].clone();
        for (id, trashed) in [(100, false), (101, true)] {
            let (name, original_name) = (format!("{EVIL}{id}"), EVIL.to_owned());
            let more = SnapshotRecord { id, name, trashed, original_name, ..first.clone() };
            head.snapshots.push(more);
        }
        head.features = format!("layering,{EVIL}");
        head.metadata.push(MetaRecord { key: EVIL.into(), value: EVIL.into() });
    });
    change_head(pool, image_of(pool, "kid"), |head| {
        let parent = head.parent.as_mut().unwrap();
        // There is no such pool, so the names in the record are shown.
        parent.pool_id = 1;
        for name in [&mut parent.pool_name, &mut parent.image_name, &mut parent.snap_name] {
            *name = EVIL.into();
        }
    });
}

fn poison_children(pool: &Path) {
    let record: PoolRecord = read(FrameKind::Pool, &pool.join("pool"));
    let (parent, child) = (image_of(pool, "img"), 0xabc);
    let name = format!("{:016x}.{parent:016x}.1.{child:016x}.{child:016x}", record.pool_id);
    let marker = ChildRecord {
        parent_pool_id: record.pool_id,
        parent_image_id: parent,
        parent_snap_id: 1,
        child_pool_id: child,
        child_image_id: child,
        child_pool_name: EVIL.into(),
        child_name: EVIL.into(),
        child_pool_directory: EVIL.into(),
        created_s: 1,
        clone_format: 1,
        ..ChildRecord::default()
    };
    write(FrameKind::Child, &pool.join("children").join(name), &marker);
}

fn poison_files(pool: &Path) {
    for name in [EVIL, "a/b", "\u{1b}[2J"] {
        std::fs::copy(pool.join("names/@/img"), pool.join("names/@").join(file_name(name)))
            .unwrap();
        std::fs::create_dir(pool.join("names").join(file_name(name))).unwrap();
    }
    std::fs::create_dir(pool.join("images/0000000000000bad")).unwrap();
    let path = pool.join("images/0000000000000bad/head");
    let head = HeadRecord { image_id: 0xbad, name: EVIL.into(), epoch: 1, ..HeadRecord::default() };
    write(FrameKind::Head, &path, &head);
}

/// Runs a command with these arguments, and checks all of its output.
fn prints_nothing_raw(mut command: Command, arguments: &[&str]) -> (String, String) {
    let ran = command.args(arguments).output().unwrap();
    let (out, err) =
        (String::from_utf8(ran.stdout).unwrap(), String::from_utf8(ran.stderr).unwrap());
    for text in [&out, &err] {
        // Line breaks, the indentation of `info` and `status`, and the carriage return
        // of progress.
        let layout = |c| matches!(c, '\n' | '\t' | '\r');
        let raw: Vec<char> = text.chars().filter(|c| is_control(*c) && !layout(*c)).collect();
        assert!(raw.is_empty(), "{arguments:?}: {raw:?} in {text:?}");
        let forged = text.lines().any(|line| line.trim_start().starts_with("forged"));
        assert!(!forged && !text.contains("\r\n"), "{arguments:?}: {text:?}");
        assert!(!text.contains("panicked"), "{arguments:?}: {text}");
    }
    (out, err)
}

const READING: &[&str] = &[
    "ls own",
    "ls h",
    "ls -l own",
    "ls -l h",
    "info own/img",
    "info own/kid",
    "info h/kid",
    "info h/img@s",
    "snap ls own/img",
    "snap ls --all own/img",
    "snap ls --all h/img",
    "children own/img@s",
    "children --all own/img",
    "children --descendants h/img",
    "du own",
    "du h",
    "diff own/img",
    "status own/img",
    "status h/img",
    "pool ls",
    "pool ls -l",
    "pool stats own",
    "pool stats h",
    "namespace ls h",
    "showmapped",
];

#[test]
fn no_command_prints_a_name_as_it_is() {
    let world = hostile_world();
    for line in READING {
        let words: Vec<&str> = line.split(' ').collect();
        for program in ["marcot", "rbd"] {
            let command =
                || if program == "rbd" { world.rbd_command("") } else { world.marcot_command("") };
            prints_nothing_raw(command(), &words);
            if line.starts_with("diff") {
                continue;
            }
            let formatted =
                |format| [&words[..], &["--format", format, "--pretty-format"]].concat();
            let (out, _) = prints_nothing_raw(command(), &formatted("json"));
            if !out.is_empty() {
                serde_json::from_str::<serde_json::Value>(&out).unwrap();
            }
            let (out, _) = prints_nothing_raw(command(), &formatted("xml"));
            assert!(!out.contains("<&") && out.matches('<').count() == out.matches('>').count());
        }
    }
    // JSON has the names unchanged.
    let listed = world.marcot("snap ls own/img --format json").out;
    let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    assert_eq!(listed[1]["name"], format!("{EVIL}100"));
    // Files whose names no command would accept are no images. A warning says so.
    let listed = world.marcot("ls h");
    assert_eq!((listed.out.as_str(), listed.status), ("img\nkid\n", 0));
    // Three images, and the name of an attached pool.
    assert_eq!(listed.err.matches("is left out").count(), 4, "{listed:?}");
    assert_eq!(world.marcot("namespace ls h").out, "NAME\nn   \n");
}

#[test]
fn commands_that_change_something_say_names_on_one_line() {
    let world = hostile_world();
    let evil_snap = format!("own/img@{EVIL}100");
    let file = format!("{}/{EVIL}", world.path("nowhere").display());
    let lines: &[&[&str]] = &[
        &["snap", "unprotect", "own/img@s"],
        &["snap", "rm", "--force", "own/img@s"],
        &["rm", "own/img"],
        &["rm", "--force", "own/img"],
        &["snap", "rm", &evil_snap],
        &["snap", "purge", "own/img"],
        &["snap", "rename", "own/img@s", &evil_snap],
        &["snap", "create", &evil_snap],
        &["clone", &evil_snap, "own/new"],
        &["clone", "h/img@s", "own/new"],
        &["create", EVIL, "--size", "1M"],
        &["create", EVIL, "--size", EVIL],
        &["rename", "own/img", &format!("own/{EVIL}")],
        &["pool", "create", EVIL],
        &["pool", "rm", EVIL],
        &["pool", "rm", "own"],
        &["pool", "detach", "h"],
        &["pool", "attach", "x", "--backend", EVIL],
        &["namespace", "create", &format!("own/{EVIL}")],
        &["info", EVIL],
        &["info", &format!("{EVIL}/{EVIL}")],
        &["info", &format!("own/{EVIL}/{EVIL}")],
        &["ls", EVIL],
        &["import", &file, "own/new"],
        &["export", "own/img", &file],
        &["map", EVIL],
        &["unmap", &format!("/dev/{EVIL}")],
        &["map", "own/img", "-o", EVIL],
        &[EVIL],
        &["snap", EVIL],
        &["info", &format!("--{EVIL}")],
        &["ls", "--format", EVIL],
        &["create", "own/new", "--size", "1M", "--image-feature", EVIL],
        &["--rbd-default-clone-format", EVIL, "clone", "own/img@s", "own/new2"],
        &["serve", "--tcp", EVIL],
        &["serve", "--socket", &file],
        &["--store", &file, "ls"],
        &["gc", "own"],
        &["check", "own"],
        &["check", "--all"],
        &["check", "--all", "--format", "json"],
        &["check", "--all", "--format", "xml"],
    ];
    for arguments in lines {
        let silent = [arguments, &["--no-progress"][..]].concat();
        for arguments in [*arguments, silent.as_slice()] {
            prints_nothing_raw(world.marcot_command(""), arguments);
            prints_nothing_raw(world.rbd_command(""), arguments);
        }
    }
}

#[test]
fn a_broken_attached_pool_is_told_of_and_hides_no_other() {
    let world = World::new();
    world.silently(&["create img --size 8M", "snap create --no-progress img@s"]);
    world.silently(&["snap protect img@s", "clone img@s kid", "pool create second"]);
    let theirs = world.path("theirs");
    world.silently(&[&format!("--store {} pool create t", theirs.display())]);
    let pool: PathBuf = theirs.join("pools/t");
    world.silently(&[&format!("pool attach t --backend {}", pool.display())]);
    std::fs::write(pool.join("pool"), "rot").unwrap();
    let told = |line: &str, status: i32, out: &str| {
        let ran = world.marcot(line);
        assert_eq!(ran.status, status, "{line}: {ran:?}");
        assert!(ran.out.contains(out), "{line}: {ran:?}");
        ran
    };
    for line in ["children img@s", "children img --descendants"] {
        let ran = told(line, 0, "rbd/kid\n");
        let lines: Vec<&str> = ran.err.lines().collect();
        assert_eq!(lines.len(), 1, "{ran:?}");
        assert!(
            lines[0].starts_with("marcot: warning: a pool is left out: cannot open pool 't': "),
            "{ran:?}"
        );
    }
    assert_eq!(told("pool ls", 0, "rbd\nsecond\nt\n").err, "");
    told("pool ls -l", 0, "\nsecond  read-write");
    told("pool ls -l", 0, "\nt       unusable");
    for line in ["ls", "ls -l", "du", "pool stats", "snap ls img", "status img"] {
        assert_eq!(told(line, 0, "").err, "", "{line}: of no interest to it");
    }
    told("gc rbd --no-progress", 0, "Freed: ");
    let checked = told("check --all --no-progress", 5, "second: 0 images");
    assert!(checked.out.contains("rbd: 2 images, 1 snapshots"), "{checked:?}");
    assert!(checked.out.contains("pool t: the pool could not be checked: "), "{checked:?}");
    assert_eq!(told("check t --no-progress", 5, "").out, "");
    std::fs::rename(&pool, theirs.join("gone")).unwrap();
    let ran = told("children img@s", 0, "rbd/kid\n");
    assert!(ran.err.contains("a pool is left out: cannot open pool 't'"), "{ran:?}");
    told("pool detach t", 0, "");
    // A creation that was cut off is no damage, and other commands do not warn of it.
    std::fs::create_dir_all(world.path("store/pools/zz/images")).unwrap();
    assert_eq!(told("children img@s", 0, "rbd/kid\n").err, "");
    assert_eq!(told("gc rbd --no-progress", 0, "").err, "");
    told("check --all --no-progress", 0, "pool zz: its creation was cut off");
    told("pool create zz", 0, "");
    told("check --all --no-progress", 0, "second: 0 images");
}

#[test]
fn a_partial_images_name_is_refused_wherever_a_name_is_given() {
    let world = World::new();
    world.silently(&["create img --size 8M", "snap create --no-progress img@s"]);
    world.silently(&["snap protect img@s"]);
    let file = world.file("disk", &[1; 8192]);
    for line in [
        "create .marcot-partial.a --size 1M".to_owned(),
        "rename img .marcot-partial.a".to_owned(),
        "clone img@s .marcot-partial.a".to_owned(),
        "cp --no-progress img .marcot-partial.a".to_owned(),
        format!("import --no-progress {file} .marcot-partial.a"),
    ] {
        let ran = world.marcot(&line);
        assert_eq!(ran.status, 22, "{ran:?}");
        assert!(ran.err.contains("must not begin with '.marcot-partial.'"), "{ran:?}");
    }
    assert_eq!(world.marcot("ls").out, "img\n");
    assert_eq!(world.marcot("check --no-progress").status, 0);
}

#[test]
fn an_import_that_was_killed_is_removed_by_the_next_whoever_has_its_process_number() {
    let world = World::new();
    world.silently(&["namespace create rbd/n"]);
    // A process fills it, waits for more data, and is killed.
    let mut killed = world.marcot_command("import --no-progress - rbd/n/disk");
    let mut killed = killed.stdin(std::process::Stdio::piped()).spawn().unwrap();
    let names = world.path("store/pools/rbd/names/n");
    let partial = || std::fs::read_dir(&names).unwrap().count();
    while partial() == 0 {
        assert!(killed.try_wait().unwrap().is_none(), "the import ended early");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let file = world.file("disk", &[1; 8192]);
    world.silently(&[&format!("import --no-progress {file} rbd/n/other")]);
    assert_eq!(partial(), 2, "whose maker lives is left alone");
    assert_eq!(world.marcot("ls rbd/n").out, "other\n");
    killed.kill().unwrap();
    killed.wait().unwrap();
    world.silently(&[&format!("import --no-progress {file} rbd/n/third")]);
    assert_eq!(partial(), 2);
    world.silently(&["rm --no-progress rbd/n/other", "rm --no-progress rbd/n/third"]);
    assert_eq!(world.marcot("namespace rm rbd/n").status, 0);
    assert_eq!(world.marcot("check --no-progress").status, 0);
}
