//! Reads that are left in flight while the image goes on.

mod support;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use marcot::{
    BlockDevice, CompletedRead, Completion, CreateOptions, ErrorKind, Image, Limits, Pool, Read,
    Store,
};
use support::{Faults, assert_sound, faulty_world};

const BLOCK: usize = 4096;
const BLOCKS: usize = 64;

struct Bench {
    store: Store,
    pool: Pool,
    image: Image,
    faults: Arc<Faults>,
}

fn content(block: usize) -> Vec<u8> {
    (0..BLOCK).map(|i| (i * 7 + block * 13) as u8).collect()
}

/// An image with content that is not in the page cache.
fn bench(directory: &Path) -> Bench {
    let (world, faults) = faulty_world();
    let store = Store::open_with(world, directory, Limits::default()).unwrap();
    let pool = store.pool("rbd").unwrap();
    let size_bytes = (BLOCKS * BLOCK) as u64;
    let options = CreateOptions::sized(size_bytes);
    let id = pool.create("image", &options).unwrap();
    let mut image = pool.open(id).unwrap();
    let data: Vec<u8> = (0..BLOCKS).flat_map(content).collect();
    image.write_at(0, &data).unwrap();
    faults.cold.store(true, Ordering::Relaxed);
    Bench { store, pool, image, faults }
}

impl Bench {
    /// Reads a range that may stay in flight; `None` where it does.
    fn ask(&mut self, number: u64, offset: u64, bytes: usize) -> Option<marcot::Result<Vec<u8>>> {
        let mut buf = vec![0xEE; bytes];
        let mut reads = [Read { in_flight: Some(number), ..Read::new(offset, &mut buf) }];
        self.image.read_batch(&mut reads);
        let [Read { in_flight, result, .. }] = reads;
        if let Some(in_flight) = in_flight {
            assert_eq!(in_flight, number);
            assert!(buf.iter().all(|b| *b == 0xEE), "the buffer of a read in flight was touched");
            return None;
        }
        Some(result.map(|()| buf))
    }

    fn complete_one(&mut self) -> CompletedRead {
        assert!(self.image.take_completion().is_none(), "nothing is complete yet");
        self.faults.may_complete.store(1, Ordering::Relaxed);
        match self.image.take_completion() {
            Some(Completion::Read(read)) => read,
            other => panic!("a read may complete, not {other:?}"),
        }
    }
}

#[test]
fn only_whole_uncached_blocks_in_one_piece_are_left_in_flight() {
    let directory = tempfile::tempdir().unwrap();
    let mut bench = bench(directory.path());
    assert!(bench.ask(7, 3 * BLOCK as u64, 2 * BLOCK).is_none());
    assert!(bench.ask(8, 5 * BLOCK as u64, BLOCK).is_none());
    let first = bench.complete_one();
    assert_eq!(first.number, 7);
    assert!(first.result.unwrap() == [content(3), content(4)].concat());

    // Parts of blocks, and blocks in several pieces, are waited for.
    let partial = bench.ask(9, 100, 5000).unwrap().unwrap();
    assert!(partial[..BLOCK - 100] == content(0)[100..]);
    bench.image.write_at(BLOCK as u64, &content(40)).unwrap();
    let pieces = bench.ask(10, 0, 3 * BLOCK).unwrap().unwrap();
    assert!(pieces == [content(0), content(40), content(2)].concat());
    // A hole lies nowhere, so it is read at once.
    bench.image.discard(0, BLOCK as u64).unwrap();
    assert!(bench.ask(11, 0, BLOCK).unwrap().unwrap().iter().all(|b| *b == 0));
    // A caller that does not take completions waits.
    let mut buf = vec![0; BLOCK];
    bench.image.read_at(6 * BLOCK as u64, &mut buf).unwrap();
    assert!(buf == content(6));

    bench.faults.cold.store(false, Ordering::Relaxed);
    assert!(bench.ask(12, 7 * BLOCK as u64, BLOCK).unwrap().unwrap() == content(7));
    let second = bench.complete_one();
    assert!(second.number == 8 && second.result.unwrap() == content(5));
}

#[test]
fn a_read_in_flight_survives_changes_of_its_blocks() {
    let directory = tempfile::tempdir().unwrap();
    let mut bench = bench(directory.path());
    bench.image.snapshot("s").unwrap();
    // The blocks are overwritten. The snapshot that kept the old ones is removed with its segments.
    assert!(bench.ask(1, 9 * BLOCK as u64, BLOCK).is_none());
    assert!(bench.ask(2, 10 * BLOCK as u64, BLOCK).is_none());
    let data: Vec<u8> = (100..100 + BLOCKS).flat_map(content).collect();
    bench.image.write_at(0, &data).unwrap();
    bench.image.remove_snapshot("s", false).unwrap();
    bench.image.reclaim().unwrap();
    for number in [1, 2] {
        let read = bench.complete_one();
        assert_eq!(read.number, number);
        let got = read.result.unwrap();
        let block = 8 + number as usize;
        assert!(got == content(block) || got == content(100 + block), "block {block}");
    }
    // A shrink removes the blocks of this read. The read fails, or returns what was there.
    assert!(bench.ask(3, 60 * BLOCK as u64, BLOCK).is_none());
    let size_bytes = 8 * BLOCK as u64;
    bench.image.resize(size_bytes, true).unwrap();
    match bench.complete_one().result {
        Ok(got) => assert!(got == content(160)),
        Err(error) => assert_eq!(error.kind(), ErrorKind::OutOfRange),
    }
    bench.image.close().unwrap();
    assert_sound(&bench.store, &bench.pool);
}

#[test]
fn a_damaged_block_fails_the_read_in_flight() {
    let directory = tempfile::tempdir().unwrap();
    let mut bench = bench(directory.path());
    bench.image.flush().unwrap();
    assert!(bench.ask(1, 9 * BLOCK as u64, BLOCK).is_none());
    assert!(bench.ask(2, 10 * BLOCK as u64, BLOCK).is_none());
    let author = std::fs::read_dir(bench.pool.directory().join("segments")).unwrap().next();
    let segment = author.unwrap().unwrap().path().join("d00000001");
    let bytes = std::fs::read(&segment).unwrap();
    let at = bytes.windows(BLOCK).position(|w| w == content(9)).unwrap();
    let mut damaged = bytes;
    damaged[at + 5] ^= 1;
    std::fs::write(&segment, damaged).unwrap();
    assert_eq!(bench.complete_one().result.unwrap_err().kind(), ErrorKind::Corrupt);
    assert!(bench.complete_one().result.unwrap() == content(10));
}

#[test]
fn the_number_of_reads_in_flight_is_limited() {
    let directory = tempfile::tempdir().unwrap();
    let mut bench = bench(directory.path());
    let in_flight = (0..BLOCKS as u64).filter(|i| bench.ask(*i, i * BLOCK as u64, BLOCK).is_none());
    assert_eq!(in_flight.count(), 8, "as many as the disk takes");
}
