//! Files of the cache that are damaged, missing, or left behind.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use proptest::prelude::*;

use marcot_store::{Disk, LockMode};

use super::super::*;
use super::support::*;
use crate::object::cache::layout::{CHUNK_BYTES, INDEX_AT, RECORDS_AT};

const MIB: u64 = 1 << 20;
const LARGE: u64 = 1 << 30;

#[test]
fn a_flipped_bit_anywhere_in_an_objects_file_is_fetched_again_and_never_returned() {
    let scene = Scene::new(MIB);
    let places = [
        0,
        CHUNK_BYTES + 4097,
        MIB - 1,
        INDEX_AT,
        INDEX_AT + 9,
        INDEX_AT + 13,
        INDEX_AT + 20,
        INDEX_AT + 24,
        INDEX_AT + 4088,
        RECORDS_AT,
        RECORDS_AT + 5,
        RECORDS_AT + 300,
        RECORDS_AT + 4 * 264 - 1,
    ];
    for (i, place) in places.into_iter().enumerate() {
        for reopen in [false, true] {
            let key = format!("{i}-{reopen}");
            let cache = scene.cache(LARGE);
            let object = scene.object(&cache, &key);
            check(&cache, &object, 0, MIB as usize, MIB);
            flip(&object.state.path, place, (i % 8) as u8);
            let cache = if reopen { scene.cache(LARGE) } else { cache };
            for _ in 0..2 {
                scene.check(&cache, &key, 0, MIB as usize);
            }
            // It is whole again for everybody, at the latest when it is opened again.
            scene.check(&scene.cache(LARGE), &key, 0, MIB as usize);
            let requests = scene.service.requests();
            scene.check(&scene.cache(LARGE), &key, 0, MIB as usize);
            assert_eq!(scene.service.requests(), requests, "at {place}, reopened: {reopen}");
        }
    }
}

#[test]
fn damage_of_data_is_counted_and_only_its_chunk_is_fetched_again() {
    let scene = Scene::new(MIB);
    let cache = scene.cache(LARGE);
    let object = scene.object(&cache, "a");
    check(&cache, &object, 0, MIB as usize, MIB);
    let before = scene.service.fetched_bytes();
    flip(&object.state.path, CHUNK_BYTES + 5, 0);
    check(&cache, &object, 0, MIB as usize, MIB);
    assert_eq!(cache.fetched().damaged, 1);
    assert_eq!(scene.service.fetched_bytes() - before, CHUNK_BYTES);
}

#[test]
fn a_file_of_any_bytes_in_the_place_of_an_objects_is_replaced() {
    let scene = Scene::new(MIB);
    for (i, bytes) in [&b""[..], b"rubbish", &[0; 9000], &[0xFF; 70_000]].into_iter().enumerate() {
        for at in [0, INDEX_AT] {
            let key = format!("{i}-{at}");
            let cache = scene.cache(LARGE);
            let object = scene.object(&cache, &key);
            fs::create_dir_all(object.state.path.parent().unwrap()).unwrap();
            fs::File::create(&object.state.path).unwrap().write_all_at(bytes, at).unwrap();
            for _ in 0..3 {
                check(&cache, &object, 0, MIB as usize, MIB);
            }
            let requests = scene.service.requests();
            scene.check(&scene.cache(LARGE), &key, 0, MIB as usize);
            assert_eq!(scene.service.requests(), requests);
        }
    }
}

#[test]
fn a_damaged_or_missing_count_is_made_anew() {
    let scene = Scene::new(MIB);
    let cache = scene.cache(LARGE);
    scene.check(&cache, "a", 0, MIB as usize);
    let counted = || cache.0.bound.counted(&cache.0.place).unwrap().bytes;
    assert!(counted() >= scene.stored_bytes());
    let space = scene.directory().join("space");
    flip(&space, 20, 3);
    assert_eq!(counted(), scene.stored_bytes());
    fs::remove_file(&space).unwrap();
    scene.check(&cache, "b", 0, MIB as usize);
    assert!(counted() >= scene.stored_bytes());
    fs::write(&space, "short").unwrap();
    scene.check(&cache, "c", 0, MIB as usize);
    assert!(counted() >= scene.stored_bytes());
}

