//! Direct writes: streams bypass the page cache while the image goes on.

mod support;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use marcot::{
    BlockDevice, Completion, CreateOptions, ErrorKind, Housekeeping, Image, ImageId, Limits, Pool,
    Store, Write,
};
use marcot_store::World;
use support::{Faults, MIB, assert_sound, faulty_world, pattern};

const SIZE_BYTES: u64 = 64 * MIB;

struct Bench {
    store: Store,
    pool: Pool,
    id: ImageId,
    image: Image,
    faults: Arc<Faults>,
}

fn open_store(world: World, directory: &Path) -> (Store, Pool) {
    let store = Store::open_with(world, directory, Limits::default()).unwrap();
    let pool = store.pool("rbd").unwrap();
    (store, pool)
}

/// An image on a disk that takes direct writes.
fn bench(directory: &Path) -> Bench {
    let (world, faults) = faulty_world();
    faults.direct.store(true, Ordering::Relaxed);
    let (store, pool) = open_store(world, directory);
    let options = CreateOptions::sized(SIZE_BYTES);
    let id = pool.create("image", &options).unwrap();
    let image = pool.open(id).unwrap();
    Bench { store, pool, id, image, faults }
}

impl Bench {
    fn write_async(&mut self, offset: u64, data: &[u8]) -> Option<u64> {
        self.image.write_batch_async(&[Write { offset, data }]).unwrap()
    }

    /// Starts a direct write of 1 MiB. Returns the number of its group.
    fn stream(&mut self, seed: u8) -> u64 {
        let before = self.faults.direct_writes.load(Ordering::Relaxed);
        let number = self.write_async(u64::from(seed) * MIB, &pattern(seed, MIB as usize));
        let started = self.faults.direct_writes.load(Ordering::Relaxed) - before;
        assert_eq!(started, 1, "1 MiB in one piece is a direct write");
        number.expect("it is in flight")
    }

    /// Lets `count` writes complete; returns the completion that the writers get.
    fn complete(&mut self, count: i64) -> Option<marcot::Result<u64>> {
        self.faults.may_complete.store(count, Ordering::Relaxed);
        let completion = self.image.take_completion();
        self.faults.may_complete.store(0, Ordering::Relaxed);
        match completion {
            None => None,
            Some(Completion::Written(below)) => Some(below),
            Some(_) => panic!("nothing else was begun"),
        }
    }

    fn read(&mut self, offset: u64, bytes: usize) -> Vec<u8> {
        let mut buf = vec![0xEE; bytes];
        self.image.read_at(offset, &mut buf).unwrap();
        buf
    }

    /// Leaves the image as a killed process leaves it, and opens it again on a sound disk.
    fn killed(self) -> (Store, Pool, Image) {
        let Bench { store, pool, id, image, .. } = self;
        let directory = store.directory().to_owned();
        drop(image);
        drop((store, pool));
        let (store, pool) = open_store(World::system(), &directory);
        let image = pool.open(id).unwrap();
        (store, pool, image)
    }
}

/// Asserts that what [`Bench::stream`] wrote is there.
fn assert_streamed(image: &mut Image, seed: u8) {
    let mut buf = vec![0; MIB as usize];
    image.read_at(u64::from(seed) * MIB, &mut buf).unwrap();
    assert!(buf == pattern(seed, MIB as usize), "{seed}");
}

#[test]
fn only_long_groups_of_adjacent_blocks_are_direct_writes() {
    let directory = tempfile::tempdir().unwrap();
    let mut bench = bench(directory.path());
    let short = pattern(1, 256 << 10);
    assert_eq!(bench.write_async(0, &short), None);
    let scattered: Vec<Write<'_>> =
        (0..8).map(|i| Write { offset: i * 2 * MIB, data: &short }).collect();
    assert_eq!(bench.image.write_batch_async(&scattered).unwrap(), None);
    assert_eq!(bench.faults.direct_writes.load(Ordering::Relaxed), 0);
    // Requests that follow each other become one write.
    let adjacent: Vec<Write<'_>> =
        (0..8).map(|i| Write { offset: i * (256 << 10), data: &short }).collect();
    assert!(bench.image.write_batch_async(&adjacent).unwrap().is_some());
    assert_eq!(bench.faults.direct_writes.load(Ordering::Relaxed), 1);
    // A caller that does not take completions waits until the write is complete.
    bench.image.write_at(8 * MIB, &pattern(2, MIB as usize)).unwrap();
    assert_eq!(bench.faults.direct_writes.load(Ordering::Relaxed), 2);
    bench.image.close().unwrap();
    assert_sound(&bench.store, &bench.pool);
}

