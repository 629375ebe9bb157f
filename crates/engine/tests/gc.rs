//! What gc frees, slot by slot, what it keeps, and what it says about that.

mod support;

use std::fs;
use std::path::Path;
use std::sync::atomic::Ordering;

use marcot::{CreateOptions, ErrorKind, GcReport, ImageId, Pool, Store};
use marcot_format::BLOCK_BYTES;
use marcot_format::group::GroupHeader;
use support::{
    MIB, assert_sound, changed, checked, flip_byte, pattern, segments, store_with_image,
    taken_bytes,
};

const BLOCK: usize = BLOCK_BYTES as usize;
const ZEROS: [u8; BLOCK] = [0; BLOCK];

/// Every block of the image differs from all others, and none is zeros.
fn numbered(first: u64, blocks: u64) -> Vec<u8> {
    (first..first + blocks).flat_map(|block| (block + 1).to_le_bytes().repeat(BLOCK / 8)).collect()
}

/// From now on what the image has written counts as shared, so that only gc may free it.
fn share(pool: &Pool, id: ImageId) {
    changed(pool, id, |image| image.snapshot("shared")).unwrap();
    changed(pool, id, |image| image.protect("shared")).unwrap();
    changed(pool, id, |image| image.unprotect("shared")).unwrap();
    changed(pool, id, |image| image.remove_snapshot("shared", false)).unwrap();
}

/// A gc, and the parts of all that it said it had done.
fn gc(store: &Store, pool: &Pool) -> (GcReport, Vec<(u64, u64)>) {
    let mut said = Vec::new();
    let report = store.gc(pool, &mut |done, all| said.push((done, all))).unwrap();
    (report, said)
}

fn blocks_of(path: &Path) -> Vec<Vec<u8>> {
    fs::read(path).unwrap().chunks(BLOCK).map(<[u8]>::to_vec).collect()
}

#[test]
fn gc_punches_dead_blocks_and_keeps_live_ones_and_all_headers() {
    let directory = tempfile::tempdir().unwrap();
    let (store, pool, id) = store_with_image(directory.path(), 32 * MIB);
    // Groups of many lengths. The longest has a header of several blocks.
    let groups: [u64; 9] = [1, 256, 2, 2048, 1, 1, 300, 3, 40];
    let all: u64 = groups.iter().sum();
    changed(&pool, id, |image| {
        let mut first = 0;
        for blocks in groups {
            image.write_at(first * BLOCK_BYTES, &numbered(first, blocks)).unwrap();
            first += blocks;
        }
    });
    share(&pool, id);
    let is_live = |block: u64| block.is_multiple_of(7) || block == all - 1;
    changed(&pool, id, |image| {
        for block in (0..all).filter(|block| !is_live(*block)) {
            image.discard(block * BLOCK_BYTES, BLOCK_BYTES).unwrap();
        }
    });
    let path = segments(&pool, 'd').remove(0);
    let before = blocks_of(&path);
    let taken = taken_bytes(&pool.directory().join("segments"));
    let (report, _) = gc(&store, &pool);
    let left = taken_bytes(&pool.directory().join("segments"));
    assert_eq!(report.freed_bytes, taken - left, "gc says what it gave back");

    let after = blocks_of(&path);
    assert_eq!(after.len(), before.len());
    let mut at = 1;
    let mut first = 0;
    assert_eq!(after[0], before[0], "the segment's header");
    for blocks in groups {
        let header = GroupHeader::peek(&before[at]).unwrap();
        assert_eq!(after[at..at + header], before[at..at + header], "the header in slot {at}");
        at += header;
        for block in first..first + blocks {
            let wanted = if is_live(block) { &before[at][..] } else { &ZEROS[..] };
            assert!(after[at] == wanted, "block {block} in slot {at}");
            at += 1;
        }
        first += blocks;
    }
    changed(&pool, id, |image| {
        let mut bytes = vec![0; BLOCK];
        for block in 0..all {
            image.read_at(block * BLOCK_BYTES, &mut bytes).unwrap();
            let wanted = if is_live(block) { numbered(block, 1) } else { ZEROS.to_vec() };
            assert!(bytes == wanted, "block {block}");
        }
    });
    assert_sound(&store, &pool);
}

