//! Tables on the files of a pool: stored, opened again, damaged, moved.

use std::cell::Cell;
use std::sync::Arc;

use marcot_format::table::encode_pointers;
use marcot_store::DiskFile;

use super::*;
use crate::{CreateOptions, Pool, Store};

const FANOUT: u32 = TABLE_FANOUT as u32;
/// More segments than two levels hold.
const MANY: u32 = FANOUT * FANOUT + 3 * FANOUT + 7;
const ELSEWHERE: PoolId = PoolId(0x77);

struct Nowhere;

impl Whereabouts for Nowhere {
    fn places(&self) -> Option<Vec<Place>> {
        None
    }
}

/// Says that all data lies in these places.
struct Moved(Vec<Place>);

impl Whereabouts for Moved {
    fn places(&self) -> Option<Vec<Place>> {
        Some(self.0.clone())
    }
}

/// A pool with a table segment. Pages are appended to the segment.
struct Fixture {
    _directory: tempfile::TempDir,
    pool: Pool,
    author: ImageId,
    file: Arc<dyn DiskFile>,
    next_slot: u32,
    /// Level and base of the pages placed since the last checkpoint began.
    placed: Vec<(u8, u64)>,
}

impl Fixture {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let pool = Store::open(directory.path()).unwrap().pool("rbd").unwrap();
        let author = pool.create("image", &CreateOptions::default()).unwrap();
        pool.create_own_set(author).unwrap();
        let name = SegmentName {
            pool: pool.id(),
            copies: 0,
            author,
            kind: SegmentKind::Table,
            sequence: 1,
        };
        let file = pool.files().create(name, 1).unwrap();
        Self { _directory: directory, pool, author, file, next_slot: 1, placed: Vec::new() }
    }

    fn files(&self) -> &Files {
        self.pool.files()
    }

    /// A name of a data segment.
    fn name(&self, sequence: u32) -> SegmentName {
        let (pool, author) = (self.pool.id(), self.author);
        SegmentName { pool, copies: 0, author, kind: SegmentKind::Data, sequence }
    }

    /// A table with this many segments. Each live count is the segment's index.
    fn table(&self, segments: u32) -> SegmentTable {
        let mut table = SegmentTable::new();
        for sequence in 1..=segments {
            let index = table.add(self.name(sequence), self.files()).unwrap();
            assert_eq!(index, SegmentIndex(sequence));
            table.count(index, i64::from(sequence), 2 * sequence, self.files()).unwrap();
        }
        table
    }

    fn store(&mut self, table: &mut SegmentTable) -> RootRecord {
        let mut root = RootRecord::default();
        let author = self.author;
        self.placed.clear();
        table.store(author, self, &mut root).unwrap();
        root
    }

    fn open(&self, root: &RootRecord) -> Result<SegmentTable> {
        SegmentTable::open(root, self.pool.id(), self.files(), Guide(Arc::new(Nowhere)))
    }

    /// Asserts that opening fails with `Corrupt` and these words.
    fn is_refused(&self, root: &RootRecord, words: &str) {
        let refused = self.open(root).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Corrupt);
        assert!(refused.sentence().to_string().contains(words), "{refused}");
    }

    /// Writes a page of pointers to the end of the segment and returns where it lies.
    fn write_pointers(&mut self, level: u8, pointers: &[Option<PagePointer>]) -> PagePointer {
        let author = self.author.0;
        self.place(&mut |out| encode_pointers(level, author, 0, pointers, out)).unwrap()
    }
}

impl TableSink for Fixture {
    fn place(&mut self, encode: &mut dyn FnMut(&mut Vec<u8>) -> u32) -> Result<PagePointer> {
        let mut bytes = Vec::new();
        let crc = encode(&mut bytes);
        let base = u64::from_le_bytes(bytes[24..32].try_into().unwrap());
        self.placed.push((bytes[5], base));
        let slot = self.next_slot;
        self.next_slot += 1;
        self.file.write_at(u64::from(slot) * 4096, &[&bytes]).unwrap();
        Ok(PagePointer { author: self.author.0, sequence: 1, pool: 0, page: slot, crc })
    }
}