#[test]
fn writes_complete_in_the_order_of_the_log() {
    let directory = tempfile::tempdir().unwrap();
    let mut bench = bench(directory.path());
    let first = bench.stream(1);
    let second = bench.stream(2);
    assert!(first < second);
    assert!(bench.complete(0).is_none());
    bench.faults.last_first.store(true, Ordering::Relaxed);
    assert!(bench.complete(1).is_none(), "the first is still in flight");
    let below = bench.complete(1).unwrap().unwrap();
    assert!(below > second, "both are complete");
    assert!(bench.complete(0).is_none(), "there is one completion only");
    assert_eq!(bench.write_async(0, &pattern(4, 4096)), None, "nothing is in flight any more");

    bench.faults.last_first.store(false, Ordering::Relaxed);
    let first = bench.stream(5);
    let second = bench.stream(6);
    let below = bench.complete(1).unwrap().unwrap();
    assert!(first < below && below <= second);
    // A write through the page cache waits for the direct writes before it, and completes with them.
    let third = bench.write_async(10 * MIB, &pattern(3, 4096)).expect("the second is in flight");
    assert!(bench.complete(0).unwrap().unwrap() > third);
    bench.image.close().unwrap();
    assert_sound(&bench.store, &bench.pool);
}

#[test]
fn a_failed_flush_fails_the_writes_that_wait_for_their_completion() {
    let directory = tempfile::tempdir().unwrap();
    let mut bench = bench(directory.path());
    bench.stream(1);
    bench.write_async(0, &pattern(2, 4096)).expect("the stream is in flight");
    bench.faults.fail_sync.store(true, Ordering::Relaxed);
    assert_eq!(bench.image.flush().unwrap_err().kind(), ErrorKind::Poisoned);
    let completion = bench.complete(0).expect("the writers get an error");
    assert_eq!(completion.unwrap_err().kind(), ErrorKind::Poisoned, "nothing counts as stored");
    assert!(bench.complete(0).is_none());
}

#[test]
fn the_log_goes_on_in_its_segment_where_the_next_one_finds_no_room() {
    let directory = tempfile::tempdir().unwrap();
    let mut bench = bench(directory.path());
    bench.stream(0);
    bench.faults.no_new_files.store(true, Ordering::Relaxed);
    // Each write takes 257 slots. After these, 224 slots are left in the segment.
    for seed in 1..31 {
        bench.write_async(seed * MIB, &pattern(seed as u8, MIB as usize));
    }
    let data = pattern(40, MIB as usize);
    let refused = bench.image.write_batch_async(&[Write { offset: 40 * MIB, data: &data }]);
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::NoSpace);
    bench.image.write_at(50 * MIB, &pattern(50, 4096)).unwrap();
    bench.image.flush().unwrap();
    assert_eq!(support::segments(&bench.pool, 'd').len(), 1, "the log is where it was");
    bench.faults.no_new_files.store(false, Ordering::Relaxed);
    let (store, pool, mut image) = bench.killed();
    (0..31).for_each(|seed| assert_streamed(&mut image, seed));
    let mut block = vec![0; 4096];
    image.read_at(50 * MIB, &mut block).unwrap();
    assert!(block == pattern(50, 4096));
    image.close().unwrap();
    assert_sound(&store, &pool);
}

#[test]
fn an_idle_image_gives_back_preallocated_room_and_buffers() {
    let directory = tempfile::tempdir().unwrap();
    let mut bench = bench(directory.path());
    bench.image.write_at(0, &pattern(1, MIB as usize)).unwrap();
    let segment = support::segments(&bench.pool, 'd').pop().unwrap();
    let length = || segment.metadata().unwrap().len();
    assert!(length() > 2 * MIB, "room was preallocated");
    assert!(bench.image.rest().unwrap().freed_bytes >= MIB, "a buffer was kept");
    assert!(length() < 2 * MIB);
    bench.image.write_at(4 * MIB, &pattern(2, MIB as usize)).unwrap();
    assert!(bench.read(4 * MIB, MIB as usize) == pattern(2, MIB as usize));
    bench.image.close().unwrap();
    assert_sound(&bench.store, &bench.pool);
}

#[test]
fn reads_flushes_and_commands_wait_for_direct_writes_in_flight() {
    let directory = tempfile::tempdir().unwrap();
    let mut bench = bench(directory.path());
    bench.stream(1);
    let middle = bench.read(MIB + 100, 5000);
    assert!(middle == pattern(1, MIB as usize)[100..5100]);
    assert!(bench.complete(0).is_some(), "the read has waited for it");
    // A write of a part of a block keeps what the write in flight has around it.
    bench.stream(2);
    bench.write_async(2 * MIB + 10, b"part");
    let mut expected = pattern(2, 4096);
    expected[10..14].copy_from_slice(b"part");
    assert!(bench.read(2 * MIB, 4096) == expected);
    bench.stream(3);
    bench.image.discard(3 * MIB, 4096).unwrap();
    assert!(bench.read(3 * MIB, 4096).iter().all(|b| *b == 0));
    assert!(bench.read(3 * MIB + 4096, 4096) == pattern(3, MIB as usize)[4096..8192]);
    bench.stream(4);
    bench.image.snapshot("s").unwrap();
    bench.stream(5);
    bench.image.flush().unwrap();
    let (store, pool, mut image) = bench.killed();
    // Both were flushed.
    [4, 5].into_iter().for_each(|seed| assert_streamed(&mut image, seed));
    image.close().unwrap();
    assert_sound(&store, &pool);
}

