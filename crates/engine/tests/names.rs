//! Names that no user can have given: those of foreign files, and those of partial images.

mod support;

use marcot::is_partial_name;
use marcot::{
    CreateOptions, ErrorKind, INTERRUPTED_KEPT_S, ImageName, Keep, Namespace, Pool, Store,
};
use marcot_format::record::SnapshotRecord;
use support::{MIB, change_head, checked, store_with_image};

fn options() -> CreateOptions {
    CreateOptions::sized(MIB)
}

fn names(pool: &Pool) -> Vec<String> {
    pool.images(&Namespace::DEFAULT).unwrap().into_iter().map(|(name, _)| name).collect()
}

#[test]
fn a_partial_image_is_removed_only_when_the_process_that_fills_it_is_gone() {
    let directory = tempfile::tempdir().unwrap();
    let (store, pool, _) = store_with_image(directory.path(), MIB);
    let maker = pool.create_partial("disk", &options()).unwrap();
    let id = maker.id();
    // Another store stands for another process: a lock that one store holds counts for the other.
    let other = Store::open(directory.path()).unwrap();
    let other_pool = other.pool("rbd").unwrap();
    other.remove_abandoned(&other_pool, &Namespace::DEFAULT, Keep::Nothing).unwrap();
    let (name, _) = pool.images(&Namespace::DEFAULT).unwrap().remove(0);
    assert!(is_partial_name(&name) && name.ends_with(&id.to_string()), "{name}");
    drop(maker);
    other.remove_abandoned(&other_pool, &Namespace::DEFAULT, Keep::Nothing).unwrap();
    assert_eq!(names(&pool), ["image"]);
    assert_eq!(pool.info(id).unwrap_err().kind(), ErrorKind::NotFound);
    store.gc(&pool, &mut |_, _| {}).unwrap();
    support::assert_sound(&store, &pool);
}

#[test]
fn a_partial_image_with_a_note_is_kept_for_its_command_and_for_seven_days() {
    let directory = tempfile::tempdir().unwrap();
    let (store, pool, _) = store_with_image(directory.path(), MIB);
    let disk = ImageName::from("disk");
    let remains = |keep| {
        store.remove_abandoned(&pool, &Namespace::DEFAULT, keep).unwrap();
        names(&pool).len() - 1
    };
    let begin = |name: &str, source: &str| {
        let (image, found) = pool.begin_partial(name, &options(), source).unwrap();
        (image.id(), found)
    };
    let (first, _) = begin("disk", "a");
    assert_eq!(remains(Keep::Interrupted), 1);
    assert_eq!(begin("disk", "a"), (first, true));
    // Another state of the source, another name, another size.
    for (other, found) in [begin("disk", "b"), begin("other", "a")] {
        assert!(!found && other != first);
    }
    let (image, found) = pool.begin_partial("disk", &CreateOptions::sized(1), "a").unwrap();
    assert!(!found && image.id() != first);
    // One that is open is not taken by another process.
    assert!(!pool.begin_partial("disk", &CreateOptions::sized(1), "a").unwrap().1);
    drop(image);
    assert_eq!(remains(Keep::Interrupted), 5);
    assert_eq!(remains(Keep::InterruptedExcept(&disk)), 1);
    let (last, found) = begin("other", "a");
    assert!(found);
    let age = |kept_s: i64| change_head(&pool, last, |head| head.modified_s -= kept_s);
    age(INTERRUPTED_KEPT_S - 3600);
    assert_eq!(remains(Keep::Interrupted), 1);
    age(3600);
    assert_eq!(remains(Keep::Interrupted), 0);
    // A pool of another host's note.
    let (foreign, _) = begin("disk", "a");
    change_head(&pool, foreign, |head| head.incoming.as_mut().unwrap().host = 7);
    assert!(!begin("disk", "a").1);
    assert_eq!(remains(Keep::InterruptedExcept(&disk)), 1);
    assert_eq!(remains(Keep::Nothing), 0);
    support::assert_sound(&store, &pool);
}

#[test]
fn a_partial_image_goes_with_its_snapshots_and_one_that_is_complete_keeps_them() {
    let directory = tempfile::tempdir().unwrap();
    let (store, pool, _) = store_with_image(directory.path(), MIB);
    let make = |name: &str| {
        let mut image = pool.create_partial(name, &options()).unwrap();
        for snapshot in ["s1", "s2"] {
            image.write_at(0, snapshot.as_bytes()).unwrap();
            image.snapshot(snapshot).unwrap();
        }
        image.protect("s1").unwrap();
        image
    };
    // As a killed process leaves it.
    drop(make("a"));
    store.remove_abandoned(&pool, &Namespace::DEFAULT, Keep::Nothing).unwrap();
    assert_eq!(names(&pool), ["image"]);
    let image = make("b");
    let id = image.id();
    let refused = store.remove_partial(&pool, &Namespace::DEFAULT, id).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Owned);
    pool.publish_partial(id, "b").unwrap();
    image.close().unwrap();
    let refused = store.remove_partial(&pool, &Namespace::DEFAULT, id).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::NotFound);
    assert_eq!(pool.info(id).unwrap().snapshots.len(), 2);
    support::assert_sound(&store, &pool);
}

