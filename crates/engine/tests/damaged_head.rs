//! An image whose head is damaged can be given up without harm to anything else.

mod support;

use support::{checked, damage_head, head_of, run};

use std::path::Path;
use std::sync::atomic::Ordering;

use marcot::{CloneOptions, CreateOptions, ErrorKind, ImageId, Pool, PoolOptions, Store};

const MIB: usize = 1 << 20;
const SIZE: usize = 4 * MIB;

fn protected_snapshot(pool: &Pool, image: ImageId) {
    run(pool, image, |image| image.snapshot("s")).unwrap();
    run(pool, image, |image| image.protect("s")).unwrap();
}

fn unprotect(pool: &Pool, image: ImageId) -> marcot::Result<()> {
    run(pool, image, |image| image.unprotect("s"))
}

fn write(pool: &Pool, image: ImageId, offset: usize, byte: u8) {
    let mut image = pool.open(image).unwrap();
    image.write_at(offset as u64, &vec![byte; MIB]).unwrap();
    image.close().unwrap();
}

/// The first byte of each MiB; what lies between must be the same.
fn bytes(pool: &Pool, image: ImageId) -> [u8; SIZE / MIB] {
    let mut content = vec![0; SIZE];
    pool.open_read_only(image).unwrap().read_at(0, &mut content).unwrap();
    let mut first = [0; SIZE / MIB];
    for (byte, mib) in first.iter_mut().zip(content.chunks(MIB)) {
        assert!(mib.iter().all(|b| *b == mib[0]));
        *byte = mib[0];
    }
    first
}

fn gc(store: &Store, pool: &Pool) -> marcot::Result<()> {
    store.gc(pool, &mut |_, _| {}).map(drop)
}

fn give_up(store: &Store, pool: &Pool, name: &str) -> marcot::Result<()> {
    store.remove_damaged(pool, name, &mut |_, _| {})
}

fn files(directory: &Path) -> usize {
    std::fs::read_dir(directory).unwrap().count()
}

struct Family {
    store: Store,
    templates: Pool,
    pool: Pool,
    template: ImageId,
    /// A clone of the template in another pool, with a write of its own.
    middle: ImageId,
}

fn family(store: Store) -> Family {
    let templates = store.pool_create("templates", &PoolOptions::default()).unwrap();
    let pool = store.pool("rbd").unwrap();
    let options = CreateOptions::sized(SIZE as u64);
    let template = templates.create("template", &options).unwrap();
    write(&templates, template, 0, 1);
    protected_snapshot(&templates, template);
    let clone = CloneOptions::default();
    let middle = templates.snapshot(template, "s").clone_to(&pool, "middle", &clone).unwrap();
    write(&pool, middle, MIB, 2);
    Family { store, templates, pool, template, middle }
}

impl Family {
    fn assert_sound(&self) {
        for pool in [&self.templates, &self.pool] {
            support::assert_sound(&self.store, pool);
        }
    }
}

#[test]
fn gc_and_unprotect_work_again_once_a_damaged_image_is_given_up() {
    let directory = tempfile::tempdir().unwrap();
    let family = family(Store::open(directory.path()).unwrap());
    let Family { store, templates, pool, template, middle } = &family;
    let bystander = pool.create("bystander", &CreateOptions::sized(SIZE as u64)).unwrap();
    write(pool, bystander, 2 * MIB, 3);
    damage_head(pool, *middle);
    let refused = gc(store, pool).unwrap_err();
    assert!(
        refused.sentence().to_string().contains("image rbd/middle cannot be read"),
        "{refused}"
    );
    assert_eq!(unprotect(templates, *template).unwrap_err().kind(), ErrorKind::Corrupt);
    let refused = store.remove_named(pool, "middle", &mut |_, _| {}).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Corrupt);
    give_up(store, pool, "middle").unwrap();
    assert_eq!(pool.find("middle").unwrap_err().kind(), ErrorKind::NotFound);
    assert!(!pool.image_directory(*middle).exists());
    assert_eq!(files(&pool.directory().join("children")), 0);
    assert_eq!(files(&templates.directory().join("children")), 0);
    let segments = pool.directory().join("segments").join(middle.to_string());
    assert!(!segments.exists(), "its space has come back");
    gc(store, pool).unwrap();
    unprotect(templates, *template).unwrap();
    assert_eq!(bytes(pool, bystander), [0, 0, 3, 0]);
    family.assert_sound();
}

