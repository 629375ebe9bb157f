//! Data that another user wrote is not trusted: an attached pool, a store that root maintains, markers.
//!
//! The tests play the other user themselves: they give files away after they have made them. So they have to
//! run as root, as the whole suite does.

mod support;

use support::{checked, each, give_away, run};

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use marcot::{
    CloneOptions, CreateOptions, ErrorKind, ImageId, Pool, PoolOptions, ReadableBy, Store,
};
use marcot_format::frame::{FrameKind, decode_message, encode_message};
use marcot_format::record::{AttachedRecord, ChildRecord, HeadRecord, PoolRecord};

const SIZE: u64 = 1 << 20;
/// User numbers of the other user and of a third one.
const OTHER: u32 = 64_003;
const THIRD: u32 = 64_004;
const SECRET: u8 = 0x53;

struct Scene {
    root: tempfile::TempDir,
    store: Store,
}

/// A store of one's own, with the private image `rbd/secret`.
fn scene() -> Scene {
    let root = tempfile::tempdir().unwrap();
    assert_eq!(std::fs::metadata(root.path()).unwrap().uid(), 0, "these tests need root");
    std::fs::set_permissions(root.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let store = Store::open(&root.path().join("own")).unwrap();
    let rbd = store.pool("rbd").unwrap();
    image(&rbd, "secret", SECRET);
    Scene { root, store }
}

fn image(pool: &Pool, name: &str, byte: u8) -> ImageId {
    let options = CreateOptions::sized(SIZE);
    let id = pool.create(name, &options).unwrap();
    let mut image = pool.open(id).unwrap();
    image.write_at(0, &vec![byte; SIZE as usize]).unwrap();
    image.close().unwrap();
    id
}

fn protect(pool: &Pool, id: ImageId) {
    run(pool, id, |image| image.snapshot("s")).unwrap();
    run(pool, id, |image| image.protect("s")).unwrap();
}

fn first_byte(pool: &Pool, id: ImageId) -> marcot::Result<u8> {
    let mut byte = [0];
    pool.open_read_only(id)?.read_at(0, &mut byte)?;
    Ok(byte[0])
}

/// Everything below a directory, by name: to be compared with the same later.
fn state(directory: &Path) -> BTreeMap<PathBuf, (u32, u32, Vec<u8>)> {
    let mut found = BTreeMap::new();
    each(directory, &mut |path| {
        let meta = std::fs::symlink_metadata(path).unwrap();
        let bytes = if meta.is_file() { std::fs::read(path).unwrap() } else { Vec::new() };
        found.insert(path.to_owned(), (meta.mode(), meta.uid(), bytes));
    });
    found
}

impl Scene {
    /// The other user's store with a public pool, which holds the protected snapshot `base@s`.
    fn others_pool(&self) -> PathBuf {
        let directory = self.root.path().join("other");
        let store = Store::open(&directory).unwrap();
        let options = PoolOptions { readable_by: ReadableBy::All };
        let pool = store.pool_create("tmpl", &options).unwrap();
        let base = image(&pool, "base", 1);
        protect(&pool, base);
        give_away(&directory, OTHER);
        directory.join("pools/tmpl")
    }

    fn attach(&self) -> Pool {
        self.store.pool_attach("tmpl", &self.others_pool()).unwrap()
    }

    fn secret(&self) -> (Pool, ImageId) {
        let pool = self.store.pool("rbd").unwrap();
        let id = pool.find("secret").unwrap();
        (pool, id)
    }
}

fn rewrite<T: prost::Message + Default>(path: &Path, kind: FrameKind, change: impl FnOnce(&mut T)) {
    let (mut record, _): (T, _) = decode_message(kind, &std::fs::read(path).unwrap()).unwrap();
    change(&mut record);
    let owner = std::fs::metadata(path).unwrap().uid();
    std::fs::write(path, encode_message(kind, &record)).unwrap();
    chown(path, Some(owner), None).unwrap();
}

#[test]
fn an_image_of_another_user_that_names_ones_own_private_data_is_refused() {
    let scene = scene();
    let tmpl = scene.attach();
    let (rbd, secret) = scene.secret();
    let base = tmpl.find("base").unwrap();
    // The attacker knows the numbers, and puts the root of the private image into an own head.
    let head = rbd.image_directory(secret).join("head");
    let (stolen, _): (HeadRecord, _) =
        decode_message(FrameKind::Head, &std::fs::read(head).unwrap()).unwrap();
    rewrite(&tmpl.image_directory(base).join("head"), FrameKind::Head, |head: &mut HeadRecord| {
        head.root.clone_from(&stolen.root);
        for snapshot in &mut head.snapshots {
            snapshot.root.clone_from(&stolen.root);
        }
    });
    // A store that has opened no other pool yet refuses it too.
    let store = Store::open(scene.store.directory()).unwrap();
    for store in [&scene.store, &store] {
        let tmpl = store.pool("tmpl").unwrap();
        let refused = first_byte(&tmpl, base).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::PermissionDenied, "{refused}");
        assert!(tmpl.open_snapshot(base, "s").is_err());
        let rbd = store.pool("rbd").unwrap();
        let options = CloneOptions::default();
        let clone = tmpl.snapshot(base, "s").clone_to(&rbd, "web", &options);
        assert_eq!(clone.unwrap_err().kind(), ErrorKind::PermissionDenied);
        assert_eq!(first_byte(&rbd, secret).unwrap(), SECRET);
    }
}

