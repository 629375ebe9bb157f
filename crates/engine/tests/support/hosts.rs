//! Hosts that use the same images, whose segments and logs lie in an object store.

use marcot::{CreateOptions, Image, ImageId, Limits, Pool, Store};

use super::bucket::{Bucket, Host};
use super::pattern;

/// Bytes of a block.
pub const BLOCK: u64 = 4096;
/// Blocks of an image.
pub const BLOCKS: u64 = 200;

/// Short segments, so that a little data fills many.
fn limits() -> Limits {
    Limits { segment_slots: 24, checkpoint_log_bytes: 256 << 10, ..Limits::default() }
}

/// Hosts that use one bucket. The first one has made it.
pub struct Hosts {
    pub bucket: Bucket,
    pub directories: Vec<tempfile::TempDir>,
    pub stores: Vec<Store>,
    ships_flushes: bool,
}

impl Hosts {
    pub fn new(count: u64, ships_flushes: bool) -> Self {
        Self::with(Bucket::default(), count, ships_flushes)
    }

    pub fn with(bucket: Bucket, count: u64, ships_flushes: bool) -> Self {
        let mut hosts = Self { bucket, directories: Vec::new(), stores: Vec::new(), ships_flushes };
        (0..count).for_each(|_| hosts.add());
        hosts
    }

    fn add(&mut self) {
        self.directories.push(tempfile::tempdir().unwrap());
        let number = self.directories.len() as u64;
        let store = self.open_store(number as usize - 1);
        self.stores.push(store);
    }

    fn open_store(&self, host: usize) -> Store {
        let directory = self.directories[host].path();
        let number = host as u64 + 1;
        Host::store_that(&self.bucket, directory, number, limits(), self.ships_flushes)
    }

    pub fn pool(&self, host: usize) -> Pool {
        self.stores[host].pool("rbd").unwrap()
    }

    /// An image that the first host has created and closed.
    pub fn image(&self) -> ImageId {
        self.pool(0).create("image", &CreateOptions::sized(BLOCKS * BLOCK)).unwrap()
    }
}

pub fn write(image: &mut Image, block: u64, seed: u8) {
    image.write_at(block * BLOCK, &pattern(seed, BLOCK as usize)).unwrap();
}

#[track_caller]
pub fn assert_block(image: &mut Image, block: u64, seed: u8) {
    let mut found = vec![0; BLOCK as usize];
    image.read_at(block * BLOCK, &mut found).unwrap();
    assert!(found == pattern(seed, BLOCK as usize), "block {block}");
}