fn root_of(top: PagePointer, levels: u32, next: u32, pool: PoolId) -> RootRecord {
    let PagePointer { author, sequence, page, crc, .. } = top;
    RootRecord {
        table: Some(TablePointer { author, sequence, pool: 0, page, crc }),
        table_levels: levels,
        segment_next: next,
        pools: vec![pool.0],
        ..RootRecord::default()
    }
}

/// Every segment with its index and counts.
fn all(table: &mut SegmentTable, files: &Files) -> Vec<(u32, u32, u32)> {
    let mut found = Vec::new();
    table
        .for_each(files, |index, entry, name| {
            assert_eq!((entry.sequence, entry.kind), (name.sequence, SegmentKind::Data));
            assert_eq!(entry.sequence, index.0);
            found.push((index.0, entry.live, entry.used));
            Ok(())
        })
        .unwrap();
    found
}

fn expected(segments: u32) -> Vec<(u32, u32, u32)> {
    (1..=segments).map(|index| (index, index, 2 * index)).collect()
}

#[test]
fn tables_of_every_height_are_stored_and_opened_again() {
    for segments in [0, 1, FANOUT - 2, FANOUT - 1, FANOUT, FANOUT * FANOUT - 1, MANY] {
        let mut fixture = Fixture::new();
        let mut table = fixture.table(segments);
        assert_eq!(table.next_index(), SegmentIndex(segments + 1));
        let root = fixture.store(&mut table);
        let leaves = if segments == 0 { 0 } else { segments as usize / TABLE_FANOUT + 1 };
        let levels = match leaves {
            0 => 0,
            1 => 1,
            2..=126 => 2,
            _ => 3,
        };
        assert_eq!((root.table_levels, root.segment_next), (levels, segments + 1));
        let pages = match levels {
            3 => leaves + leaves.div_ceil(TABLE_FANOUT) + 1,
            2 => leaves + 1,
            _ => leaves,
        };
        assert_eq!((table.page_count(), fixture.placed.len()), (pages, pages));
        // Nothing has changed since, so nothing is written.
        let again = fixture.store(&mut table);
        assert_eq!((fixture.placed.len(), &again), (0, &root));
        let mut opened = fixture.open(&root).unwrap();
        assert_eq!((opened.page_count(), opened.next_index()), (pages, SegmentIndex(segments + 1)));
        assert_eq!(opened.pages().unwrap().len(), pages);
        assert_eq!(opened.resident_bytes(), 0);
        assert_eq!(all(&mut opened, fixture.files()), expected(segments));
        assert_eq!(opened.resident_bytes(), 0, "a walk leaves nothing loaded");
        for index in [1, FANOUT - 1, FANOUT, segments] {
            let found = opened.get(SegmentIndex(index), fixture.files());
            assert_eq!(found.is_ok(), (1..=segments).contains(&index), "{index} of {segments}");
            if let Ok(entry) = found {
                assert_eq!((entry.sequence, entry.live, entry.used), (index, index, 2 * index));
                let name = opened.name(SegmentIndex(index), fixture.files()).unwrap();
                assert_eq!(name, fixture.name(index));
            }
        }
        for index in [0, segments + 1, segments + FANOUT, u32::MAX] {
            let missing = opened.get(SegmentIndex(index), fixture.files()).unwrap_err();
            assert_eq!(missing.kind(), ErrorKind::Corrupt);
            let counted = opened.count(SegmentIndex(index), 1, 1, fixture.files()).unwrap_err();
            assert!(counted.sentence().to_string().contains("which the table lacks"), "{counted}");
        }
        assert_eq!(opened.page_count(), pages, "an index beyond the table does not make it grow");
    }
}

