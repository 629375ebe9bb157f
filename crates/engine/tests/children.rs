//! Which children a snapshot has: by records in the pools of a store, and by markers of other stores.

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use marcot::{
    ChildInfo, CloneOptions, CreateOptions, ErrorKind, ImageId, ImageName, Pool, PoolOptions, Store,
};
use marcot_format::frame::{FrameKind, decode_message, encode_message};
use marcot_format::record::ChildRecord;
use support::{EACCES, EIO, ENOENT, Faults, MIB, assert_sound, checked, faulty_world, run};

/// So many seconds old that a marker without an image is stale, and so young that it is not.
const OLD_S: i64 = 3600 + 60;
const YOUNG_S: i64 = 3600 - 600;

fn template(pool: &Pool, name: &str) -> ImageId {
    let id = pool.create(name, &CreateOptions::sized(MIB)).unwrap();
    protect(pool, id);
    id
}

fn protect(pool: &Pool, id: ImageId) {
    run(pool, id, |image| image.write_at(0, &[7; 4096])).unwrap();
    run(pool, id, |image| image.snapshot("s")).unwrap();
    run(pool, id, |image| image.protect("s")).unwrap();
}

fn cloned(parent: &Pool, image: ImageId, dest: &Pool, name: impl Into<ImageName>) -> ImageId {
    let options = CloneOptions::default();
    parent.snapshot(image, "s").clone_to(dest, name, &options).unwrap()
}

fn shown(children: &[ChildInfo]) -> Vec<String> {
    children.iter().map(ToString::to_string).collect()
}

/// The files with records and markers in a pool.
fn records(pool: &Pool) -> Vec<PathBuf> {
    let listed = fs::read_dir(pool.directory().join("children")).unwrap();
    let mut paths: Vec<PathBuf> = listed.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

/// Two stores of one user. A clone in the second one has a parent in the first.
struct Stores {
    directory: tempfile::TempDir,
    golden: Store,
    templates: Pool,
    base: ImageId,
    vms: Store,
    pool: Pool,
    child: ImageId,
}

fn stores() -> Stores {
    let directory = tempfile::tempdir().unwrap();
    let golden = Store::open(&directory.path().join("golden")).unwrap();
    let templates = golden.pool("rbd").unwrap();
    let base = template(&templates, "base");
    let vms = Store::open(&directory.path().join("vms")).unwrap();
    let pool = vms.pool_create("disks", &PoolOptions::default()).unwrap();
    pool.namespace_create("ci").unwrap();
    let attached = vms.pool_attach("golden", templates.directory()).unwrap();
    let child = cloned(&attached, base, &pool, ImageName::new("vm-1").in_namespace("ci"));
    Stores { directory, golden, templates, base, vms, pool, child }
}

impl Stores {
    fn children(&self) -> Vec<ChildInfo> {
        self.golden.children(&self.templates, self.base, None).unwrap()
    }

    fn marker(&self) -> PathBuf {
        let mut markers = records(&self.templates);
        assert_eq!(markers.len(), 1);
        markers.remove(0)
    }

    fn change_marker(&self, change: impl FnOnce(&mut ChildRecord)) {
        let path = self.marker();
        let (mut record, _) = decode_message(FrameKind::Child, &fs::read(&path).unwrap()).unwrap();
        change(&mut record);
        fs::write(&path, encode_message(FrameKind::Child, &record)).unwrap();
    }

    /// The child goes as if its store's directory had been changed by hand.
    fn lose_child(&self) {
        fs::remove_dir_all(self.pool.image_directory(self.child)).unwrap();
    }
}

#[test]
fn a_child_in_another_store_is_listed_by_its_present_name_there() {
    let stores = stores();
    let children = stores.children();
    assert_eq!(shown(&children), ["disks/ci/vm-1"]);
    let ids = (children[0].pool_id, children[0].image_id, children[0].clone_format);
    assert_eq!(ids, (stores.pool.id(), stores.child, 1));
    assert!(children[0].marker && children[0].user.is_none());
    let name = |name: &str| ImageName::new(name).in_namespace("ci");
    stores.pool.rename(name("vm-1"), "vm-2").unwrap();
    assert_eq!(shown(&stores.children()), ["disks/ci/vm-2"]);
    // A name that was given to another image is not the child's any more.
    stores.pool.create(name("vm-1"), &CreateOptions::sized(MIB)).unwrap();
    assert_eq!(shown(&stores.children()), ["disks/ci/vm-2"]);
    // The name that the pool has in the child's store counts, not the one that the marker tells.
    stores.change_marker(|marker| marker.child_pool_name = "other".to_owned());
    assert_eq!(shown(&stores.children()), ["disks/ci/vm-2"]);
}

#[test]
fn a_child_that_cannot_be_read_is_listed_by_what_its_marker_says() {
    let stores = stores();
    let name = ImageName::new("vm-1").in_namespace("ci");
    stores.pool.rename(name, "vm-2").unwrap();
    let other = stores.vms.pool_create("other", &PoolOptions::default()).unwrap();
    for directory in ["disks", "../vms/pools/disks", other.directory().to_str().unwrap()] {
        stores.change_marker(|marker| marker.child_pool_directory = directory.to_owned());
        assert_eq!(shown(&stores.children()), ["disks/ci/vm-1"], "{directory}");
    }
    // Names that no image or pool can have are not shown.
    let number = format!("(another store)/{}", stores.child);
    for field in 0..3 {
        stores.change_marker(|marker| {
            let names = ["disks", "ci", "vm-1"].map(|name| name.to_owned());
            let [pool, namespace, image] = names;
            (marker.child_pool_name, marker.child_namespace) = (pool, namespace);
            marker.child_name = image;
            let bad = "a/b\u{1b}".to_owned();
            match field {
                0 => marker.child_pool_name = bad,
                1 => marker.child_namespace = bad,
                _ => marker.child_name = bad,
            }
        });
        assert_eq!(shown(&stores.children()), [&*number]);
    }
    // A marker of which nothing can be read counts too.
    fs::write(stores.marker(), b"torn").unwrap();
    assert_eq!(shown(&stores.children()), [&*number]);
    let refused = run(&stores.templates, stores.base, |image| image.unprotect("s")).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::HasChildren);
}

