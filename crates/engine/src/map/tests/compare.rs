//! Two maps compared: the blocks that differ, and what only the later map names.

use std::collections::BTreeMap;

use marcot_format::MapEntry;
use proptest::prelude::*;

use super::pages::{Pages, Seen, everything};
use super::{BLOCKS, LEAVES, Pair, step, take};
use crate::error::ErrorKind;
use crate::map::{Map, TOP_LEVEL, diff, visit_unshared};

type Blocks = BTreeMap<u64, MapEntry>;
type Difference = BTreeMap<u64, (Option<MapEntry>, Option<MapEntry>)>;

/// A map as it was stored, with its blocks and the pages of that time.
struct Earlier {
    map: Map,
    pages: Pages,
    blocks: Blocks,
}

fn earlier(pair: &mut Pair) -> Earlier {
    let map = Map::open(pair.store(false), pair.map.mapped_blocks());
    let mut pages = pair.pages.clone();
    pages.loads = 0;
    Earlier { map, pages, blocks: pair.blocks.clone() }
}

fn differs(earlier: &mut Earlier, later: &mut Pair, range: (u64, u64)) -> Difference {
    let mut found = Difference::new();
    let links = (earlier.map.top(), later.map.top());
    diff(&mut earlier.pages, &mut later.pages, links, TOP_LEVEL, 0, range, &mut |(
        first,
        blocks,
        before,
        after,
    )| {
        assert_eq!(blocks, 1);
        assert!(found.insert(first, (before, after)).is_none());
        Ok(())
    })
    .unwrap();
    found
}

fn expected(earlier: &Blocks, later: &Blocks, range: (u64, u64)) -> Difference {
    let mut expected = Difference::new();
    for block in earlier.keys().chain(later.keys()) {
        let (before, after) = (earlier.get(block).copied(), later.get(block).copied());
        if before != after && (range.0..range.1).contains(block) {
            expected.insert(*block, (before, after));
        }
    }
    expected
}

fn unshared(
    earlier: &mut Earlier,
    later: &mut Pair,
    range: (u64, u64),
    seen: Seen,
) -> (bool, Seen) {
    let mut seen = seen;
    let links = (earlier.map.top(), later.map.top());
    let went_on =
        visit_unshared(&mut earlier.pages, &mut later.pages, links, TOP_LEVEL, 0, range, &mut seen);
    (went_on.unwrap(), seen)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn two_maps_are_compared_block_by_block(
        before in proptest::collection::vec(step(), 1..10),
        after in proptest::collection::vec(step(), 1..10),
        from in 0..LEAVES.len(), at in 0..512u64, to in 0..LEAVES.len(), end in 0..513u64,
    ) {
        let mut pair = Pair::default();
        before.into_iter().for_each(|step| take(&mut pair, step));
        let mut earlier = earlier(&mut pair);
        after.into_iter().for_each(|step| take(&mut pair, step));
        let range = (LEAVES[from] + at, LEAVES[to] + end);
        for stored in [false, true] {
            if stored {
                pair.store(true);
            }
            for range in [(0, BLOCKS), range] {
                let wanted = expected(&earlier.blocks, &pair.blocks, range);
                prop_assert_eq!(differs(&mut earlier, &mut pair, range), wanted.clone());
                let added: Blocks =
                    wanted.into_iter().filter_map(|(b, (_, after))| Some((b, after?))).collect();
                let (went_on, seen) = unshared(&mut earlier, &mut pair, range, Seen::default());
                prop_assert!(went_on);
                prop_assert_eq!(seen.blocks, added);
                let old = everything(&earlier.map, range, &mut earlier.pages).pages;
                let new = everything(&pair.map, range, &mut pair.pages).pages;
                let wanted: Vec<_> = new.into_iter().filter(|page| !old.contains(page)).collect();
                prop_assert_eq!(seen.pages, wanted);
            }
        }
    }
}

#[test]
fn blocks_of_which_only_the_place_or_only_the_checksum_differs_are_different() {
    let mut pair = Pair::default();
    pair.set(0, 3);
    let mut earlier = earlier(&mut pair);
    let (first, second) = (pair.blocks[&0], pair.blocks[&1]);
    let moved = MapEntry { crc: first.crc, ..second };
    let changed = MapEntry { crc: !second.crc, ..second };
    for (block, entry) in [(0, moved), (1, changed)] {
        pair.map.set_run(block, &[entry], &mut pair.pages).unwrap();
        pair.blocks.insert(block, entry);
    }
    let shown = differs(&mut earlier, &mut pair, (0, BLOCKS));
    assert_eq!(shown, expected(&earlier.blocks, &pair.blocks, (0, BLOCKS)));
    let (_, seen) = unshared(&mut earlier, &mut pair, (0, BLOCKS), Seen::default());
    assert_eq!(seen.blocks, Blocks::from([(0, moved), (1, changed)]));
}

#[test]
fn what_two_maps_share_is_not_read() {
    let mut pair = Pair::default();
    LEAVES.iter().for_each(|leaf| pair.set(*leaf, 5));
    let mut earlier = earlier(&mut pair);
    pair.set(513, 1);
    pair.store(true);
    pair.pages.loads = 0;
    differs(&mut earlier, &mut pair, (0, BLOCKS));
    // Only the pages on the way to the changed leaf were read.
    assert_eq!((earlier.pages.loads, pair.pages.loads), (4, 4));
    unshared(&mut earlier, &mut pair, (0, BLOCKS), Seen::default());
    assert_eq!((earlier.pages.loads, pair.pages.loads), (8, 8));
    // An empty range needs nothing.
    differs(&mut earlier, &mut pair, (513, 513));
    unshared(&mut earlier, &mut pair, (514, 513), Seen::default());
    assert_eq!((earlier.pages.loads, pair.pages.loads), (8, 8));
}