#[test]
fn only_pages_on_the_way_to_a_change_are_written() {
    let mut fixture = Fixture::new();
    let mut table = fixture.table(MANY);
    fixture.store(&mut table);
    table.count(SegmentIndex(FANOUT * FANOUT + 1), 1, 0, fixture.files()).unwrap();
    let root = fixture.store(&mut table);
    let wide = u64::from(FANOUT * FANOUT);
    assert_eq!(fixture.placed, [(0, wide), (1, wide), (2, 0)]);
    let mut opened = fixture.open(&root).unwrap();
    opened.count(SegmentIndex(5), 1, 0, fixture.files()).unwrap();
    let root = fixture.store(&mut opened);
    assert_eq!(fixture.placed, [(0, 0), (1, 0), (2, 0)]);
    let mut wanted = expected(MANY);
    wanted[4].1 += 1;
    wanted[FANOUT as usize * FANOUT as usize].1 += 1;
    let mut opened = fixture.open(&root).unwrap();
    assert_eq!(all(&mut opened, fixture.files()), wanted);
    // Now the whole table is written again.
    opened.rewrite(fixture.files()).unwrap();
    let root = fixture.store(&mut opened);
    assert_eq!(fixture.placed.len(), opened.page_count());
    assert_eq!(all(&mut fixture.open(&root).unwrap(), fixture.files()), wanted);
}

#[test]
fn a_segment_that_was_kept_while_it_was_appended_to_goes_once_it_is_closed() {
    let mut fixture = Fixture::new();
    let mut table = fixture.table(3);
    table.count(SegmentIndex(2), -2, 0, fixture.files()).unwrap();
    assert_eq!(table.drop_dead(|_| true).unwrap(), []);
    fixture.store(&mut table);
    table.close_segment(SegmentIndex(1), fixture.files(), "image");
    assert_eq!(table.drop_dead(|_| false).unwrap(), [], "something is named in this one");
    table.close_segment(SegmentIndex(2), fixture.files(), "image");
    assert_eq!(table.drop_dead(|_| false).unwrap(), [fixture.name(2)]);
    table.close_segment(SegmentIndex(2), fixture.files(), "image");
}

#[test]
fn pages_on_disk_that_two_tables_share_are_known() {
    let mut fixture = Fixture::new();
    let mut table = fixture.table(2 * FANOUT);
    let root = fixture.store(&mut table);
    let (earlier, mut later) = (fixture.open(&root).unwrap(), fixture.open(&root).unwrap());
    assert_eq!((SegmentTable::new().leaf_count(), later.leaf_count()), (0, 3));
    let shared = |later: &SegmentTable, earlier: &SegmentTable| {
        let both = [0, 1, 2, 3].map(|number| later.has_leaf_of(earlier, number));
        assert_eq!(both, [0, 1, 2, 3].map(|number| earlier.has_leaf_of(later, number)));
        both
    };
    assert_eq!(shared(&later, &earlier), [true, true, true, false]);
    later.count(SegmentIndex(FANOUT), 1, 0, fixture.files()).unwrap();
    assert_eq!(shared(&later, &earlier), [true, false, true, false]);
    fixture.store(&mut later);
    assert_eq!(shared(&later, &earlier), [true, false, true, false]);
}

#[test]
fn a_table_grows_level_by_level_over_many_checkpoints() {
    let mut fixture = Fixture::new();
    let mut table = SegmentTable::new();
    let mut root = RootRecord::default();
    for upto in [1, FANOUT - 1, FANOUT, 3 * FANOUT, FANOUT * FANOUT, MANY] {
        while table.next_index().0 <= upto {
            let sequence = table.next_index().0;
            let index = table.add(fixture.name(sequence), fixture.files()).unwrap();
            table.count(index, i64::from(sequence), 2 * sequence, fixture.files()).unwrap();
        }
        root = fixture.store(&mut table);
        table = fixture.open(&root).unwrap();
        assert_eq!(all(&mut table, fixture.files()), expected(upto));
    }
    assert_eq!(root.table_levels, 3);
}

