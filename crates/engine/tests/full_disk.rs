//! A full disk can be emptied, whatever log a killed owner has left. See also `scripts/test.d/full-disk.sh`.

mod support;

use std::path::Path;
use std::sync::Arc;

use support::{Faults, MIB, assert_sound, pattern, taken_bytes};

use marcot::{CreateOptions, ImageId, Limits, Pool, Store};

/// What one leaf of the map covers.
const LEAF_BYTES: u64 = 2 * MIB;
const LEAVES: u64 = 24;
/// Less than the pages of [`LEAVES`] leaves take.
const RESERVE_BYTES: u64 = 64 << 10;

/// A pool with a reserve that is smaller than the map pages that the log changes. Only the log decides when a
/// checkpoint is due.
fn small_reserve(
    directory: &Path,
    map_memory_bytes: u64,
    reserve_bytes: u64,
) -> (Store, Pool, Arc<Faults>) {
    let (world, faults) = support::faulty_world();
    let limits = Limits {
        map_memory_bytes,
        checkpoint_log_bytes: 1 << 40,
        reserve_bytes,
        ..Limits::default()
    };
    let store = Store::open_with(world, directory, limits).unwrap();
    let pool = store.pool("rbd").unwrap();
    (store, pool, faults)
}

fn image(pool: &Pool) -> ImageId {
    let options = CreateOptions::sized(LEAVES * LEAF_BYTES);
    pool.create("image", &options).unwrap()
}

/// Fills the disk except for `room_bytes`.
fn fill(faults: &Faults, directory: &Path, room_bytes: u64) {
    let taken = taken_bytes(directory);
    *faults.capacity.lock().unwrap() = Some((directory.to_owned(), taken + room_bytes));
}

fn remove(image: &mut marcot::Image, name: &str) {
    image.remove_snapshot(name, false).unwrap();
}

fn expect(image: &mut marcot::Image, seed: u8) {
    let (data, mut found) = (pattern(seed, LEAF_BYTES as usize), vec![0; LEAF_BYTES as usize]);
    for leaf in 0..LEAVES {
        image.read_at(leaf * LEAF_BYTES, &mut found).unwrap();
        assert!(found == data, "leaf {leaf} of {seed}");
    }
}

#[test]
fn removing_a_snapshot_frees_space_on_a_full_disk_though_the_log_needs_more_map_than_the_reserve() {
    removing_a_snapshot_frees_space(true);
}

#[test]
fn removing_a_snapshot_frees_space_on_a_full_disk_whose_reserve_is_gone() {
    removing_a_snapshot_frees_space(false);
}

fn removing_a_snapshot_frees_space(with_reserve: bool) {
    let directory = tempfile::tempdir().unwrap();
    let (store, pool, faults) = small_reserve(directory.path(), 64 * MIB, RESERVE_BYTES);
    let id = image(&pool);
    let mut opened = pool.open(id).unwrap();
    for seed in [1, 2] {
        for leaf in 0..LEAVES {
            opened.write_at(leaf * LEAF_BYTES, &pattern(seed, LEAF_BYTES as usize)).unwrap();
        }
        if seed == 1 {
            opened.snapshot("s").unwrap();
        }
    }
    opened.flush().unwrap();
    drop(opened);
    let mut room_bytes = 8 << 10;
    if !with_reserve {
        // A command that spent it was killed, and something else has filled the disk since.
        std::fs::remove_file(pool.directory().join("reserve")).unwrap();
        room_bytes += RESERVE_BYTES;
    }
    fill(&faults, directory.path(), room_bytes);
    let before = taken_bytes(directory.path());
    let mut opened = pool.open(id).unwrap();
    remove(&mut opened, "s");
    let freed = before.saturating_sub(taken_bytes(directory.path()));
    assert!(freed > 40 * MIB, "{} KiB", freed >> 10);
    expect(&mut opened, 2);
    // And it can be written again.
    opened.write_at(0, &pattern(2, 8 * MIB as usize)).unwrap();
    opened.flush().unwrap();
    drop(opened);
    let mut opened = pool.open(id).unwrap();
    let mut found = vec![0; 8 * MIB as usize];
    opened.read_at(0, &mut found).unwrap();
    assert!(found == pattern(2, 8 * MIB as usize));
    opened.close().unwrap();
    assert_sound(&store, &pool);
}