#[test]
fn a_marker_without_its_image_counts_for_an_hour() {
    let stores = stores();
    stores.lose_child();
    assert_eq!(shown(&stores.children()), ["disks/ci/vm-1"], "a clone may be in the making");
    stores.change_marker(|marker| marker.created_s -= YOUNG_S);
    assert_eq!(shown(&stores.children()), ["disks/ci/vm-1"]);
    stores.change_marker(|marker| marker.created_s -= OLD_S - YOUNG_S);
    assert!(stores.children().is_empty());
    assert!(records(&stores.templates).is_empty(), "the stale marker is removed");
}

#[test]
fn a_marker_counts_for_ever_where_its_pool_cannot_be_looked_at() {
    let stores = stores();
    let other = stores.vms.pool_create("other", &PoolOptions::default()).unwrap();
    stores.change_marker(|marker| marker.created_s -= OLD_S);
    assert_eq!(shown(&stores.children()), ["disks/ci/vm-1"], "the image is there");
    // Another pool at the same place, no pool at all, and a pool whose images cannot be listed.
    let directory = stores.pool.directory().to_owned();
    stores.change_marker(|marker| {
        marker.child_pool_directory = other.directory().to_str().unwrap().to_owned();
    });
    assert_eq!(shown(&stores.children()), ["disks/ci/vm-1"]);
    stores.change_marker(|marker| {
        marker.child_pool_directory = directory.to_str().unwrap().to_owned();
    });
    let away = stores.directory.path().join("away");
    fs::rename(&directory, &away).unwrap();
    assert_eq!(shown(&stores.children()), ["disks/ci/vm-1"]);
    fs::rename(&away, &directory).unwrap();
    fs::rename(directory.join("images"), &away).unwrap();
    assert_eq!(shown(&stores.children()), ["disks/ci/vm-1"]);
    fs::rename(&away, directory.join("images")).unwrap();
    assert_eq!(records(&stores.templates).len(), 1);
    assert_sound(&stores.vms, &stores.pool);
}

