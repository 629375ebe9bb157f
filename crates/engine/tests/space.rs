//! Dead space comes back, and nothing is removed that is still needed.

#![expect(clippy::disallowed_methods, reason = "these tests wait for threads of the system")]

mod support;

use support::{MIB, assert_sound, pattern, segments, store_with_image};

use marcot::{BlockDevice, CheckOptions, CloneOptions, ErrorKind, Housekeeping, Store, Write};

#[test]
fn space_comes_back() {
    let directory = tempfile::tempdir().unwrap();
    let (store, pool, id) = store_with_image(directory.path(), 256 * MIB);
    let allocated = || store.pool_stats(&pool).unwrap().allocated_bytes;
    let mut image = pool.open(id).unwrap();
    let data = pattern(3, 4 * MIB as usize);
    for round in 0..4 {
        for i in 0..32 {
            image.write_at(i * 4 * MIB, &data).unwrap();
        }
        while image.background_step().unwrap() {}
        assert!(allocated() < 300 * MIB, "round {round}: {} MiB", allocated() / MIB);
    }
    image.snapshot("s").unwrap();
    for i in 0..32 {
        image.write_at(i * 4 * MIB, &data).unwrap();
    }
    image.remove_snapshot("s", false).unwrap();
    image.reclaim().unwrap();
    assert!(allocated() < 170 * MIB, "{} MiB after the snapshot", allocated() / MIB);
    image.discard(0, 256 * MIB).unwrap();
    image.reclaim().unwrap();
    assert!(allocated() < 70 * MIB, "{} MiB after the discard", allocated() / MIB);
    image.write_at(0, &data).unwrap();
    image.snapshot("p").unwrap();
    image.protect("p").unwrap();
    image.close().unwrap();
    let clone = CloneOptions::default();
    let child = pool.snapshot(id, "p").clone_to(&pool, "child", &clone).unwrap();
    let mut image = pool.open(child).unwrap();
    image.flatten().unwrap();
    image.close().unwrap();
    let mut image = pool.open(id).unwrap();
    image.unprotect("p").unwrap();
    image.remove_snapshot("p", false).unwrap();
    image.close().unwrap();
    store.remove_image(&pool, id, &mut |_, _| {}).unwrap();
    let mut image = pool.open(child).unwrap();
    let mut buf = vec![0; data.len()];
    image.read_at(0, &mut buf).unwrap();
    assert!(buf == data, "the flattened child outlives its parent");
    image.close().unwrap();
    store.remove_image(&pool, child, &mut |_, _| {}).unwrap();
    store.gc(&pool, &mut |_, _| {}).unwrap();
    assert_eq!(allocated(), 0);
}

/// Without compaction by writers, random overwrites leave every segment a little live, and the disk fills up.
#[test]
fn a_writer_that_never_pauses_makes_room_for_what_it_writes() {
    let directory = tempfile::tempdir().unwrap();
    let (store, pool, id) = store_with_image(directory.path(), 128 * MIB);
    let allocated = || store.pool_stats(&pool).unwrap().allocated_bytes;
    let mut image = pool.open(id).unwrap();
    let mut random = 1_u64;
    let blocks = 128 * MIB / 4096;
    for pass in 0..9 {
        // Requests in a batch, and blocks of each. Large ones make more garbage with each call.
        let (requests, length) = [(32, 1), (16, 4), (8, 256)][usize::from(pass) % 3];
        for _ in 0..blocks / (requests * length) {
            let data = vec![pass; length as usize * 4096];
            let writes: Vec<Write<'_>> = (0..requests)
                .map(|_| {
                    random = random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
                    Write { offset: (random >> 33) % (blocks - length) * 4096, data: &data }
                })
                .collect();
            image.write_batch(&writes).unwrap();
        }
        // The live data, the dead data that is left alone, and the log that writes need not wait for. All
        // that is written is 1,152 MiB.
        assert!(allocated() < 640 * MIB, "pass {pass}: {} MiB", allocated() / MIB);
    }
    image.close().unwrap();
    let report = store.check(&pool, &CheckOptions::default(), &mut |_, _| {}).unwrap();
    assert!(report.findings.is_empty(), "{:?}", report.findings);
}