#[test]
fn a_pool_that_takes_another_number_is_refused_and_disables_nobody() {
    let scene = scene();
    let tmpl = scene.attach();
    let (rbd, secret) = scene.secret();
    rewrite(&tmpl.directory().join("pool"), FrameKind::Pool, |record: &mut PoolRecord| {
        record.pool_id = rbd.id().0;
    });
    let store = Store::open(scene.store.directory()).unwrap();
    let refused = store.pool("tmpl").err().unwrap();
    assert_eq!(refused.kind(), ErrorKind::Invalid, "{refused}");
    assert!(refused.sentence().to_string().contains("'pool detach tmpl'"), "{refused}");
    assert_eq!(store.pool_by_id(rbd.id()).unwrap().directory(), rbd.directory());
    assert_eq!(first_byte(&store.pool("rbd").unwrap(), secret).unwrap(), SECRET);
    store.pool_detach("tmpl").unwrap();
    let again = store.pool_attach("tmpl", tmpl.directory()).err().unwrap();
    assert!(again.sentence().to_string().contains("has the number of pool 'rbd'"), "{again}");
}

#[test]
fn a_pool_whose_directory_changed_hands_is_refused() {
    let scene = scene();
    let directory = scene.attach().directory().to_owned();
    give_away(&directory, THIRD);
    let refused = scene.store.pool("tmpl").err().unwrap();
    assert_eq!(refused.kind(), ErrorKind::Invalid);
    assert!(refused.sentence().to_string().contains("belongs to user 64004"), "{refused}");
}

#[test]
fn the_error_for_two_own_pools_with_one_number_names_both() {
    let scene = scene();
    let (rbd, _) = scene.secret();
    let copy = scene.store.directory().join("pools/copy");
    copy_tree(rbd.directory(), &copy);
    let store = Store::open(scene.store.directory()).unwrap();
    store.pool("rbd").unwrap();
    let refused = store.pool("copy").err().unwrap().sentence().to_string();
    assert!(refused.contains("pools/rbd") && refused.contains("pools/copy"), "{refused}");
}

fn copy_tree(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let (from, to) = (entry.as_ref().unwrap().path(), to.join(entry.unwrap().file_name()));
        match from.is_dir() {
            true => copy_tree(&from, &to),
            false => drop(std::fs::copy(&from, &to).unwrap()),
        }
    }
}

