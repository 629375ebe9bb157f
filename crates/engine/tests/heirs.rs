//! Space that a removed image had shared comes back without a collection of the pool, as soon as no image
//! names it, and not before. The cost does not depend on the number of images.

mod support;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use support::{EIO, ENOENT, ENOSPC, Faults, MIB, assert_sound, pattern, run};

use marcot::{CloneOptions, CreateOptions, ErrorKind, Image, ImageId, Pool, PoolOptions, Store};

const SIZE_BYTES: u64 = 8 * MIB;

fn store(directory: &Path) -> (Store, Pool, Arc<Faults>) {
    let (world, faults) = support::faulty_world();
    let store = Store::open_in(world, directory).unwrap();
    let pool = store.pool("rbd").unwrap();
    (store, pool, faults)
}

fn on(pool: &Pool, image: ImageId, change: impl FnOnce(&mut Image) -> marcot::Result<()>) {
    run(pool, image, change).unwrap();
}

fn snapshot(pool: &Pool, image: ImageId) {
    on(pool, image, |image| image.snapshot("s").and_then(|_| image.protect("s")));
}

/// An image full of data with a protected snapshot.
fn template(pool: &Pool, name: &str, seed: u8) -> ImageId {
    let options = CreateOptions::sized(SIZE_BYTES);
    let id = pool.create(name, &options).unwrap();
    let mut image = pool.open(id).unwrap();
    image.write_at(0, &pattern(seed, SIZE_BYTES as usize)).unwrap();
    image.close().unwrap();
    snapshot(pool, id);
    id
}

fn clone((parent, image): (&Pool, ImageId), pool: &Pool, name: &str) -> ImageId {
    parent.snapshot(image, "s").clone_to(pool, name, &CloneOptions::default()).unwrap()
}

fn flatten(pool: &Pool, image: ImageId) {
    on(pool, image, Image::flatten);
}

fn remove_snapshot(image: &mut Image) -> marcot::Result<()> {
    image.unprotect("s")?;
    image.remove_snapshot("s", false)
}

/// Removes the snapshot, and the image.
fn remove(store: &Store, pool: &Pool, image: ImageId) {
    on(pool, image, remove_snapshot);
    remove_alone(store, pool, image);
}

fn remove_alone(store: &Store, pool: &Pool, image: ImageId) {
    store.remove_image(pool, image, &mut |_, _| {}).unwrap();
}

fn expect(pool: &Pool, image: ImageId, seed: u8) {
    let mut image = pool.open(image).unwrap();
    let mut found = vec![0; SIZE_BYTES as usize];
    image.read_at(0, &mut found).unwrap();
    assert!(found == pattern(seed, SIZE_BYTES as usize));
    image.close().unwrap();
}

fn allocated(store: &Store, pool: &Pool) -> u64 {
    store.pool_stats(pool).unwrap().allocated_bytes
}