#[test]
fn what_is_left_to_a_source_is_compared_by_ranges() {
    let mut pair = Pair::default();
    pair.set(0, 5);
    let mut earlier = earlier(&mut pair);
    pair.map.set_external(512, BLOCKS, &mut pair.pages).unwrap();
    let written = LEAVES[5] + 7;
    pair.set(written, 1);
    let mut shown: Vec<(u64, u64, bool)> = Vec::new();
    for swapped in [false, true] {
        let mut show = |(first, blocks, before, after): (u64, u64, Option<MapEntry>, _)| {
            let (before, after) = if swapped { (after, before) } else { (before, after) };
            assert_eq!((before, after.is_some()), (None, true));
            shown.push((first, blocks, after.is_some_and(|entry| entry.is_external())));
            Ok(())
        };
        let all = (0, BLOCKS);
        let (old, new) = (&mut earlier.pages, &mut pair.pages);
        let (before, after) = (earlier.map.top(), pair.map.top());
        match swapped {
            false => diff(old, new, (before, after), TOP_LEVEL, 0, all, &mut show).unwrap(),
            true => diff(new, old, (after, before), TOP_LEVEL, 0, all, &mut show).unwrap(),
        }
        // No more than the pages on the way to the block that was written have entries, and two for the first one.
        assert!(shown.len() < 6 * 512, "{} ranges", shown.len());
        let mut end = 512;
        for (first, blocks, external) in shown.drain(..) {
            assert_eq!((first, external), (end, first != written));
            end = first + blocks;
        }
        assert_eq!(end, BLOCKS);
    }
}

#[test]
fn a_visit_of_what_is_not_shared_ends_where_the_visitor_says() {
    let mut pair = Pair::default();
    LEAVES.iter().for_each(|leaf| pair.set(*leaf, 5));
    let mut earlier = earlier(&mut pair);
    LEAVES.iter().for_each(|leaf| pair.set(*leaf + 3, 4));
    pair.store(true);
    for at_most in 1..=36 {
        let limit = Seen { at_most: Some(at_most), ..Seen::default() };
        let (went_on, seen) = unshared(&mut earlier, &mut pair, (0, BLOCKS), limit);
        assert_eq!((went_on, seen.blocks.len()), (false, at_most));
    }
    let limit = Seen { leave_out: Some(0), ..Seen::default() };
    let (went_on, seen) = unshared(&mut earlier, &mut pair, (0, BLOCKS), limit);
    assert!(went_on && seen.blocks.is_empty());
    assert_eq!(seen.pages.iter().filter(|(_, level, _)| *level == 0).count(), 9);
}

#[test]
fn an_unreadable_page_is_shown_on_the_later_side_and_names_nothing_on_the_earlier() {
    let mut pair = Pair::default();
    pair.set(0, 5);
    let mut old = earlier(&mut pair);
    pair.set(3, 4);
    pair.store(true);
    let leaf = |seen: &Seen| {
        let page = seen.pages.iter().find(|(_, level, _)| *level == 0).unwrap().0;
        { page.address }.0
    };
    // The leaf of the earlier side cannot be read, so all blocks of the later side are shown.
    let page = leaf(&everything(&old.map, (0, BLOCKS), &mut old.pages));
    old.pages.damaged.insert(page);
    let (_, seen) = unshared(&mut old, &mut pair, (0, BLOCKS), Seen::default());
    assert_eq!(seen.blocks, pair.blocks);
    old.pages.damaged.clear();
    let page = leaf(&everything(&pair.map, (0, BLOCKS), &mut pair.pages));
    pair.pages.damaged.insert(page);
    let (_, seen) = unshared(&mut old, &mut pair, (2, BLOCKS), Seen::default());
    assert_eq!((seen.unreadable, seen.blocks.len()), (vec![(2, 510)], 0));
    let links = (old.map.top(), pair.map.top());
    let mut show = |_| Ok(());
    let shown = diff(&mut old.pages, &mut pair.pages, links, TOP_LEVEL, 0, (0, BLOCKS), &mut show);
    assert_eq!(shown.unwrap_err().kind(), ErrorKind::Corrupt);
    // The blocks below a page that was given up are lost, at any level.
    for level in 0..TOP_LEVEL {
        let mut pair = Pair::default();
        pair.set(0, 5);
        let mut old = earlier(&mut pair);
        let seen = everything(&pair.map, (0, 1), &mut pair.pages);
        let page = seen.pages.iter().find(|(_, l, _)| *l == level).unwrap().0;
        pair.store(true);
        pair.pages.damaged.insert({ page.address }.0);
        pair.pages.gives_up = true;
        pair.map.give_up(level, 0, &mut pair.pages).unwrap();
        let (_, seen) = unshared(&mut old, &mut pair, (2, 5), Seen::default());
        assert_eq!(seen.lost.iter().map(|(_, blocks)| blocks).sum::<u64>(), 3);
        assert_eq!((seen.lost[0].0, seen.blocks.len()), (2, 0));
        let limit = Seen { at_most: Some(1), ..Seen::default() };
        let (went_on, _) = unshared(&mut old, &mut pair, (2, 5), limit);
        assert!(!went_on);
    }
}