#[test]
fn root_changes_nothing_in_another_users_store() {
    let scene = scene();
    let pool_directory = scene.others_pool();
    let directory = scene.root.path().join("other");
    let before = state(&directory);
    let store = Store::open(&directory).unwrap();
    assert!(store.is_foreign());
    let tmpl = store.pool("tmpl").unwrap();
    assert_eq!(tmpl.directory(), pool_directory);
    let base = tmpl.find("base").unwrap();
    assert_eq!(first_byte(&tmpl, base).unwrap(), 1, "reading goes on");
    let refusals = [
        tmpl.create("new", &CreateOptions::default()).err(),
        tmpl.rename("base", "other").err(),
        tmpl.namespace_create("ns").err(),
        tmpl.open(base).err(),
        store.remove_image(&tmpl, base, &mut |_, _| {}).err(),
        store.gc(&tmpl, &mut |_, _| {}).err(),
        store.pool_create("new", &PoolOptions::default()).err(),
        store.pool_remove("tmpl").err(),
        store.pool_init("tmpl").err(),
        store.pool_attach("own", scene.secret().0.directory()).err(),
        tmpl.snapshot(base, "s").clone_to(&tmpl, "new", &CloneOptions::default()).err(),
    ];
    for refused in refusals {
        let refused = refused.expect("it should have been refused");
        let kind = refused.kind();
        assert!(matches!(kind, ErrorKind::ReadOnly | ErrorKind::PermissionDenied), "{refused}");
        assert!(refused.sentence().to_string().contains("user 64003"), "{refused}");
    }
    assert!(checked(&store, &tmpl, true).findings.is_empty());
    assert_eq!(state(&directory), before);
}

#[test]
fn a_store_is_not_made_in_another_users_directory() {
    let scene = scene();
    let directory = scene.root.path().join("theirs");
    std::fs::create_dir(&directory).unwrap();
    give_away(&directory, OTHER);
    let refused = Store::open(&directory).err().unwrap();
    assert_eq!(refused.kind(), ErrorKind::PermissionDenied);
    assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 0);
}

#[test]
fn no_link_in_a_pool_leads_to_ones_own_images() {
    let scene = scene();
    let tmpl = scene.attach();
    let (rbd, secret) = scene.secret();
    let before = state(rbd.directory());
    for part in ["images", "segments"] {
        let link = tmpl.directory().join(part).join(secret.to_string());
        symlink(rbd.directory().join(part).join(secret.to_string()), &link).unwrap();
        std::os::unix::fs::lchown(&link, Some(OTHER), None).unwrap();
    }
    let refused = first_byte(&tmpl, secret).unwrap_err();
    assert!(refused.sentence().to_string().contains("symbolic link"), "{refused}");
    assert!(tmpl.info(secret).is_err());
    let report = checked(&scene.store, &tmpl, true);
    assert!(report.findings.iter().any(|f| f.serious), "{:?}", report.findings);
    assert!(report.findings.iter().all(|f| !f.repaired), "{:?}", report.findings);
    assert_eq!(state(rbd.directory()), before);
}

#[test]
fn a_hard_link_to_ones_own_file_is_refused() {
    let scene = scene();
    let tmpl = scene.attach();
    let base = tmpl.find("base").unwrap();
    let head = tmpl.image_directory(base).join("head");
    let kept = std::fs::read(&head).unwrap();
    std::fs::remove_file(&head).unwrap();
    let own = scene.root.path().join("of-root");
    std::fs::write(&own, kept).unwrap();
    std::fs::hard_link(&own, &head).unwrap();
    let refused = tmpl.info(base).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::PermissionDenied, "{refused}");
}

