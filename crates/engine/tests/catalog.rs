//! Pools, namespaces, images and snapshots by name: what is created, what is refused, and what `info` says.

mod support;

use std::fs;
use std::path::Path;
use std::sync::atomic::Ordering;

use marcot::{
    CloneOptions, CreateOptions, ErrorKind, ImageId, ImageName, Namespace, PoolOptions, Result,
    SnapId, Store,
};
use marcot_format::frame::{FRAME_BODY_BYTES_MAX, FrameKind, encode_message};
use marcot_format::record::{LogPosition, MetaRecord, SegmentMarks};
use marcot_format::{IMAGE_BYTES_MAX, crc32c};
use support::{EIO, ENOENT, ENOSPC, MIB, assert_sound, head_of, run, store_with_image};

/// Longest name in bytes.
const NAME_BYTES_MAX: usize = 230;

fn refused<T>(result: Result<T>, kind: ErrorKind, words: &str) {
    let Err(error) = result else { panic!("it was not refused: {words}") };
    assert_eq!(error.kind(), kind, "{error}");
    assert!(error.sentence().to_string().contains(words), "{error}");
}

fn files_in(directory: &Path) -> Vec<String> {
    let listed = fs::read_dir(directory).unwrap();
    let mut names: Vec<_> =
        listed.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[expect(clippy::disallowed_methods, reason = "the times in a head are by the system's clock")]
fn now_s() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.unwrap().as_secs() as i64
}

#[test]
fn a_new_image_is_what_its_options_say_and_its_head_what_the_format_says() {
    let directory = tempfile::tempdir().unwrap();
    let pool = Store::open(directory.path()).unwrap().pool("rbd").unwrap();
    let options = CreateOptions::sized(3 * MIB).order(20).features("layering,striping");
    let before = now_s();
    let id = pool.create("image", &options).unwrap();
    let after = now_s();
    let info = pool.info(id).unwrap();
    assert_eq!((info.size_bytes, info.order, &*info.features), (3 * MIB, 20, "layering,striping"));
    assert_eq!((info.id, &*info.name), (id, "image"));
    assert!((before..=after).contains(&info.created_s), "{info:?}");
    assert!((before..=after).contains(&info.modified_s), "{info:?}");
    assert_eq!((info.parent, info.owned_by), (None, None));
    let head = head_of(&pool, id);
    assert_eq!((head.version, head.epoch, head.snap_next, head.leaves_marks), (1, 0, 1, true));
    assert_eq!(head.log, Some(LogPosition { sequence: 1, slot: 1, group: 1 }));
    assert_eq!(head.marks, Some(SegmentMarks { data: 1, map: 1, table: 1 }));
    assert_eq!(head.root.unwrap().segment_next, 1);
    let snap = run(&pool, id, |image| image.snapshot("s")).unwrap();
    assert_eq!(snap, SnapId(1));
}

#[test]
fn the_largest_image_can_be_created_and_no_larger_one() {
    let directory = tempfile::tempdir().unwrap();
    let pool = Store::open(directory.path()).unwrap().pool("rbd").unwrap();
    pool.create("largest", &CreateOptions::sized(IMAGE_BYTES_MAX)).unwrap();
    let options = CreateOptions::sized(IMAGE_BYTES_MAX + 1);
    refused(pool.create("larger", &options), ErrorKind::Invalid, "the largest image is");
}

