//! Damage and failures stay local: full disks, failed syncs, damaged and newer files.

mod support;

use std::sync::atomic::Ordering;

use support::{MIB, assert_sound, checked, flip_byte, pattern, segments, store_with_image};

use marcot::{
    CheckOptions, CloneOptions, CreateOptions, ErrorKind, Image, ImageId, ImageName, Limits,
    Namespace, Pool, PoolOptions, Remedy, Store,
};

#[test]
fn a_full_disk_fails_writes_and_nothing_else_until_there_is_room() {
    let directory = tempfile::tempdir().unwrap();
    let (world, faults) = support::faulty_world();
    let store = Store::open_in(world, directory.path()).unwrap();
    let pool = store.pool("rbd").unwrap();
    let options = CreateOptions::sized(64 * MIB);
    let id = pool.create("image", &options).unwrap();
    let mut image = pool.open(id).unwrap();
    let data = pattern(1, MIB as usize);
    image.write_at(0, &data).unwrap();
    faults.room_bytes.store(3 * MIB as i64 + 5000, Ordering::Relaxed);
    let mut written = 1;
    let error = loop {
        match image.write_at(written * MIB, &data) {
            Ok(()) => written += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), ErrorKind::NoSpace);
    assert!(written >= 3);
    image.flush().unwrap();
    let mut buf = vec![0; MIB as usize];
    image.read_at(0, &mut buf).unwrap();
    assert!(buf == data);
    faults.room_bytes.store(0, Ordering::Relaxed);
    let snapshot = image.snapshot("s");
    assert_eq!(snapshot.unwrap_err().kind(), ErrorKind::NoSpace);
    faults.room_bytes.store(-1, Ordering::Relaxed);
    image.write_at(written * MIB, &data).unwrap();
    image.snapshot("s").unwrap();
    image.close().unwrap();
    let mut image = pool.open(id).unwrap();
    for i in 0..=written {
        image.read_at(i * MIB, &mut buf).unwrap();
        assert!(buf == data, "MiB {i}");
    }
    image.close().unwrap();
    assert_sound(&store, &pool);
}

#[test]
fn after_a_failed_sync_nothing_is_promised_until_reopened() {
    let directory = tempfile::tempdir().unwrap();
    let (world, faults) = support::faulty_world();
    let store = Store::open_in(world, directory.path()).unwrap();
    let pool = store.pool("rbd").unwrap();
    let options = CreateOptions::sized(8 * MIB);
    let id = pool.create("image", &options).unwrap();
    let mut image = pool.open(id).unwrap();
    image.write_at(0, &pattern(1, 4096)).unwrap();
    image.flush().unwrap();
    image.write_at(4096, &pattern(2, 4096)).unwrap();
    faults.fail_sync.store(true, Ordering::Relaxed);
    assert_eq!(image.flush().unwrap_err().kind(), ErrorKind::Poisoned);
    assert_eq!(image.flush().unwrap_err().kind(), ErrorKind::Poisoned);
    assert_eq!(image.write_at(0, &[1]).unwrap_err().kind(), ErrorKind::Poisoned);
    assert_eq!(image.close().unwrap_err().kind(), ErrorKind::Poisoned);
    let mut image = pool.open(id).unwrap();
    let mut buf = vec![0; 4096];
    image.read_at(0, &mut buf).unwrap();
    assert!(buf == pattern(1, 4096), "what was flushed before is there");
    image.write_at(0, &pattern(3, 4096)).unwrap();
    image.flush().unwrap();
    image.close().unwrap();
}