#[test]
fn a_pool_is_detached_only_when_no_clone_leads_into_it_or_out_of_it() {
    let Stores { directory, golden: _golden, vms, pool, child, .. } = stores();
    let refused = vms.pool_detach("golden").unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Busy, "{refused}");
    run(&pool, child, |image| image.flatten()).unwrap();
    vms.pool_detach("golden").unwrap();
    // The other way round: a clone in the attached pool.
    let third = Store::open(&directory.path().join("third")).unwrap();
    let attached = third.pool_attach("disks", pool.directory()).unwrap();
    let base = template(&third.pool("rbd").unwrap(), "base");
    let clone = cloned(&third.pool("rbd").unwrap(), base, &attached, "clone");
    let refused = third.pool_detach("disks").unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Busy, "{refused}");
    // Its marker alone is enough, where the directory is gone.
    let away = directory.path().join("away");
    fs::rename(pool.directory(), &away).unwrap();
    let third = Store::open(third.directory()).unwrap();
    assert_eq!(third.pool_detach("disks").unwrap_err().kind(), ErrorKind::Busy);
    fs::rename(&away, pool.directory()).unwrap();
    let attached = third.pool("disks").unwrap();
    run(&attached, clone, |image| image.flatten()).unwrap();
    // A clone inside the attached pool concerns nobody else.
    let inside = template(&attached, "inside");
    cloned(&attached, inside, &attached, "inside-clone");
    third.pool_detach("disks").unwrap();
}

#[test]
fn descendants_are_children_of_children_and_so_on() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    let pool = store.pool("rbd").unwrap();
    let other = store.pool_create("other", &PoolOptions::default()).unwrap();
    let base = template(&pool, "base");
    run(&pool, base, |image| image.snapshot("t")).unwrap();
    let options = CloneOptions::new().format(2);
    pool.snapshot(base, "t").clone_to(&pool, "of-t", &options).unwrap();
    let middle = cloned(&pool, base, &other, "middle");
    protect(&other, middle);
    let low = cloned(&other, middle, &pool, "low");
    cloned(&pool, base, &pool, "near");
    let all = store.descendants(&pool, base, None).unwrap();
    let all_shown = ["other/middle", "rbd/near", "rbd/of-t", "rbd/low"];
    let mut wanted = all_shown.map(str::to_owned).to_vec();
    let mut found = shown(&all);
    assert_eq!(found.pop(), wanted.pop(), "{all:?}");
    found.sort();
    wanted.sort();
    assert_eq!(found, wanted);
    let by_name = |name: &str| all.iter().find(|child| child.image == name).unwrap();
    let only = store.descendants(&pool, base, Some(by_name("near").snap_id)).unwrap();
    let mut only = shown(&only);
    only.sort();
    assert_eq!(only, ["other/middle", "rbd/low", "rbd/near"]);
    assert_eq!(shown(&store.descendants(&other, middle, None).unwrap()), ["rbd/low"]);
    assert!(store.descendants(&pool, low, None).unwrap().is_empty());
    assert_eq!(store.children(&pool, base, None).unwrap().len(), 3);
}

#[test]
fn a_child_that_is_recorded_twice_is_listed_once() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    let pool = store.pool("rbd").unwrap();
    let other = store.pool_create("other", &PoolOptions::default()).unwrap();
    let base = template(&pool, "base");
    let options = CloneOptions::new().format(2);
    pool.snapshot(base, "s").clone_to(&other, "child", &options).unwrap();
    assert_eq!((records(&pool).len(), records(&other).len()), (1, 1));
    assert_eq!(shown(&store.children(&pool, base, None).unwrap()), ["other/child"]);
    // An earlier version did not note the format in the record's name.
    let marker = &records(&pool)[0];
    let name = marker.file_name().unwrap().to_str().unwrap();
    let earlier: Vec<String> = name
        .split('.')
        .enumerate()
        .map(|(i, part)| if i == 2 { part.trim_start_matches('0').to_owned() } else { part.into() })
        .collect();
    fs::rename(marker, marker.with_file_name(earlier.join("."))).unwrap();
    assert_eq!(shown(&store.children(&pool, base, None).unwrap()), ["other/child"]);
    assert!(store.has_child_of_format_2(&pool, base, None).unwrap());
    run(&other, other.find("child").unwrap(), |image| image.flatten()).unwrap();
    assert!(!store.has_child_of_format_2(&pool, base, None).unwrap());
}