#[test]
fn names_of_pools_namespaces_images_and_snapshots_are_checked() {
    let directory = tempfile::tempdir().unwrap();
    let (store, pool, id) = store_with_image(directory.path(), MIB);
    let give = |what: &str, name: &str| match what {
        "pool" => store.pool_create(name, &PoolOptions::default()).map(drop),
        "namespace" => pool.namespace_create(name),
        "image" => pool.create(name, &CreateOptions::sized(MIB)).map(drop),
        _ => run(&pool, id, |image| image.snapshot(name)).map(drop),
    };
    for what in ["pool", "namespace", "image", "snapshot"] {
        let words = format!("{what} name");
        for bad in ["", "a/b", "a@b", "a\u{7}"] {
            refused(give(what, bad), ErrorKind::Invalid, &words);
        }
        let longest = "x".repeat(NAME_BYTES_MAX);
        give(what, &longest).unwrap();
        refused(give(what, &format!("{longest}x")), ErrorKind::NameTooLong, &words);
        refused(give(what, &longest), ErrorKind::Exists, "already");
    }
    let attached = store.pool_attach("a/b", pool.directory()).map(drop);
    refused(attached, ErrorKind::Invalid, "pool name");
    assert_sound(&store, &pool);
}

#[test]
fn what_does_not_exist_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let (store, pool, id) = store_with_image(directory.path(), MIB);
    let options = CreateOptions::sized(MIB);
    let there = |name: &str| ImageName::new(name).in_namespace("nowhere");
    let no_namespace = "namespace 'nowhere' does not exist in pool 'rbd'";
    let no_image = "image 'no' does not exist in pool 'rbd'";
    refused(pool.create(there("a"), &options), ErrorKind::NotFound, no_namespace);
    refused(pool.find(there("a")), ErrorKind::NotFound, no_namespace);
    refused(pool.images(&Namespace::named("nowhere")), ErrorKind::NotFound, no_namespace);
    refused(pool.find("no"), ErrorKind::NotFound, no_image);
    refused(pool.rename("no", "other"), ErrorKind::NotFound, no_image);
    refused(pool.info(ImageId(7)), ErrorKind::NotFound, "image 0000000000000007 does not exist");
    refused(store.pool("no"), ErrorKind::NotFound, "pool 'no' does not exist");
    let empty = directory.path().join("empty");
    refused(store.pool_attach("a", &empty), ErrorKind::NotFound, "holds no pool");
    fs::create_dir(&empty).unwrap();
    refused(store.pool_attach("a", &empty), ErrorKind::NotFound, "holds no pool");
    refused(store.pool_detach("rbd"), ErrorKind::Invalid, "belongs to this store");
    assert_eq!(pool.name_of_image(&Namespace::DEFAULT, ImageId(7)).unwrap(), None);
    assert_eq!(pool.name_of_image(&Namespace::named("nowhere"), id).unwrap(), None);
    let name = pool.name_of_image(&Namespace::DEFAULT, id).unwrap();
    assert_eq!(name.as_deref(), Some("image"));
}

#[test]
fn a_name_that_is_taken_is_not_given_again_even_if_it_is_damaged() {
    let directory = tempfile::tempdir().unwrap();
    let (store, pool, id) = store_with_image(directory.path(), MIB);
    let options = CreateOptions::sized(MIB);
    let other = pool.create("other", &options).unwrap();
    let exists = "image 'image' already exists in pool 'rbd'";
    refused(pool.create("image", &options), ErrorKind::Exists, exists);
    refused(pool.rename("other", "image"), ErrorKind::Exists, exists);
    assert_eq!((pool.find("image").unwrap(), pool.find("other").unwrap()), (id, other));
    let name = pool.directory().join("names/@/image");
    let whole = fs::read(&name).unwrap();
    fs::write(&name, b"torn").unwrap();
    refused(pool.create("image", &options), ErrorKind::Corrupt, "image");
    refused(pool.rename("other", "image"), ErrorKind::Corrupt, "image");
    assert_eq!(fs::read(&name).unwrap(), b"torn");
    fs::write(&name, whole).unwrap();
    assert_eq!(files_in(&pool.directory().join("images")).len(), 2);
    assert_sound(&store, &pool);
}

