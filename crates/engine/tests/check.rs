//! What `check` finds and counts, what it repairs, and what it leaves alone.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use marcot::{
    BlockDevice, CheckOptions, CheckReport, CloneOptions, CreateOptions, Finding, Image, ImageId,
    Store, Write,
};
use marcot_format::BLOCK_BYTES;
use support::{
    MIB, assert_sound, change_head, changed, checked, damage_head, flip_byte, pattern, segments,
    store_with_image,
};

const BLOCK: usize = BLOCK_BYTES as usize;
/// Pages from the top of a map to a block.
const PATH_PAGES: u64 = 4;

/// Flips bits of a block of a file.
fn damage(path: &Path, block: u64) {
    flip_byte(path, block * BLOCK_BYTES + 100);
}

/// All files below a directory, with their bytes. The locks of readers are left out.
fn tree(directory: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(tree(&path));
        } else if !path.ends_with("readers") {
            let bytes = fs::read(&path).unwrap();
            found.insert(path, bytes);
        }
    }
    found
}

fn about<'a>(report: &'a CheckReport, image: &str) -> Vec<&'a Finding> {
    report.findings.iter().filter(|finding| finding.image == image).collect()
}

#[test]
fn check_counts_what_it_has_checked() {
    let directory = tempfile::tempdir().unwrap();
    let (store, pool, id) = store_with_image(directory.path(), 8 * MIB);
    pool.create("empty", &CreateOptions::sized(MIB)).unwrap();
    changed(&pool, id, |image| {
        for (name, block) in [("a", 0), ("b", 3), ("c", 5)] {
            image.write_at(block * BLOCK_BYTES, &pattern(block as u8, BLOCK)).unwrap();
            image.snapshot(name).unwrap();
        }
        image.write_at(4 * MIB, &pattern(9, BLOCK)).unwrap();
    });
    let report = checked(&store, &pool, false);
    assert_eq!(report.findings, []);
    assert_eq!((report.images, report.snapshots), (2, 3));
    // The head has two leaves, and shares one of them with the last snapshot.
    assert_eq!(report.pages, 4 * PATH_PAGES);
    // A leaf that was changed is read again with all its blocks.
    assert_eq!(report.blocks, 1 + 2 + 3 + 1);
}

#[test]
fn damage_that_an_owner_causes_by_going_on_is_no_damage() {
    let directory = tempfile::tempdir().unwrap();
    let (store, pool, id) = store_with_image(directory.path(), 16 * MIB);
    changed(&pool, id, |image| image.write_at(0, &pattern(1, 8 * MIB as usize))).unwrap();
    let old = segments(&pool, 'd').remove(0);
    let mut calls = 0;
    let mut go_on = |_, _| {
        calls += 1;
        if calls == 1 {
            // The segment that is being read is removed, because nothing in it is live.
            changed(&pool, id, |image| image.write_at(0, &pattern(2, 8 * MIB as usize))).unwrap();
            assert!(!old.exists());
        }
    };
    let report = store.check(&pool, &CheckOptions::default(), &mut go_on).unwrap();
    assert_eq!(report.findings, []);
    assert_eq!((report.images, report.snapshots), (1, 0));
    // Damage that the present head has is told, whatever happens to another image.
    damage(&segments(&pool, 'd')[0], 20);
    let report = checked(&store, &pool, false);
    assert_eq!((report.findings.len(), report.images), (1, 1), "{report:#?}");
    assert!(report.findings[0].serious);
}