#[test]
fn a_marker_of_another_user_counts_by_its_name_and_is_not_followed() {
    let scene = scene();
    let options = PoolOptions { readable_by: ReadableBy::All };
    let pool = scene.store.pool_create("golden", &options).unwrap();
    let base = image(&pool, "base", 1);
    protect(&pool, base);
    // The marker points to a pool with the right number that lacks the image, so it looks stale.
    let bait = scene.root.path().join("bait");
    std::fs::create_dir_all(bait.join("images")).unwrap();
    let record = PoolRecord { pool_id: 0xabc, ..PoolRecord::default() };
    std::fs::write(bait.join("pool"), encode_message(FrameKind::Pool, &record)).unwrap();
    let marker = |child_image_id, names: [&str; 2]| ChildRecord {
        parent_pool_id: pool.id().0,
        parent_image_id: base.0,
        parent_snap_id: 1,
        child_pool_id: 0xabc,
        child_image_id,
        child_pool_name: names[0].into(),
        child_name: names[1].into(),
        child_pool_directory: bait.to_str().unwrap().into(),
        clone_format: 1,
        ..ChildRecord::default()
    };
    for (child, names) in [(1, ["vms", "web"]), (2, ["vms\u{1b}", "rbd/forged"])] {
        let name = format!("{}.{base}.1.{:016x}.{child:016x}", pool.id(), 0xabc);
        let path = pool.directory().join("children").join(name);
        let bytes = encode_message(FrameKind::Child, &marker(child, names));
        std::fs::write(&path, bytes).unwrap();
        give_away(&path, OTHER);
    }
    let refused = run(&pool, base, |image| image.unprotect("s")).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::HasChildren);
    let named = "(another store)/0000000000000002 (of user 64003), vms/web (of user 64003)";
    assert!(refused.sentence().to_string().contains(named), "{refused}");
    assert!(!refused.sentence().to_string().contains("forged"), "{refused}");
}

#[test]
fn files_that_are_no_markers_are_reported_and_removed_for_the_owner() {
    let scene = scene();
    let options = PoolOptions { readable_by: ReadableBy::All };
    let pool = scene.store.pool_create("golden", &options).unwrap();
    let children = pool.directory().join("children");
    std::fs::write(children.join("junk"), vec![1; 1 << 20]).unwrap();
    // A file with the name of a marker is none if it is too large.
    let fat = children.join(format!("{}.{:016x}.1.{:016x}.{:016x}", pool.id(), 1, 2, 3));
    std::fs::write(&fat, vec![1; 1 << 20]).unwrap();
    std::fs::create_dir_all(children.join("tree/of/directories")).unwrap();
    let marker = children.join(format!("{}.{:016x}.1.{:016x}.{:016x}", pool.id(), 1, 2, 4));
    std::fs::write(&marker, "small").unwrap();
    give_away(&children, OTHER);
    chown(&children, Some(0), None).unwrap();
    let check = |repair| checked(&scene.store, &pool, repair).findings;
    let found = check(false);
    assert_eq!(found.len(), 3, "{found:?}");
    assert!(found.iter().all(|f| f.message.contains("user 64003") && !f.repaired), "{found:?}");
    assert!(check(true).iter().all(|f| f.repaired));
    assert!(check(false).is_empty());
    assert!(marker.exists() && std::fs::read_dir(&children).unwrap().count() == 1);
    std::fs::write(children.join("junk"), "again").unwrap();
    give_away(&children.join("junk"), OTHER);
    scene.store.gc(&pool, &mut |_, _| {}).unwrap();
    assert_eq!(std::fs::read_dir(&children).unwrap().count(), 1);
}

/// Makes a tree whose paths are several times as long as the system allows; its top is `NAME-LINKS`.
fn dig(directory: &Path, name: &str, links: usize) {
    let mut below: Option<PathBuf> = None;
    for link in 1..=links {
        let top = directory.join(format!("{name}-{link}"));
        let bottom = (0..15).fold(top.clone(), |path, _| path.join("d".repeat(200)));
        std::fs::create_dir_all(&bottom).unwrap();
        std::fs::write(bottom.join("file"), "junk").unwrap();
        if let Some(below) = below {
            std::fs::rename(below, bottom.join("below")).unwrap();
        }
        below = Some(top);
    }
}

