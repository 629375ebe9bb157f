//! Pages that cannot be read, pages that are given up, and visits that end early.

use marcot_format::MapEntry;

use super::pages::{Seen, everything};
use super::{BLOCKS, LEAVES, Pair};
use crate::error::{ErrorKind, Result};
use crate::map::{TOP_LEVEL, Visitor, visit};

/// A visitor that handles neither lost blocks nor unreadable pages.
struct BlocksOnly;

impl Visitor for BlocksOnly {
    fn block(&mut self, _block: u64, _entry: MapEntry) -> Result<bool> {
        Ok(true)
    }
}

/// A stored map whose page of `level` above block 0 is damaged.
fn damaged(level: u32) -> Pair {
    let mut pair = Pair::default();
    LEAVES.iter().for_each(|leaf| pair.set(*leaf, 5));
    pair.store(true);
    let seen = everything(&pair.map, (0, 1), &mut pair.pages);
    let page = seen.pages.iter().find(|(_, l, _)| *l == level).unwrap().0;
    pair.pages.damaged.insert({ page.address }.0);
    pair
}

fn seen(pair: &mut Pair, range: (u64, u64), mut seen: Seen) -> (bool, Seen) {
    let ended = visit(pair.map.top(), TOP_LEVEL, 0, range, &mut pair.pages, &mut seen).unwrap();
    (ended, seen)
}

#[test]
fn a_damaged_page_is_an_error_and_changes_nothing() {
    for level in 0..=TOP_LEVEL {
        let mut pair = damaged(level);
        let held = pair.pages.held();
        assert_eq!(pair.map.leaf(0, &mut pair.pages).unwrap_err().kind(), ErrorKind::Corrupt);
        assert!(pair.map.prepare(0, 0, &mut pair.pages).is_err());
        let entry = *pair.blocks.values().next().unwrap();
        assert!(pair.map.set_run(0, &[entry], &mut pair.pages).is_err());
        assert!(pair.map.clear(0, 1, &mut pair.pages).is_err());
        pair.pages.damaged.clear();
        assert_eq!(pair.map.mapped_blocks(), 45);
        let found = everything(&pair.map, (0, BLOCKS), &mut pair.pages);
        assert_eq!(found.blocks, pair.blocks);
        // Pages above the damaged one may have become dirty. Dirty pages are not counted.
        let now = pair.pages.held();
        assert!(now.iter().all(|(address, units)| held[address] == *units));
    }
}

#[test]
fn a_damaged_page_that_goes_whole_is_no_obstacle() {
    for level in 0..=TOP_LEVEL {
        let covered = 1u64 << (9 * (level + 1));
        let mut pair = damaged(level);
        assert!(pair.map.clear(0, covered - 1, &mut pair.pages).is_err());
        pair.map.clear(0, covered, &mut pair.pages).unwrap();
        let left: Vec<u64> = pair.blocks.keys().copied().filter(|b| *b >= covered).collect();
        let found = everything(&pair.map, (0, BLOCKS), &mut pair.pages);
        assert_eq!(found.blocks.into_keys().collect::<Vec<_>>(), left);
    }
}

#[test]
fn what_was_given_up_is_lost_until_it_is_written_or_cleared() {
    for level in 0..=TOP_LEVEL {
        let covered = 1u64 << (9 * (level + 1));
        let mut pair = damaged(level);
        assert!(pair.map.give_up(level, 0, &mut pair.pages).is_err());
        pair.pages.gives_up = true;
        pair.map.give_up(level, 0, &mut pair.pages).unwrap();
        let (_, found) = seen(&mut pair, (0, BLOCKS), Seen::default());
        assert_eq!(found.lost.iter().map(|(_, blocks)| blocks).sum::<u64>(), covered);
        assert!(found.blocks.keys().all(|block| *block >= covered));
        let part = seen(&mut pair, (1, 7), Seen::default()).1.lost;
        assert_eq!(part.iter().map(|(_, blocks)| blocks).sum::<u64>(), 6);
        assert_eq!(part[0].0, 1);
        // A visitor that does not handle lost blocks gets an error, not a hole.
        let mut blocks = BlocksOnly;
        let range = (3, 4);
        let top = pair.map.top();
        let error = visit(top, TOP_LEVEL, 0, range, &mut pair.pages, &mut blocks).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        assert!(error.sentence().to_string().contains("bytes 12288 to 16384 were lost"), "{error}");
        // The lost entries survive a checkpoint.
        pair.store(true);
        let (_, stored) = seen(&mut pair, (1, 7), Seen::default());
        assert_eq!(stored.lost, part);
        // A block that is written counts as mapped. A lost block was counted nowhere.
        let mapped = pair.map.mapped_blocks();
        let held = pair.pages.held().len();
        pair.set(2, 1);
        assert_eq!(pair.map.mapped_blocks(), mapped + 1);
        assert!(pair.pages.held().len() <= held + 1);
        let found = seen(&mut pair, (2, 3), Seen::default()).1;
        assert_eq!((found.blocks.len(), found.lost.len()), (1, 0));
        pair.map.clear(0, 1, &mut pair.pages).unwrap();
        assert_eq!(pair.map.mapped_blocks(), mapped + 1);
        assert_eq!(seen(&mut pair, (0, 1), Seen::default()).1.lost, []);
    }
}