#[test]
fn damaged_blocks_side_by_side_are_one_range_and_others_are_not() {
    let directory = tempfile::tempdir().unwrap();
    let (store, pool, id) = store_with_image(directory.path(), 16 * MIB);
    changed(&pool, id, |image| image.write_at(0, &pattern(1, 64 * BLOCK))).unwrap();
    changed(&pool, id, |image| image.write_at(64 * BLOCK_BYTES, &pattern(2, BLOCK))).unwrap();
    let files = segments(&pool, 'd');
    assert_eq!(files.len(), 2);
    // The blocks lie behind the header of the segment and that of the group.
    for block in [10, 11, 12, 14, 63] {
        damage(&files[0], 2 + block);
    }
    damage(&files[1], 2);
    let report = checked(&store, &pool, false);
    let ranges = [(10, 13, 0), (14, 15, 0), (63, 64, 0), (64, 65, 1)];
    assert_eq!(report.findings.len(), ranges.len(), "{report:#?}");
    for ((from, to, file), finding) in ranges.into_iter().zip(&report.findings) {
        let range = format!("bytes {} to {} are damaged", from * BLOCK, to * BLOCK);
        assert!(finding.message.starts_with(&range), "{finding:?}");
        let name = files[file].file_name().unwrap().to_str().unwrap();
        assert!(finding.message.contains(name), "{finding:?}");
    }
}

#[test]
fn a_damaged_header_is_told_once_however_many_snapshots_need_the_segment() {
    let directory = tempfile::tempdir().unwrap();
    let (store, pool, id) = store_with_image(directory.path(), MIB);
    changed(&pool, id, |image| {
        for (block, snapshot) in [(0, "a"), (1, "b"), (2, "c")] {
            image.write_at(block * BLOCK_BYTES, &pattern(9, BLOCK)).unwrap();
            image.snapshot(snapshot).unwrap();
        }
    });
    damage(&segments(&pool, 'd')[0], 0);
    let report = checked(&store, &pool, false);
    assert_eq!(report.findings.len(), 1, "{report:#?}");
    assert!(report.findings[0].message.contains("the header of segment"), "{report:#?}");
}

#[test]
fn a_segment_that_a_table_lists_and_of_which_nothing_is_used_may_be_gone() {
    let directory = tempfile::tempdir().unwrap();
    let (store, pool, id) = store_with_image(directory.path(), MIB);
    changed(&pool, id, |image| {
        image.write_at(0, &pattern(1, BLOCK)).unwrap();
        image.discard(0, BLOCK_BYTES).unwrap();
        image.snapshot("s").unwrap();
    });
    fs::remove_file(&segments(&pool, 'd')[0]).unwrap();
    assert_sound(&store, &pool);
}

#[test]
fn damage_is_told_for_each_root_where_the_blocks_of_two_leaves_lie_side_by_side() {
    let directory = tempfile::tempdir().unwrap();
    let (store, pool, id) = store_with_image(directory.path(), 4 * MIB);
    changed(&pool, id, |image| {
        // The last block of the first leaf and the first block of the second.
        image.write_at(2 * MIB - BLOCK_BYTES, &pattern(1, 2 * BLOCK)).unwrap();
        image.snapshot("s").unwrap();
        image.write_at(0, &pattern(2, BLOCK)).unwrap();
    });
    damage(&segments(&pool, 'd')[0], 3);
    let report = checked(&store, &pool, false);
    assert_eq!(report.findings.len(), 2, "{report:#?}");
    let range = format!("bytes {} to {} are damaged", 2 * MIB, 2 * MIB + BLOCK_BYTES);
    for image in ["rbd/image@s", "rbd/image"] {
        assert!(about(&report, image)[0].message.starts_with(&range), "{report:#?}");
    }
}

#[test]
fn repair_changes_nothing_where_it_can_repair_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let (store, pool, id) = store_with_image(directory.path(), 16 * MIB);
    changed(&pool, id, |image| image.write_at(0, &pattern(1, MIB as usize))).unwrap();
    fs::remove_file(&segments(&pool, 'd')[0]).unwrap();
    let head = fs::read(pool.image_directory(id).join("head")).unwrap();
    let report = checked(&store, &pool, true);
    assert!(!report.findings.is_empty());
    assert!(report.findings.iter().all(|f| f.serious && !f.repaired), "{report:#?}");
    assert_eq!(fs::read(pool.image_directory(id).join("head")).unwrap(), head);
}