#[test]
fn a_guests_trim_frees_space_on_a_full_disk_though_the_log_needs_more_map_than_the_reserve() {
    let directory = tempfile::tempdir().unwrap();
    let (store, pool, faults) = small_reserve(directory.path(), 64 * MIB, RESERVE_BYTES);
    let id = image(&pool);
    let mut opened = pool.open(id).unwrap();
    for seed in [1, 2] {
        for leaf in 0..LEAVES {
            opened.write_at(leaf * LEAF_BYTES, &pattern(seed, LEAF_BYTES as usize)).unwrap();
        }
        if seed == 1 {
            opened.flush().unwrap();
            opened.reclaim().unwrap();
        }
    }
    opened.flush().unwrap();
    drop(opened);
    fill(&faults, directory.path(), 8 << 10);
    let before = taken_bytes(directory.path());
    let mut opened = pool.open(id).unwrap();
    opened.discard(0, 20 * LEAF_BYTES).unwrap();
    opened.flush().unwrap();
    opened.reclaim().unwrap();
    let freed = before.saturating_sub(taken_bytes(directory.path()));
    assert!(freed > 70 * MIB, "{} KiB", freed >> 10);
    let mut found = vec![1; LEAF_BYTES as usize];
    for leaf in 0..LEAVES {
        opened.read_at(leaf * LEAF_BYTES, &mut found).unwrap();
        let wanted = if leaf < 20 { vec![0; found.len()] } else { pattern(2, found.len()) };
        assert!(found == wanted, "leaf {leaf}");
    }
    opened.close().unwrap();
    assert_sound(&store, &pool);
}

/// There is little memory, so opening has written more map pages than one segment holds. Memory names these
/// pages, and no durable root does.
#[test]
fn a_reclaim_on_a_full_disk_keeps_segments_that_only_memory_names() {
    const MEMORY_BYTES: u64 = 128 << 10;
    const WRITES: u64 = 7000;
    // Enough for heads, and for nothing else.
    const HEADS_BYTES: u64 = 16 << 10;
    let directory = tempfile::tempdir().unwrap();
    let data = pattern(7, 4096);
    let id = {
        let (_, pool, _) = small_reserve(directory.path(), 64 * MIB, HEADS_BYTES);
        let id = image(&pool);
        let mut opened = pool.open(id).unwrap();
        for leaf in 0..LEAVES {
            opened.write_at(leaf * LEAF_BYTES, &pattern(1, LEAF_BYTES as usize)).unwrap();
        }
        opened.snapshot("s").unwrap();
        // Each write changes a page of 6 KiB, in turns.
        for write in 0..WRITES {
            let offset = write % LEAVES * LEAF_BYTES + write / LEAVES * 4096;
            opened.write_at(offset, &data).unwrap();
        }
        opened.flush().unwrap();
        id
    };
    let (store, pool, faults) = small_reserve(directory.path(), MEMORY_BYTES, HEADS_BYTES);
    let before = support::segments(&pool, 'm').len();
    let mut opened = pool.open(id).unwrap();
    assert!(support::segments(&pool, 'm').len() >= before + 2, "more than one segment was written");
    fill(&faults, directory.path(), 8 << 10);
    remove(&mut opened, "s");
    *faults.capacity.lock().unwrap() = None;
    opened.close().unwrap();
    let mut opened = pool.open(id).unwrap();
    let mut found = vec![0; LEAF_BYTES as usize];
    for leaf in 0..LEAVES {
        opened.read_at(leaf * LEAF_BYTES, &mut found).unwrap();
        let written = (WRITES - leaf).div_ceil(LEAVES) as usize * 4096;
        let (new, old) = found.split_at(written);
        assert!(new.chunks_exact(4096).all(|block| block == data), "leaf {leaf}");
        assert!(old == &pattern(1, found.len())[written..], "leaf {leaf}");
    }
    opened.close().unwrap();
    assert_sound(&store, &pool);
}