#[test]
fn a_damaged_block_fails_its_own_range_and_check_names_every_image_with_it() {
    let directory = tempfile::tempdir().unwrap();
    let (store, pool, id) = store_with_image(directory.path(), 8 * MIB);
    let mut image = pool.open(id).unwrap();
    let data = pattern(5, 4 * MIB as usize);
    image.write_at(0, &data).unwrap();
    image.snapshot("s").unwrap();
    image.protect("s").unwrap();
    image.close().unwrap();
    let clone = CloneOptions::default();
    let child = pool.snapshot(id, "s").clone_to(&pool, "child", &clone).unwrap();
    pool.snapshot(id, "s").clone_to(&pool, "other", &clone).unwrap();
    let data_segment = segments(&pool, 'd').pop().unwrap();
    // Block 100 of the data: behind the segment's header and the group's two header blocks.
    flip_byte(&data_segment, (1 + 2 + 100) * 4096 + 17);
    let mut image = pool.open(child).unwrap();
    let mut buf = vec![0; 4096];
    for block in 0..1024u64 {
        let read = image.read_at(block * 4096, &mut buf);
        if block == 100 {
            assert_eq!(read.unwrap_err().kind(), ErrorKind::Corrupt);
        } else {
            read.unwrap();
            assert!(buf == data[block as usize * 4096..][..4096]);
        }
    }
    image.write_at(100 * 4096, &buf).unwrap();
    image.read_at(100 * 4096, &mut buf).unwrap();
    image.close().unwrap();
    for scrub in [false, true] {
        let options = CheckOptions { scrub, ..CheckOptions::default() };
        let mut last = (0, 0);
        let mut progress = |done, total| last = (done, total);
        let report = store.check(&pool, &options, &mut progress).unwrap();
        let mut named: Vec<&str> = report.findings.iter().map(|f| f.image.as_str()).collect();
        named.sort_unstable();
        assert_eq!(named, ["rbd/image", "rbd/image@s", "rbd/other"], "{report:#?}");
        let damage = "bytes 409600 to 413696 are damaged";
        assert!(report.findings.iter().all(|f| f.serious && f.message.starts_with(damage)));
        // The child has one leaf of its own.
        assert_eq!(report.blocks, 1024 + 512, "{report:#?}");
        assert!(last.0 == report.blocks * 4096 && last.1 >= last.0, "{last:?}");
    }
}

#[test]
fn check_goes_on_behind_a_damaged_map_page() {
    let directory = tempfile::tempdir().unwrap();
    let (store, pool, id) = store_with_image(directory.path(), 64 * MIB);
    let mut image = pool.open(id).unwrap();
    image.write_at(0, &pattern(1, MIB as usize)).unwrap();
    image.write_at(32 * MIB, &pattern(2, MIB as usize)).unwrap();
    image.close().unwrap();
    flip_byte(&segments(&pool, 'm').pop().unwrap(), 4096 + 100);
    // The second group, behind the segment's header and the first group, with one block of header.
    flip_byte(&segments(&pool, 'd').pop().unwrap(), (1 + 1 + 256 + 1 + 10) * 4096);
    let report = checked(&store, &pool, false);
    let messages: Vec<&str> = report.findings.iter().map(|f| f.message.as_str()).collect();
    assert_eq!(messages.len(), 2, "{messages:#?}");
    assert!(messages[0].starts_with("bytes 0 to 2097152 cannot be read"), "{messages:#?}");
    let damaged = format!("bytes {} to {} are damaged", 32 * MIB + 40960, 32 * MIB + 45056);
    assert!(messages[1].starts_with(&damaged), "{messages:#?}");
}

#[test]
fn a_damaged_map_page_is_an_error_for_its_range_and_no_panic() {
    let directory = tempfile::tempdir().unwrap();
    let (store, pool, id) = store_with_image(directory.path(), 64 * MIB);
    let mut image = pool.open(id).unwrap();
    let data = pattern(9, MIB as usize);
    image.write_at(0, &data).unwrap();
    image.write_at(32 * MIB, &data).unwrap();
    image.close().unwrap();
    let map_segment = segments(&pool, 'm').pop().unwrap();
    flip_byte(&map_segment, 4096 + 100);
    let mut image = pool.open(id).unwrap();
    let mut buf = vec![0; MIB as usize];
    let error = image.read_at(0, &mut buf).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    assert_eq!(image.write_at(0, &data).unwrap_err().kind(), ErrorKind::Corrupt);
    image.read_at(32 * MIB, &mut buf).unwrap();
    assert!(buf == data);
    image.write_at(48 * MIB, &data).unwrap();
    // Discarding the damaged part makes it usable again.
    image.discard(0, 2 * MIB).unwrap();
    image.write_at(0, &data).unwrap();
    image.read_at(0, &mut buf).unwrap();
    assert!(buf == data);
    image.close().unwrap();
    checked(&store, &pool, true);
    assert_sound(&store, &pool);
}

