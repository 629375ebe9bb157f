//! Hosts that use the same images, whose segments and logs lie in an object store.

mod support;

use support::bucket::{Bucket, Host};
use support::{assert_sound, pattern};

use marcot::{CreateOptions, ErrorKind, Image, ImageId, Limits, Pool, Store};

const BLOCK: u64 = 4096;
const BLOCKS: u64 = 200;

/// Short segments, so that a little data fills many.
fn limits() -> Limits {
    Limits { segment_slots: 24, checkpoint_log_bytes: 256 << 10, ..Limits::default() }
}

struct Hosts {
    bucket: Bucket,
    directories: Vec<tempfile::TempDir>,
    stores: Vec<Store>,
    ships_flushes: bool,
}

impl Hosts {
    fn new(count: u64, ships_flushes: bool) -> Self {
        let bucket = Bucket::default();
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

    fn pool(&self, host: usize) -> Pool {
        self.stores[host].pool("rbd").unwrap()
    }

    /// An image that the first host has created and closed.
    fn image(&self) -> ImageId {
        self.pool(0).create("image", &CreateOptions::sized(BLOCKS * BLOCK)).unwrap()
    }
}

fn write(image: &mut Image, block: u64, seed: u8) {
    image.write_at(block * BLOCK, &pattern(seed, BLOCK as usize)).unwrap();
}

#[track_caller]
fn assert_block(image: &mut Image, block: u64, seed: u8) {
    let mut found = vec![0; BLOCK as usize];
    image.read_at(block * BLOCK, &mut found).unwrap();
    assert!(found == pattern(seed, BLOCK as usize), "block {block}");
}

#[test]
fn what_one_host_has_closed_another_host_reads_and_goes_on_with() {
    let hosts = Hosts::new(2, true);
    let id = hosts.image();
    for round in 0..4 {
        let mut image = hosts.pool(round % 2).open(id).unwrap();
        for block in 0..BLOCKS {
            write(&mut image, block, (round as u8).wrapping_add(block as u8));
        }
        image.close().unwrap();
        let mut other = hosts.pool((round + 1) % 2).open_read_only(id).unwrap();
        for block in 0..BLOCKS {
            assert_block(&mut other, block, (round as u8).wrapping_add(block as u8));
        }
    }
    hosts.stores.iter().zip(0..).for_each(|(store, host)| assert_sound(store, &hosts.pool(host)));
}

#[test]
fn an_image_that_another_host_has_open_is_not_opened() {
    let hosts = Hosts::new(2, true);
    let id = hosts.image();
    let mut image = hosts.pool(0).open(id).unwrap();
    write(&mut image, 1, 1);
    let refused = hosts.pool(1).open(id).map(drop).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Owned);
    assert!(refused.to_string().contains("host-1"), "{refused}");
    let kept = hosts.stores[1].remove_image(&hosts.pool(1), id, &mut |_, _| {}).unwrap_err();
    assert_eq!(kept.kind(), ErrorKind::Owned, "{kept}");
    image.close().unwrap();
    hosts.pool(1).open(id).unwrap().close().unwrap();
}

#[test]
fn after_a_takeover_everything_flushed_is_there_and_the_owner_before_can_make_nothing_durable() {
    let hosts = Hosts::new(3, true);
    let id = hosts.image();
    let mut first = hosts.pool(0).open(id).unwrap();
    for block in 0..BLOCKS {
        write(&mut first, block, 7);
    }
    first.flush().unwrap();
    for block in 0..20 {
        write(&mut first, block, 8);
        first.flush().unwrap();
    }
    write(&mut first, 150, 9);
    let mut second = hosts.pool(1).take_over(id).unwrap();
    for block in 0..BLOCKS {
        assert_block(&mut second, block, if block < 20 { 8 } else { 7 });
    }
    assert_eq!(first.flush().unwrap_err().kind(), ErrorKind::Fenced);
    assert!(first.close().is_err());
    for block in 0..BLOCKS {
        write(&mut second, block, 10);
    }
    second.flush().unwrap();
    let mut third = hosts.pool(2).take_over(id).unwrap();
    (0..BLOCKS).for_each(|block| assert_block(&mut third, block, 10));
    write(&mut second, 3, 11);
    assert_eq!(second.flush().unwrap_err().kind(), ErrorKind::Fenced);
    third.close().unwrap();
    drop(second);
    hosts.stores.iter().zip(0..).for_each(|(store, host)| assert_sound(store, &hosts.pool(host)));
}

#[test]
fn a_process_that_was_killed_loses_nothing_on_its_own_host() {
    for ships_flushes in [true, false] {
        let hosts = Hosts::new(1, ships_flushes);
        let id = hosts.image();
        let mut image = hosts.pool(0).open(id).unwrap();
        for block in 0..BLOCKS {
            write(&mut image, block, 3);
        }
        image.flush().unwrap();
        write(&mut image, 0, 4);
        drop(image);
        let mut image = hosts.pool(0).open(id).unwrap();
        assert_block(&mut image, 0, 4);
        (1..BLOCKS).for_each(|block| assert_block(&mut image, block, 3));
        image.close().unwrap();
        assert_sound(&hosts.stores[0], &hosts.pool(0));
    }
}

#[test]
fn what_was_not_uploaded_is_kept_aside_and_not_replayed() {
    let hosts = Hosts::new(2, false);
    let id = hosts.image();
    let mut first = hosts.pool(0).open(id).unwrap();
    write(&mut first, 1, 1);
    first.snapshot("s").unwrap();
    write(&mut first, 1, 2);
    first.flush().unwrap();
    let mut second = hosts.pool(1).take_over(id).unwrap();
    assert_block(&mut second, 1, 1);
    second.close().unwrap();
    drop(first);
    let mut again = hosts.pool(0).open(id).unwrap();
    assert_block(&mut again, 1, 1);
    again.close().unwrap();
    let aside = hosts.directories[0].path().join("pools/rbd/aside");
    assert_eq!(std::fs::read_dir(aside).unwrap().count(), 1);
}

#[test]
fn a_closed_image_leaves_only_its_segments_on_the_service_and_none_on_the_host() {
    let hosts = Hosts::new(1, true);
    let id = hosts.image();
    let mut image = hosts.pool(0).open(id).unwrap();
    for block in 0..BLOCKS {
        write(&mut image, block, 3);
        if block % 10 == 0 {
            image.flush().unwrap();
        }
    }
    image.close().unwrap();
    let keys = hosts.bucket.keys("rbd");
    assert!(keys.iter().all(|key| key.starts_with("segments/")), "{keys:?}");
    assert_eq!(support::segments(&hosts.pool(0), 'd').len(), 0);
}
