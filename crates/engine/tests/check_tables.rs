//! What `check` finds in segment tables that the snapshots of an image share.

mod support;

use std::fs;
use std::path::{Path, PathBuf};

use marcot::{CheckReport, Finding, Image, ImageId, Pool, Store};
use marcot_format::BLOCK_BYTES;
use marcot_format::address::MAP_UNIT_BYTES;
use marcot_format::page::{PAGE_READ_BYTES, decode_page};
use marcot_format::record::{HeadRecord, RootRecord, TablePointer};
use marcot_format::segment::SegmentKind;
use marcot_format::table::{
    PagePointer, SegmentEntry, TABLE_FANOUT, TABLE_PAGE_BYTES, TablePage, decode_table,
    encode_pointers, encode_segments,
};
use support::{
    MIB, assert_sound, change_head, changed, checked, flip_byte, head_of, pattern, segments,
    store_with_image,
};

const BLOCK: usize = BLOCK_BYTES as usize;

/// How messages name the segment in a file.
fn segment_name(path: &Path) -> String {
    let names: Vec<_> = path.iter().rev().take(2).map(|name| name.to_str().unwrap()).collect();
    format!("segment {}/{}", names[1], names[0])
}

fn about<'a>(report: &'a CheckReport, image: &str) -> Vec<&'a Finding> {
    report.findings.iter().filter(|finding| finding.image == image).collect()
}

/// Sessions of an image after which its table has more entries than one page holds: each adds a data
/// segment and a map segment.
const SESSIONS: u64 = 70;

/// Where such an image has a part that no session wrote, and that no other leaf covers.
const BEHIND_SESSIONS: u64 = (SESSIONS + 2) * MIB;

/// An image that was opened, written, snapshotted and closed many times.
fn many_sessions(directory: &Path) -> (Store, Pool, ImageId) {
    let (store, pool, id) = store_with_image(directory, BEHIND_SESSIONS + MIB);
    for session in 0..SESSIONS {
        changed(&pool, id, |image| {
            image.write_at(session * MIB, &pattern(session as u8, BLOCK)).unwrap();
            image.snapshot(&format!("s{session}")).unwrap();
        });
    }
    (store, pool, id)
}

#[test]
fn a_missing_segment_is_reported_for_every_snapshot_that_needs_it_and_for_no_other() {
    let directory = tempfile::tempdir().unwrap();
    let (store, pool, _) = many_sessions(directory.path());
    assert_eq!(checked(&store, &pool, false).findings, []);
    let files = segments(&pool, 'd');
    assert_eq!(files.len() as u64, SESSIONS);
    for missing in [0, 3, SESSIONS - 2] {
        let path = &files[missing as usize];
        let away = directory.path().join("away");
        fs::rename(path, &away).unwrap();
        // A fresh store has no files open.
        let store = Store::open(directory.path()).unwrap();
        let pool = store.pool("rbd").unwrap();
        let report = checked(&store, &pool, false);
        let lost = |f: &&&Finding| f.serious && f.message.starts_with("1 blocks are lost with");
        for session in 0..SESSIONS {
            let found = about(&report, &format!("rbd/image@s{session}"));
            let lost = found.iter().filter(lost).count();
            assert_eq!(lost, usize::from(session >= missing), "{missing} in {session}: {found:#?}");
        }
        assert_eq!(about(&report, "rbd/image").iter().filter(lost).count(), 1);
        fs::rename(&away, path).unwrap();
    }
    assert_sound(&store, &pool);
}

/// The roots of the snapshots with these names.
fn roots<'a, const N: usize>(
    head: &'a mut HeadRecord,
    names: [&str; N],
) -> [&'a mut RootRecord; N] {
    let roots = head.snapshots.iter_mut().filter(|snapshot| names.contains(&&*snapshot.name));
    let roots: Vec<_> = roots.map(|snapshot| snapshot.root.as_mut().unwrap()).collect();
    roots.try_into().unwrap()
}

fn share_table<const N: usize>(roots: [&mut RootRecord; N]) {
    let (table, levels) = (roots[0].table, roots[0].table_levels);
    assert!(roots[0].segment_next as usize > TABLE_FANOUT && levels == 2);
    for root in roots {
        assert_eq!(root.table_levels, levels);
        root.table = table;
    }
}