#[test]
fn a_record_without_its_image_counts_only_while_the_pool_is_locked() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    let pool = store.pool("rbd").unwrap();
    let base = template(&pool, "base");
    let child = cloned(&pool, base, &pool, "child");
    fs::remove_dir_all(pool.image_directory(child)).unwrap();
    let lock = fs::File::open(pool.directory().join("lock")).unwrap();
    lock.lock().unwrap();
    let children = store.children(&pool, base, None).unwrap();
    assert_eq!(shown(&children), [format!("rbd/{child} (being cloned)")]);
    assert_eq!(children[0].clone_format, 1, "a protected snapshot has clones of format 1");
    assert_eq!(records(&pool).len(), 1);
    drop(lock);
    assert!(store.children(&pool, base, None).unwrap().is_empty());
    assert!(records(&pool).is_empty(), "the stale record is removed");
}

#[test]
fn children_that_cannot_be_listed_are_an_error_and_a_pool_that_never_had_any_has_none() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    let pool = store.pool("rbd").unwrap();
    let base = template(&pool, "base");
    let listed = pool.directory().join("children");
    fs::remove_dir_all(&listed).unwrap();
    assert!(store.children(&pool, base, None).unwrap().is_empty());
    fs::write(&listed, b"no directory").unwrap();
    store.children(&pool, base, None).unwrap_err();
    assert!(run(&pool, base, |image| image.unprotect("s")).is_err());
}

#[test]
fn a_pool_outside_of_a_store_is_shown_by_the_name_that_the_marker_tells() {
    let stores = stores();
    let outside = stores.directory.path().join("outside");
    fs::rename(stores.pool.directory(), &outside).unwrap();
    let path = |path: &Path| path.to_str().unwrap().to_owned();
    stores.change_marker(|marker| marker.child_pool_directory = path(&outside));
    assert_eq!(shown(&stores.children()), ["disks/ci/vm-1"]);
    stores.change_marker(|marker| marker.child_pool_name = "mine".to_owned());
    assert_eq!(shown(&stores.children()), ["mine/ci/vm-1"]);
}

/// Another user may leave files in the directory of a pool that everybody may clone from. The test plays
/// that user, so it has to run as root.
#[test]
fn all_files_that_are_no_markers_are_told_and_removed_however_many_there_are() {
    const OTHER: u32 = 64_003;
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    let options = PoolOptions { readable_by: marcot::ReadableBy::All };
    let pool = store.pool_create("golden", &options).unwrap();
    let junk = |count: usize| {
        for number in 0..count {
            let path = pool.directory().join("children").join(format!("junk{number}"));
            fs::write(&path, b"junk").unwrap();
            std::os::unix::fs::chown(&path, Some(OTHER), None).unwrap();
        }
    };
    let check = |repair| checked(&store, &pool, repair).findings;
    junk(20);
    let findings = check(false);
    assert_eq!(findings.len(), 20, "{findings:#?}");
    assert!(findings.iter().all(|f| !f.repaired && f.message.contains("left by user 64003")));
    junk(25);
    let findings = check(false);
    assert_eq!(findings.len(), 21, "{findings:#?}");
    assert!(findings[20].message.starts_with("5 more files in children/"), "{findings:#?}");
    assert!(findings.iter().all(|finding| !finding.repaired));
    let findings = check(true);
    assert_eq!(findings.len(), 21, "{findings:#?}");
    assert!(findings.iter().all(|finding| finding.repaired), "{findings:#?}");
    assert!(records(&pool).is_empty());
    assert!(check(false).is_empty());
}

#[test]
fn children_are_not_told_while_a_pool_of_the_store_cannot_be_opened() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    let pool = store.pool("rbd").unwrap();
    let base = template(&pool, "base");
    let other = store.pool_create("other", &PoolOptions::default()).unwrap();
    cloned(&pool, base, &other, "child");
    fs::create_dir(store.directory().join("pools/half")).unwrap();
    assert_eq!(shown(&store.children(&pool, base, None).unwrap()), ["other/child"]);
    fs::write(other.directory().join("pool"), b"torn").unwrap();
    // The marker would be enough to find this child, and not to find others.
    for records_too in [true, false] {
        if !records_too {
            fs::remove_file(&records(&pool)[0]).unwrap();
        }
        let error = store.children(&pool, base, None).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        assert!(error.sentence().to_string().contains("may hold children"), "{error}");
        assert!(run(&pool, base, |image| image.unprotect("s")).is_err());
    }
}