/// Asserts that no mark of an heir is left.
fn no_marks(pool: &Pool) {
    let left: Vec<_> = std::fs::read_dir(pool.directory().join("heirs"))
        .map(|entries| entries.map(|e| e.unwrap().file_name()).collect())
        .unwrap_or_default();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn removing_a_template_without_clones_frees_all_its_space_and_reads_no_other_head() {
    let mut opened = Vec::new();
    for others in [3, 60] {
        let directory = tempfile::tempdir().unwrap();
        let (store, pool, faults) = store(directory.path());
        let template = template(&pool, "template", 1);
        for number in 0..others {
            let id = pool.create(format!("other-{number}"), &CreateOptions::default()).unwrap();
            assert_ne!(id, template);
        }
        let child = clone((&pool, template), &pool, "child");
        remove_alone(&store, &pool, child);
        on(&pool, template, remove_snapshot);
        let before = faults.opens.load(Ordering::Relaxed);
        remove_alone(&store, &pool, template);
        opened.push(faults.opens.load(Ordering::Relaxed) - before);
        assert_eq!(allocated(&store, &pool), 0, "all of its space is back");
        no_marks(&pool);
    }
    assert_eq!(opened[0], opened[1], "files opened among few images and among many");
}

#[test]
fn the_space_of_a_template_comes_back_when_its_last_flattened_clone_is_removed() {
    let directory = tempfile::tempdir().unwrap();
    let (store, pool, _) = store(directory.path());
    let template = template(&pool, "template", 1);
    let first = clone((&pool, template), &pool, "first");
    let second = clone((&pool, template), &pool, "second");
    flatten(&pool, first);
    flatten(&pool, second);
    remove(&store, &pool, template);
    expect(&pool, first, 1);
    remove_alone(&store, &pool, first);
    expect(&pool, second, 1);
    assert_sound(&store, &pool);
    remove_alone(&store, &pool, second);
    assert_eq!(allocated(&store, &pool), 0);
    no_marks(&pool);
}

#[test]
fn segments_that_a_few_heirs_do_not_name_come_back_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let (store, pool, _) = store(directory.path());
    let template = template(&pool, "template", 1);
    let child = clone((&pool, template), &pool, "child");
    flatten(&pool, child);
    // The template gets more data than the child names.
    let mut image = pool.open(template).unwrap();
    image.write_at(0, &pattern(2, SIZE_BYTES as usize)).unwrap();
    image.snapshot("later").unwrap();
    image.protect("later").unwrap();
    image.unprotect("later").unwrap();
    image.remove_snapshot("later", false).unwrap();
    image.close().unwrap();
    assert!(allocated(&store, &pool) > 15 * MIB);
    remove(&store, &pool, template);
    assert!(allocated(&store, &pool) < 10 * MIB);
    expect(&pool, child, 1);
    assert_sound(&store, &pool);
}

#[test]
fn heirs_are_found_through_images_that_are_gone() {
    let directory = tempfile::tempdir().unwrap();
    let (store, pool, _) = store(directory.path());
    let template = template(&pool, "template", 1);
    let middle = clone((&pool, template), &pool, "middle");
    snapshot(&pool, middle);
    let last = clone((&pool, middle), &pool, "last");
    flatten(&pool, last);
    // `middle` is removed, and with it the record that it is a child of the template.
    remove(&store, &pool, middle);
    remove(&store, &pool, template);
    expect(&pool, last, 1);
    assert_sound(&store, &pool);
    // A clone of the heir is an heir too, while it is a child and afterwards.
    snapshot(&pool, last);
    let heir = clone((&pool, last), &pool, "heir");
    flatten(&pool, heir);
    remove(&store, &pool, last);
    expect(&pool, heir, 1);
    remove_alone(&store, &pool, heir);
    assert_eq!(allocated(&store, &pool), 0);
    no_marks(&pool);
}

#[test]
fn segments_that_many_heirs_may_name_are_kept_until_the_heirs_are_fewer() {
    let directory = tempfile::tempdir().unwrap();
    let (store, pool, _) = store(directory.path());
    let template = template(&pool, "template", 1);
    let heirs: Vec<_> = (0..20)
        .map(|number| {
            let heir = clone((&pool, template), &pool, &format!("heir-{number}"));
            flatten(&pool, heir);
            heir
        })
        .collect();
    remove(&store, &pool, template);
    for heir in &heirs {
        expect(&pool, *heir, 1);
        remove_alone(&store, &pool, *heir);
    }
    assert_eq!(allocated(&store, &pool), 0);
    no_marks(&pool);
}

#[test]
fn an_heir_whose_parent_lies_in_another_pool_is_not_forgotten() {
    let directory = tempfile::tempdir().unwrap();
    let (store, pool, _) = store(directory.path());
    let other = store.pool_create("other", &PoolOptions::default()).unwrap();
    let template = template(&pool, "template", 1);
    let middle = clone((&pool, template), &other, "middle");
    snapshot(&other, middle);
    let back = clone((&other, middle), &pool, "back");
    flatten(&other, middle);
    remove(&store, &pool, template);
    expect(&pool, back, 1);
    expect(&other, middle, 1);
    flatten(&pool, back);
    remove(&store, &other, middle);
    expect(&pool, back, 1);
    assert_sound(&store, &pool);
    remove_alone(&store, &pool, back);
    assert_eq!(allocated(&store, &pool), 0);
    assert_eq!(allocated(&store, &other), 0);
    no_marks(&pool);
    no_marks(&other);
}