#[test]
fn a_creation_that_finds_no_room_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let (world, faults) = support::faulty_world();
    let store = Store::open_in(world, directory.path()).unwrap();
    let pool = store.pool("rbd").unwrap();
    let mut refusals = 0;
    for room_bytes in (0..).step_by(16) {
        faults.room_bytes.store(room_bytes, Ordering::Relaxed);
        let created = pool.create("image", &CreateOptions::sized(MIB));
        faults.room_bytes.store(-1, Ordering::Relaxed);
        assert_sound(&store, &pool);
        if created.is_ok() {
            break;
        }
        refused(created, ErrorKind::NoSpace, "cannot create image 'image'");
        assert_eq!(files_in(&pool.directory().join("images")), [""; 0]);
        refusals += 1;
    }
    assert!(refusals > 4, "head and name are written one after the other");
}

#[test]
fn info_tells_who_has_an_image_open() {
    let directory = tempfile::tempdir().unwrap();
    let (_store, pool, id) = store_with_image(directory.path(), MIB);
    let open = pool.open(id).unwrap();
    assert_eq!(pool.info(id).unwrap().owned_by, Some(std::process::id()));
    open.close().unwrap();
    assert_eq!(pool.info(id).unwrap().owned_by, None);
}

#[test]
fn info_tells_the_present_names_of_a_parent_and_whether_it_is_there() {
    let directory = tempfile::tempdir().unwrap();
    let (store, pool, id) = store_with_image(directory.path(), MIB);
    run(&pool, id, |image| image.snapshot("s")).unwrap();
    assert!(!pool.info(id).unwrap().snapshots[0].protected);
    run(&pool, id, |image| image.protect("s")).unwrap();
    assert!(pool.info(id).unwrap().snapshots[0].protected);
    let other = store.pool_create("other", &PoolOptions::default()).unwrap();
    let options = CloneOptions::default();
    let child = pool.snapshot(id, "s").clone_to(&other, "child", &options).unwrap();
    let format_2 = CloneOptions::new().format(2);
    run(&pool, id, |image| image.snapshot("t")).unwrap();
    let second = pool.snapshot(id, "t").clone_to(&other, "second", &format_2).unwrap();
    pool.rename("image", "renamed").unwrap();
    run(&pool, id, |image| image.rename_snapshot("s", "u")).unwrap();
    run(&pool, id, |image| image.remove_snapshot("t", false)).unwrap();
    let mut reader = marcot::InfoReader::new(&other);
    for _ in 0..2 {
        let parent = reader.info(child).unwrap().parent.unwrap();
        assert_eq!((&*parent.pool, &*parent.image, &*parent.snap), ("rbd", "renamed", "u"));
        assert!(parent.reachable && !parent.trashed, "{parent:?}");
        let parent = reader.info_of("second", second).unwrap().parent.unwrap();
        assert!(parent.reachable && parent.trashed, "{parent:?}");
        assert_eq!(parent.image_id, id);
    }
    fs::rename(pool.image_directory(id), directory.path().join("away")).unwrap();
    let parent = other.info(child).unwrap().parent.unwrap();
    assert_eq!((&*parent.image, &*parent.snap, parent.reachable), ("image", "s", false));
}

#[test]
fn the_totals_of_a_pool_count_each_image_and_snapshot_once() {
    let directory = tempfile::tempdir().unwrap();
    let (store, pool, id) = store_with_image(directory.path(), 8 * MIB);
    pool.namespace_create("apart").unwrap();
    let apart = ImageName::new("image").in_namespace("apart");
    pool.create(apart, &CreateOptions::sized(100 * MIB)).unwrap();
    let second = pool.create("second", &CreateOptions::sized(2 * MIB)).unwrap();
    run(&pool, id, |image| {
        image.write_at(0, &[1; 4096])?;
        image.snapshot("a")?;
        image.resize(MIB, true)?;
        image.snapshot("b")
    })
    .unwrap();
    run(&pool, second, |image| image.snapshot("c")).unwrap();
    // A removed snapshot that still has a clone is not counted.
    let options = CloneOptions::new().format(2);
    pool.snapshot(second, "c").clone_to(&pool, "clone", &options).unwrap();
    run(&pool, second, |image| image.remove_snapshot("c", false)).unwrap();
    let stats = store.pool_stats(&pool).unwrap();
    assert_eq!((stats.named.images, stats.named.snapshots), (3, 2));
    assert_eq!(stats.named.provisioned_bytes, MIB + 2 * MIB + 2 * MIB);
    assert_eq!(stats.named.provisioned_max_bytes, 8 * MIB + 2 * MIB + 2 * MIB);
    assert_eq!(stats.allocated_bytes, support::taken_bytes(&pool.directory().join("segments")));
    assert!(stats.allocated_bytes > 0 && stats.free_bytes > 0);
}