#[test]
fn names_that_are_no_text_and_trees_of_any_depth_are_reported_with_their_user_and_removed() {
    let scene = scene();
    let options = PoolOptions { readable_by: ReadableBy::All };
    let pool = scene.store.pool_create("golden", &options).unwrap();
    let children = pool.directory().join("children");
    let outside = scene.root.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("kept"), "kept").unwrap();
    let fill = || {
        std::fs::write(children.join(OsStr::from_bytes(b"a\xff\x1b")), "junk").unwrap();
        let tree = children.join(OsStr::from_bytes(b"t\xfe"));
        std::fs::create_dir_all(tree.join(OsStr::from_bytes(b"\xfd"))).unwrap();
        symlink(&outside, tree.join("link")).unwrap();
        dig(&children, "deep", 4);
        for entry in std::fs::read_dir(&children).unwrap() {
            std::os::unix::fs::lchown(entry.unwrap().path(), Some(OTHER), None).unwrap();
        }
    };
    let check = |repair| checked(&scene.store, &pool, repair).findings;
    fill();
    let names =
        [r"children/a\xff\u{1b} (4096 bytes)", r"children/t\xfe (a dir", "children/deep-4 (a dir"];
    for repaired in [false, true] {
        let found = check(repaired);
        assert_eq!(found.len(), names.len(), "{found:?}");
        for name in names {
            let of = |f: &&marcot::Finding| f.message.starts_with(name);
            let finding = found.iter().find(of).unwrap_or_else(|| panic!("{name}: {found:?}"));
            assert!(finding.message.contains("left by user 64003"), "{finding:?}");
            assert_eq!(finding.repaired, repaired, "{finding:?}");
        }
    }
    assert_eq!(std::fs::read_dir(&children).unwrap().count(), 0);
    fill();
    scene.store.gc(&pool, &mut |_, _| {}).unwrap();
    assert_eq!(std::fs::read_dir(&children).unwrap().count(), 0);
    assert!(outside.join("kept").exists());
    // Removing the pool removes them too.
    fill();
    scene.store.pool_remove("golden").unwrap();
    assert!(!pool.directory().exists() && outside.join("kept").exists());
}

#[test]
fn leftovers_of_a_removal_are_reported_with_their_user_and_removed_later() {
    let scene = scene();
    let (pool, _) = scene.secret();
    let children = pool.directory().join("children");
    let left = children.join(format!(".swept.{OTHER}.00000000000000ff.7"));
    std::fs::create_dir_all(left.join("3/in")).unwrap();
    std::fs::set_permissions(&left, std::fs::Permissions::from_mode(0o700)).unwrap();
    // A directory of one's own with a similar name is no such leftover.
    std::fs::create_dir_all(children.join(".swept/in")).unwrap();
    let check = |repair| checked(&scene.store, &pool, repair).findings;
    let found = check(false);
    assert!(found.len() == 1 && found[0].message.contains("left by user 64003"), "{found:?}");
    assert!(check(true).iter().all(|f| f.repaired));
    assert!(check(false).is_empty() && !left.exists() && children.join(".swept/in").exists());
}