#[test]
fn an_attached_pool_that_cannot_be_opened_does_not_hide_the_other_children() {
    let stores = stores();
    let own = template(&stores.pool, "own");
    cloned(&stores.pool, own, &stores.pool, "near");
    let children = || shown(&stores.vms.children(&stores.pool, own, None).unwrap());
    fs::write(stores.templates.directory().join("pool"), b"torn").unwrap();
    assert_eq!(children(), ["disks/near"]);
    fs::rename(stores.templates.directory(), stores.directory.path().join("away")).unwrap();
    assert_eq!(children(), ["disks/near"]);
}

#[test]
fn a_clone_finds_its_parents_data_in_a_pool_that_was_not_used_before() {
    let directory = tempfile::tempdir().unwrap();
    let child = {
        let store = Store::open(directory.path()).unwrap();
        let pool = store.pool("rbd").unwrap();
        let base = template(&pool, "base");
        let other = store.pool_create("other", &PoolOptions::default()).unwrap();
        cloned(&pool, base, &other, "child")
    };
    let other = Store::open(directory.path()).unwrap().pool("other").unwrap();
    let mut bytes = [0; 4096];
    other.open_read_only(child).unwrap().read_at(0, &mut bytes).unwrap();
    assert!(bytes == [7; 4096]);
}

#[test]
fn a_user_who_leaves_too_many_markers_or_too_large_ones_is_named() {
    const OTHER: u32 = 64_003;
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    let options = PoolOptions { readable_by: marcot::ReadableBy::All };
    let pool = store.pool_create("golden", &options).unwrap();
    let marker = |number: u64| {
        let name = format!("{}.{:016x}.1.{:016x}.{number:016x}", pool.id(), 1, 2);
        pool.directory().join("children").join(name)
    };
    let give = |path: &Path| std::os::unix::fs::chown(path, Some(OTHER), None).unwrap();
    let findings = || store.check(&pool, &Default::default(), &mut |_, _| {}).unwrap().findings;
    for number in 0..10_000 {
        fs::write(marker(number), b"").unwrap();
        give(&marker(number));
    }
    assert_eq!(findings(), []);
    fs::write(marker(10_000), b"").unwrap();
    give(&marker(10_000));
    let found = findings();
    assert_eq!(found.len(), 1, "{found:#?}");
    assert!(found[0].message.starts_with("user 64003 has left 10001 markers"), "{found:#?}");
    fs::remove_file(marker(10_000)).unwrap();
    // None of these is a marker, whatever its name is.
    let (folder, long, wide) = (marker(20_000), marker(20_001), marker(20_002));
    fs::create_dir(&folder).unwrap();
    fs::write(&long, vec![1; (16 << 10) + 1]).unwrap();
    fs::File::create(&wide).unwrap().set_len(1 << 20).unwrap();
    let no_markers = [&folder, &long, &wide];
    no_markers.into_iter().for_each(|path| give(path));
    let found = findings();
    assert_eq!(found.len(), no_markers.len(), "{found:#?}");
    assert!(found.iter().all(|f| f.message.contains("is no marker of a clone")), "{found:#?}");
}

#[test]
fn a_marker_that_cannot_be_looked_at_counts_and_one_that_has_just_gone_does_not() {
    let stores = stores();
    let (world, faults) = faulty_world();
    let golden = Store::open_in(world, stores.golden.directory()).unwrap();
    let templates = golden.pool("rbd").unwrap();
    let children = |errno| {
        faults.child_errno.store(errno, Ordering::Relaxed);
        let children = golden.children(&templates, stores.base, None);
        faults.child_errno.store(0, Ordering::Relaxed);
        children.unwrap()
    };
    assert_eq!(shown(&children(0)), ["disks/ci/vm-1"]);
    assert!(children(ENOENT).is_empty());
    let unseen = children(EIO);
    assert_eq!((unseen.len(), unseen[0].image_id), (1, stores.child), "{unseen:?}");
    assert!(unseen[0].marker && unseen[0].user.is_some(), "{unseen:?}");
}