#[test]
fn what_a_killed_process_has_left_is_removed_when_the_bytes_are_counted() {
    let scene = Scene::new(MIB);
    let cache = scene.cache(LARGE);
    scene.check(&cache, "a", 0, 10);
    let shard = scene.files()[0].parent().unwrap().to_owned();
    let left = shard.join(".0123456789abcdef.tmp");
    fs::write(&left, [1; 100_000]).unwrap();
    // It had counted bytes that it did not store.
    cache.0.bound.reserve(&cache.0.place, 50 * MIB, Path::new("")).unwrap();
    let space = cache.0.bound.recount(&cache.0.place, Duration::ZERO).unwrap();
    assert!(!left.exists());
    assert_eq!(space.bytes, scene.stored_bytes());
    scene.check(&cache, "a", 0, 10);
    assert_eq!(scene.service.requests(), 1);
}

#[test]
fn a_process_that_was_stopped_while_it_fetches_delays_others_only_for_a_while() {
    let scene = Scene::new(MIB);
    scene.clock.fast.store(true, Ordering::Relaxed);
    let cache = scene.cache(LARGE);
    let object = scene.object(&cache, "a");
    let paths = &cache.0.place.paths;
    let held = paths.chunk_lock(object.state.number, 1);
    let disk = scene.disk();
    let stopped = disk.lock(&held, LockMode::Exclusive, false).unwrap().unwrap();
    // The chunk before it is not held up, and does not take it along.
    check(&cache, &object, 0, 2 * CHUNK_BYTES as usize, MIB);
    assert_eq!(lock(&scene.service.asked)[0].1, 0..CHUNK_BYTES);
    assert!(cache.holds(&object, CHUNK_BYTES, 1), "it was stored all the same");
    drop(stopped);
    // Neither does a process that was stopped while it has counted.
    let stopped = disk.lock(&paths.space_lock(), LockMode::Exclusive, false).unwrap().unwrap();
    check(&cache, &object, 3 * CHUNK_BYTES, 10, MIB);
    drop(stopped);
    scene.check(&cache, "b", 0, 10);
}

#[test]
fn the_directory_may_be_removed_while_caches_use_it() {
    let scene = Scene::new(MIB);
    let (one, two) = (scene.cache(LARGE), scene.cache(LARGE));
    let object = scene.object(&one, "a");
    check(&one, &object, 0, MIB as usize, MIB);
    scene.check(&two, "a", 0, 10);
    fs::remove_dir_all(scene.directory()).unwrap();
    // What is open can still be read, and what is new makes the directory again.
    check(&one, &object, 0, MIB as usize, MIB);
    for cache in [&one, &two] {
        scene.check(cache, "b", 0, MIB as usize);
        scene.check(cache, "a", 0, MIB as usize);
    }
    assert!(scene.directory().join("marcot-cache").exists());
    assert!(scene.cache(LARGE).holds(&object, 0, 1) || one.holds(&object, 0, 1));
    // Files without a name are closed after a while, so that they take no space.
    scene.clock.now_s.fetch_add(TIDY_AFTER_S, Ordering::Relaxed);
    for _ in 0..200 {
        scene.check(&one, "b", 0, 10);
    }
    let removed = object.state.slot().open.as_ref().is_some_and(|o| o.file.is_removed().unwrap());
    assert!(!removed);
}

#[test]
fn parts_of_the_directory_may_be_removed_or_replaced_by_something_else() {
    for part in ["objects", "locks", "space", "space.lock", "scan.lock", "marcot-cache"] {
        for replaced in [false, true] {
            let scene = Scene::new(MIB);
            let cache = scene.cache(LARGE);
            scene.check(&cache, "a", 0, 10);
            let path = scene.directory().join(part);
            match path.is_dir() {
                true => fs::remove_dir_all(&path).unwrap(),
                false => drop(fs::remove_file(&path)),
            }
            match replaced {
                true if matches!(part, "objects" | "locks") => fs::write(&path, "x").unwrap(),
                true => fs::create_dir(&path).unwrap(),
                false => {}
            }
            for key in ["a", "b", "c"] {
                scene.check(&cache, key, 0, MIB as usize);
            }
        }
    }
}

