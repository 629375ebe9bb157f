//! Open pools: a process has one descriptor for each, and it leads to the right directory.
#![allow(missing_docs)]

use std::path::{Path, PathBuf};

use marcot::{CreateOptions, ErrorKind, Image, ImageId, Pool, PoolOptions, Store};

const SIZE: u64 = 1 << 20;

/// Every directory or file below `root` that this process has open, and how often.
fn open_below(root: &Path) -> Vec<(PathBuf, usize)> {
    let mut counts = std::collections::BTreeMap::new();
    for entry in std::fs::read_dir("/proc/self/fd").unwrap() {
        let Ok(target) = std::fs::read_link(entry.unwrap().path()) else { continue };
        if target.starts_with(root) {
            *counts.entry(target).or_default() += 1;
        }
    }
    counts.into_iter().collect()
}

fn image(pool: &Pool, name: &str) -> ImageId {
    pool.create(name, &CreateOptions::sized(SIZE)).unwrap()
}

fn open(store: &Store, pool: &str, name: &str) -> marcot::Result<Image> {
    let pool = store.pool(pool)?;
    pool.open(pool.find(name)?)
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let (path, to) = (entry.as_ref().unwrap().path(), to.join(entry.unwrap().file_name()));
        match path.is_dir() {
            true => copy(&path, &to),
            false => drop(std::fs::copy(&path, &to).unwrap()),
        }
    }
}

fn files_below(directory: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(files_below(&path)),
            false => found.push((path.clone(), std::fs::read(&path).unwrap())),
        }
    }
    found.sort();
    found
}

#[test]
fn all_images_share_one_descriptor_of_each_pool() {
    let root = tempfile::tempdir().unwrap();
    let other = Store::open(&root.path().join("other")).unwrap();
    let store = Store::open(&root.path().join("own")).unwrap();
    for i in 0..5 {
        let name = format!("p{i}");
        let made = other.pool_create(&name, &PoolOptions::default()).unwrap();
        image(&made, "a");
        store.pool_attach(&name, made.directory()).unwrap();
    }
    drop(other);
    let rbd = store.pool("rbd").unwrap();
    for name in ["a", "b", "c"] {
        image(&rbd, name);
    }
    let open = |pool, name| open(&store, pool, name).unwrap();
    let images = [open("rbd", "a"), open("rbd", "b"), open("rbd", "c"), open("p0", "a")];
    let held: Vec<_> = (0..3).map(|_| store.pool("p1").unwrap()).collect();
    let counts = open_below(root.path());
    let pools: Vec<_> =
        counts.iter().filter(|(path, _)| path.parent().unwrap().ends_with("pools")).collect();
    assert_eq!(pools.len(), 6, "{counts:?}");
    assert!(pools.iter().all(|(_, count)| *count == 1), "{counts:?}");
    drop((images, held));
}

#[test]
fn a_pool_beyond_the_limit_is_refused_and_open_pools_go_on() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(root.path()).unwrap();
    image(&store.pool("rbd").unwrap(), "a");
    let mut a = open(&store, "rbd", "a").unwrap();
    store.set_pools_max(2);
    store.pool_create("second", &PoolOptions::default()).unwrap();
    let refused = store.pool_create("third", &PoolOptions::default()).err().unwrap();
    assert_eq!(refused.kind(), ErrorKind::Exhausted, "{refused}");
    assert!(refused.sentence().to_string().contains("ulimit -n"), "{refused}");
    a.write_at(0, &[1; 4096]).unwrap();
    a.close().unwrap();
    drop(open(&store, "rbd", "a").unwrap());
}

#[test]
fn a_directory_that_is_exchanged_for_a_copy_is_noticed_and_the_two_are_not_mixed() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(root.path()).unwrap();
    let rbd = store.pool("rbd").unwrap();
    for name in ["a", "b"] {
        image(&rbd, name);
    }
    drop(rbd);
    let mut a = open(&store, "rbd", "a").unwrap();
    a.write_at(0, &[1; 4096]).unwrap();
    a.flush().unwrap();

    let pool = root.path().join("pools/rbd");
    let moved = root.path().join("moved");
    std::fs::rename(&pool, &moved).unwrap();
    copy(&moved, &pool);
    let before = files_below(&pool);
    let refused = open(&store, "rbd", "b").err().unwrap();
    assert_eq!(refused.kind(), ErrorKind::Busy, "{refused}");
    assert!(refused.sentence().to_string().contains("exchanged"), "{refused}");
    // The open image goes on in its old directory, also with new segments.
    a.write_at(4096, &[2; 4096]).unwrap();
    a.snapshot("s").unwrap();
    a.write_at(8192, &[3; 4096]).unwrap();
    a.close().unwrap();
    assert!(files_below(&pool) == before, "something was written into the other directory");

    // Nothing uses the old directory any more.
    let mut copied = open(&store, "rbd", "a").unwrap();
    let mut bytes = [0; 8192];
    copied.read_at(0, &mut bytes).unwrap();
    assert!(bytes[..4096] == [1; 4096] && bytes[4096..] == [0; 4096]);
    copied.write_at(4096, &[9; 4096]).unwrap();
    copied.close().unwrap();
    std::fs::rename(&pool, root.path().join("copy")).unwrap();
    std::fs::rename(&moved, &pool).unwrap();
    let mut a = open(&store, "rbd", "a").unwrap();
    let mut bytes = [0; 12288];
    a.read_at(0, &mut bytes).unwrap();
    assert!(
        bytes[..4096] == [1; 4096] && bytes[4096..8192] == [2; 4096],
        "the blocks are not those of the first directory"
    );
    assert!(bytes[8192..] == [3; 4096]);
}

#[test]
fn no_more_segments_are_kept_open_for_reading_than_the_store_was_told() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(root.path()).unwrap();
    let rbd = store.pool("rbd").unwrap();
    let id = image(&rbd, "a");
    for session in 0..20 {
        let mut a = open(&store, "rbd", "a").unwrap();
        a.write_at(session * 4096, &[session as u8; 4096]).unwrap();
        a.close().unwrap();
    }
    drop((store, rbd));
    let segments_after_reading = |most: usize| {
        let store = Store::open(root.path()).unwrap();
        store.set_segment_files_max(most);
        let mut a = store.pool("rbd").unwrap().open_read_only(id).unwrap();
        for session in 0..20 {
            let mut block = [0; 4096];
            a.read_at(session * 4096, &mut block).unwrap();
            assert!(block == [session as u8; 4096]);
        }
        let counts = open_below(&root.path().join("pools/rbd/segments"));
        counts.iter().filter(|(path, _)| path.is_file()).map(|(_, count)| count).sum::<usize>()
    };
    assert!(segments_after_reading(100) > 20);
    let kept = segments_after_reading(4);
    assert!(kept <= 4, "{kept} are open");
}
