//! Counts of what the map of a root names, found by comparing it with a root that was counted before.
//!
//! Roots of one image share most of their pages. A page never changes. So where two roots have the same
//! page, everything below it adds the same to the counts of both, and is neither read nor counted again.
//! The first root is compared with an empty map, so all of it is read.

use std::collections::BTreeMap;

use marcot_format::{BLOCK_BYTES, IMAGE_BYTES_MAX, MAP_FANOUT, MapEntry, SegmentIndex};

use super::Source;
use crate::error::{Error, ErrorKind, Result, fail};
use crate::map::{Link, Node, PageSource, TOP_LEVEL, child, entry_blocks, leaf_entry};

/// Limit on the memory that pages of a segment table take while a map is walked, in bytes.
pub(crate) const TABLE_BYTES_MAX: u64 = 4 << 20;

/// Counts of what a root names.
#[derive(Default)]
pub(crate) struct Counts {
    /// Slots or units, by table index.
    pub live: BTreeMap<SegmentIndex, u64>,
    /// Blocks mapped.
    pub mapped: u64,
    /// Pages that cannot be read, by first block: the level, and the error.
    pub unreadable: BTreeMap<u64, (u32, Error)>,
    /// Blocks that were lost when a damaged page was given up, by first block: how many.
    pub lost: BTreeMap<u64, u64>,
    /// Blocks that are still in the source of a migration, outside the store, by first block: how many.
    pub external: BTreeMap<u64, u64>,
}

/// How the counts of a root differ from those of the root before.
#[derive(Default)]
pub(crate) struct Change {
    /// Slots or units that only the root before names, by table index.
    gone: BTreeMap<SegmentIndex, u64>,
    /// Slots or units that only this root names, by table index.
    added: BTreeMap<SegmentIndex, u64>,
    mapped_gone: u64,
    mapped_added: u64,
    /// First blocks where the root before had unreadable or lost pages, and this root has something else.
    mended: Vec<u64>,
    unreadable: Vec<(u64, (u32, Error))>,
    lost: Vec<(u64, u64)>,
    external: Vec<(u64, u64)>,
    /// Pages of this root that were read.
    pub pages: u64,
}

/// Blocks below a page of `level`, within the largest image.
pub(crate) fn blocks_below(level: u32) -> u64 {
    entry_blocks(level + 1).min(IMAGE_BYTES_MAX / BLOCK_BYTES)
}

impl Counts {
    /// Counts everything below `top`. Returns also how many pages were read.
    pub(crate) fn of(top: &Link, source: &mut Source<'_>) -> (Self, u64) {
        let mut counts = Self::default();
        let mut walk = Walk { earlier: None, later: source, change: Change::default() };
        // Only the earlier side can fail, and there is none.
        let _ = walk.compare((&Link::Hole, top), TOP_LEVEL, 0);
        let change = walk.change;
        let pages = change.pages;
        counts.apply(change);
        (counts, pages)
    }

    /// How many slots or units of a segment are named by both roots.
    pub(crate) fn shared(&self, change: &Change, index: SegmentIndex) -> u64 {
        let of = |counts: &BTreeMap<SegmentIndex, u64>| counts.get(&index).copied().unwrap_or(0);
        of(&self.live).saturating_sub(of(&change.gone))
    }

    /// Turns these into the counts of the later root.
    pub(crate) fn apply(&mut self, change: Change) {
        for (index, added) in change.added {
            *self.live.entry(index).or_default() += added;
        }
        for (index, gone) in change.gone {
            if let Some(live) = self.live.get_mut(&index) {
                *live = live.saturating_sub(gone);
            }
        }
        self.live.retain(|_, live| *live > 0);
        self.mapped = (self.mapped + change.mapped_added).saturating_sub(change.mapped_gone);
        for block in change.mended {
            self.unreadable.remove(&block);
            self.lost.remove(&block);
            self.external.remove(&block);
        }
        self.unreadable.extend(change.unreadable);
        self.lost.extend(change.lost);
        self.external.extend(change.external);
    }

    /// The lost ranges, with neighbours joined: first block, and number of blocks.
    pub(crate) fn lost_ranges(&self) -> Vec<(u64, u64)> {
        joined(&self.lost)
    }

    /// The ranges that are still in the source of a migration, as [`Self::lost_ranges`].
    pub(crate) fn external_ranges(&self) -> Vec<(u64, u64)> {
        joined(&self.external)
    }
}

fn joined(parts: &BTreeMap<u64, u64>) -> Vec<(u64, u64)> {
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for (&block, &blocks) in parts {
        match ranges.last_mut() {
            Some((first, count)) if *first + *count == block => *count += blocks,
            _ => ranges.push((block, blocks)),
        }
    }
    ranges
}