#[test]
fn wrong_counts_in_a_table_that_snapshots_share_are_found_in_all_its_pages_for_each_of_them() {
    let directory = tempfile::tempdir().unwrap();
    let (store, pool, id) = many_sessions(directory.path());
    changed(&pool, id, |image| {
        // The segments of this session are in the last page of the table, that of block 0 in the first.
        for (block, snapshot) in [(1, "a"), (0, "b"), (2, "c")] {
            image.write_at(block * BLOCK_BYTES, &pattern(block as u8, BLOCK)).unwrap();
            image.snapshot(snapshot).unwrap();
        }
    });
    assert_sound(&store, &pool);
    change_head(&pool, id, |head| share_table(roots(head, ["a", "b", "c"])));
    let report = checked(&store, &pool, false);
    let files = segments(&pool, 'd');
    for snapshot in ["b", "c"] {
        let found = about(&report, &format!("rbd/image@{snapshot}"));
        for file in [&files[0], files.last().unwrap()] {
            let wrong = format!("{} is counted with 1 live blocks", segment_name(file));
            let told = found.iter().filter(|finding| finding.message.starts_with(&wrong));
            assert_eq!(told.count(), 1, "{wrong} in {snapshot}: {found:#?}");
        }
    }
    let both = about(&report, "rbd/image@b").len() + about(&report, "rbd/image@c").len();
    assert_eq!(report.findings.len(), both, "{report:#?}");
}

#[test]
fn wrong_counts_are_found_although_the_snapshot_before_could_not_be_counted() {
    let directory = tempfile::tempdir().unwrap();
    let (store, pool, id) = many_sessions(directory.path());
    changed(&pool, id, |image| {
        let write = |image: &mut Image, at: u64| image.write_at(at, &pattern(9, BLOCK)).unwrap();
        write(image, MIB);
        image.snapshot("before").unwrap();
        write(image, 0);
        write(image, BEHIND_SESSIONS);
        image.snapshot("damaged").unwrap();
        write(image, BEHIND_SESSIONS + BLOCK_BYTES);
        image.snapshot("after").unwrap();
    });
    change_head(&pool, id, |head| share_table(roots(head, ["before", "damaged", "after"])));
    // Of the two versions of this leaf, only the snapshot `damaged` has the first.
    let map = segments(&pool, 'm').pop().unwrap();
    flip_byte(&map, leaves(&map, BEHIND_SESSIONS / BLOCK_BYTES)[0]);
    let report = checked(&store, &pool, false);
    let wrong = format!("{} is counted with 1 live blocks", segment_name(&segments(&pool, 'd')[0]));
    let told = |snapshot: &str, message: &str| {
        let found = about(&report, &format!("rbd/image@{snapshot}"));
        found.iter().filter(|finding| finding.message.starts_with(message)).count()
    };
    let unreadable = format!("bytes {BEHIND_SESSIONS} to");
    assert_eq!((told("damaged", &unreadable), told("damaged", &wrong)), (1, 0), "{report:#?}");
    assert_eq!((told("after", &unreadable), told("after", &wrong)), (0, 1), "{report:#?}");
}

/// Where the leaves for a block lie in a map segment, oldest first.
fn leaves(path: &Path, base: u64) -> Vec<u64> {
    let bytes = fs::read(path).unwrap();
    let units = (0..bytes.len()).step_by(MAP_UNIT_BYTES as usize);
    let is_leaf = |at: &usize| {
        let page = decode_page(&bytes[*at..bytes.len().min(at + PAGE_READ_BYTES)]);
        page.is_ok_and(|(page, _)| (page.level, page.base) == (0, base))
    };
    units.filter(is_leaf).map(|at| at as u64).collect()
}

fn pointer(at: &TablePointer) -> PagePointer {
    let TablePointer { author, sequence, page, crc, .. } = *at;
    PagePointer { author, sequence, pool: 0, page, crc }
}