#[test]
fn gc_leaves_alone_what_an_owner_may_still_append_to() {
    let directory = tempfile::tempdir().unwrap();
    let (store, pool, id) = store_with_image(directory.path(), 8 * MIB);
    let data = pattern(7, MIB as usize);
    let mut image = pool.open(id).unwrap();
    image.write_at(0, &data).unwrap();
    image.snapshot("s").unwrap();
    image.protect("s").unwrap();
    image.unprotect("s").unwrap();
    image.remove_snapshot("s", false).unwrap();
    // No durable head names the open segments now, and they count as shared.
    image.discard(0, 8 * MIB).unwrap();
    image.take_checkpoint().unwrap();
    store.gc(&pool, &mut |_, _| {}).unwrap();
    image.write_at(MIB, &data).unwrap();
    image.close().unwrap();
    let mut image = pool.open(id).unwrap();
    let mut buf = vec![0; MIB as usize];
    image.read_at(MIB, &mut buf).unwrap();
    assert!(buf == data);
    image.close().unwrap();
    assert_sound(&store, &pool);
}

#[test]
fn owners_and_gc_keep_what_a_reader_needs() {
    let directory = tempfile::tempdir().unwrap();
    let (store, pool, id) = store_with_image(directory.path(), 256 * MIB);
    let data = pattern(7, 40 * MIB as usize);
    let mut image = pool.open(id).unwrap();
    image.write_at(0, &data).unwrap();
    image.close().unwrap();
    let before = segments(&pool, 'd').len();
    let mut reader = pool.open_read_only(id).unwrap();
    let mut image = pool.open(id).unwrap();
    image.discard(0, 256 * MIB).unwrap();
    image.take_checkpoint().unwrap();
    image.reclaim().unwrap();
    assert!(segments(&pool, 'd').len() >= before, "the reader's segments stay");
    assert_eq!(store.gc(&pool, &mut |_, _| {}).unwrap_err().kind(), ErrorKind::Busy);
    let mut buf = vec![0; data.len()];
    reader.read_at(0, &mut buf).unwrap();
    assert!(buf == data);
    drop(reader);
    image.reclaim().unwrap();
    image.close().unwrap();
    assert!(
        segments(&pool, 'd').len() < before,
        "the segments are removed once the reader has gone"
    );
}

#[test]
fn the_next_owner_removes_what_a_crash_left_between_head_and_removal() {
    let directory = tempfile::tempdir().unwrap();
    let (_store, pool, id) = store_with_image(directory.path(), 256 * MIB);
    let mut image = pool.open(id).unwrap();
    image.write_at(0, &pattern(7, 40 * MIB as usize)).unwrap();
    image.take_checkpoint().unwrap();
    let dead = segments(&pool, 'd').into_iter().next().unwrap();
    let copy = std::fs::read(&dead).unwrap();
    image.discard(0, 64 * MIB).unwrap();
    image.take_checkpoint().unwrap();
    assert!(!dead.exists());
    image.write_at(0, &pattern(8, 4096)).unwrap();
    image.flush().unwrap();
    drop(image);
    std::fs::write(&dead, copy).unwrap();
    let mut image = pool.open(id).unwrap();
    image.write_at(4096, &pattern(9, 4096)).unwrap();
    assert!(!dead.exists());
    let mut buf = vec![0; 4096];
    image.read_at(0, &mut buf).unwrap();
    assert!(buf == pattern(8, 4096));
    image.close().unwrap();
}