#[test]
fn a_marker_in_another_users_pool_is_small_private_and_goes_with_its_child() {
    let scene = scene();
    let tmpl = scene.attach();
    let base = tmpl.find("base").unwrap();
    let vms = scene.store.pool_create("acquisitions", &PoolOptions::default()).unwrap();
    let before = state(tmpl.directory());
    let options = CloneOptions::default();
    let id = tmpl.snapshot(base, "s").clone_to(&vms, "target", &options).unwrap();
    assert_eq!(first_byte(&vms, id).unwrap(), 1);
    let markers: Vec<_> = std::fs::read_dir(tmpl.directory().join("children"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    let [marker] = &markers[..] else { panic!("{markers:?}") };
    assert_eq!(std::fs::metadata(marker).unwrap().mode() & 0o777, 0o600);
    let (record, _): (ChildRecord, _) =
        decode_message(FrameKind::Child, &std::fs::read(marker).unwrap()).unwrap();
    assert_eq!(record.child_pool_directory, "");
    scene.store.remove_image(&vms, id, &mut |_, _| {}).unwrap();
    assert_eq!(state(tmpl.directory()), before);
}

#[test]
fn a_pool_leaves_a_limited_number_of_markers_in_another_users_pool() {
    let scene = scene();
    let (tmpl, (rbd, _)) = (scene.attach(), scene.secret());
    let base = tmpl.find("base").unwrap();
    let clone = |dest: &Pool, name: &str| {
        tmpl.snapshot(base, "s").clone_to(dest, name, &CloneOptions::default())
    };
    let first = clone(&rbd, "first").unwrap();
    let children = tmpl.directory().join("children");
    let marker = std::fs::read_dir(&children).unwrap().next().unwrap().unwrap().file_name();
    for number in 1..9_999 {
        let name = marker.to_str().unwrap().replace(&first.to_string(), &format!("{number:016x}"));
        std::fs::write(children.join(name), b"").unwrap();
    }
    let last = clone(&rbd, "last").unwrap();
    let refused = clone(&rbd, "more").unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::NoSpace, "{refused}");
    // A pool of another number has room of its own.
    clone(&scene.store.pool_create("more", &PoolOptions::default()).unwrap(), "there").unwrap();
    run(&rbd, last, |image| image.flatten()).unwrap();
    clone(&rbd, "again").unwrap();
}

#[test]
fn gc_removes_the_marker_of_a_child_whose_removal_was_cut_off() {
    let scene = scene();
    let tmpl = scene.attach();
    let base = tmpl.find("base").unwrap();
    let (rbd, _) = scene.secret();
    let options = CloneOptions::default();
    let id = tmpl.snapshot(base, "s").clone_to(&rbd, "web", &options).unwrap();
    std::fs::remove_file(rbd.directory().join("names/@/web")).unwrap();
    std::fs::remove_dir_all(rbd.image_directory(id)).unwrap();
    scene.store.gc(&rbd, &mut |_, _| {}).unwrap();
    for pool in [&rbd, &tmpl] {
        assert_eq!(std::fs::read_dir(pool.directory().join("children")).unwrap().count(), 0);
    }
}

#[test]
fn a_file_of_ones_own_in_another_users_store_does_not_make_the_store_ones_own() {
    let scene = scene();
    scene.others_pool();
    let directory = scene.root.path().join("other");
    // The other user can rename a marker that was left in that user's pool, and so put a file of one's own
    // into the store.
    std::fs::rename(directory.join("pools"), directory.join("real")).unwrap();
    std::fs::create_dir(directory.join("pools")).unwrap();
    assert_eq!(std::fs::metadata(directory.join("pools")).unwrap().uid(), 0);
    let store = Store::open(&directory).unwrap();
    assert!(store.is_foreign());
    assert!(store.pool_create("new", &PoolOptions::default()).is_err());
}

#[test]
fn a_store_of_another_user_leads_to_no_pool_of_ones_own() {
    let scene = scene();
    scene.others_pool();
    let options = PoolOptions { readable_by: ReadableBy::All };
    let own = scene.store.pool_create("vm", &options).unwrap();
    let record = AttachedRecord {
        directory: own.directory().to_str().unwrap().into(),
        pool_id: own.id().0,
        ..AttachedRecord::default()
    };
    let attached = scene.root.path().join("other/attached");
    std::fs::create_dir(&attached).unwrap();
    std::fs::write(attached.join("vm"), encode_message(FrameKind::Attached, &record)).unwrap();
    give_away(&attached, OTHER);
    let store = Store::open(&scene.root.path().join("other")).unwrap();
    let refused = store.pool("vm").err().unwrap();
    assert_eq!(refused.kind(), ErrorKind::PermissionDenied, "{refused}");
}

#[test]
fn a_public_pool_below_a_private_directory_is_not_public() {
    let scene = scene();
    let tmpl = scene.attach();
    let options = PoolOptions { readable_by: ReadableBy::All };
    let vm = scene.store.pool_create("vm", &options).unwrap();
    let secret = image(&vm, "web", SECRET);
    let base = tmpl.find("base").unwrap();
    let head = vm.image_directory(secret).join("head");
    let (stolen, _): (HeadRecord, _) =
        decode_message(FrameKind::Head, &std::fs::read(head).unwrap()).unwrap();
    rewrite(&tmpl.image_directory(base).join("head"), FrameKind::Head, |head: &mut HeadRecord| {
        head.root.clone_from(&stolen.root);
    });
    assert_eq!(first_byte(&tmpl, base).unwrap(), SECRET, "everybody may read it anyway");
    let home = scene.root.path();
    std::fs::set_permissions(home, std::fs::Permissions::from_mode(0o700)).unwrap();
    let store = Store::open(scene.store.directory()).unwrap();
    store.pool("vm").unwrap();
    let refused = first_byte(&store.pool("tmpl").unwrap(), base).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::PermissionDenied, "{refused}");
}