#[test]
fn a_stream_over_many_segments_is_whole_after_closing_and_leaves_no_preallocated_room() {
    let directory = tempfile::tempdir().unwrap();
    let mut bench = bench(directory.path());
    for seed in 0..SIZE_BYTES / MIB {
        bench.write_async(seed * MIB, &pattern(seed as u8, MIB as usize));
        if seed % 7 == 0 {
            bench.complete(3);
        }
    }
    bench.image.close().unwrap();
    assert_sound(&bench.store, &bench.pool);
    let files = support::segments(&bench.pool, 'd');
    let length: u64 = files.iter().map(|f| f.metadata().unwrap().len()).sum();
    assert!(length < SIZE_BYTES + MIB, "{length} bytes in {} segments", files.len());
    let mut image = bench.pool.open(bench.id).unwrap();
    (0..SIZE_BYTES / MIB).for_each(|seed| assert_streamed(&mut image, seed as u8));
}

#[test]
fn a_direct_write_that_never_completed_is_the_end_of_the_log() {
    let directory = tempfile::tempdir().unwrap();
    let mut bench = bench(directory.path());
    bench.image.write_at(0, &pattern(9, 4096)).unwrap();
    bench.image.flush().unwrap();
    bench.stream(1);
    bench.stream(2);
    bench.faults.last_first.store(true, Ordering::Relaxed);
    assert!(bench.complete(1).is_none(), "the second is complete, the first is not");
    // A copy of the directory shows what a killed process leaves: the first write has never reached the
    // medium.
    let id = bench.id;
    let before = tempfile::tempdir().unwrap();
    copy_tree(directory.path(), before.path());
    let (_, pool) = open_store(World::system(), before.path());
    let mut image = pool.open(id).unwrap();
    let mut block = vec![0; 4096];
    image.read_at(0, &mut block).unwrap();
    assert!(block == pattern(9, 4096));
    for seed in [1, 2] {
        image.read_at(seed * MIB, &mut block).unwrap();
        assert!(block.iter().all(|b| *b == 0), "the write behind it is not there either");
    }
}

fn copy_tree(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            std::fs::create_dir_all(&target).unwrap();
            copy_tree(&entry.path(), &target);
        } else if kind.is_file() {
            std::fs::copy(entry.path(), &target).unwrap();
        }
    }
}

#[test]
fn a_group_that_cannot_be_written_directly_is_written_through_the_page_cache() {
    for short in [false, true] {
        refused_direct_write(short);
    }
}

fn refused_direct_write(short: bool) {
    let directory = tempfile::tempdir().unwrap();
    let mut bench = bench(directory.path());
    let number = bench.stream(1);
    match short {
        true => bench.faults.direct_short.store(true, Ordering::Relaxed),
        false => bench.faults.direct_errno.store(22, Ordering::Relaxed),
    }
    assert!(bench.complete(1).unwrap().unwrap() > number);
    assert!(bench.read(MIB, MIB as usize) == pattern(1, MIB as usize));
    // No direct write is tried again.
    assert_eq!(bench.write_async(2 * MIB, &pattern(2, MIB as usize)), None);
    bench.image.close().unwrap();
    assert_sound(&bench.store, &bench.pool);
}

#[test]
fn a_write_that_fails_through_the_page_cache_too_poisons_the_image_and_nothing_flushed_is_lost() {
    let directory = tempfile::tempdir().unwrap();
    let mut bench = bench(directory.path());
    bench.image.write_at(0, &pattern(9, 4096)).unwrap();
    bench.image.flush().unwrap();
    bench.stream(1);
    bench.stream(2);
    bench.faults.direct_errno.store(5, Ordering::Relaxed);
    bench.faults.room_bytes.store(0, Ordering::Relaxed);
    let error = bench.complete(1).unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Poisoned);
    assert!(error.sentence().to_string().contains("reopen it"), "{error}");
    let refused = bench.image.write_batch_async(&[Write { offset: 0, data: &[1; 4096] }]);
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Poisoned);
    assert_eq!(bench.image.flush().unwrap_err().kind(), ErrorKind::Poisoned);
    bench.faults.room_bytes.store(-1, Ordering::Relaxed);
    let (store, pool, mut image) = bench.killed();
    let mut block = vec![0; 4096];
    image.read_at(0, &mut block).unwrap();
    assert!(block == pattern(9, 4096));
    image.close().unwrap();
    assert_sound(&store, &pool);
}

#[test]
fn a_full_medium_refuses_a_direct_write_before_it_is_accepted() {
    let directory = tempfile::tempdir().unwrap();
    let mut bench = bench(directory.path());
    bench.image.write_at(0, &pattern(9, 4096)).unwrap();
    bench.faults.room_bytes.store(100 << 10, Ordering::Relaxed);
    let data = pattern(1, MIB as usize);
    let refused = bench.image.write_batch_async(&[Write { offset: MIB, data: &data }]);
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::NoSpace);
    bench.faults.room_bytes.store(-1, Ordering::Relaxed);
    bench.image.write_at(MIB, &data).unwrap();
    assert!(bench.read(0, 4096) == pattern(9, 4096));
    bench.image.close().unwrap();
    assert_sound(&bench.store, &bench.pool);
}