/// A template and its child, in a store whose disk can be made to fail.
fn with_child(directory: &Path) -> (Store, Arc<Faults>, Pool, ImageId, ImageId) {
    let (world, faults) = faulty_world();
    let store = Store::open_in(world, directory).unwrap();
    let pool = store.pool("rbd").unwrap();
    let base = template(&pool, "base");
    let child = cloned(&pool, base, &pool, "child");
    (store, faults, pool, base, child)
}

#[test]
fn the_record_of_a_flattened_child_goes_only_when_the_head_without_the_parent_is_durable() {
    let directory = tempfile::tempdir().unwrap();
    let (store, faults, pool, base, child) = with_child(directory.path());
    let record = records(&pool).remove(0);
    let bytes = fs::read(&record).unwrap();
    run(&pool, child, |image| image.flatten()).unwrap();
    // The flatten was cut off after its head was stored.
    fs::write(&record, bytes).unwrap();
    faults.sync_fails_after.store(0, Ordering::Relaxed);
    let refused = store.children(&pool, base, None);
    faults.sync_fails_after.store(-1, Ordering::Relaxed);
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Io);
    assert!(record.exists(), "after a power cut the child may have its parent again");
    assert!(store.children(&pool, base, None).unwrap().is_empty());
    assert!(!record.exists());
}

#[test]
fn gc_says_where_it_cannot_remove_the_record_of_a_child_that_is_gone() {
    let directory = tempfile::tempdir().unwrap();
    let (store, faults, pool, _, child) = with_child(directory.path());
    fs::remove_file(pool.directory().join("names/@/child")).unwrap();
    fs::remove_dir_all(pool.image_directory(child)).unwrap();
    let gc = |errno| {
        *faults.remove_errno.lock().unwrap() = Some(("children", errno));
        let collected = store.gc(&pool, &mut |_, _| {});
        *faults.remove_errno.lock().unwrap() = None;
        collected.map(drop)
    };
    let refused = gc(EIO).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Io);
    assert!(refused.sentence().to_string().contains("cannot remove"), "{refused}");
    assert_eq!(records(&pool).len(), 1);
    // Another process may be faster.
    gc(ENOENT).unwrap();
    assert!(records(&pool).is_empty());
}

#[test]
fn a_directory_of_children_may_be_missing_and_otherwise_can_be_listed_or_is_told_of() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    let pool = store.pool("rbd").unwrap();
    let children = pool.directory().join("children");
    fs::remove_dir(&children).unwrap();
    assert_sound(&store, &pool);
    store.gc(&pool, &mut |_, _| {}).unwrap();
    fs::write(&children, b"no directory").unwrap();
    let refused = store.check(&pool, &Default::default(), &mut |_, _| {}).unwrap_err();
    assert!(refused.sentence().to_string().contains("cannot list"), "{refused}");
}

#[test]
fn who_may_not_remove_another_users_file_learns_that_root_may() {
    const OTHER: u32 = 64_003;
    let directory = tempfile::tempdir().unwrap();
    let (world, faults) = faulty_world();
    let store = Store::open_in(world, directory.path()).unwrap();
    let options = PoolOptions { readable_by: marcot::ReadableBy::All };
    let pool = store.pool_create("golden", &options).unwrap();
    let junk = pool.directory().join("children/junk");
    fs::write(&junk, b"junk").unwrap();
    std::os::unix::fs::chown(&junk, Some(OTHER), None).unwrap();
    let refused = |user: u32, errno: i32| {
        faults.user_id.store(user, Ordering::Relaxed);
        *faults.remove_errno.lock().unwrap() = Some(("children", errno));
        let findings = checked(&store, &pool, true).findings;
        *faults.remove_errno.lock().unwrap() = None;
        assert!(findings.len() == 1 && !findings[0].repaired, "{findings:#?}");
        assert!(findings[0].message.contains("cannot be removed"), "{findings:#?}");
        findings[0].message.contains("root can, with 'rm -r'")
    };
    assert!(refused(1000, EACCES));
    assert!(!refused(1000, EIO) && !refused(0, EACCES));
}
