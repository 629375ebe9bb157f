//! The map compared with a plain list of blocks. Its pages are kept in memory.

mod compare;
mod damage;
mod memory;
mod pages;

use std::collections::BTreeMap;

use marcot_format::{BlockAddress, MapEntry, Slot};
use proptest::prelude::*;

use super::{Map, TOP_LEVEL, base_of, entry_blocks, position};
use pages::{BLOCKS_SEGMENT, Pages, everything};

/// Blocks of the largest image.
pub(super) const BLOCKS: u64 = 1 << 36;
/// First blocks of leaves, on both sides of the boundaries of nodes of every level.
pub(super) const LEAVES: [u64; 9] = [
    0,
    512,
    (1 << 18) - 512,
    1 << 18,
    (1 << 27) - 512,
    1 << 27,
    (1 << 27) + (1 << 18),
    (1 << 36) - 1024,
    (1 << 36) - 512,
];

/// A map with the blocks that it should have.
#[derive(Default)]
pub(super) struct Pair {
    pub map: Map,
    pub pages: Pages,
    pub blocks: BTreeMap<u64, MapEntry>,
    next_slot: u32,
}

impl Pair {
    /// Maps `count` blocks from `block` on to fresh places.
    pub fn set(&mut self, block: u64, count: u64) {
        let entries: Vec<MapEntry> = (0..count)
            .map(|_| {
                self.next_slot += 1;
                let address = BlockAddress::of_block(BLOCKS_SEGMENT, Slot(self.next_slot));
                MapEntry { address, crc: self.next_slot ^ 0xA5A5 }
            })
            .collect();
        self.map.set_run(block, &entries, &mut self.pages).unwrap();
        for (block, entry) in (block..).zip(&entries) {
            self.pages.hold(*entry, 1);
            self.blocks.insert(block, *entry);
        }
    }

    pub fn clear(&mut self, from: u64, to: u64) {
        self.map.clear(from, to, &mut self.pages).unwrap();
        self.blocks.retain(|block, _| !(from..to).contains(block));
    }

    /// Stores the map, and opens it again where `anew` says so.
    pub fn store(&mut self, anew: bool) -> MapEntry {
        let entry = self.map.store(&mut self.pages).unwrap();
        if anew {
            self.map = Map::open(entry, self.map.mapped_blocks());
        }
        entry
    }

    /// The map has exactly the blocks that it should have, and counts what it names.
    pub fn check(&mut self) {
        let seen = everything(&self.map, (0, BLOCKS), &mut self.pages);
        assert_eq!(seen.blocks, self.blocks);
        assert_eq!(self.map.mapped_blocks(), self.blocks.len() as u64);
        let mut named: BTreeMap<u64, i64> =
            self.blocks.values().map(|entry| ({ entry.address }.0, 1)).collect();
        for (entry, level, base) in &seen.pages {
            named
                .insert({ entry.address }.0, i64::from(self.pages.units_of(*entry, *level, *base)));
        }
        assert_eq!(self.pages.held(), named);
    }
}

#[derive(Debug, Clone)]
enum Step {
    Set(usize, u64, u64),
    Clear(usize, u64, usize, u64),
    Store { anew: bool },
    Evict(u64),
    Read(usize, u64),
    Prepare(usize, u32),
    Rewrite(usize, u32),
}

fn step() -> impl Strategy<Value = Step> {
    let leaf = 0..LEAVES.len();
    prop_oneof![
        4 => (leaf.clone(), 0..512u64, 1..512u64).prop_map(|(l, at, n)| Step::Set(l, at, n)),
        2 => (leaf.clone(), 0..513u64, leaf.clone(), 0..513u64)
            .prop_map(|(l, from, m, to)| Step::Clear(l, from, m, to)),
        2 => any::<bool>().prop_map(|anew| Step::Store { anew }),
        1 => (0..200_000u64).prop_map(Step::Evict),
        2 => (leaf.clone(), 0..512u64).prop_map(|(l, at)| Step::Read(l, at)),
        1 => (leaf.clone(), 0..4u32).prop_map(|(l, level)| Step::Prepare(l, level)),
        1 => (leaf, 0..4u32).prop_map(|(l, level)| Step::Rewrite(l, level)),
    ]
}