#[test]
fn gc_keeps_what_lies_behind_a_range_that_was_lost() {
    let directory = tempfile::tempdir().unwrap();
    let (store, pool, id) = store_with_image(directory.path(), 64 * MIB);
    let data = pattern(9, 4 * MIB as usize);
    changed(&pool, id, |image| {
        image.write_at(0, &data[..MIB as usize]).unwrap();
        image.write_at(32 * MIB, &data).unwrap();
    });
    // The first page of the map is that of the first leaf.
    let map = segments(&pool, 'm').pop().unwrap();
    flip_byte(&map, BLOCK_BYTES + 100);
    let findings = checked(&store, &pool, true).findings;
    assert!(findings.iter().any(|f| f.message.contains("given up")), "{findings:#?}");
    share(&pool, id);
    changed(&pool, id, |image| image.discard(34 * MIB, 2 * MIB)).unwrap();
    assert!(gc(&store, &pool).0.freed_bytes > 0);
    changed(&pool, id, |image| {
        let mut read = vec![0; 2 * MIB as usize];
        image.read_at(32 * MIB, &mut read).unwrap();
        assert!(read == data[..read.len()]);
        let error = image.read_at(0, &mut read[..BLOCK]).unwrap_err();
        assert!(error.sentence().to_string().contains("lost"), "{error}");
    });
}

#[test]
fn gc_reads_maps_only_where_enough_is_dead_and_its_progress_rises() {
    let directory = tempfile::tempdir().unwrap();
    let (store, pool, id) = store_with_image(directory.path(), 8 * MIB);
    changed(&pool, id, |image| image.write_at(0, &pattern(1, 2 * MIB as usize))).unwrap();
    share(&pool, id);
    changed(&pool, id, |image| {
        image.discard(0, 200 * BLOCK_BYTES).unwrap();
        image.snapshot("a").unwrap();
        image.write_at(4 * MIB, &pattern(2, 4096)).unwrap();
        image.snapshot("b").unwrap();
        image.write_at(5 * MIB, &pattern(3, 4096)).unwrap();
    });
    // First it looks at the tables of the three roots, and then, if need be, at their maps.
    let tables = [(0, 6), (1, 6), (2, 6)];
    assert_eq!(gc(&store, &pool).1, [&tables[..], &[(1, 1)]].concat());
    changed(&pool, id, |image| {
        image.remove_snapshot("a", false).unwrap();
        image.remove_snapshot("b", false).unwrap();
        image.discard(0, 2 * MIB - BLOCK_BYTES).unwrap();
        image.snapshot("a").unwrap();
        image.write_at(4 * MIB, &pattern(4, 4096)).unwrap();
        image.snapshot("b").unwrap();
        image.write_at(5 * MIB, &pattern(5, 4096)).unwrap();
    });
    let maps = [(3, 6), (4, 6), (5, 6)];
    let (report, said) = gc(&store, &pool);
    assert_eq!(said, [&tables[..], &maps, &[(1, 1)]].concat());
    assert!(report.freed_bytes >= 200 * BLOCK_BYTES, "{report:?}");
}

#[test]
fn gc_reads_a_page_once_for_all_roots_that_share_it() {
    const LEAVES: u64 = 64;
    let read_with = |snapshots: u64| {
        let directory = tempfile::tempdir().unwrap();
        let (world, faults) = support::faulty_world();
        let store = Store::open_in(world, directory.path()).unwrap();
        let pool = store.pool("rbd").unwrap();
        let options = CreateOptions::sized((LEAVES + 2) * 2 * MIB);
        let id = pool.create("image", &options).unwrap();
        changed(&pool, id, |image| {
            for leaf in 0..LEAVES {
                image.write_at(leaf * 2 * MIB, &numbered(leaf, 8)).unwrap();
            }
        });
        share(&pool, id);
        changed(&pool, id, |image| {
            for leaf in 0..LEAVES {
                image.discard(leaf * 2 * MIB + BLOCK_BYTES, 7 * BLOCK_BYTES).unwrap();
            }
            for number in 0..snapshots {
                image.write_at(LEAVES * 2 * MIB, &numbered(number, 1)).unwrap();
                image.snapshot(&format!("s{number}")).unwrap();
            }
        });
        faults.read_bytes.store(0, Ordering::Relaxed);
        let (report, _) = gc(&store, &pool);
        assert!(report.freed_bytes > LEAVES * BLOCK_BYTES, "maps were read");
        faults.read_bytes.load(Ordering::Relaxed)
    };
    let more = read_with(4) - read_with(1);
    // Three times the leaves alone would be more.
    assert!(more < 3 * LEAVES as i64 * BLOCK_BYTES as i64, "{more} bytes");
}

