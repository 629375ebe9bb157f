//! What a head of an image in a bucket names, another host finds in the bucket, also while the owner compacts.

mod support;

use marcot::{CreateOptions, Image, Limits};
use support::bucket::{Bucket, Host};
use support::{assert_sound, pattern};

const BLOCK: u64 = 4096;
const BLOCKS: u64 = 200;
const ROUNDS: u64 = 40;

/// Short segments that are compacted early. There are many in the log of one checkpoint, so that it goes on behind
/// segments of copies.
fn limits() -> Limits {
    Limits {
        segment_slots: 24,
        dead_bytes_min: 64 << 10,
        checkpoint_log_bytes: 4 << 20,
        ..Limits::default()
    }
}

fn write(image: &mut Image, block: u64, seed: u8) {
    image.write_at(block * BLOCK, &pattern(seed, BLOCK as usize)).unwrap();
}

#[test]
fn a_head_names_only_segments_that_were_uploaded_also_while_the_owner_compacts() {
    let bucket = Bucket::default();
    let directories = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let [owner, other] =
        [0, 1].map(|n| Host::store(&bucket, directories[n].path(), n as u64 + 1, limits()));
    let (here, there) = (owner.pool("rbd").unwrap(), other.pool("rbd").unwrap());
    let id = here.create("image", &CreateOptions::sized(BLOCKS * BLOCK)).unwrap();
    let mut image = here.open(id).unwrap();
    let (mut seeds, mut random) = ([0; BLOCKS as usize], 1_u64);
    for round in 0..ROUNDS {
        for _ in 0..BLOCKS / 2 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            // Some blocks are never written again, so that segments stay a little live.
            let block = (random >> 33) % if round == 0 { BLOCKS } else { BLOCKS * 3 / 4 };
            let seed = (random >> 50) as u8 | 1;
            write(&mut image, block, seed);
            seeds[block as usize] = seed;
        }
        // A checkpoint, which is all that another host sees of this.
        image.snapshot("now").unwrap();
        let mut seen = there.open_snapshot(id, "now").unwrap();
        for (block, seed) in (0..).zip(&seeds).filter(|(_, seed)| **seed != 0) {
            let mut found = vec![0; BLOCK as usize];
            let read = seen.read_at(block * BLOCK, &mut found);
            read.unwrap_or_else(|error| panic!("round {round}, block {block}: {error}"));
            assert!(found == pattern(*seed, BLOCK as usize), "round {round}, block {block}");
        }
        drop(seen);
        image.remove_snapshot("now", false).unwrap();
    }
    image.close().unwrap();
    assert_sound(&other, &there);
}