#[test]
fn a_snapshot_that_is_read_is_not_removed_and_leaves_no_lock_file_when_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let (_store, pool, id) = store_with_image(directory.path(), MIB);
    run(&pool, id, |image| image.snapshot("s")).unwrap();
    let remove = || run(&pool, id, |image| image.remove_snapshot("s", false));
    let before = files_in(&pool.image_directory(id));
    let reader = pool.open_snapshot(id, "s").unwrap();
    refused(remove(), ErrorKind::Busy, "s");
    drop(reader);
    remove().unwrap();
    let mut after = files_in(&pool.image_directory(id));
    after.retain(|name| !before.contains(name) && name != "readers");
    assert_eq!(after, [""; 0]);
}

#[test]
fn a_head_beyond_the_limit_is_refused_and_a_file_beyond_it_is_no_head() {
    let directory = tempfile::tempdir().unwrap();
    let (store, pool, id) = store_with_image(directory.path(), MIB);
    let path = pool.image_directory(id).join("head");
    let mut head = head_of(&pool, id);
    // Two more values fit, and not three.
    let value = "x".repeat(60_000);
    let count = FRAME_BODY_BYTES_MAX / 60_100 - 2;
    let pair = |n: usize| MetaRecord { key: format!("key{n}"), value: value.clone() };
    head.metadata = (0..count).map(pair).collect();
    fs::write(&path, encode_message(FrameKind::Head, &head)).unwrap();
    let set = |n: usize| run(&pool, id, |image| image.set_metadata(&format!("more{n}"), &value));
    let refusal = (0..9).find_map(|n| set(n).err().map(|error| (n, error)));
    let (fitted, error) = refusal.unwrap();
    assert!(fitted > 0, "{error}");
    let words = "rbd/image has more snapshots and metadata than a head can hold";
    refused::<()>(Err(error), ErrorKind::TooMany, words);
    assert_eq!(pool.info(id).unwrap().metadata.len(), count + fitted);
    assert_sound(&store, &pool);
    fs::File::options().write(true).open(&path).unwrap().set_len(64 * MIB).unwrap();
    refused(pool.info(id), ErrorKind::Corrupt, "head is too long to be a record");
    fs::write(&path, b"torn").unwrap();
    let words = format!("cannot use {}", path.display());
    refused(pool.info(id), ErrorKind::Corrupt, &words);
}

#[test]
fn a_pool_keeps_its_number_when_it_is_initialised() {
    let directory = tempfile::tempdir().unwrap();
    let (store, pool, id) = store_with_image(directory.path(), MIB);
    store.pool_init("rbd").unwrap();
    let again = Store::open(directory.path()).unwrap().pool("rbd").unwrap();
    assert_eq!((again.id(), again.find("image").unwrap()), (pool.id(), id));
    assert!(!again.attached() && !again.read_only());
}

#[test]
fn a_pool_of_another_store_is_changed_and_collected_there_only() {
    let directory = tempfile::tempdir().unwrap();
    let other = Store::open(&directory.path().join("other")).unwrap();
    let (store, _, _) = store_with_image(&directory.path().join("own"), MIB);
    let lent = other.pool_create("lent", &PoolOptions::default()).unwrap();
    let by_link = store.directory().join("pools/linked");
    std::os::unix::fs::symlink(lent.directory(), by_link).unwrap();
    let linked = store.pool("linked").unwrap();
    assert!(linked.attached() && !linked.read_only());
    refused(store.gc(&linked, &mut |_, _| {}), ErrorKind::Invalid, "belongs to another store");
    refused(store.pool_remove("linked"), ErrorKind::Invalid, "belongs to another store");
    other.pool_remove("lent").unwrap();
}