#[test]
fn damaged_and_newer_records_are_named_and_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let (store, pool, id) = store_with_image(directory.path(), MIB);
    let head = pool.image_directory(id).join("head");
    let good = std::fs::read(&head).unwrap();
    for cut in [0, 10, 31, good.len() - 1] {
        std::fs::write(&head, &good[..cut]).unwrap();
        let error = pool.open(id).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
        assert!(error.sentence().to_string().contains("head"), "{error}");
        let report = checked(&store, &pool, false);
        assert_eq!(report.findings.len(), 1);
        assert!(store.gc(&pool, &mut |_, _| {}).is_err(), "nothing may be freed now");
    }
    let mut newer = good.clone();
    newer[8] = 2;
    std::fs::write(&head, &newer).unwrap();
    assert_eq!(pool.open(id).err().unwrap().kind(), ErrorKind::NewerFormat);
    std::fs::write(&head, &good).unwrap();
    pool.open(id).unwrap().close().unwrap();
    let record = pool.directory().join("pool");
    let mut bytes = std::fs::read(&record).unwrap();
    bytes[40] ^= 1;
    std::fs::write(&record, &bytes).unwrap();
    assert_eq!(store.pool("rbd").err().unwrap().kind(), ErrorKind::Corrupt);
}

#[test]
fn names_sizes_and_ranges_are_checked_before_anything_happens() {
    let directory = tempfile::tempdir().unwrap();
    let (store, pool, id) = store_with_image(directory.path(), MIB);
    let kind = |result: marcot::Result<ImageId>| result.err().map(|e| e.kind());
    let create = |name: &str, size_bytes: u64| pool.create(name, &CreateOptions::sized(size_bytes));
    assert_eq!(kind(create("a/b", 1)), Some(ErrorKind::Invalid));
    assert_eq!(kind(create("a@b", 1)), Some(ErrorKind::Invalid));
    assert_eq!(kind(create("image", 1)), Some(ErrorKind::Exists));
    assert_eq!(kind(create("huge", marcot::IMAGE_BYTES_MAX + 1)), Some(ErrorKind::Invalid));
    assert_eq!(kind(pool.find("nothing")), Some(ErrorKind::NotFound));
    assert_eq!(
        kind(pool.find(ImageName::new("image").in_namespace("nowhere"))),
        Some(ErrorKind::NotFound)
    );
    assert_eq!(store.pool("nothing").err().unwrap().kind(), ErrorKind::NotFound);
    let exists = store.pool_create("rbd", &PoolOptions::default());
    assert_eq!(exists.err().unwrap().kind(), ErrorKind::Exists);
    assert_eq!(store.pool_remove("rbd").unwrap_err().kind(), ErrorKind::NotEmpty);
    let mut image = pool.open(id).unwrap();
    assert_eq!(image.write_at(MIB, &[1]).unwrap_err().kind(), ErrorKind::OutOfRange);
    assert_eq!(image.read_at(u64::MAX, &mut [0]).unwrap_err().kind(), ErrorKind::OutOfRange);
    assert_eq!(image.discard(0, MIB + 1).unwrap_err().kind(), ErrorKind::OutOfRange);
    image.close().unwrap();
    assert_eq!(pool.images(&Namespace::DEFAULT).unwrap().len(), 1);
}

