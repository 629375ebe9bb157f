//! How much memory a map takes.

use std::mem::size_of;

use marcot_format::MapEntry;

use super::{BLOCKS, LEAVES, Pair};
use crate::map::{Link, Map};

/// Memory of a leaf and of an inner node, in bytes.
const LEAF: u64 = 512 * 12 + 64;
const INNER: u64 = 512 * size_of::<Link>() as u64 + 64;
/// Memory of all nodes above the nine leaves: one top, three of level 2, six of level 1.
const INNER_ALL: u64 = (1 + 3 + 6) * INNER;
const ALL: u64 = INNER_ALL + 9 * LEAF;

fn pair() -> Pair {
    let mut pair = Pair::default();
    LEAVES.iter().for_each(|leaf| pair.set(*leaf, 3));
    pair
}

#[test]
fn loaded_and_new_nodes_are_counted() {
    let mut pair = pair();
    assert_eq!(pair.map.resident_bytes(), ALL);
    pair.store(true);
    assert_eq!(pair.map.resident_bytes(), 0);
    pair.map.leaf(0, &mut pair.pages).unwrap();
    assert_eq!(pair.map.resident_bytes(), 3 * INNER + LEAF);
    pair.map.leaf(512, &mut pair.pages).unwrap();
    assert_eq!(pair.map.resident_bytes(), 3 * INNER + 2 * LEAF);
    pair.map.prepare(1 << 18, 0, &mut pair.pages).unwrap();
    assert_eq!(pair.map.resident_bytes(), 4 * INNER + 3 * LEAF);
    // Nodes that become empty are dropped.
    pair.clear(512, 1024);
    assert_eq!(pair.map.resident_bytes(), 4 * INNER + 2 * LEAF);
    pair.clear(0, 1 << 18);
    assert_eq!(pair.map.resident_bytes(), 3 * INNER + LEAF);
}

#[test]
fn a_page_that_was_given_up_is_counted_like_every_other() {
    let mut pair = pair();
    pair.store(true);
    let seen = super::everything(&pair.map, (0, 1), &mut pair.pages);
    let leaf = seen.pages.iter().find(|(_, level, _)| *level == 0).unwrap().0;
    pair.pages.damaged.insert({ leaf.address }.0);
    pair.pages.gives_up = true;
    pair.map.give_up(0, 0, &mut pair.pages).unwrap();
    assert_eq!(pair.map.resident_bytes(), 3 * INNER + LEAF);
}

#[test]
fn clean_nodes_go_until_the_limit_is_kept() {
    let mut pair = pair();
    pair.store(false);
    pair.map.evict(ALL, &|_| true);
    assert_eq!(pair.map.resident_bytes(), ALL);
    pair.map.evict(ALL - 1, &|_| true);
    assert_eq!(pair.map.resident_bytes(), ALL - LEAF);
    pair.map.evict(ALL - 2 * LEAF - 1, &|_| true);
    assert_eq!(pair.map.resident_bytes(), ALL - 3 * LEAF);
    // Nodes with loaded nodes below them stay.
    pair.map.evict(INNER + LEAF, &|_| true);
    assert!(pair.map.resident_bytes() <= INNER + LEAF);
    pair.check();
    pair.map.evict(0, &|_| true);
    assert_eq!(pair.map.resident_bytes(), 0);
    pair.check();
}

#[test]
fn what_may_not_be_on_disk_yet_stays() {
    let mut pair = pair();
    pair.store(false);
    pair.map.evict(0, &|_| false);
    assert_eq!(pair.map.resident_bytes(), ALL);
    // Leaves are in the first pages that were written, with few units each.
    let leaf = pair.map.leaf(0, &mut pair.pages).unwrap().map(|leaf| leaf[0]).unwrap();
    assert!(!leaf.is_hole());
    let seen = super::everything(&pair.map, (0, 1), &mut pair.pages);
    let kept = seen.pages.iter().find(|(_, level, _)| *level == 0).unwrap().0;
    pair.map.evict(0, &|entry: MapEntry| entry != kept);
    assert_eq!(pair.map.resident_bytes(), 3 * INNER + LEAF);
    let loads = pair.pages.loads;
    pair.map.leaf(0, &mut pair.pages).unwrap();
    assert_eq!(pair.pages.loads, loads);
}

#[test]
fn dirty_nodes_stay_and_clean_ones_beside_them_go() {
    let mut pair = pair();
    pair.store(false);
    pair.set(1 << 27, 1);
    pair.map.evict(0, &|_| true);
    // Only the changed leaf and the nodes above it are left.
    assert_eq!(pair.map.resident_bytes(), 3 * INNER + LEAF);
    pair.check();
    let entry = pair.store(false);
    assert_eq!(Map::open(entry, 0).resident_bytes(), 0);
    pair.clear(0, BLOCKS);
    assert_eq!(pair.map.resident_bytes(), 0);
    pair.check();
}