#[test]
fn a_wrong_count_is_repaired_and_lost_blocks_beside_it_are_not() {
    let directory = tempfile::tempdir().unwrap();
    let (store, pool, id) = store_with_image(directory.path(), 64 * MIB);
    changed(&pool, id, |image| {
        image.write_at(0, &pattern(1, MIB as usize)).unwrap();
        image.write_at(32 * MIB, &pattern(2, MIB as usize)).unwrap();
    });
    let miscount = || change_head(&pool, id, |head| head.root.as_mut().unwrap().mapped_blocks += 3);
    miscount();
    let report = checked(&store, &pool, true);
    assert_eq!(report.findings.len(), 1, "{report:#?}");
    assert!(report.findings[0].repaired && !report.findings[0].serious);
    assert_sound(&store, &pool);
    // The first page of the map is that of the first leaf.
    damage(&segments(&pool, 'm')[0], 1);
    let report = checked(&store, &pool, true);
    let given_up = report.findings.last().unwrap();
    assert!(given_up.serious && given_up.repaired, "{report:#?}");
    assert!(given_up.message.starts_with("1 damaged map pages were given up"), "{given_up:?}");
    assert!(report.findings[0].serious && !report.findings[0].repaired, "{report:#?}");
    miscount();
    let report = checked(&store, &pool, true);
    let found: Vec<_> = report.findings.iter().map(|f| (f.serious, f.repaired)).collect();
    assert_eq!(found, [(true, false), (false, true)], "{report:#?}");
    assert!(report.findings[0].message.contains("were lost"), "{report:#?}");
    // What lies behind the lost range is read all the same: the last block of the second write.
    damage(&segments(&pool, 'd')[0], 1 + 257 + 256);
    let report = checked(&store, &pool, false);
    let range = format!("bytes {} to {} are damaged", 33 * MIB - BLOCK_BYTES, 33 * MIB);
    assert!(report.findings.iter().any(|f| f.message.starts_with(&range)), "{report:#?}");
}

#[test]
fn blocks_that_lie_in_turns_in_several_segments_are_read_where_they_lie() {
    let directory = tempfile::tempdir().unwrap();
    let (store, pool, id) = store_with_image(directory.path(), MIB);
    let write = |image: &mut Image, block: u64, blocks: usize| {
        image.write_at(block * BLOCK_BYTES, &pattern(block as u8, blocks * BLOCK)).unwrap();
    };
    changed(&pool, id, |image| write(image, 0, 8));
    // Blocks 0 and 1 now lie in neighbouring slots, but of two segments. So do 3 and 4.
    changed(&pool, id, |image| write(image, 0, 1));
    changed(&pool, id, |image| {
        write(image, 20, 3);
        write(image, 3, 1);
        write(image, 6, 1);
        write(image, 5, 1);
    });
    assert_sound(&store, &pool);
    // Slots of the blocks 2, 0 and 20.
    for (number, (path, slot)) in segments(&pool, 'd').iter().zip([4, 2, 2]).enumerate() {
        damage(path, slot);
        let report = checked(&store, &pool, false);
        assert_eq!(report.findings.len(), number + 1, "{report:#?}");
        assert!(report.findings.iter().all(|finding| finding.serious));
    }
}

#[test]
fn damage_is_told_for_the_right_block_where_neighbours_in_a_segment_lie_apart_in_the_image() {
    let directory = tempfile::tempdir().unwrap();
    let (store, pool, id) = store_with_image(directory.path(), MIB);
    let data = pattern(1, BLOCK);
    changed(&pool, id, |image| {
        let writes = [0, 5, 20].map(|block| Write { offset: block * BLOCK_BYTES, data: &data });
        image.write_batch(&writes).unwrap();
    });
    // One group, so the three lie side by side.
    damage(&segments(&pool, 'd')[0], 3);
    let report = checked(&store, &pool, false);
    assert_eq!(report.findings.len(), 1, "{report:#?}");
    let range = format!("bytes {} to {} are damaged", 5 * BLOCK, 6 * BLOCK);
    assert!(report.findings[0].message.starts_with(&range), "{report:#?}");
}