#[test]
fn an_image_that_has_its_name_is_not_removed_as_abandoned() {
    let directory = tempfile::tempdir().unwrap();
    let (store, pool, _) = store_with_image(directory.path(), MIB);
    let mut maker = pool.create_partial("disk", &options()).unwrap();
    let id = maker.id();
    maker.write_at(0, &[7; 4096]).unwrap();
    maker.flush().unwrap();
    pool.publish_partial(id, "disk").unwrap();
    Box::new(maker).close().unwrap();
    store.remove_abandoned(&pool, &Namespace::DEFAULT, Keep::Nothing).unwrap();
    assert_eq!(pool.find("disk").unwrap(), id);
    // If its name is lost, it gets the same name again, and not one under which it would be removed.
    std::fs::remove_file(pool.directory().join("names/@/disk")).unwrap();
    checked(&store, &pool, true);
    store.remove_abandoned(&pool, &Namespace::DEFAULT, Keep::Nothing).unwrap();
    assert_eq!(pool.find("disk").unwrap(), id);
    let mut byte = [0];
    pool.open_read_only(id).unwrap().read_at(0, &mut byte).unwrap();
    assert_eq!(byte, [7]);
}

#[test]
fn names_like_those_of_partial_images_are_refused_and_images_that_have_one_are_kept() {
    let directory = tempfile::tempdir().unwrap();
    let (store, pool, id) = store_with_image(directory.path(), MIB);
    let own = format!(".marcot-partial.{id}");
    for name in [".marcot-partial.old-backup", ".marcot-partial.", own.as_str()] {
        assert_eq!(pool.rename("image", name).unwrap_err().kind(), ErrorKind::Invalid, "{name}");
        assert_eq!(pool.create(name, &options()).unwrap_err().kind(), ErrorKind::Invalid, "{name}");
    }
    // Earlier versions allowed such names for images, and gave some to partial images.
    let names_directory = pool.directory().join("names/@");
    for file in ["old-backup", "4711.disk", "12345678"] {
        let file = format!("%2emarcot-partial.{file}");
        std::fs::rename(names_directory.join("image"), names_directory.join(&file)).unwrap();
        store.remove_abandoned(&pool, &Namespace::DEFAULT, Keep::Nothing).unwrap();
        let (name, found) = pool.images(&Namespace::DEFAULT).unwrap().remove(0);
        assert!(found == id && !is_partial_name(&name), "{name}");
        pool.rename(&name, "image").unwrap();
    }
    // A lost name is not restored if it would be refused today.
    change_head(&pool, id, |head| head.name = format!(".marcot-partial.{id}"));
    pool.open(id).unwrap().write_at(0, &[1]).unwrap();
    std::fs::remove_file(names_directory.join("image")).unwrap();
    change_head(&pool, id, |head| head.epoch = head.epoch.max(1));
    checked(&store, &pool, true);
    assert_eq!(names(&pool), [format!("found-{id}")]);
}

#[test]
fn files_whose_names_no_image_can_have_are_not_listed() {
    let directory = tempfile::tempdir().unwrap();
    let (store, pool, id) = store_with_image(directory.path(), MIB);
    let all = pool.directory().join("names");
    for file in ["%1b%5b2J%0arbd%2fforged", "a%0ab", "c%2fd", "e%40f"] {
        std::fs::copy(all.join("@/image"), all.join("@").join(file)).unwrap();
        std::fs::create_dir(all.join(file)).unwrap();
        std::fs::write(directory.path().join("pools").join(file), "").unwrap();
    }
    assert_eq!(pool.images(&Namespace::DEFAULT).unwrap(), [("image".to_owned(), id)]);
    assert_eq!(pool.namespaces().unwrap(), [""; 0]);
    assert_eq!(store.pools().unwrap(), ["rbd"]);
    assert_eq!(pool.find("c/d").unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(
        pool.find(ImageName::new("image").in_namespace("c/d")).unwrap_err().kind(),
        ErrorKind::NotFound
    );
}

#[test]
fn a_snapshot_beyond_the_limit_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let (_store, pool, id) = store_with_image(directory.path(), MIB);
    let mut image = pool.open(id).unwrap();
    image.snapshot("first").unwrap();
    image.close().unwrap();
    change_head(&pool, id, |head| {
        let first = head.snapshots[0].clone();
        let more = (1..marcot::SNAPSHOTS_MAX as u64).map(|n| SnapshotRecord {
            id: first.id + n,
            name: format!("s{n}"),
            ..first.clone()
        });
        head.snapshots.extend(more);
        head.snap_next = head.snapshots.len() as u64 + 1;
    });
    let mut image = pool.open(id).unwrap();
    let refused = image.snapshot("one-too-many").unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::TooMany, "{refused}");
    assert!(refused.sentence().to_string().contains("remove some"), "{refused}");
    image.remove_snapshot("s7", false).unwrap();
    image.snapshot("one-too-many").unwrap();
}

#[test]
fn a_pool_that_has_lost_its_record_is_not_created_again() {
    let directory = tempfile::tempdir().unwrap();
    let (store, pool, id) = store_with_image(directory.path(), MIB);
    let (record, away) = (pool.directory().join("pool"), directory.path().join("away"));
    std::fs::rename(&record, &away).unwrap();
    let store_again = Store::open(directory.path()).unwrap();
    for refused in [
        store_again.pool("rbd").map(drop),
        store_again.pool_create("rbd", &marcot::PoolOptions::default()).map(drop),
        store.pool_create("rbd", &marcot::PoolOptions::default()).map(drop),
    ] {
        let refused = refused.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Corrupt);
        assert!(refused.sentence().to_string().contains("has lost its record"), "{refused}");
    }
    assert!(!record.exists() && !store_again.is_unfinished("rbd"));
    std::fs::rename(&away, &record).unwrap();
    assert_eq!(store_again.pool("rbd").unwrap().find("image").unwrap(), id);
}