#[test]
fn a_directory_of_something_or_somebody_else_is_refused_in_one_sentence() {
    use std::os::unix::fs::PermissionsExt;
    let refused = |prepare: &dyn Fn(&std::path::Path)| {
        let scene = Scene::new(MIB);
        fs::create_dir(scene.directory()).unwrap();
        fs::set_permissions(scene.directory(), fs::Permissions::from_mode(0o700)).unwrap();
        prepare(&scene.directory());
        let opened = RangeCache::open(&scene.world(), scene.directory(), LARGE);
        let error = opened.err().expect("it should have been refused").to_string();
        let shown = scene.directory().display().to_string();
        assert!(error.contains(&shown) && !error.contains('\n'), "{error}");
        error.replace(&shown, "DIR")
    };
    let error = refused(&|directory| fs::write(directory.join("my thesis"), "").unwrap());
    assert_eq!(
        error,
        "the cache directory DIR is no cache of marcot: it holds 'my thesis'; give an empty directory"
    );
    let error = refused(&|directory| {
        let mode = fs::Permissions::from_mode(0o770);
        fs::set_permissions(directory, mode).unwrap();
    });
    assert!(error.contains("can be written to by other users"), "{error}");
    let error = refused(&|directory| {
        fs::write(directory.join("marcot-cache"), b"marcotca\x09\0\0\0\0\0\0\0").unwrap();
    });
    assert!(error.contains("another marcot (version 9)"), "{error}");
    let error = refused(&|directory| {
        fs::write(directory.join("marcot-cache"), b"torn").unwrap();
    });
    assert!(error.contains("damaged marker"), "{error}");
    let scene = Scene::new(MIB);
    fs::write(scene.directory(), "a file").unwrap();
    assert!(RangeCache::open(&scene.world(), scene.directory(), LARGE).is_err());
    // A marker that a killed process has not finished is no obstacle.
    let scene = Scene::new(MIB);
    fs::create_dir(scene.directory()).unwrap();
    fs::set_permissions(scene.directory(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(scene.directory().join(".marcot-cache.0000000000000001"), "mar").unwrap();
    scene.check(&scene.cache(LARGE), "a", 0, 10);
}

/// Something that happens to a cache.
#[derive(Debug, Clone)]
enum Step {
    Read { cache: usize, key: u8, offset: u64, bytes: usize },
    ReadCached { cache: usize, key: u8, offset: u64, bytes: usize },
    ReadWhole { cache: usize, key: u8, offset: u64, bytes: usize },
    Reopen { cache: usize },
    Forget { cache: usize, key: u8 },
    MakeWhole { cache: usize, key: u8 },
    Flip { file: usize, at: u64, bit: u8 },
    Cut { file: usize, length: u64 },
    Remove { file: usize },
    FailWrites { number: i64 },
    RemoveAll,
    Wait { s: i64 },
}

const KEYS: u8 = 5;
const LENGTH: u64 = 5 * CHUNK_BYTES + 12_345;

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let place = (0..2usize, 0..KEYS, 0..LENGTH + 100, 0..2 * CHUNK_BYTES as usize);
    let in_file = prop_oneof![
        3 => 0..LENGTH,
        1 => INDEX_AT..INDEX_AT + 64,
        2 => RECORDS_AT..RECORDS_AT + 6 * 264,
    ];
    let step = prop_oneof![
        12 => place.clone().prop_map(|(cache, key, offset, bytes)| Step::Read { cache, key, offset, bytes }),
        3 => place.clone().prop_map(|(cache, key, offset, bytes)| Step::ReadCached { cache, key, offset, bytes }),
        3 => place.prop_map(|(cache, key, offset, bytes)| Step::ReadWhole { cache, key, offset, bytes }),
        1 => (0..2usize).prop_map(|cache| Step::Reopen { cache }),
        1 => (0..2usize, 0..KEYS).prop_map(|(cache, key)| Step::Forget { cache, key }),
        1 => (0..2usize, 0..KEYS).prop_map(|(cache, key)| Step::MakeWhole { cache, key }),
        3 => (0..16usize, in_file, 0..8u8).prop_map(|(file, at, bit)| Step::Flip { file, at, bit }),
        1 => (0..16usize, 0..RECORDS_AT + 900).prop_map(|(file, length)| Step::Cut { file, length }),
        1 => (0..16usize).prop_map(|file| Step::Remove { file }),
        1 => prop::sample::select(vec![0i64, 0, 0, 28, 13, 5]).prop_map(|number| Step::FailWrites { number }),
        1 => Just(Step::RemoveAll),
        1 => (0..100i64).prop_map(|s| Step::Wait { s }),
    ];
    prop::collection::vec(step, 1..40)
}

fn perform(scene: &Scene, caches: &mut [RangeCache; 2], step: Step) {
    let limit = 8 * MIB;
    let key = |key: u8| format!("segments/{key}");
    let right = |k: u8, offset: u64, bytes: usize| {
        let end = LENGTH.min(offset + bytes as u64);
        content(&key(k), offset.min(end)..end)
    };
    let file = |number: usize| {
        let mut files = scene.files();
        files.sort_unstable();
        (!files.is_empty()).then(|| files.swap_remove(number % files.len()))
    };
    match step {
        Step::Read { cache, key: k, offset, bytes } => {
            scene.check(&caches[cache], &key(k), offset, bytes);
        }
        Step::ReadCached { cache, key: k, offset, bytes } => {
            let (mut buf, cache) = (vec![0; bytes], &caches[cache]);
            let object = scene.object(cache, &key(k));
            if let Ok(n) = cache.read_cached(&object, offset, &mut buf) {
                assert!(right(k, offset, bytes).starts_with(&buf[..n]));
            }
        }
        // As a reader that verifies does: what is wrong is read again, by the cache.
        Step::ReadWhole { cache, key: k, offset, bytes } => {
            let (mut buf, cache) = (vec![0; bytes], &caches[cache]);
            let object = scene.object(cache, &key(k));
            if let Some(file) = cache.whole(&object) {
                let n = file.read_at(offset, &mut buf).unwrap();
                if !right(k, offset, bytes).starts_with(&buf[..n]) {
                    scene.check(cache, &key(k), offset, bytes);
                }
            }
        }
        Step::Reopen { cache } => {
            let opened = RangeCache::with_limit(&scene.world(), scene.directory(), limit);
            if let Ok(opened) = opened {
                caches[cache] = opened;
            }
        }
        Step::Forget { cache, key: k } => {
            caches[cache].forget(&scene.object(&caches[cache], &key(k)));
        }
        Step::MakeWhole { cache, key: k } => {
            caches[cache].make_whole(&scene.object(&caches[cache], &key(k)));
        }
        Step::Flip { file: number, at, bit } => {
            if let Some(path) = file(number)
                && at < fs::metadata(&path).unwrap().len()
            {
                flip(&path, at, bit);
            }
        }
        Step::Cut { file: number, length } => {
            if let Some(path) = file(number) {
                let file = fs::OpenOptions::new().write(true).open(path).unwrap();
                file.set_len(length.min(file.metadata().unwrap().len())).unwrap();
            }
        }
        Step::Remove { file: number } => {
            if let Some(path) = file(number) {
                fs::remove_file(path).unwrap();
            }
        }
        Step::FailWrites { number } => scene.failures.writes.store(number, Ordering::Relaxed),
        Step::RemoveAll => drop(fs::remove_dir_all(scene.directory())),
        Step::Wait { s } => drop(scene.clock.now_s.fetch_add(s, Ordering::Relaxed)),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn two_processes_read_what_the_service_has_whatever_happens_to_the_directory(steps in steps()) {
        let scene = Scene::new(LENGTH);
        scene.clock.fast.store(true, Ordering::Relaxed);
        let mut caches = [scene.cache(8 * MIB), scene.cache(8 * MIB)];
        for step in steps {
            perform(&scene, &mut caches, step);
        }
    }
}