#[test]
fn a_damaged_image_with_children_is_not_given_up_and_their_data_outlives_it() {
    let directory = tempfile::tempdir().unwrap();
    let family = family(Store::open(directory.path()).unwrap());
    let Family { store, templates, pool, template, middle } = &family;
    let third = store.pool_create("third", &PoolOptions::default()).unwrap();
    protected_snapshot(pool, *middle);
    let clone = |dest: &Pool, name: &str| {
        pool.snapshot(*middle, "s").clone_to(dest, name, &CloneOptions::default()).unwrap()
    };
    let (near, far) = (clone(pool, "near"), clone(&third, "far"));
    damage_head(pool, *middle);
    for (dest, child, name) in [(pool, near, "rbd/near"), (&third, far, "third/far")] {
        let refused = give_up(store, pool, "middle").unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::HasChildren);
        assert!(refused.sentence().to_string().contains(name), "{refused}");
        assert_eq!(bytes(dest, child), [1, 2, 0, 0]);
        run(dest, child, |image| image.flatten()).unwrap();
    }
    give_up(store, pool, "middle").unwrap();
    // The children had the template's data through the damaged image. They do not need it any more.
    unprotect(templates, *template).unwrap();
    run(templates, *template, |image| image.remove_snapshot("s", false)).unwrap();
    store.remove_named(templates, "template", &mut |_, _| {}).unwrap();
    for pool in [templates, pool, &third] {
        gc(store, pool).unwrap();
        support::assert_sound(store, pool);
    }
    assert_eq!(bytes(pool, near), [1, 2, 0, 0], "its root names segments of the image given up");
    assert_eq!(bytes(&third, far), [1, 2, 0, 0]);
    family.assert_sound();
}

#[test]
fn gc_finishes_an_interrupted_giving_up() {
    let directory = tempfile::tempdir().unwrap();
    let (world, faults) = support::faulty_world();
    let family = family(Store::open_in(world, directory.path()).unwrap());
    let Family { store, templates, pool, template, middle } = &family;
    damage_head(pool, *middle);
    faults.fail_remove.store(true, Ordering::Relaxed);
    assert_eq!(give_up(store, pool, "middle").unwrap_err().kind(), ErrorKind::Io);
    assert!(pool.find("middle").is_ok(), "the first removal is that of the name");
    // The head that it has now names the parent, so that whoever finishes removes the records of the child.
    let parent = head_of(pool, *middle).parent.unwrap();
    let snap = templates.info(*template).unwrap().snapshots[0].id;
    let (pool_id, image_id) = (templates.id().0, template.0);
    assert_eq!((parent.pool_id, parent.image_id, parent.snap_id), (pool_id, image_id, snap.0));
    assert_eq!(pool.open(*middle).err().unwrap().kind(), ErrorKind::NotFound);
    gc(store, pool).unwrap();
    assert_eq!(pool.find("middle").unwrap_err().kind(), ErrorKind::NotFound);
    gc(store, pool).unwrap();
    unprotect(templates, *template).unwrap();
    family.assert_sound();
}

#[test]
fn only_an_image_with_a_damaged_head_can_be_given_up() {
    let directory = tempfile::tempdir().unwrap();
    let family = family(Store::open(directory.path()).unwrap());
    let Family { store, pool, middle, .. } = &family;
    run(pool, *middle, |image| image.snapshot("s")).unwrap();
    let refused = give_up(store, pool, "middle").unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::HasSnapshots);
    let path = pool.image_directory(*middle).join("head");
    let good = std::fs::read(&path).unwrap();
    let mut newer = good.clone();
    newer[8] = 9;
    std::fs::write(&path, &newer).unwrap();
    assert_eq!(give_up(store, pool, "middle").unwrap_err().kind(), ErrorKind::NewerFormat);
    assert_eq!(std::fs::read(&path).unwrap(), newer);
    std::fs::write(&path, &good).unwrap();
    let open = pool.open(*middle).unwrap();
    damage_head(pool, *middle);
    assert_eq!(give_up(store, pool, "middle").unwrap_err().kind(), ErrorKind::Owned);
    drop(open);
    std::fs::write(&path, &good).unwrap();
    family.assert_sound();
}

#[test]
fn an_image_whose_head_cannot_be_opened_at_the_moment_is_not_given_up() {
    const TOO_MANY_OPEN_FILES: i32 = 24;
    let directory = tempfile::tempdir().unwrap();
    let (world, faults) = support::faulty_world();
    let family = family(Store::open_in(world, directory.path()).unwrap());
    let Family { store, pool, middle, .. } = &family;
    faults.head_errno.store(TOO_MANY_OPEN_FILES, Ordering::Relaxed);
    assert_eq!(give_up(store, pool, "middle").unwrap_err().kind(), ErrorKind::Exhausted);
    assert_eq!(store.gc(pool, &mut |_, _| {}).unwrap_err().kind(), ErrorKind::Exhausted);
    let findings = checked(store, pool, true).findings;
    assert!(!findings.is_empty() && findings.iter().all(|f| !f.serious && !f.repaired));
    assert!(findings.iter().any(|f| f.unseen == Some(ErrorKind::Exhausted)), "{findings:#?}");
    faults.head_errno.store(0, Ordering::Relaxed);
    assert_eq!(bytes(pool, *middle), [1, 2, 0, 0]);
    family.assert_sound();
}
