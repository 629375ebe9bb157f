//! Images in a bucket that are read through the cache of a host.

mod support;

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use support::bucket::{Bucket, Host};
use support::pattern;

use marcot::{CreateOptions, Image, Limits};

const BLOCK: u64 = 4096;
const BLOCKS: u64 = 200;

fn content(block: u64) -> Vec<u8> {
    pattern(block as u8, BLOCK as usize)
}

fn check(image: &mut Image) {
    for block in 0..BLOCKS {
        let mut found = vec![0; BLOCK as usize];
        image.read_at(block * BLOCK, &mut found).unwrap();
        assert!(found == content(block), "block {block}");
    }
}

/// The files of the objects in a cache.
fn files(cache: &Path) -> Vec<PathBuf> {
    let shards = fs::read_dir(cache.join("objects")).unwrap();
    let files = shards.flat_map(|shard| fs::read_dir(shard.unwrap().path()).unwrap());
    files.map(|file| file.unwrap().path()).collect()
}

fn damage(path: &Path) {
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut bytes = vec![0; 256 << 10];
    let n = file.read_at(&mut bytes, 0).unwrap();
    bytes[..n].iter_mut().for_each(|byte| *byte ^= 0x55);
    file.write_all_at(&bytes[..n], 0).unwrap();
}

#[test]
fn an_image_is_read_right_whatever_becomes_of_the_cache_meanwhile() {
    let (bucket, directories) = (Bucket::default(), [(); 2].map(|()| tempfile::tempdir().unwrap()));
    let limits = || Limits { segment_slots: 24, ..Limits::default() };
    let store = Host::store(&bucket, directories[0].path(), 1, limits());
    let pool = store.pool("rbd").unwrap();
    let id = pool.create("image", &CreateOptions::sized(BLOCKS * BLOCK)).unwrap();
    let mut image = pool.open(id).unwrap();
    (0..BLOCKS).for_each(|block| image.write_at(block * BLOCK, &content(block)).unwrap());
    image.close().unwrap();
    let store = Host::store(&bucket, directories[1].path(), 2, limits());
    let mut image = store.pool("rbd").unwrap().open_read_only(id).unwrap();
    check(&mut image);
    check(&mut image);
    let cache = directories[1].path().join("cache");
    let cached = files(&cache);
    assert!(!cached.is_empty());
    cached.iter().for_each(|path| damage(path));
    check(&mut image);
    for path in files(&cache) {
        OpenOptions::new().write(true).open(&path).unwrap().set_len(0).unwrap();
        fs::remove_file(path).unwrap();
    }
    check(&mut image);
    fs::remove_dir_all(cache).unwrap();
    check(&mut image);
}