impl Change {
    /// How the map at `later` differs from the one at `earlier`, whose counts are given.
    ///
    /// # Errors
    /// Where a page of the earlier map was read before and now cannot be, or where the maps do not
    /// agree with the counts. Then everything has to be counted again.
    pub(crate) fn between<'s>(
        (earlier, counts): (&Link, &Counts),
        later: &Link,
        (before, source): (&mut Source<'s>, &mut Source<'s>),
    ) -> Result<Self> {
        let mut walk =
            Walk { earlier: Some((before, counts)), later: source, change: Self::default() };
        walk.compare((earlier, later), TOP_LEVEL, 0)?;
        let change = walk.change;
        for (index, gone) in &change.gone {
            if counts.live.get(index).is_none_or(|live| live < gone) {
                return fail(ErrorKind::Corrupt, "a map names other blocks than before");
            }
        }
        Ok(change)
    }

    /// Table indices whose counts differ.
    pub(crate) fn indices(&self) -> impl Iterator<Item = SegmentIndex> + '_ {
        self.gone.keys().chain(self.added.keys()).copied()
    }
}

/// Two maps that are walked side by side.
struct Walk<'a, 's> {
    earlier: Option<(&'a mut Source<'s>, &'a Counts)>,
    later: &'a mut Source<'s>,
    change: Change,
}

impl Walk<'_, '_> {
    fn compare(&mut self, links: (&Link, &Link), level: u32, base: u64) -> Result<()> {
        // Equal entries name the same page only if both tables have the same segment at that index.
        // The caller verifies this before it applies the change.
        let same = matches!((links.0.entry(), links.1.entry()), (Some(a), Some(b)) if a == b);
        if same {
            return Ok(());
        }
        let a = self.leave(links.0, level, base)?;
        let b = self.enter(links.1, level, base);
        if level == 0 {
            for i in 0..MAP_FANOUT {
                let (x, y) = (leaf_entry(a.as_ref(), i), leaf_entry(b.as_ref(), i));
                if x != y {
                    self.block(x, y, base + i as u64);
                }
            }
            return Ok(());
        }
        for i in 0..MAP_FANOUT {
            let children = (child(a.as_ref(), i), child(b.as_ref(), i));
            self.compare(children, level - 1, base + i as u64 * entry_blocks(level))?;
        }
        Ok(())
    }

    /// Counts a page that only the earlier map has.
    fn leave(&mut self, link: &Link, level: u32, base: u64) -> Result<Option<Node>> {
        let (Link::Stored(entry), Some((source, counts))) = (link, &mut self.earlier) else {
            return Ok(None);
        };
        let unreadable = counts.unreadable.get(&base).is_some_and(|(at, _)| *at == level);
        if entry.is_nowhere() || unreadable {
            self.change.mended.push(base);
            return Ok(None);
        }
        let node = source.load(*entry, level, base)?;
        source.table.evict(TABLE_BYTES_MAX, &|_| true);
        count(&mut self.change.gone, *entry, node.units());
        Ok(Some(node))
    }

    /// Counts a page that only the later map has.
    fn enter(&mut self, link: &Link, level: u32, base: u64) -> Option<Node> {
        let Link::Stored(entry) = link else { return None };
        if entry.is_nowhere() {
            self.nowhere(*entry, base, blocks_below(level));
            return None;
        }
        let loaded = self.later.load(*entry, level, base);
        self.later.table.evict(TABLE_BYTES_MAX, &|_| true);
        match loaded {
            Ok(node) => {
                self.change.pages += 1;
                count(&mut self.change.added, *entry, node.units());
                Some(node)
            }
            Err(error) => {
                self.change.unreadable.push((base, (level, error)));
                None
            }
        }
    }

    fn nowhere(&mut self, entry: MapEntry, first: u64, blocks: u64) {
        let change = &mut self.change;
        let list = if entry.is_external() { &mut change.external } else { &mut change.lost };
        list.push((first, blocks));
    }

    fn block(&mut self, earlier: Option<MapEntry>, later: Option<MapEntry>, block: u64) {
        match earlier {
            Some(entry) if entry.is_nowhere() => self.change.mended.push(block),
            Some(entry) => {
                count(&mut self.change.gone, entry, 1);
                self.change.mapped_gone += 1;
            }
            None => {}
        }
        match later {
            Some(entry) if entry.is_nowhere() => self.nowhere(entry, block, 1),
            Some(entry) => {
                count(&mut self.change.added, entry, 1);
                self.change.mapped_added += 1;
            }
            None => {}
        }
    }
}

fn count(counts: &mut BTreeMap<SegmentIndex, u64>, entry: MapEntry, slots: u32) {
    *counts.entry({ entry.address }.index()).or_default() += u64::from(slots);
}