#[test]
fn clean_pages_leave_memory_until_the_limit_is_kept() {
    let mut fixture = Fixture::new();
    let mut table = fixture.table(10 * FANOUT);
    let leaves = 11;
    assert_eq!(table.resident_bytes(), leaves * LEAF_BYTES);
    assert_eq!(LEAF_BYTES, 126 * 24 + 16);
    // None of them is on disk.
    table.evict(0, &|_| true);
    assert_eq!(table.resident_bytes(), leaves * LEAF_BYTES);
    fixture.store(&mut table);
    table.evict(leaves * LEAF_BYTES, &|_| true);
    assert_eq!(table.resident_bytes(), leaves * LEAF_BYTES);
    table.evict(0, &|_| false);
    assert_eq!(table.resident_bytes(), leaves * LEAF_BYTES);
    table.evict(4 * LEAF_BYTES + 1, &|_| true);
    assert_eq!(table.resident_bytes(), 4 * LEAF_BYTES);
    // Eviction goes round: the page it looked at last, which was loaded again since, stays.
    table.get(SegmentIndex(7 * FANOUT), fixture.files()).unwrap();
    assert_eq!(table.resident_bytes(), 5 * LEAF_BYTES);
    let asked = Cell::new(0);
    table.evict(4 * LEAF_BYTES, &|_| {
        asked.set(asked.get() + 1);
        true
    });
    assert_eq!((table.resident_bytes(), asked.get()), (4 * LEAF_BYTES, 1));
    table.count(SegmentIndex(1), 1, 0, fixture.files()).unwrap();
    table.evict(0, &|_| true);
    assert_eq!(table.resident_bytes(), LEAF_BYTES, "what was changed stays");
    fixture.store(&mut table);
    table.evict(0, &|_| true);
    assert_eq!(table.resident_bytes(), 0);
    let mut wanted = expected(10 * FANOUT);
    wanted[0].1 += 1;
    assert_eq!(all(&mut table, fixture.files()), wanted);
    SegmentTable::new().evict(0, &|_| true);
}

#[test]
fn counts_stop_at_their_ends() {
    let fixture = Fixture::new();
    let mut table = fixture.table(1);
    let counts = |table: &mut SegmentTable| {
        let entry = table.get(SegmentIndex(1), fixture.files()).unwrap();
        (entry.live, entry.used)
    };
    table.count(SegmentIndex(1), 4, 5, fixture.files()).unwrap();
    assert_eq!(counts(&mut table), (5, 7));
    table.count(SegmentIndex(1), -2, u32::MAX, fixture.files()).unwrap();
    assert_eq!(counts(&mut table), (3, u32::MAX));
    table.count(SegmentIndex(1), -4, 0, fixture.files()).unwrap();
    assert_eq!(counts(&mut table), (0, u32::MAX));
    table.count(SegmentIndex(1), i64::from(u32::MAX) + 9, 0, fixture.files()).unwrap();
    assert_eq!(counts(&mut table), (u32::MAX, u32::MAX));
}