#[test]
fn an_image_that_never_had_a_name_is_litter_and_a_lost_name_is_damage() {
    let directory = tempfile::tempdir().unwrap();
    let (store, pool, id) = store_with_image(directory.path(), 4 * MIB);
    let name = pool.directory().join("names/@/image");
    let record = std::fs::read(&name).unwrap();
    std::fs::remove_file(&name).unwrap();
    let report = checked(&store, &pool, false);
    assert_eq!(report.findings.len(), 1, "{:#?}", report.findings);
    assert!(!report.findings[0].serious && report.findings[0].message.contains("cut off"));
    checked(&store, &pool, true);
    assert!(!name.exists(), "check leaves the image to gc");
    std::fs::write(&name, &record).unwrap();
    let mut image = pool.open(id).unwrap();
    image.write_at(0, &pattern(1, 4096)).unwrap();
    image.close().unwrap();
    std::fs::remove_file(&name).unwrap();
    let report = checked(&store, &pool, false);
    assert!(report.findings[0].serious, "{:#?}", report.findings);
    store.gc(&pool, &mut |_, _| {}).unwrap();
    checked(&store, &pool, true);
    assert_eq!(
        std::fs::read(&name).unwrap(),
        record,
        "an image that was written gets its name back"
    );
    pool.create("other", &CreateOptions::default()).unwrap();
    std::fs::remove_file(pool.directory().join("names/@/other")).unwrap();
    store.gc(&pool, &mut |_, _| {}).unwrap();
    let report = checked(&store, &pool, false);
    assert_eq!(report.findings, [], "gc has removed the image that never had a name");
}

#[test]
fn an_image_whose_name_cannot_be_read_is_not_removed_as_litter() {
    let directory = tempfile::tempdir().unwrap();
    let (world, faults) = support::faulty_world();
    let store = Store::open_with(world, directory.path(), Limits::default()).unwrap();
    let pool = store.pool("rbd").unwrap();
    let options = CreateOptions::sized(MIB);
    let id = pool.create("image", &options).unwrap();
    // The image was never written, as after an interrupted creation. But it has a name.
    faults.name_errno.store(5, Ordering::Relaxed);
    let _ = store.gc(&pool, &mut |_, _| {});
    let report = checked(&store, &pool, true);
    assert!(report.findings.iter().any(|f| f.serious && !f.repaired), "{report:#?}");
    faults.name_errno.store(0, Ordering::Relaxed);
    assert_eq!(pool.images(&Namespace::DEFAULT).unwrap(), [("image".to_owned(), id)]);
    pool.open(id).unwrap().close().unwrap();
    assert_sound(&store, &pool);
}

#[test]
fn forty_generations_read_like_one() {
    let directory = tempfile::tempdir().unwrap();
    let (_store, pool, mut id) = store_with_image(directory.path(), 4 * MIB);
    for generation in 0..40u64 {
        let mut image = pool.open(id).unwrap();
        image.write_at(generation * 65536, &pattern(generation as u8, 65536)).unwrap();
        image.snapshot("s").unwrap();
        image.protect("s").unwrap();
        image.close().unwrap();
        let name = format!("generation-{generation}");
        let clone = CloneOptions::default();
        id = pool.snapshot(id, "s").clone_to(&pool, &name, &clone).unwrap();
    }
    let mut image = pool.open(id).unwrap();
    for generation in 0..40u64 {
        let mut buf = vec![0; 65536];
        image.read_at(generation * 65536, &mut buf).unwrap();
        assert!(buf == pattern(generation as u8, 65536), "generation {generation}");
    }
    image.close().unwrap();
}

/// Writes without closing, so that what was flushed is only in the log.
fn leave_log(pool: &Pool, id: ImageId, writes: &[(u64, Vec<u8>)]) {
    let mut image = pool.open(id).unwrap();
    for (offset, data) in writes {
        image.write_at(*offset, data).unwrap();
        image.flush().unwrap();
    }
}