/// What gc says where a segment is changed after it was found to be in need of punching.
fn gc_beside(change: impl Fn(&Path)) -> Option<ErrorKind> {
    let directory = tempfile::tempdir().unwrap();
    let (store, pool, id) = store_with_image(directory.path(), 8 * MIB);
    changed(&pool, id, |image| image.write_at(0, &pattern(1, 4 * MIB as usize))).unwrap();
    share(&pool, id);
    changed(&pool, id, |image| image.discard(0, 2 * MIB)).unwrap();
    let path = segments(&pool, 'd').remove(0);
    let mut done = false;
    let freed = store.gc(&pool, &mut |_, _| {
        if !std::mem::replace(&mut done, true) {
            change(&path);
        }
    });
    freed.err().map(|error| error.kind())
}

#[test]
fn a_segment_that_its_owner_has_removed_meanwhile_does_not_stop_gc() {
    assert_eq!(gc_beside(|path| fs::remove_file(path).unwrap()), None);
}

#[test]
fn gc_says_where_it_cannot_open_a_segment() {
    let kind = gc_beside(|path| {
        fs::remove_file(path).unwrap();
        fs::create_dir(path).unwrap();
    });
    assert_eq!(kind, Some(ErrorKind::Io));
}

#[test]
fn gc_says_where_it_cannot_remove_a_segment_and_the_next_one_removes_it() {
    let directory = tempfile::tempdir().unwrap();
    let (world, faults) = support::faulty_world();
    let store = Store::open_in(world, directory.path()).unwrap();
    let pool = store.pool("rbd").unwrap();
    let id = pool.create("image", &CreateOptions::sized(8 * MIB)).unwrap();
    changed(&pool, id, |image| image.write_at(0, &pattern(1, 4 * MIB as usize))).unwrap();
    share(&pool, id);
    changed(&pool, id, |image| image.discard(0, 4 * MIB)).unwrap();
    // Nothing else is removed between the first report of progress and the segment.
    let mut fail = |_, _| faults.fail_remove.store(true, Ordering::Relaxed);
    assert_eq!(store.gc(&pool, &mut fail).unwrap_err().kind(), ErrorKind::Io);
    faults.fail_remove.store(false, Ordering::Relaxed);
    assert!(gc(&store, &pool).0.freed_bytes >= 4 * MIB);
}

#[test]
fn an_image_that_is_being_read_is_not_removed_and_its_pool_is_not_collected() {
    let directory = tempfile::tempdir().unwrap();
    let (store, pool, id) = store_with_image(directory.path(), 8 * MIB);
    let data = pattern(1, MIB as usize);
    changed(&pool, id, |image| image.write_at(0, &data)).unwrap();
    let mut reader = pool.open_read_only(id).unwrap();
    let remove = || store.remove_image(&pool, id, &mut |_, _| {});
    assert_eq!(remove().unwrap_err().kind(), ErrorKind::Busy);
    // The reader goes on by the head that it has read.
    changed(&pool, id, |image| image.discard(0, 8 * MIB)).unwrap();
    let refused = store.gc(&pool, &mut |_, _| {}).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Busy);
    assert!(refused.sentence().to_string().contains("rbd/image is being read"), "{refused}");
    let mut read = vec![0; data.len()];
    reader.read_at(0, &mut read).unwrap();
    assert!(read == data);
    drop(reader);
    gc(&store, &pool);
    assert_sound(&store, &pool);
    remove().unwrap();
}