#[test]
fn what_is_named_no_more_is_dropped_unless_it_is_kept() {
    let mut fixture = Fixture::new();
    let mut table = fixture.table(2 * FANOUT);
    for index in [3, FANOUT + 1, FANOUT + 2] {
        table.count(SegmentIndex(index), -i64::from(index), 0, fixture.files()).unwrap();
    }
    let is = |sequence: u32| move |name: &SegmentName| name.sequence == sequence;
    assert!(table.has_dead(is(3)) && table.has_dead(is(FANOUT + 2)));
    assert!(!table.has_dead(is(4)) && !table.has_dead(|_| false));
    let dropped = table.drop_dead(is(FANOUT + 1)).unwrap();
    assert_eq!(dropped, [fixture.name(3), fixture.name(FANOUT + 2)]);
    for index in [3, FANOUT + 2] {
        assert!(table.get(SegmentIndex(index), fixture.files()).is_err());
    }
    assert_eq!(table.get(SegmentIndex(FANOUT + 1), fixture.files()).unwrap().live, 0);
    assert_eq!(table.drop_dead(|_| true).unwrap(), []);
    assert!(table.has_dead(|_| true));
    fixture.store(&mut table);
    // The dead entry was kept, and its page has not changed since.
    assert!(!table.has_dead(|_| true));
    assert_eq!(table.drop_dead(|_| false).unwrap(), []);
    table.look_again(SegmentIndex(5), fixture.files()).unwrap();
    assert_eq!(fixture.store(&mut table).segment_next, 2 * FANOUT + 1);
    assert_eq!(fixture.placed, [], "a segment that is named needs no look");
    table.look_again(SegmentIndex(FANOUT + 1), fixture.files()).unwrap();
    assert_eq!(table.drop_dead(|_| false).unwrap(), [fixture.name(FANOUT + 1)]);
    assert!(table.look_again(SegmentIndex(3), fixture.files()).is_err());
    // An index is never used twice.
    assert_eq!(
        table.add(fixture.name(900), fixture.files()).unwrap(),
        SegmentIndex(2 * FANOUT + 1)
    );
    table.next = u32::MAX;
    let full = table.add(fixture.name(901), fixture.files()).unwrap_err();
    assert_eq!(full.kind(), ErrorKind::NoSpace);
}

fn place(pool: PoolId, copies: u64) -> Place {
    Place { pool, copies }
}

#[test]
fn lists_of_places_are_numbered_as_they_come() {
    let lists = [
        vec![],
        vec![place(PoolId(1), 0)],
        vec![place(PoolId(1), 2)],
        vec![place(PoolId(1), 0), place(PoolId(2), 0)],
    ];
    let mut known = Vec::new();
    for _ in 0..2 {
        for (number, list) in lists.iter().enumerate() {
            assert_eq!(Place::number_of(list, &mut known), number);
        }
    }
    assert_eq!(known, lists);
}

#[test]
fn trailing_places_without_copies_are_recorded_by_their_pool_only() {
    let (a, b, c) = (PoolId(1), PoolId(2), PoolId(3));
    let mut root = RootRecord::default();
    for (places, copies) in [
        (vec![], vec![]),
        (vec![place(a, 0), place(b, 0)], vec![]),
        (vec![place(a, 0), place(b, 9), place(c, 0)], vec![0, 9]),
        (vec![place(a, 8), place(b, 0), place(c, 7)], vec![8, 0, 7]),
    ] {
        Place::put_all(&places, &mut root);
        assert_eq!(root.copies, copies);
        assert_eq!(root.pools, places.iter().map(|place| place.pool.0).collect::<Vec<_>>());
        assert_eq!(Place::all(&root), places);
    }
    assert_eq!(Place::UNKNOWN, place(PoolId(0), 0));
    assert_eq!(format!("{:?}", Guide(Arc::new(Nowhere))), "Guide");
}

/// A table with two segments of this pool and one of another pool and another author.
fn two_pools(fixture: &Fixture) -> (SegmentTable, SegmentName, SegmentName) {
    let mut table = SegmentTable::new();
    let own = fixture.name(1);
    let other = SegmentName { pool: ELSEWHERE, author: ImageId(5), ..fixture.name(2) };
    for name in [own, other, own] {
        let index = table.add(name, fixture.files()).unwrap();
        table.count(index, 1, 1, fixture.files()).unwrap();
    }
    (table, own, other)
}