#[test]
fn a_map_page_that_is_damaged_under_the_log_costs_its_other_blocks_only() {
    let directory = tempfile::tempdir().unwrap();
    let (store, pool, id) = store_with_image(directory.path(), 64 * MIB);
    let data = pattern(9, MIB as usize);
    let mut image = pool.open(id).unwrap();
    image.write_at(0, &data).unwrap();
    image.write_at(32 * MIB, &data).unwrap();
    image.close().unwrap();
    leave_log(&pool, id, &[(8192, pattern(3, 4096)), (48 * MIB, pattern(4, 4096))]);
    let map_segment = segments(&pool, 'm').into_iter().next().unwrap();
    flip_byte(&map_segment, 4096 + 100);
    let store = Store::open(store.directory()).unwrap();
    let pool = store.pool("rbd").unwrap();
    let mut buf = vec![0; 4096];
    for round in 0..2 {
        let mut image = pool.open(id).unwrap();
        image.read_at(8192, &mut buf).unwrap();
        assert!(buf == pattern(3, 4096), "round {round}");
        image.read_at(48 * MIB, &mut buf).unwrap();
        assert!(buf == pattern(4, 4096));
        image.read_at(32 * MIB, &mut buf).unwrap();
        assert!(buf == data[..4096]);
        for lost in [0, 4096, 12288, 2 * MIB - 4096] {
            let error = image.read_at(lost, &mut buf).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
            assert!(error.sentence().to_string().contains("lost"), "{error}");
        }
        let extents = marcot::BlockDevice::extents(&mut image, 0, 4 * MIB, 10).unwrap();
        assert!(extents[0].data && extents[0].length == 2 * MIB, "a lost range is no hole");
        image.close().unwrap();
    }
    let report = checked(&store, &pool, false);
    assert!(report.findings.iter().any(|f| f.message.contains("lost")), "{report:#?}");
    let mut image = pool.open(id).unwrap();
    image.write_at(0, &pattern(5, 4096)).unwrap();
    image.discard(4096, 2 * MIB - 4096).unwrap();
    image.read_at(0, &mut buf).unwrap();
    assert!(buf == pattern(5, 4096));
    image.close().unwrap();
    checked(&store, &pool, true);
    assert_sound(&store, &pool);
}

#[test]
fn repair_gives_up_a_damaged_map_page_so_that_its_range_can_be_written() {
    let directory = tempfile::tempdir().unwrap();
    let (store, pool, id) = store_with_image(directory.path(), 64 * MIB);
    let data = pattern(9, MIB as usize);
    let mut image = pool.open(id).unwrap();
    image.write_at(0, &data).unwrap();
    image.write_at(32 * MIB, &data).unwrap();
    image.close().unwrap();
    flip_byte(&segments(&pool, 'm').pop().unwrap(), 4096 + 100);
    let mut image = pool.open(id).unwrap();
    assert_eq!(image.write_at(0, &data[..4096]).unwrap_err().kind(), ErrorKind::Corrupt);
    image.close().unwrap();
    let report = checked(&store, &pool, true);
    assert!(report.findings.iter().any(|f| f.message.contains("given up")), "{report:#?}");
    let mut image = pool.open(id).unwrap();
    image.write_at(0, &data[..4096]).unwrap();
    let mut buf = vec![0; 4096];
    image.read_at(0, &mut buf).unwrap();
    assert!(buf == data[..4096]);
    assert_eq!(image.read_at(4096, &mut buf).unwrap_err().kind(), ErrorKind::Corrupt);
    image.read_at(32 * MIB, &mut buf).unwrap();
    assert!(buf == data[..4096]);
    image.close().unwrap();
}

#[test]
fn a_damaged_group_before_a_durable_one_is_no_end_of_the_log() {
    let directory = tempfile::tempdir().unwrap();
    let (store, pool, id) = store_with_image(directory.path(), 64 * MIB);
    leave_log(
        &pool,
        id,
        &[(0, pattern(1, 4096)), (4096, pattern(2, 4096)), (8192, pattern(3, 4096))],
    );
    // Groups of two blocks each, header and data, behind the segment's header.
    let log = segments(&pool, 'd').pop().unwrap();
    let fresh = || Store::open(store.directory()).unwrap().pool("rbd").unwrap();
    let mut buf = vec![0; 4096];

    // Damaged data: the group counts, and reading its block is an error.
    flip_byte(&log, 2 * 4096 + 5);
    let mut image = fresh().open(id).unwrap();
    assert_eq!(image.read_at(0, &mut buf).unwrap_err().kind(), ErrorKind::Corrupt);
    image.read_at(8192, &mut buf).unwrap();
    assert!(buf == pattern(3, 4096));
    drop(image);

    // A damaged header: what the group wrote is unknown.
    flip_byte(&log, 3 * 4096 + 70);
    let error = fresh().open(id).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    assert_eq!(error.remedy(), Some(Remedy::RepairPool), "{error}");
    let mut reader = fresh().open_read_only(id).unwrap();
    reader.read_at(8192, &mut buf).unwrap();
    assert!(buf.iter().all(|b| *b == 0), "a reader sees what was before the damage");
    drop(reader);
    let report = checked(&store, &fresh(), true);
    assert!(report.findings.iter().any(|f| f.repaired), "{report:#?}");
    let mut image = fresh().open(id).unwrap();
    image.write_at(0, &pattern(6, 4096)).unwrap();
    image.read_at(0, &mut buf).unwrap();
    assert!(buf == pattern(6, 4096));
    image.close().unwrap();
}