fn take(pair: &mut Pair, step: Step) {
    match step {
        Step::Set(leaf, at, count) => pair.set(LEAVES[leaf] + at, count.min(512 - at)),
        Step::Clear(leaf, from, other, to) => pair.clear(LEAVES[leaf] + from, LEAVES[other] + to),
        Step::Store { anew } => drop(pair.store(anew)),
        Step::Evict(bytes_max) => pair.map.evict(bytes_max, &|_| true),
        Step::Read(leaf, at) => {
            let block = LEAVES[leaf] + at;
            let found = pair.map.leaf(block, &mut pair.pages).unwrap();
            let entry = found.map_or(MapEntry::HOLE, |leaf| leaf[at as usize]);
            let expected = pair.blocks.get(&block).copied().unwrap_or(MapEntry::HOLE);
            assert_eq!(entry, expected, "block {block}");
        }
        Step::Prepare(leaf, level) => {
            pair.map.prepare(LEAVES[leaf], level, &mut pair.pages).unwrap();
        }
        Step::Rewrite(leaf, level) => {
            let base = base_of(LEAVES[leaf], level);
            let seen = everything(&pair.map, (0, BLOCKS), &mut pair.pages);
            let page = seen.pages.iter().find(|(_, l, b)| (*l, *b) == (level, base));
            if let Some((entry, ..)) = page {
                let address = entry.address;
                let named = pair.map.rewrite_page(address, level, base, &mut pair.pages);
                assert!(named.unwrap());
                // From now on neither the node nor any node above it has a page on disk.
                let again = pair.map.rewrite_page(address, level, base, &mut pair.pages);
                assert!(!again.unwrap());
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_map_has_what_was_put_into_it_and_counts_what_it_names(
        steps in proptest::collection::vec(step(), 1..24),
    ) {
        let mut pair = Pair::default();
        for step in steps {
            take(&mut pair, step);
            pair.check();
        }
        pair.store(true);
        pair.check();
        // Pages that were never loaded are cleared as well. Then nothing is left.
        pair.clear(0, BLOCKS);
        pair.check();
        prop_assert_eq!(pair.store(false), MapEntry::HOLE);
        prop_assert!(pair.pages.held().is_empty());
    }
}

#[test]
fn a_block_is_found_by_nine_bits_a_level() {
    let block = 0b1_0000_0001 << 27 | 0b1_1000_0000 << 18 | 0b10 << 9 | 0b1_1111_1111;
    let positions: Vec<usize> = (0..=TOP_LEVEL).map(|level| position(block, level)).collect();
    assert_eq!(positions, [511, 2, 384, 257]);
    let covered: Vec<u64> = (0..=TOP_LEVEL).map(entry_blocks).collect();
    assert_eq!(covered, [1, 512, 262_144, 134_217_728]);
    let bases: Vec<u64> = (0..=TOP_LEVEL).map(|level| base_of(block, level)).collect();
    assert_eq!(bases, [block - 511, block & !0x3_FFFF, block & !0x7FF_FFFF, 0]);
}

#[test]
fn the_ends_of_what_is_cleared_are_kept_to() {
    let mut pair = Pair::default();
    LEAVES.iter().for_each(|leaf| pair.set(*leaf, 512));
    for (from, to) in [(1, 1), (5, 4), (1, 2), (511, 513), (1023, 1 << 18), (1 << 27, BLOCKS - 1)] {
        pair.clear(from, to);
        pair.check();
        pair.store(to % 2 == 0);
        pair.check();
    }
    assert_eq!(pair.blocks.last_key_value().map(|(block, _)| *block), Some(BLOCKS - 1));
}

#[test]
fn whether_a_range_may_be_mapped_is_told_without_loading() {
    let mut pair = Pair::default();
    assert!(!pair.map.may_map(0, BLOCKS));
    pair.set(700, 10);
    let exact = |pair: &Pair| {
        assert!(
            pair.map.may_map(709, 710) && pair.map.may_map(0, 701) && pair.map.may_map(0, BLOCKS)
        );
        assert!(!pair.map.may_map(0, 700) && !pair.map.may_map(710, BLOCKS));
        assert!(!pair.map.may_map(705, 705) && !pair.map.may_map(709, 701));
        assert!(!pair.map.may_map(1 << 27, BLOCKS));
    };
    exact(&pair);
    pair.store(false);
    exact(&pair);
    pair.store(true);
    // A page that is not loaded may map anything.
    assert!(pair.map.may_map(0, 1) && pair.map.may_map(BLOCKS - 1, BLOCKS));
    assert!(!pair.map.may_map(1, 1));
    assert_eq!(pair.pages.loads, 0);
    pair.map.leaf(700, &mut pair.pages).unwrap();
    exact(&pair);
}

#[test]
fn what_is_prepared_is_changed_without_reading() {
    let mut pair = Pair::default();
    pair.set(600, 1);
    pair.set(1 << 27, 1);
    pair.store(true);
    for level in (0..=TOP_LEVEL).rev() {
        pair.pages.touched.clear();
        pair.map.prepare(600, level, &mut pair.pages).unwrap();
        let loads = pair.pages.loads;
        assert_eq!(loads, u64::from(TOP_LEVEL - level) + 1);
        assert_eq!(pair.pages.touched.len() as u64, loads);
    }
    let mut seen = everything(&pair.map, (600, 601), &mut pair.pages).pages;
    seen.sort_by_key(|(_, level, _)| std::cmp::Reverse(*level));
    let addresses: Vec<u64> = seen.iter().map(|(entry, ..)| { entry.address }.0).collect();
    assert_eq!(pair.pages.touched, addresses);
    let loads = pair.pages.loads;
    pair.set(601, 1);
    assert_eq!(pair.pages.loads, loads);
    // Dirty pages are counted nowhere, and holes have no pages.
    pair.pages.touched.clear();
    pair.map.prepare(600, 0, &mut pair.pages).unwrap();
    pair.map.prepare(BLOCKS - 1, 0, &mut pair.pages).unwrap();
    assert_eq!((pair.pages.touched.len(), pair.pages.loads), (0, loads));
    pair.check();
}

#[test]
fn only_what_changed_is_written_and_each_page_once() {
    let mut pair = Pair::default();
    LEAVES.iter().for_each(|leaf| pair.set(*leaf, 3));
    let first = pair.store(false);
    let writes = pair.pages.writes;
    // Nine leaves; six nodes of level 1, three of level 2, one top.
    assert_eq!(writes, 9 + 6 + 3 + 1);
    assert_eq!(pair.store(false), first);
    assert_eq!(pair.pages.writes, writes);
    pair.set(1 << 18, 1);
    assert_ne!(pair.store(false), first);
    assert_eq!(pair.pages.writes, writes + 4);
    pair.check();
}

#[test]
fn a_page_that_the_map_does_not_name_is_left_alone() {
    let mut pair = Pair::default();
    pair.set(0, 1);
    pair.set(1 << 18, 1);
    pair.store(false);
    let pages = everything(&pair.map, (0, 1), &mut pair.pages).pages;
    let (entry, level, base) = *pages.iter().find(|(_, level, _)| *level == 0).unwrap();
    let elsewhere = [(level, 1 << 18), (level, 1 << 27), (1, base), (TOP_LEVEL, 0)];
    for (level, base) in elsewhere {
        let named = pair.map.rewrite_page(entry.address, level, base, &mut pair.pages);
        assert!(!named.unwrap(), "level {level}, base {base}");
    }
    let writes = pair.pages.writes;
    pair.store(false);
    assert_eq!(pair.pages.writes, writes);
    assert!(pair.map.rewrite_page(entry.address, level, base, &mut pair.pages).unwrap());
    pair.store(false);
    assert_eq!(pair.pages.writes, writes + 4);
    pair.check();
}

#[test]
fn the_count_of_blocks_can_be_corrected() {
    let mut map = Map::open(MapEntry::HOLE, 7);
    assert_eq!(map.mapped_blocks(), 7);
    map.set_mapped_blocks(9);
    assert_eq!(map.mapped_blocks(), 9);
}