#[test]
fn gc_removes_only_the_marks_that_are_not_needed() {
    let directory = tempfile::tempdir().unwrap();
    let (store, pool, _) = store(directory.path());
    let template = template(&pool, "template", 1);
    let child = clone((&pool, template), &pool, "child");
    flatten(&pool, child);
    remove(&store, &pool, template);
    // An interrupted removal leaves such a mark.
    let gone = pool.directory().join("heirs").join(format!("{:016x}.{:016x}", 77, 78));
    std::fs::write(&gone, "").unwrap();
    store.gc(&pool, &mut |_, _| {}).unwrap();
    assert!(!gone.exists());
    expect(&pool, child, 1);
    remove_alone(&store, &pool, child);
    assert_eq!(allocated(&store, &pool), 0);
    no_marks(&pool);
}

#[test]
fn a_mark_that_an_interrupted_flatten_has_made_does_not_stop_the_next_one() {
    let directory = tempfile::tempdir().unwrap();
    let (store, pool, _) = store(directory.path());
    let template = template(&pool, "template", 1);
    let child = clone((&pool, template), &pool, "child");
    let marks = pool.directory().join("heirs");
    std::fs::create_dir_all(&marks).unwrap();
    std::fs::write(marks.join(format!("{template}.{child}")), "").unwrap();
    flatten(&pool, child);
    remove(&store, &pool, template);
    expect(&pool, child, 1);
    remove_alone(&store, &pool, child);
    assert_eq!(allocated(&store, &pool), 0);
    no_marks(&pool);
}

#[test]
fn nothing_is_freed_where_the_marks_cannot_be_read() {
    let directory = tempfile::tempdir().unwrap();
    let (store, pool, _) = store(directory.path());
    let template = template(&pool, "template", 1);
    let child = clone((&pool, template), &pool, "child");
    flatten(&pool, child);
    on(&pool, template, remove_snapshot);
    let (marks, away) = (pool.directory().join("heirs"), directory.path().join("away"));
    std::fs::rename(&marks, &away).unwrap();
    std::fs::write(&marks, "no directory").unwrap();
    store.remove_image(&pool, template, &mut |_, _| {}).unwrap_err();
    expect(&pool, child, 1);
    std::fs::remove_file(&marks).unwrap();
    std::fs::rename(&away, &marks).unwrap();
    store.gc(&pool, &mut |_, _| {}).unwrap();
    expect(&pool, child, 1);
    assert_sound(&store, &pool);
    remove_alone(&store, &pool, child);
    store.gc(&pool, &mut |_, _| {}).unwrap();
    assert_eq!(allocated(&store, &pool), 0);
    no_marks(&pool);
}

#[test]
fn copies_that_an_image_did_not_make_itself_stay_when_it_is_removed() {
    for flattened in [false, true] {
        let directory = tempfile::tempdir().unwrap();
        let (store, pool, _) = store(directory.path());
        let other = store.pool_create("other", &PoolOptions::default()).unwrap();
        let base = template(&other, "base", 1);
        let maker = clone((&other, base), &pool, "maker");
        // Because it has a snapshot, its flatten makes a set of copies.
        snapshot(&pool, maker);
        flatten(&pool, maker);
        // This image names that set too, since it was cloned from a clone in another pool.
        let middle = clone((&pool, maker), &other, "middle");
        snapshot(&other, middle);
        let back = clone((&other, middle), &pool, "back");
        if flattened {
            flatten(&pool, back);
        }
        on(&pool, back, |image| image.write_at(0, &pattern(2, 4096)));
        // A gc that runs beside the removal removes the marks of the image.
        let mut gc = |_, _| drop(store.gc(&pool, &mut |_, _| {}).unwrap());
        store.remove_image(&pool, back, &mut gc).unwrap();
        expect(&pool, maker, 1);
        expect(&other, middle, 1);
        assert_sound(&store, &pool);
        assert_sound(&store, &other);
        remove(&store, &other, middle);
        remove(&store, &pool, maker);
        assert_eq!(allocated(&store, &pool), 0);
        no_marks(&pool);
    }
}