/// Reads a page of a segment table.
fn table_page(pool: &Pool, at: &PagePointer, level: u8, base: u64) -> TablePage {
    let path = table_segment(pool, at);
    let offset = at.page as usize * TABLE_PAGE_BYTES;
    decode_table(&fs::read(path).unwrap()[offset..][..TABLE_PAGE_BYTES], level, base).unwrap().0
}

fn table_segment(pool: &Pool, at: &PagePointer) -> PathBuf {
    let author = pool.directory().join("segments").join(ImageId(at.author).to_string());
    author.join(format!("t{:08x}", at.sequence))
}

/// Appends a page to the segment that holds `old`, and returns where it lies.
fn append_table_page(pool: &Pool, old: &PagePointer, (page, crc): (Vec<u8>, u32)) -> PagePointer {
    let path = table_segment(pool, old);
    let mut bytes = fs::read(&path).unwrap();
    bytes.resize(bytes.len().next_multiple_of(TABLE_PAGE_BYTES), 0);
    let number = (bytes.len() / TABLE_PAGE_BYTES) as u32;
    fs::write(path, [bytes, page].concat()).unwrap();
    PagePointer { page: number, crc, ..*old }
}

/// Gives a root a table of two levels whose first page differs from the present one by `change`. With
/// `only_this`, the table has no other page.
fn change_first_page(
    pool: &Pool,
    root: &mut RootRecord,
    only_this: bool,
    change: impl FnOnce(&mut [Option<SegmentEntry>]),
) {
    let at = root.table.unwrap();
    assert_eq!((root.table_levels, at.pool), (2, 0));
    let top = pointer(&at);
    let TablePage::Pointers(mut pointers) = table_page(pool, &top, 1, 0) else { panic!() };
    let first = pointers[0].unwrap();
    let TablePage::Segments(mut entries) = table_page(pool, &first, 0, 0) else { panic!() };
    change(&mut entries);
    let mut page = Vec::new();
    let crc = encode_segments(first.author, 0, &entries, &mut page);
    pointers[0] = Some(append_table_page(pool, &first, (page, crc)));
    if only_this {
        pointers[1..].fill(None);
    }
    let mut page = Vec::new();
    let crc = encode_pointers(1, at.author, 0, &pointers, &mut page);
    let top = append_table_page(pool, &top, (page, crc));
    root.table = Some(TablePointer { page: top.page, crc: top.crc, ..at });
}

/// Snapshots `a` and `b`, between which a block is written.
fn two_snapshots(pool: &Pool, id: ImageId) {
    changed(pool, id, |image| {
        for (block, snapshot) in [(1, "a"), (2, "b")] {
            image.write_at(block * BLOCK_BYTES, &pattern(9, BLOCK)).unwrap();
            image.snapshot(snapshot).unwrap();
        }
    });
}

#[test]
fn blocks_whose_segment_a_shared_table_lacks_are_lost_in_each_snapshot_that_has_the_table() {
    let directory = tempfile::tempdir().unwrap();
    let (store, pool, id) = many_sessions(directory.path());
    two_snapshots(&pool, id);
    let mut lacking = 0;
    change_head(&pool, id, |head| {
        let [a, b] = roots(head, ["a", "b"]);
        change_first_page(&pool, a, false, |entries| {
            let is_data = |entry: &SegmentEntry| entry.kind == SegmentKind::Data;
            lacking = entries.iter().position(|entry| entry.as_ref().is_some_and(is_data)).unwrap();
            assert_eq!(entries[lacking].take().unwrap().live, 1);
        });
        share_table([a, b]);
    });
    // Other segments in the same page of the table are looked for all the same.
    flip_byte(&segments(&pool, 'd')[1], 2 * BLOCK_BYTES + 100);
    let report = checked(&store, &pool, false);
    let lost = format!("1 blocks are lost: the table lacks segment index {lacking}");
    let damaged = format!("bytes {} to {} are damaged", MIB, MIB + BLOCK_BYTES);
    for snapshot in ["a", "b"] {
        let found = about(&report, &format!("rbd/image@{snapshot}"));
        for wanted in [&lost, &damaged] {
            let told = found.iter().filter(|f| f.serious && f.message.starts_with(wanted));
            assert_eq!(told.count(), 1, "{wanted} in {snapshot}: {found:#?}");
        }
    }
    assert_eq!(about(&report, "rbd/image").len(), 1, "{report:#?}");
}