#[test]
fn gc_succeeds_while_an_owner_removes_dead_segments() {
    let directory = tempfile::tempdir().unwrap();
    let (store, pool, id) = store_with_image(directory.path(), 64 * MIB);
    // Another image names half of what this image had, so that GC has to walk over all maps.
    let mut image = pool.open(id).unwrap();
    image.write_at(0, &pattern(1, 24 * MIB as usize)).unwrap();
    image.snapshot("s").unwrap();
    image.mark_shared("s").unwrap();
    image.close().unwrap();
    let options = CloneOptions::new().format(2);
    let other = pool.snapshot(id, "s").clone_to(&pool, "other", &options).unwrap();
    let mut other = pool.open(other).unwrap();
    other.flatten().unwrap();
    other.write_at(0, &pattern(2, 12 * MIB as usize)).unwrap();
    other.close().unwrap();
    let mut image = pool.open(id).unwrap();
    image.discard(0, 24 * MIB).unwrap();
    image.remove_snapshot("s", false).unwrap();
    image.close().unwrap();
    // Between GC's first look at the roots and its walk, an owner changes one root so that none of the map
    // segments it had is named any more.
    let mut rounds = 0;
    let mut owner = |_, _| {
        if rounds < 4 {
            rounds += 1;
            let mut image = pool.open(id).unwrap();
            for leaf in 0..32 {
                image.write_at(leaf * 2 * MIB, &pattern(rounds, 4096)).unwrap();
            }
            image.close().unwrap();
        }
    };
    owner(0, 0);
    let collector = Store::open(store.directory()).unwrap();
    collector.gc(&collector.pool("rbd").unwrap(), &mut owner).unwrap();
    assert_eq!(rounds, 4);
    assert_sound(&store, &pool);
}
#[test]
fn preallocated_zeros_are_no_data_and_are_cut_off_when_the_image_is_closed() {
    let directory = tempfile::tempdir().unwrap();
    let (_store, pool, id) = store_with_image(directory.path(), 64 * MIB);
    let mut image = pool.open(id).unwrap();
    for i in 0..20u8 {
        image.write_at(u64::from(i) * 4096, &pattern(i, 4096)).unwrap();
        image.flush().unwrap();
    }
    let log = segments(&pool, 'd').pop().unwrap();
    let used = (1 + 20 * 2) * 4096;
    assert!(std::fs::metadata(&log).unwrap().len() > used, "small flushes preallocate");
    drop(image);
    let mut image = pool.open(id).unwrap();
    let mut buf = vec![0; 4096];
    for i in 0..20u8 {
        image.read_at(u64::from(i) * 4096, &mut buf).unwrap();
        assert!(buf == pattern(i, 4096));
    }
    for i in 0..20u8 {
        image.write_at(u64::from(i) * 4096, &pattern(i, 4096)).unwrap();
        image.flush().unwrap();
    }
    image.close().unwrap();
    assert_eq!(std::fs::metadata(segments(&pool, 'd').pop().unwrap()).unwrap().len(), used);
}