#[test]
fn what_somebody_may_read_by_an_older_head_is_freed_only_after_that() {
    for elsewhere in [false, true] {
        let directory = tempfile::tempdir().unwrap();
        let (store, pool, _) = store(directory.path());
        let other = store.pool_create("other", &PoolOptions::default()).unwrap();
        let template = template(&pool, "template", 1);
        let child = clone((&pool, template), &pool, "child");
        let away = clone((&pool, template), &other, "away");
        flatten(&pool, child);
        flatten(&other, away);
        let reader = match elsewhere {
            false => pool.open_read_only(child).unwrap(),
            true => other.open_read_only(away).unwrap(),
        };
        on(&pool, child, |image| image.discard(0, SIZE_BYTES));
        remove(&store, &pool, template);
        assert!(
            allocated(&store, &pool) >= SIZE_BYTES,
            "the reader is in the other pool: {elsewhere}"
        );
        drop(reader);
        remove_alone(&store, &pool, child);
        assert_eq!(allocated(&store, &pool), 0);
        no_marks(&pool);
    }
}

#[test]
fn a_flatten_that_cannot_mark_the_image_as_an_heir_leaves_it_a_clone() {
    let directory = tempfile::tempdir().unwrap();
    let (store, pool, faults) = store(directory.path());
    let template = template(&pool, "template", 1);
    let child = clone((&pool, template), &pool, "child");
    *faults.create_errno.lock().unwrap() = Some(("heirs", ENOSPC));
    let refused = run(&pool, child, Image::flatten).unwrap_err();
    *faults.create_errno.lock().unwrap() = None;
    assert_eq!(refused.kind(), ErrorKind::NoSpace, "{refused}");
    assert_eq!(pool.info(child).unwrap().parent.unwrap().image_id, template);
    flatten(&pool, child);
    remove(&store, &pool, template);
    expect(&pool, child, 1);
    assert_sound(&store, &pool);
}

#[test]
fn gc_says_where_it_cannot_remove_a_mark_and_does_not_miss_one_that_has_just_gone() {
    let directory = tempfile::tempdir().unwrap();
    let (store, pool, faults) = store(directory.path());
    let child = {
        let template = template(&pool, "template", 1);
        let child = clone((&pool, template), &pool, "child");
        flatten(&pool, child);
        remove(&store, &pool, template);
        child
    };
    let mark = pool.directory().join("heirs").join(format!("{:016x}.{:016x}", 77, 78));
    let gc = |errno| {
        std::fs::write(&mark, "").unwrap();
        *faults.remove_errno.lock().unwrap() = Some(("heirs", errno));
        let collected = store.gc(&pool, &mut |_, _| {});
        *faults.remove_errno.lock().unwrap() = None;
        collected.map(drop)
    };
    let refused = gc(EIO).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Io);
    assert!(refused.sentence().to_string().contains("cannot remove"), "{refused}");
    assert!(mark.exists());
    gc(ENOENT).unwrap();
    assert!(!mark.exists());
    expect(&pool, child, 1);
}

#[test]
fn a_clone_in_the_pool_that_its_data_has_left_reads_it_where_it_lies_now() {
    let directory = tempfile::tempdir().unwrap();
    let (store, pool, _) = store(directory.path());
    let other = store.pool_create("other", &PoolOptions::default()).unwrap();
    let first = template(&pool, "first", 1);
    let middle = clone((&pool, first), &other, "middle");
    snapshot(&other, middle);
    let last = clone((&other, middle), &other, "last");
    snapshot(&other, last);
    let before = clone((&other, last), &pool, "before");
    // The flatten copies the data to the other pool. The image `last` finds it there.
    flatten(&other, middle);
    remove(&store, &pool, first);
    expect(&pool, before, 1);
    remove_alone(&store, &pool, before);
    assert_eq!(allocated(&store, &pool), 0);
    let after = clone((&other, last), &pool, "after");
    expect(&pool, after, 1);
    assert_sound(&store, &pool);
    flatten(&pool, after);
    on(&other, last, remove_snapshot);
    remove_alone(&store, &other, last);
    remove(&store, &other, middle);
    assert_eq!(allocated(&store, &other), 0);
    expect(&pool, after, 1);
    assert_sound(&store, &pool);
}