#[test]
fn blocks_are_lost_whose_segment_would_be_behind_the_end_of_the_table() {
    let directory = tempfile::tempdir().unwrap();
    let (store, pool, id) = store_with_image(directory.path(), 80 * MIB);
    // Each session takes two numbers: one for a segment of data, one for a segment of maps. Number 0 is
    // not used.
    for session in 0..TABLE_FANOUT / 2 - 2 {
        changed(&pool, id, |image| image.write_at(0, &pattern(session as u8, BLOCK))).unwrap();
    }
    // The last one takes three of the first page, and then the first of the second page, for data.
    changed(&pool, id, |image| {
        image.write_at(0, &pattern(1, BLOCK)).unwrap();
        image.take_checkpoint().unwrap();
        image.write_at(2 * MIB, &pattern(2, 65 * MIB as usize)).unwrap();
    });
    assert_sound(&store, &pool);
    change_head(&pool, id, |head| {
        let root = head.root.as_mut().unwrap();
        assert_eq!(root.segment_next as usize, TABLE_FANOUT + 1);
        change_first_page(&pool, root, true, |_| {});
    });
    let report = checked(&store, &pool, false);
    let lost = format!("blocks are lost: the table lacks segment index {TABLE_FANOUT}");
    let told = report.findings.iter().filter(|f| f.serious && f.message.ends_with(&lost));
    assert_eq!(told.count(), 1, "{report:#?}");
}

#[test]
fn maps_of_two_snapshots_that_look_alike_by_number_are_told_apart_by_segment() {
    let directory = tempfile::tempdir().unwrap();
    let (store, pool, id) = many_sessions(directory.path());
    two_snapshots(&pool, id);
    // In the table of `b` the number of a map segment stands for another one, in which there is no such page.
    change_head(&pool, id, |head| {
        let [b] = roots(head, ["b"]);
        change_first_page(&pool, b, false, |entries| {
            let mut maps = entries.iter_mut().flatten().filter(|e| e.kind == SegmentKind::Map);
            let (first, last) = (maps.next().unwrap(), maps.next_back().unwrap());
            assert_ne!(first.live, 0);
            first.sequence = last.sequence;
        });
    });
    let report = checked(&store, &pool, false);
    let found = about(&report, "rbd/image@b");
    let unreadable = |f: &&&Finding| f.serious && f.message.contains("cannot be read");
    assert_eq!(found.iter().filter(unreadable).count(), 1, "{report:#?}");
    assert!(about(&report, "rbd/image@a").is_empty(), "{report:#?}");
}

#[test]
fn damage_is_found_behind_blocks_whose_place_a_damaged_table_does_not_tell() {
    let directory = tempfile::tempdir().unwrap();
    let (store, pool, id) = many_sessions(directory.path());
    changed(&pool, id, |image| image.write_at(0, &pattern(9, BLOCK))).unwrap();
    // The head shares the first page of its table with no snapshot, and it is damaged.
    change_head(&pool, id, |head| {
        change_first_page(&pool, head.root.as_mut().unwrap(), false, |_| {});
    });
    let top = pointer(&head_of(&pool, id).root.unwrap().table.unwrap());
    let TablePage::Pointers(pointers) = table_page(&pool, &top, 1, 0) else { panic!() };
    let first = pointers[0].unwrap();
    flip_byte(&table_segment(&pool, &first), u64::from(first.page) * TABLE_PAGE_BYTES as u64 + 100);
    // The last session's block: behind the headers of its segment and its group.
    let files = segments(&pool, 'd');
    flip_byte(&files[SESSIONS as usize - 1], 2 * BLOCK_BYTES + 100);
    let report = checked(&store, &pool, false);
    let found = about(&report, "rbd/image");
    let range = format!("bytes {} to", (SESSIONS - 1) * MIB);
    for wanted in ["the segment table is damaged", &range] {
        let told = found.iter().filter(|f| f.serious && f.message.starts_with(wanted));
        assert_eq!(told.count(), 1, "{wanted}: {found:#?}");
    }
}