#[test]
fn check_without_repair_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let (_, pool, id) = store_with_image(directory.path(), 16 * MIB);
    let miscounted = pool.create("miscounted", &CreateOptions::sized(MIB)).unwrap();
    changed(&pool, miscounted, |image| image.write_at(0, &pattern(1, BLOCK))).unwrap();
    change_head(&pool, miscounted, |head| head.root.as_mut().unwrap().mapped_blocks += 3);
    let gone = pool.create("gone", &CreateOptions::sized(MIB)).unwrap();
    fs::remove_dir_all(pool.image_directory(gone)).unwrap();
    let nameless = pool.create("nameless", &CreateOptions::sized(MIB)).unwrap();
    changed(&pool, nameless, |image| image.write_at(0, &pattern(1, BLOCK))).unwrap();
    fs::remove_file(pool.directory().join("names/@/nameless")).unwrap();
    // A log of three groups, and damage in the header of the second.
    let mut image = pool.open(id).unwrap();
    for block in 0..3 {
        image.write_at(block * BLOCK_BYTES, &pattern(2, BLOCK)).unwrap();
        image.flush().unwrap();
    }
    drop(image);
    let log = pool.directory().join("segments").join(id.to_string());
    let log = fs::read_dir(log).unwrap().map(|entry| entry.unwrap().path());
    let log = log.into_iter().find(|p| p.file_name().unwrap().to_str().unwrap().starts_with('d'));
    damage(&log.unwrap(), 3);

    let store = Store::open(directory.path()).unwrap();
    let pool = store.pool("rbd").unwrap();
    let before = tree(pool.directory());
    let report = checked(&store, &pool, false);
    assert_eq!(report.findings.len(), 4, "{report:#?}");
    assert!(report.findings.iter().all(|finding| !finding.repaired));
    let after = tree(pool.directory());
    let mut paths: Vec<_> = after.keys().chain(before.keys()).collect();
    paths.retain(|path| after.get(*path) != before.get(*path));
    assert!(paths.is_empty(), "{paths:?}");
    let repaired = checked(&store, &pool, true);
    let what = |report: &CheckReport| -> Vec<(String, bool)> {
        report.findings.iter().map(|f| (f.message.clone(), f.serious)).collect()
    };
    assert_eq!(what(&repaired), what(&report));
    assert!(repaired.findings.iter().all(|finding| finding.repaired), "{repaired:#?}");
    assert_eq!(checked(&store, &pool, false).findings, []);
}

#[test]
fn an_image_without_a_head_is_litter_and_an_unreadable_head_is_damage() {
    let directory = tempfile::tempdir().unwrap();
    let (store, pool, id) = store_with_image(directory.path(), MIB);
    fs::create_dir(pool.image_directory(ImageId(0x77))).unwrap();
    let report = checked(&store, &pool, false);
    assert_eq!(report.findings.len(), 1, "{report:#?}");
    assert!(!report.findings[0].serious && report.findings[0].message.contains("holds no head"));
    store.gc(&pool, &mut |_, _| {}).unwrap();
    assert_sound(&store, &pool);
    damage_head(&pool, id);
    let report = checked(&store, &pool, false);
    assert!(report.findings[0].serious, "{report:#?}");
    assert!(report.findings[0].message.contains("cannot be used"), "{report:#?}");
}

#[test]
fn a_clone_whose_parent_is_out_of_reach_is_in_danger() {
    let directory = tempfile::tempdir().unwrap();
    let (store, pool, id) = store_with_image(directory.path(), MIB);
    changed(&pool, id, |image| {
        image.write_at(0, &pattern(1, BLOCK)).unwrap();
        image.snapshot("s").unwrap();
        image.protect("s").unwrap();
    });
    pool.snapshot(id, "s").clone_to(&pool, "child", &CloneOptions::default()).unwrap();
    assert_sound(&store, &pool);
    damage_head(&pool, id);
    let report = checked(&store, &pool, false);
    let found = about(&report, "rbd/child");
    let parent =
        |f: &&&Finding| f.serious && f.message.starts_with("its parent rbd/image@s is out");
    assert_eq!(found.iter().filter(parent).count(), 1, "{report:#?}");
}
