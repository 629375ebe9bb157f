//! Dead data segments become the next ones, and only those that may.

#![expect(clippy::disallowed_methods, reason = "these tests wait for threads of the system")]

mod support;

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::MetadataExt;

use support::{assert_sound, pattern, segments};

use marcot::{CreateOptions, Housekeeping, Image, ImageId, Limits, Pool, Store};
use marcot_store::World;

const BLOCK: u64 = 4096;
/// Blocks that stay as they are, and blocks that are written again and again.
const STAYS: u64 = 90;
const CHANGES: u64 = 60;

/// A store whose segments are so short that each write of [`CHANGES`] blocks takes most of one.
fn store_with_image(directory: &std::path::Path) -> (Store, Pool, ImageId) {
    let limits = Limits {
        segment_slots: 96,
        checkpoint_log_bytes: 64 << 10,
        live_bytes_per_spare: BLOCK,
        spare_bytes_min: 32 * BLOCK,
        ..Limits::default()
    };
    let store = Store::open_with(World::system(), directory, limits).unwrap();
    let pool = store.pool("rbd").unwrap();
    let id = pool.create("image", &CreateOptions::sized((STAYS + CHANGES) * BLOCK)).unwrap();
    let mut image = pool.open(id).unwrap();
    image.write_at(CHANGES * BLOCK, &pattern(1, (STAYS * BLOCK) as usize)).unwrap();
    image.close().unwrap();
    (store, pool, id)
}

/// Files of data segments, by inode. While they are open, no other file gets the number.
type Files = BTreeMap<u64, File>;

fn files(pool: &Pool) -> Files {
    let open = segments(pool, 'd').into_iter().filter_map(|path| File::open(path).ok());
    open.map(|file| (file.metadata().unwrap().ino(), file)).collect()
}

/// Overwrites a part of the image, and lets workers end what they do. Returns the files that were seen.
fn overwrite(pool: &Pool, image: &mut Image, seed: u8, turns: u8) -> Files {
    let mut seen = files(pool);
    for turn in 0..turns {
        image.write_at(0, &pattern(seed + turn, (CHANGES * BLOCK) as usize)).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(2));
        image.background_step().unwrap();
        seen.extend(files(pool));
    }
    seen
}

/// The highest number of a data segment.
fn last_number(pool: &Pool) -> u32 {
    let number = |path: &std::path::PathBuf| {
        u32::from_str_radix(&path.file_name().unwrap().to_str().unwrap()[1..], 16).unwrap()
    };
    segments(pool, 'd').iter().map(number).max().unwrap()
}

#[test]
fn dead_segments_become_the_next_ones_until_the_image_is_idle() {
    let directory = tempfile::tempdir().unwrap();
    let (store, pool, id) = store_with_image(directory.path());
    let mut image = pool.open(id).unwrap();
    let before = last_number(&pool);
    let seen = overwrite(&pool, &mut image, 7, 60);
    let numbers = (last_number(&pool) - before) as usize;
    assert!(numbers >= 50, "{numbers} segments");
    // How many depends on when checkpoints end.
    assert!(seen.len() + 5 <= numbers, "{} files for {numbers} segments", seen.len());

    image.give_space_back();
    while image.background_step().unwrap() {}
    image.rest().unwrap();
    // A worker removes what was kept: only what stays and the log are left, and perhaps copies of the latter.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while segments(&pool, 'd').len() > 3 {
        assert!(std::time::Instant::now() < deadline, "{:?}", segments(&pool, 'd'));
        std::thread::sleep(std::time::Duration::from_millis(5));
        image.background_step().unwrap();
    }
    let mut buf = vec![0; ((STAYS + CHANGES) * BLOCK) as usize];
    image.read_at(0, &mut buf).unwrap();
    assert!(buf[..(CHANGES * BLOCK) as usize] == pattern(66, (CHANGES * BLOCK) as usize)[..]);
    assert!(buf[(CHANGES * BLOCK) as usize..] == pattern(1, (STAYS * BLOCK) as usize)[..]);
    image.close().unwrap();
    // What stays, and what was written last.
    let left = segments(&pool, 'd');
    assert!(left.len() <= 3, "{left:?}");
    assert_sound(&store, &pool);
    drop(store);
}

/// Such an owner may still be running, and write to them.
#[test]
fn segments_of_an_earlier_owner_are_not_used_again() {
    let directory = tempfile::tempdir().unwrap();
    let (store, pool, id) = store_with_image(directory.path());
    let mut image = pool.open(id).unwrap();
    overwrite(&pool, &mut image, 7, 10);
    image.close().unwrap();
    let of_earlier = files(&pool);
    let mut image = pool.open(id).unwrap();
    overwrite(&pool, &mut image, 70, 30);
    image.close().unwrap();
    let names: Vec<_> = segments(&pool, 'd');
    let kept: Vec<_> = names
        .iter()
        .filter(|path| of_earlier.contains_key(&path.metadata().unwrap().ino()))
        .collect();
    assert!(kept.len() <= 1, "only what stays lies in an old file: {kept:?}");
    assert_sound(&store, &pool);
}