#[test]
fn many_may_open_a_new_store_at_once() {
    for _ in 0..20 {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path().join("store");
        let open = || Store::open(&place).unwrap().pool("rbd").unwrap().id();
        let pools: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(open)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(pools.windows(2).all(|two| two[0] == two[1]), "{pools:?}");
    }
}

#[test]
fn a_first_use_of_a_store_that_was_cut_off_is_finished_by_the_next_one() {
    let directory = tempfile::tempdir().unwrap();
    drop(Store::open(directory.path()).unwrap());
    let record = directory.path().join("pools/rbd/pool");
    fs::remove_file(&record).unwrap();
    let store = Store::open(directory.path()).unwrap();
    let pool = store.pool("rbd").unwrap();
    pool.create("image", &CreateOptions::sized(MIB)).unwrap();
    assert_sound(&store, &pool);
    // A store with another pool is no new store.
    store.pool_create("other", &PoolOptions::default()).unwrap();
    pool.find("image").and_then(|id| store.remove_image(&pool, id, &mut |_, _| {})).unwrap();
    store.pool_remove("rbd").unwrap();
    let store = Store::open(directory.path()).unwrap();
    assert_eq!(store.pools().unwrap(), ["other"]);
}

#[test]
fn a_pool_that_cannot_be_reached_is_not_taken_for_one_that_does_not_exist() {
    let directory = tempfile::tempdir().unwrap();
    let (store, pool, _) = store_with_image(directory.path(), MIB);
    let nowhere = directory.path().join("nowhere");
    std::os::unix::fs::symlink(&nowhere, store.directory().join("pools/linked")).unwrap();
    let words = "is a file system not mounted?";
    refused(store.pool("linked"), ErrorKind::Io, words);
    refused(store.pool_create("linked", &PoolOptions::default()), ErrorKind::Io, words);
    assert!(!store.is_unfinished("linked"));
    // A directory that may hold images, which cannot be listed.
    fs::create_dir(store.directory().join("pools/odd")).unwrap();
    fs::write(store.directory().join("pools/odd/images"), b"no directory").unwrap();
    refused(store.pool("odd"), ErrorKind::Io, "cannot list the images of pool 'odd'");
    fs::remove_dir_all(store.directory().join("pools/odd")).unwrap();
    // Notes of attached pools, one that is no file and one that is torn.
    let notes = store.directory().join("attached");
    fs::create_dir_all(notes.join("folder")).unwrap();
    fs::write(notes.join("torn"), b"torn").unwrap();
    refused(store.pool("folder"), ErrorKind::Io, "cannot read");
    refused(store.pool("torn"), ErrorKind::Corrupt, "cannot use");
    // A creation that was cut off leaves no pool.
    fs::create_dir(store.directory().join("pools/half")).unwrap();
    assert!(store.is_unfinished("half") && !store.is_unfinished("rbd"));
    refused(store.pool("half"), ErrorKind::NotFound, "pool 'half' does not exist");
    store.pool_create("half", &PoolOptions::default()).unwrap();
    assert_sound(&store, &pool);
}