#[test]
fn the_groups_behind_a_damaged_segment_header_are_replayed_and_repair_restores_it() {
    let directory = tempfile::tempdir().unwrap();
    let (store, pool, id) = store_with_image(directory.path(), 128 * MIB);
    let data = pattern(7, (4 * MIB) as usize);
    // A log in two segments. All of it was flushed.
    let mut writes: Vec<(u64, Vec<u8>)> = (0..10).map(|i| (i * 4 * MIB, data.clone())).collect();
    writes.push((100 * MIB, pattern(8, 4096)));
    leave_log(&pool, id, &writes);
    let logs = segments(&pool, 'd');
    assert_eq!(logs.len(), 2);
    for log in &logs {
        flip_byte(log, 100);
    }
    let pool = Store::open(store.directory()).unwrap().pool("rbd").unwrap();
    let mut image = pool.open(id).unwrap();
    let mut buf = vec![0; data.len()];
    for (offset, data) in &writes {
        image.read_at(*offset, &mut buf[..data.len()]).unwrap();
        assert!(buf[..data.len()] == **data, "at {offset}");
    }
    image.close().unwrap();
    let report = checked(&store, &pool, true);
    let restored = report.findings.iter().filter(|f| f.message.contains("header of segment"));
    assert!(report.findings.iter().all(|f| f.repaired && !f.serious), "{report:#?}");
    assert_eq!(restored.count(), 2, "{report:#?}");
    assert_sound(&store, &pool);

    // A log whose first segment cannot be read does not count as empty.
    leave_log(&pool, id, &[(0, pattern(9, 4096))]);
    let log = segments(&pool, 'd').pop().unwrap();
    let file = std::fs::File::options().write(true).open(&log).unwrap();
    file.set_len(0).unwrap();
    let error =
        Store::open(store.directory()).unwrap().pool("rbd").unwrap().open(id).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
}

#[test]
fn damage_in_the_last_group_is_the_end_of_the_log() {
    let directory = tempfile::tempdir().unwrap();
    let (store, pool, id) = store_with_image(directory.path(), 64 * MIB);
    leave_log(&pool, id, &[(0, pattern(1, 4096)), (4096, pattern(2, 4096))]);
    flip_byte(&segments(&pool, 'd').pop().unwrap(), 4 * 4096 + 5);
    let pool = Store::open(store.directory()).unwrap().pool("rbd").unwrap();
    let mut image = pool.open(id).unwrap();
    let mut buf = vec![0; 8192];
    image.read_at(0, &mut buf).unwrap();
    assert!(buf[..4096] == pattern(1, 4096) && buf[4096..].iter().all(|b| *b == 0));
}

#[test]
fn flatten_copies_in_parts_and_the_image_is_used_between_them() {
    flatten_in_parts(&|_| {});
}

#[test]
fn a_snapshot_is_flattened_with_its_image_and_both_are_used_between_the_parts() {
    flatten_in_parts(&|image| {
        image.snapshot("earlier").unwrap();
    });
}