/// Does what a server does with an idle image, until there has been nothing to do for a while. Checkpoint
/// jobs run in a thread of their own.
fn be_idle(image: &mut marcot::Image) {
    const QUIET_STEPS: u32 = 100;
    let mut quiet = 0;
    while quiet < QUIET_STEPS {
        if quiet.is_multiple_of(QUIET_STEPS / 2) {
            image.give_space_back();
        }
        quiet = if image.background_step().unwrap() { 0 } else { quiet + 1 };
        if quiet > 0 {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }
}

#[test]
fn an_idle_image_takes_little_more_than_its_data() {
    let directory = tempfile::tempdir().unwrap();
    let (store, pool, id) = store_with_image(directory.path(), 256 * MIB);
    let allocated = || store.pool_stats(&pool).unwrap().allocated_bytes;
    let mut image = pool.open(id).unwrap();
    image.write_at(0, &pattern(1, 100 * MIB as usize)).unwrap();
    image.discard(10 * MIB, 70 * MIB).unwrap();
    be_idle(&mut image);
    assert!(allocated() < 33 * MIB, "{} KiB of 30 MiB", allocated() >> 10);
    let mut buf = vec![0; 10 * MIB as usize];
    image.read_at(0, &mut buf).unwrap();
    assert!(buf == pattern(1, 100 * MIB as usize)[..10 * MIB as usize]);
    image.discard(0, 256 * MIB).unwrap();
    be_idle(&mut image);
    assert!(allocated() < MIB, "{} KiB of nothing", allocated() >> 10);
    image.write_at(0, &pattern(2, 4096)).unwrap();
    image.close().unwrap();
    assert_sound(&store, &pool);
}

#[test]
fn headers_of_groups_do_not_outweigh_the_data_of_an_idle_image() {
    let directory = tempfile::tempdir().unwrap();
    let (store, pool, id) = store_with_image(directory.path(), 64 * MIB);
    let allocated = || store.pool_stats(&pool).unwrap().allocated_bytes;
    let mut image = pool.open(id).unwrap();
    for i in 0..4096_u64 {
        image.write_at(i * 4096, &pattern(i as u8, 4096)).unwrap();
    }
    image.discard(0, 15 * MIB).unwrap();
    be_idle(&mut image);
    assert!(allocated() < 3 * MIB, "{} KiB of 1 MiB", allocated() >> 10);
    let mut buf = vec![0; 4096];
    for i in 15 * 256..4096_u64 {
        image.read_at(i * 4096, &mut buf).unwrap();
        assert!(buf == pattern(i as u8, 4096));
    }
    image.close().unwrap();
    assert_sound(&store, &pool);
}

#[test]
fn an_idle_image_gives_back_the_part_of_a_segment_that_no_snapshot_needs() {
    let directory = tempfile::tempdir().unwrap();
    let (store, pool, id) = store_with_image(directory.path(), 64 * MIB);
    let allocated = || store.pool_stats(&pool).unwrap().allocated_bytes;
    let mut image = pool.open(id).unwrap();
    image.write_at(0, &pattern(1, 8 * MIB as usize)).unwrap();
    image.snapshot("s").unwrap();
    // These lie in the same segment.
    image.write_at(32 * MIB, &pattern(2, 16 * MIB as usize)).unwrap();
    image.discard(0, 64 * MIB).unwrap();
    be_idle(&mut image);
    assert!(allocated() < 10 * MIB, "{} KiB of 8 MiB", allocated() >> 10);
    let mut snapshot = pool.open_snapshot(id, "s").unwrap();
    let mut buf = vec![0; 8 * MIB as usize];
    snapshot.read_at(0, &mut buf).unwrap();
    assert!(buf == pattern(1, 8 * MIB as usize));
    drop(snapshot);
    image.remove_snapshot("s", false).unwrap();
    be_idle(&mut image);
    assert!(allocated() < MIB, "{} KiB of nothing", allocated() >> 10);
    image.close().unwrap();
    assert_sound(&store, &pool);
}

#[test]
fn an_idle_image_writes_nothing_once_its_space_is_given_back() {
    let directory = tempfile::tempdir().unwrap();
    let (_store, pool, id) = store_with_image(directory.path(), 256 * MIB);
    let mut image = pool.open(id).unwrap();
    image.write_at(0, &pattern(1, 40 * MIB as usize)).unwrap();
    image.discard(4 * MIB, 20 * MIB).unwrap();
    be_idle(&mut image);
    let head = pool.directory().join("images").join(id.to_string()).join("head");
    let state = || {
        let segments = ['d', 'm', 't'].into_iter().flat_map(|kind| segments(&pool, kind));
        let mut files: Vec<_> = segments.chain([head.clone()]).collect();
        files.sort();
        let time = |path: &std::path::PathBuf| std::fs::metadata(path).unwrap().modified().unwrap();
        files.into_iter().map(|path| (time(&path), path)).collect::<Vec<_>>()
    };
    let before = state();
    be_idle(&mut image);
    let mut buf = vec![0; 4096];
    image.read_at(0, &mut buf).unwrap();
    be_idle(&mut image);
    assert_eq!(state(), before);
    image.close().unwrap();
}

#[test]
fn space_that_a_reader_needed_comes_back_when_the_reader_has_gone() {
    let directory = tempfile::tempdir().unwrap();
    let (store, pool, id) = store_with_image(directory.path(), 64 * MIB);
    let allocated = || store.pool_stats(&pool).unwrap().allocated_bytes;
    let data = pattern(1, 20 * MIB as usize);
    let mut image = pool.open(id).unwrap();
    image.write_at(0, &data).unwrap();
    image.close().unwrap();
    let mut image = pool.open(id).unwrap();
    let mut reader = pool.open_read_only(id).unwrap();
    image.discard(0, 64 * MIB).unwrap();
    be_idle(&mut image);
    let mut buf = vec![0; data.len()];
    reader.read_at(0, &mut buf).unwrap();
    assert!(buf == data);
    drop(reader);
    // No other request arrives.
    be_idle(&mut image);
    assert!(allocated() < MIB, "{} KiB of nothing", allocated() >> 10);
    image.close().unwrap();
}

/// A checkpoint has kept the open segment, although nothing in it is live any more.
#[test]
fn an_image_without_data_keeps_no_segment_after_its_close() {
    let directory = tempfile::tempdir().unwrap();
    let (store, pool, id) = store_with_image(directory.path(), 64 * MIB);
    let mut image = pool.open(id).unwrap();
    image.write_at(0, &pattern(1, 20 * MIB as usize)).unwrap();
    image.discard(0, 64 * MIB).unwrap();
    image.take_checkpoint().unwrap();
    image.close().unwrap();
    assert_eq!(segments(&pool, 'd'), Vec::<std::path::PathBuf>::new());
    assert_eq!(segments(&pool, 'm'), Vec::<std::path::PathBuf>::new());
    assert_sound(&store, &pool);
}

/// Files below a directory that are removed and that this process has open.
fn removed_and_open(directory: &std::path::Path) -> Vec<std::path::PathBuf> {
    let descriptors = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    let files = descriptors.filter_map(|fd| std::fs::read_link(fd.path()).ok());
    let removed = |path: &std::path::PathBuf| {
        path.starts_with(directory) && path.to_string_lossy().ends_with(" (deleted)")
    };
    files.filter(removed).collect()
}

#[test]
fn segments_that_another_process_removes_are_not_kept_open() {
    let directory = tempfile::tempdir().unwrap();
    let (store, pool, id) = store_with_image(directory.path(), 64 * MIB);
    let data = pattern(1, 8 * MIB as usize);
    let mut image = pool.open(id).unwrap();
    image.write_at(0, &data).unwrap();
    image.snapshot("s").unwrap();
    image.close().unwrap();
    let options = CloneOptions::new().format(2);
    let other = pool.snapshot(id, "s").clone_to(&pool, "other", &options).unwrap();
    let mut other = pool.open(other).unwrap();
    let mut image = pool.open(id).unwrap();
    let mut buf = vec![0; data.len()];
    other.read_at(0, &mut buf).unwrap();
    image.read_at(0, &mut buf).unwrap();
    assert!(buf == data);
    // A server closes the one image. The other one is only idle.
    image.close().unwrap();
    other.give_space_back();
    let remover = Store::open(store.directory()).unwrap();
    let names = segments(&remover.pool("rbd").unwrap(), 'd');
    names.iter().for_each(|name| std::fs::remove_file(name).unwrap());
    assert_eq!(removed_and_open(directory.path()), Vec::<std::path::PathBuf>::new());
}

#[test]
fn a_busy_image_closes_segments_that_another_process_removes() {
    let directory = tempfile::tempdir().unwrap();
    let (_store, pool, id) = store_with_image(directory.path(), 64 * MIB);
    let mut image = pool.open(id).unwrap();
    image.write_at(0, &pattern(1, 8 * MIB as usize)).unwrap();
    image.close().unwrap();
    let mut image = pool.open_read_only(id).unwrap();
    let mut buf = vec![0; 4096];
    image.read_at(0, &mut buf).unwrap();
    segments(&pool, 'd').iter().for_each(|name| std::fs::remove_file(name).unwrap());
    assert_eq!(removed_and_open(directory.path()).len(), 1);
    let begun = std::time::Instant::now();
    while !removed_and_open(directory.path()).is_empty() {
        image.read_at(0, &mut buf).unwrap();
        image.background_step().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(20));
        assert!(begun.elapsed().as_secs() < 60, "it is still open");
        if removed_and_open(directory.path()).is_empty() {
            break;
        }
    }
}