#[test]
fn what_holds_no_pool_is_told_from_what_cannot_be_looked_at() {
    let directory = tempfile::tempdir().unwrap();
    let (store, pool, id) = store_with_image(directory.path(), MIB);
    let other = store.pool_create("other", &PoolOptions::default()).unwrap();
    let record = other.directory().join("pool");
    fs::remove_file(&record).unwrap();
    refused(store.pool("other"), ErrorKind::NotFound, "pool 'other' does not exist");
    assert!(store.children(&pool, id, None).unwrap().is_empty());
    // A record that cannot be read: the pool may hold children.
    fs::create_dir(&record).unwrap();
    refused(store.pool("other"), ErrorKind::Io, "cannot open pool 'other'");
    refused(store.children(&pool, id, None), ErrorKind::Io, "pool 'other' may hold children");
    fs::remove_dir(&record).unwrap();
    store.pool_create("other", &PoolOptions::default()).unwrap();
    // A record that another process removes just now, and one that the medium does not give.
    let (world, faults) = support::faulty_world();
    let seen = Store::open_in(world, directory.path()).unwrap();
    let seen_pool = seen.pool("rbd").unwrap();
    let children = |errno| {
        faults.pool_errno.store(errno, Ordering::Relaxed);
        let children = seen.children(&seen_pool, id, None);
        faults.pool_errno.store(0, Ordering::Relaxed);
        children
    };
    assert!(children(ENOENT).unwrap().is_empty());
    refused(children(EIO), ErrorKind::Io, "may hold children");
    let round = directory.path().join("round");
    std::os::unix::fs::symlink(&round, &round).unwrap();
    refused(store.pool_attach("round", &round), ErrorKind::Io, "cannot attach the pool in");
}

#[test]
fn a_pool_of_a_newer_version_and_one_on_a_read_only_file_system_are_only_read() {
    let directory = tempfile::tempdir().unwrap();
    let (world, faults) = support::faulty_world();
    let store = Store::open_in(world, directory.path()).unwrap();
    let pool = store.pool("rbd").unwrap();
    let options = CreateOptions::sized(MIB);
    let id = pool.create("image", &options).unwrap();
    drop(pool);
    let check = |read_only: bool| {
        let pool = store.pool("rbd").unwrap();
        assert_eq!((pool.read_only(), pool.find("image").unwrap()), (read_only, id));
        if read_only {
            refused(pool.create("more", &options), ErrorKind::ReadOnly, "is read-only for you");
        }
    };
    check(false);
    faults.read_only.store(true, Ordering::Relaxed);
    check(true);
    faults.read_only.store(false, Ordering::Relaxed);
    // A feature that this version does not know, and that does not stop it from reading.
    let path = directory.path().join("pools/rbd/pool");
    let mut record = fs::read(&path).unwrap();
    record[20] |= 2;
    record[28..32].fill(0);
    let crc = crc32c(&record);
    record[28..32].copy_from_slice(&crc.to_le_bytes());
    fs::write(&path, record).unwrap();
    check(true);
}

#[test]
fn a_store_pool_or_namespace_that_cannot_be_created_is_told_from_one_that_exists() {
    let directory = tempfile::tempdir().unwrap();
    let (world, faults) = support::faulty_world();
    faults.no_new_files.store(true, Ordering::Relaxed);
    let opened = Store::open_in(world.clone(), directory.path()).map(drop);
    refused(opened, ErrorKind::NoSpace, "cannot create a store in");
    faults.no_new_files.store(false, Ordering::Relaxed);
    // The same for the pool that every store has from the start.
    *faults.create_errno.lock().unwrap() = Some(("rbd", ENOSPC));
    let opened = Store::open_in(world.clone(), directory.path()).map(drop);
    refused(opened, ErrorKind::NoSpace, "cannot create pool 'rbd'");
    *faults.create_errno.lock().unwrap() = None;
    let pool = Store::open_in(world, directory.path()).unwrap().pool("rbd").unwrap();
    // And for a namespace.
    *faults.create_errno.lock().unwrap() = Some(("names", ENOSPC));
    refused(pool.namespace_create("ci"), ErrorKind::NoSpace, "cannot create namespace 'ci'");
    *faults.create_errno.lock().unwrap() = None;
    pool.namespace_create("ci").unwrap();
    refused(pool.namespace_create("ci"), ErrorKind::Exists, "namespace 'ci' already exists");
}