fn flatten_in_parts(prepare: &dyn Fn(&mut Image)) {
    let directory = tempfile::tempdir().unwrap();
    let (store, pool, id) = store_with_image(directory.path(), 64 * MIB);
    let data = pattern(7, 20 * MIB as usize);
    let mut image = pool.open(id).unwrap();
    image.write_at(0, &data).unwrap();
    image.snapshot("s").unwrap();
    image.protect("s").unwrap();
    image.close().unwrap();
    let other = store.pool_create("other", &PoolOptions::default()).unwrap();
    let clone = CloneOptions::default();
    let child = pool.snapshot(id, "s").clone_to(&other, "child", &clone).unwrap();
    let mut image = other.open(child).unwrap();
    prepare(&mut image);
    let part = |image: &mut Image| {
        let part = image.flatten_part().unwrap();
        (part.left_blocks, part.more)
    };
    let (left, more) = part(&mut image);
    assert_eq!((left, more), (4096, true), "5120 blocks, 1024 at a time");
    // These blocks are written meanwhile, before and behind the place that the copying has reached.
    image.write_at(MIB, &pattern(1, 4096)).unwrap();
    image.write_at(19 * MIB, &pattern(2, 4096)).unwrap();
    let left = part(&mut image).0;
    assert!((3000..=3072).contains(&left), "{left}");
    // From here on, a snapshot needs the parent's pool.
    image.snapshot("middle").unwrap();
    image.write_at(19 * MIB, &[0; 4096]).unwrap();
    image.roll_back("middle").unwrap();
    while part(&mut image).1 {}
    // This snapshot is taken after everything was copied.
    image.snapshot("late").unwrap();
    image.flatten().unwrap();
    image.close().unwrap();
    let mut image = pool.open(id).unwrap();
    image.unprotect("s").unwrap();
    image.remove_snapshot("s", false).unwrap();
    image.close().unwrap();
    store.remove_image(&pool, id, &mut |_, _| {}).unwrap();
    let mut expected = data;
    expected[MIB as usize..][..4096].copy_from_slice(&pattern(1, 4096));
    expected[19 * MIB as usize..][..4096].copy_from_slice(&pattern(2, 4096));
    std::fs::rename(pool.directory().join("segments"), pool.directory().join("gone")).unwrap();
    let info = other.info(child).unwrap();
    assert!(info.snapshots.iter().all(|s| s.parent.is_none()) && info.snapshots.len() >= 2);
    for snapshot in &info.snapshots {
        let mut image = other.open_snapshot(child, &snapshot.name).unwrap();
        let mut buf = vec![0; expected.len()];
        image.read_at(0, &mut buf).unwrap();
        match snapshot.name.as_str() {
            "earlier" => assert!(
                buf[19 * MIB as usize..] == pattern(7, 20 * MIB as usize)[19 * MIB as usize..]
            ),
            _ => assert!(buf == expected),
        }
    }
    let mut image = other.open(child).unwrap();
    let mut buf = vec![0; expected.len()];
    image.read_at(0, &mut buf).unwrap();
    assert!(buf == expected);
    image.close().unwrap();
    let report = store.check(&other, &CheckOptions::default(), &mut |_, _| {}).unwrap();
    assert!(report.findings.is_empty(), "{:#?}", report.findings);
}

#[test]
fn a_write_or_discard_of_any_alignment_is_one_group_and_so_never_torn() {
    let directory = tempfile::tempdir().unwrap();
    let (_store, pool, id) = store_with_image(directory.path(), 64 * MIB);
    let mut image = pool.open(id).unwrap();
    image.write_at(0, &pattern(1, MIB as usize)).unwrap();
    image.flush().unwrap();
    let log = segments(&pool, 'd').pop().unwrap();
    let groups = || {
        let bytes = std::fs::read(&log).unwrap();
        bytes.chunks(4096).filter(|b| b.starts_with(b"marcotGR")).count()
    };
    let groups_of = |image: &mut Image, change: &dyn Fn(&mut Image)| {
        let before = groups();
        change(image);
        groups() - before
    };
    assert_eq!(groups(), 1);
    let unaligned = |image: &mut Image| image.write_at(1000, &pattern(2, 100_000)).unwrap();
    assert_eq!(groups_of(&mut image, &unaligned), 1);
    let edges = |image: &mut Image| image.discard(300_001, 50_000).unwrap();
    assert_eq!(groups_of(&mut image, &edges), 1);
    let within = |image: &mut Image| image.discard(500_000, 5000).unwrap();
    assert_eq!(groups_of(&mut image, &within), 1);
    let mut expected = pattern(1, MIB as usize);
    expected[1000..101_000].copy_from_slice(&pattern(2, 100_000));
    expected[300_001..350_001].fill(0);
    expected[500_000..505_000].fill(0);
    drop(image);
    let mut image = pool.open(id).unwrap();
    let mut buf = vec![0; MIB as usize];
    image.read_at(0, &mut buf).unwrap();
    assert!(buf == expected);
}