#[test]
fn a_page_whose_counts_cannot_be_changed_stays_as_it_was() {
    let mut pair = Pair::default();
    pair.set(0, 5);
    pair.store(true);
    pair.pages.refuses = true;
    let entry = *pair.blocks.values().next().unwrap();
    assert!(pair.map.set_run(9, &[entry], &mut pair.pages).is_err());
    assert!(pair.map.clear(0, 1, &mut pair.pages).is_err());
    pair.pages.refuses = false;
    pair.check();
    let writes = pair.pages.writes;
    pair.store(false);
    assert_eq!(pair.pages.writes, writes);
}

#[test]
fn a_visit_keeps_to_its_range_and_ends_where_the_visitor_says() {
    let mut pair = Pair::default();
    LEAVES.iter().for_each(|leaf| pair.set(*leaf, 5));
    pair.store(true);
    for (from, to) in [(0, 0), (9, 3), (1, 4), (4, 513), (512, 1 << 27), (1, BLOCKS)] {
        let found = everything(&pair.map, (from, to), &mut pair.pages).blocks;
        let expected: Vec<u64> = pair.blocks.range(from..to.max(from)).map(|(b, _)| *b).collect();
        assert_eq!(found.into_keys().collect::<Vec<_>>(), expected);
    }
    for at_most in 1..=45 {
        let limit = Seen { at_most: Some(at_most), ..Seen::default() };
        let (went_on, found) = seen(&mut pair, (0, BLOCKS), limit);
        assert_eq!((went_on, found.blocks.len()), (false, at_most));
    }
    // Where the visitor skips a page, only what is below that page is skipped.
    for level in 0..=TOP_LEVEL {
        let limit = Seen { leave_out: Some(level), ..Seen::default() };
        let (went_on, found) = seen(&mut pair, (0, BLOCKS), limit);
        assert!(went_on && found.blocks.is_empty());
        assert!(found.pages.iter().all(|(_, l, _)| *l >= level));
        let count = found.pages.iter().filter(|(_, l, _)| *l == level).count();
        assert_eq!(count, [9, 6, 3, 1][level as usize]);
    }
    // A visit leaves nothing in memory.
    assert_eq!(pair.map.resident_bytes(), 0);
}

#[test]
fn an_unreadable_page_is_shown_with_the_range_below_it() {
    for level in 0..=TOP_LEVEL {
        let covered = 1u64 << (9 * (level + 1));
        let mut pair = damaged(level);
        let (went_on, found) = seen(&mut pair, (3, BLOCKS), Seen::default());
        assert!(went_on);
        assert_eq!(found.unreadable, [(3, covered - 3)]);
        assert!(found.blocks.keys().all(|block| *block >= covered));
        let limit = Seen { at_most: Some(1), ..Seen::default() };
        let (went_on, found) = seen(&mut pair, (3, BLOCKS), limit);
        assert!(!went_on && found.blocks.is_empty());
        let mut blocks = BlocksOnly;
        let top = pair.map.top();
        assert!(visit(top, TOP_LEVEL, 0, (0, BLOCKS), &mut pair.pages, &mut blocks).is_err());
    }
}

#[test]
fn a_visit_of_lost_blocks_ends_where_the_visitor_says() {
    for level in 0..=TOP_LEVEL {
        let mut pair = damaged(level);
        pair.pages.gives_up = true;
        pair.map.give_up(level, 0, &mut pair.pages).unwrap();
        let limit = Seen { at_most: Some(1), ..Seen::default() };
        let (went_on, found) = seen(&mut pair, (0, BLOCKS), limit);
        assert!(!went_on);
        assert_eq!((found.lost.len(), found.blocks.len()), (1, 0));
    }
}