#[test]
fn a_segment_is_in_the_pool_that_the_root_records() {
    let mut fixture = Fixture::new();
    let here = fixture.pool.id();
    let (mut table, own, other) = two_pools(&fixture);
    assert_eq!(table.recorded_pools(), [here, ELSEWHERE]);
    assert_eq!(table.places(), [place(here, 0), place(ELSEWHERE, 0)]);
    assert_eq!((table.pool_position(here), table.pool_position(ELSEWHERE)), (0, 1));
    let root = fixture.store(&mut table);
    let mut table = fixture.open(&root).unwrap();
    assert!(table.authors().contains(&(here, fixture.author)), "of the table's own pages");
    assert_eq!(table.authors().len(), 1);
    assert_eq!(table.name(SegmentIndex(1), fixture.files()).unwrap(), own);
    assert_eq!(table.name(SegmentIndex(2), fixture.files()).unwrap(), other);
    assert_eq!(table.authors().into_iter().collect::<Vec<_>>().len(), 2);
    assert!(table.authors().contains(&(ELSEWHERE, ImageId(5))));
    let pools: Vec<PoolId> =
        (1..=3).map(|i| table.recorded_pool(SegmentIndex(i), fixture.files()).unwrap()).collect();
    assert_eq!(pools, [here, ELSEWHERE, here]);
    assert_eq!(table.recorded_pool_at(2).unwrap_err().kind(), ErrorKind::Corrupt);
    // The table's own pages lie in this pool.
    assert!(!table.has_pages_in(|from| from != here).unwrap());
    assert!(table.has_pages_in(|from| from != ELSEWHERE).unwrap());
    assert_eq!(table.pages_in(|from| from != here).unwrap(), []);
    assert_eq!(table.pages_in(|from| from != ELSEWHERE).unwrap(), table.pages().unwrap());
    let table_segment = SegmentName { kind: SegmentKind::Table, ..own };
    assert_eq!(table.page_segments().unwrap(), [table_segment]);
    let TablePointer { page, crc, .. } = root.table.unwrap();
    assert_eq!(table.pages().unwrap(), [(table_segment, page, crc)]);
}

#[test]
fn moved_data_is_read_at_its_new_place_and_recorded_at_its_old_one() {
    let mut fixture = Fixture::new();
    let here = fixture.pool.id();
    let (mut table, own, other) = two_pools(&fixture);
    assert!(!table.follow(), "nobody can tell");
    table.set_guide(Guide(Arc::new(Nowhere)));
    assert!(!table.follow());
    let now = place(PoolId(0x88), 0x99);
    table.set_guide(Guide(Arc::new(Moved(vec![place(here, 0), now]))));
    assert!(table.follow());
    assert!(!table.follow(), "it was looked there already");
    let moved = SegmentName { pool: now.pool, copies: now.copies, ..other };
    assert_eq!(table.name(SegmentIndex(2), fixture.files()).unwrap(), moved);
    assert_eq!(table.name(SegmentIndex(1), fixture.files()).unwrap(), own);
    assert_eq!(table.recorded_pools(), [here, ELSEWHERE]);
    assert_eq!(fixture.store(&mut table).pools, [here.0, ELSEWHERE.0]);
    // A flatten of the image itself has copied the data, so the new place is recorded.
    let copies = place(here, 0xCC);
    table.move_to(copies, |_| true);
    assert_eq!(table.places(), [place(here, 0), copies]);
    let root = fixture.store(&mut table);
    assert_eq!((root.pools, root.copies), (vec![here.0; 2], vec![0, 0xCC]));
    // A new segment of this pool does not belong to the copies.
    assert_eq!(table.pool_position(here), 0);
    assert_eq!(table.pool_position(PoolId(0x55)), 2);
}

#[test]
fn a_page_that_was_moved_is_found_where_the_guide_says() {
    let mut fixture = Fixture::new();
    let mut table = fixture.table(3);
    let here = fixture.pool.id();
    let mut root = fixture.store(&mut table);
    root.pools = vec![ELSEWHERE.0];
    let guide = Guide(Arc::new(Moved(vec![place(here, 0)])));
    let mut opened = SegmentTable::open(&root, here, fixture.files(), guide).unwrap();
    assert_eq!(all(&mut opened, fixture.files()), expected(3));
    let mut lost = fixture.open(&root).unwrap();
    assert_eq!(lost.get(SegmentIndex(1), fixture.files()).unwrap_err().kind(), ErrorKind::Io);
}