#[test]
fn a_marker_that_was_moved_from_another_pool_is_ignored() {
    let scene = scene();
    let tmpl = scene.attach();
    let base = tmpl.find("base").unwrap();
    let (rbd, _) = scene.secret();
    let options = CloneOptions::default();
    tmpl.snapshot(base, "s").clone_to(&rbd, "web", &options).unwrap();
    let options = PoolOptions { readable_by: ReadableBy::All };
    let golden = scene.store.pool_create("golden", &options).unwrap();
    let own = image(&golden, "own", 1);
    protect(&golden, own);
    let marker = std::fs::read_dir(tmpl.directory().join("children")).unwrap().next().unwrap();
    let name = format!("{}.{own}.1.{:016x}.{:016x}", golden.id(), 0xabc, 0xdef);
    let planted = golden.directory().join("children").join(name);
    std::fs::rename(marker.unwrap().path(), &planted).unwrap();
    let check = |repair| checked(&scene.store, &golden, repair).findings;
    assert_eq!(check(false).len(), 1);
    run(&golden, own, |image| image.unprotect("s")).unwrap();
    assert!(check(true).iter().all(|finding| finding.repaired));
    assert!(!planted.exists());
}

#[test]
fn a_link_or_an_odd_record_in_another_users_store_is_named() {
    let scene = scene();
    scene.others_pool();
    let (rbd, _) = scene.secret();
    let link = scene.root.path().join("other/pools/linked");
    symlink(rbd.directory(), &link).unwrap();
    std::os::unix::fs::lchown(&link, Some(OTHER), None).unwrap();
    let refused =
        Store::open(&scene.root.path().join("other")).unwrap().pool("linked").err().unwrap();
    assert_eq!(refused.kind(), ErrorKind::PermissionDenied, "{refused}");
    let words = format!("by the symbolic link {} of user {OTHER}", link.display());
    assert!(refused.sentence().to_string().contains(&words), "{refused}");
    // No store is to be created where its record cannot be read.
    let record = scene.root.path().join("other/store");
    std::fs::remove_file(&record).unwrap();
    std::fs::create_dir(&record).unwrap();
    give_away(&record, OTHER);
    let refused = Store::open(&scene.root.path().join("other")).err().unwrap();
    assert!(refused.sentence().to_string().contains("cannot read"), "{refused}");
}

#[test]
fn the_children_of_a_child_that_another_user_claims_are_not_ones_own() {
    let scene = scene();
    let tmpl = scene.attach();
    let claimed = tmpl.find("base").unwrap();
    let options = PoolOptions { readable_by: ReadableBy::All };
    let golden = scene.store.pool_create("golden", &options).unwrap();
    let base = image(&golden, "base", 1);
    protect(&golden, base);
    let (rbd, _) = scene.secret();
    let clone_of_it = CloneOptions::default();
    tmpl.snapshot(claimed, "s").clone_to(&rbd, "web", &clone_of_it).unwrap();
    // The other user says that the parent of `web` is a clone of `base`.
    let name = format!("{}.{base}.1.{}.{claimed}", golden.id(), tmpl.id());
    let marker = golden.directory().join("children").join(name);
    std::fs::write(&marker, "").unwrap();
    give_away(&marker, OTHER);
    let found = scene.store.descendants(&golden, base, None).unwrap();
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!((found[0].image_id, found[0].user), (claimed, Some(OTHER)));
}