#[test]
fn an_impossible_table_is_refused() {
    let mut fixture = Fixture::new();
    let here = fixture.pool.id();
    let mut table = fixture.table(2 * FANOUT);
    let good = fixture.store(&mut table);
    fixture.open(&good).unwrap();
    let with = |change: &dyn Fn(&mut RootRecord)| {
        let mut root = good.clone();
        change(&mut root);
        root
    };
    fixture.is_refused(&with(&|root| root.table_levels = 6), "an impossible segment table");
    let pools = vec![here.0; 65_536];
    fixture.is_refused(&with(&|root| root.pools = pools.clone()), "an impossible segment table");
    fixture.open(&with(&|root| root.pools = vec![here.0; 65_535])).unwrap();
    // More indices than there are pages for.
    fixture.is_refused(&with(&|root| root.segment_next = 3 * FANOUT + FANOUT), "impossible");
    fixture.open(&with(&|root| root.segment_next = 3 * FANOUT - 1)).unwrap();
    fixture.is_refused(&with(&|root| root.table = None), "lacks its segment table");
    fixture.is_refused(&with(&|root| root.table_levels = 0), "lacks its segment table");
    for next in [0, 1, FANOUT - 1] {
        let empty = RootRecord { segment_next: next, ..RootRecord::default() };
        assert_eq!(fixture.open(&empty).unwrap().next_index(), SegmentIndex(next.max(1)));
    }
    // A page of the wrong level, at the wrong base, or with another checksum than its pointer says.
    fixture.is_refused(&with(&|root| root.table_levels = 3), "is damaged");
    let mut lower = fixture.open(&with(&|root| {
        root.table_levels = 1;
        root.segment_next = 1;
    }));
    let lower = lower.as_mut().unwrap().get(SegmentIndex(1), fixture.files()).unwrap_err();
    assert!(lower.sentence().to_string().contains("is damaged"), "{lower}");
    let damage = |root: &mut RootRecord| root.table.as_mut().unwrap().crc ^= 1;
    fixture.is_refused(&with(&damage), "is damaged");
    let pool = |root: &mut RootRecord| root.table.as_mut().unwrap().pool = 1;
    fixture.is_refused(&with(&pool), "lacks a pool that it refers to");
}

#[test]
fn pages_may_be_missing_only_at_the_end_of_a_level() {
    let mut fixture = Fixture::new();
    let here = fixture.pool.id();
    let mut table = fixture.table(1);
    fixture.store(&mut table);
    let leaf = table.leaves[0].stored;
    let mut pointers = vec![None; TABLE_FANOUT];
    pointers[0] = leaf;
    let top = fixture.write_pointers(1, &pointers);
    let mut opened = fixture.open(&root_of(top, 2, 2, here)).unwrap();
    assert_eq!(all(&mut opened, fixture.files()), expected(1));
    assert_eq!(opened.page_count(), 2);
    pointers[2] = leaf;
    let top = fixture.write_pointers(1, &pointers);
    fixture.is_refused(&root_of(top, 2, 2, here), "in its middle");
}

#[test]
fn a_table_that_consists_of_gaps_is_refused() {
    let mut fixture = Fixture::new();
    let author = fixture.author.0;
    // The top page has only its last entry. The entries that it lacks stand for 125 pages of the level
    // below, 15,750 of the next level, and so on.
    let below = PagePointer { author, sequence: 1, pool: 0, page: 2, crc: 0 };
    let mut pointers = vec![None; TABLE_FANOUT];
    pointers[TABLE_FANOUT - 1] = Some(below);
    let top = fixture.write_pointers(4, &pointers);
    fixture.is_refused(&root_of(top, 5, 1, fixture.pool.id()), "in its middle");
}
