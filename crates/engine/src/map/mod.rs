//! The block map: a persistent radix tree from block index to block address.
//!
//! Invariants:
//! - Every mapped block is counted once in `live` of its segment in the table of the same root,
//!   and every page on disk that the root names is counted in `live` of its map segment.
//! - A page on disk never changes: a node is copied before its first change, and the page it came
//!   from is released.
//! - A lost entry (see [`BlockAddress::LOST`]) names nothing and is counted nowhere, and neither does an external one
//!   ([`BlockAddress::EXTERNAL`]). Either may stand for all that an inner entry covers.
//! - Nodes below a clean node are clean; a dirty node's ancestors are dirty.

mod node;
mod store;
mod visit;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use marcot_format::{BlockAddress, MAP_FANOUT, MAP_FANOUT_BITS, MAP_LEVELS, MapEntry};

pub(crate) use node::{Leaf, Link, Node};
pub(crate) use store::{PageSink, PageSource};
pub(crate) use visit::{
    Difference, SideOps, Visitor, child, diff, leaf_entry, visit, visit_unshared,
};

use crate::error::Result;

/// Level of the top node.
pub(crate) const TOP_LEVEL: u32 = MAP_LEVELS - 1;

/// Blocks that one entry of a node of `level` covers.
pub(crate) fn entry_blocks(level: u32) -> u64 {
    1 << (MAP_FANOUT_BITS * level)
}

/// Position within a node of `level` of the entry that covers `block`.
pub(crate) fn position(block: u64, level: u32) -> usize {
    (block >> (MAP_FANOUT_BITS * level)) as usize & (MAP_FANOUT - 1)
}

/// First block that the node of `level` around `block` covers.
pub(crate) fn base_of(block: u64, level: u32) -> u64 {
    block & !(entry_blocks(level + 1) - 1)
}

/// The map of one root.
#[derive(Debug, Default)]
pub(crate) struct Map {
    top: Link,
    mapped_blocks: u64,
    /// Memory of loaded nodes in bytes, about. It grows as nodes load; eviction counts it again.
    resident_bytes: u64,
}

impl Map {
    /// The map whose top page is `entry`.
    pub(crate) fn open(entry: MapEntry, mapped_blocks: u64) -> Self {
        Self { top: Link::stored(entry), mapped_blocks, resident_bytes: 0 }
    }

    /// Blocks mapped.
    pub(crate) fn mapped_blocks(&self) -> u64 {
        self.mapped_blocks
    }

    /// Corrects the count of blocks mapped.
    pub(crate) fn set_mapped_blocks(&mut self, blocks: u64) {
        self.mapped_blocks = blocks;
    }

    /// Memory of loaded nodes in bytes.
    pub(crate) fn resident_bytes(&self) -> u64 {
        self.resident_bytes
    }

    /// The leaf that covers `block`, loaded if need be; `None` where nothing is mapped.
    pub(crate) fn leaf(
        &mut self,
        block: u64,
        source: &mut dyn PageSource,
    ) -> Result<Option<&Leaf>> {
        let Self { top, resident_bytes, .. } = self;
        let mut link = top;
        let mut level = TOP_LEVEL;
        loop {
            load(link, level, base_of(block, level), source, resident_bytes)?;
            let node = match link {
                Link::Hole | Link::Stored(_) => return Ok(None),
                // A clean inner node that this root shares with nobody is changed in place when
                // pages below load: its content on disk stays the same.
                Link::Clean(_, node) | Link::Dirty(node) => node,
            };
            if level == 0 {
                return Ok(match &**node {
                    Node::Leaf(entries) => Some(entries),
                    Node::Inner(_) => None,
                });
            }
            let Node::Inner(links) = Arc::make_mut(node) else { return Ok(None) };
            link = &mut links[position(block, level)];
            level -= 1;
        }
    }

    /// Loads the path to the node of level `down_to` that covers `block`, and the table entries that count
    /// its pages, so that changing the node needs no I/O.
    pub(crate) fn prepare(
        &mut self,
        block: u64,
        down_to: u32,
        source: &mut dyn PageSource,
    ) -> Result<()> {
        let Self { top, resident_bytes, .. } = self;
        let mut link = top;
        let mut level = TOP_LEVEL;
        loop {
            load(link, level, base_of(block, level), source, resident_bytes)?;
            let node = match link {
                Link::Hole | Link::Stored(_) => return Ok(()),
                Link::Clean(entry, node) => {
                    source.touch(entry.address)?;
                    node
                }
                Link::Dirty(node) => node,
            };
            if level == down_to {
                return Ok(());
            }
            let Node::Inner(links) = Arc::make_mut(node) else { return Ok(()) };
            link = &mut links[position(block, level)];
            level -= 1;
        }
    }

    /// Maps the blocks from `block` on to `entries`, which all lie under one leaf.
    pub(crate) fn set_run(
        &mut self,
        block: u64,
        entries: &[MapEntry],
        source: &mut dyn PageSource,
    ) -> Result<()> {
        let at = position(block, 0);
        debug_assert!(at + entries.len() <= MAP_FANOUT);
        let Self { top, resident_bytes, mapped_blocks } = self;
        let leaf = leaf_mut(top, block, source, resident_bytes)?;
        let places = &mut leaf[at..at + entries.len()];
        for (old, new) in places.iter_mut().zip(entries) {
            if old.is_hole() || old.is_nowhere() {
                *mapped_blocks += 1;
            } else {
                source.release(old.address, 1)?;
            }
            *old = *new;
        }
        Ok(())
    }

    /// Makes `[from, to)` holes.
    pub(crate) fn clear(&mut self, from: u64, to: u64, source: &mut dyn PageSource) -> Result<()> {
        let Self { top, resident_bytes, mapped_blocks } = self;
        let cleared = clear_link(top, TOP_LEVEL, 0, (from, to), source, resident_bytes)?;
        *mapped_blocks = mapped_blocks.saturating_sub(cleared);
        Ok(())
    }

    /// Makes `[from, to)`, which has to be holes, external: see [`BlockAddress::EXTERNAL`].
    pub(crate) fn set_external(
        &mut self,
        from: u64,
        to: u64,
        source: &mut dyn PageSource,
    ) -> Result<()> {
        let Self { top, resident_bytes, .. } = self;
        external_link(top, TOP_LEVEL, 0, (from, to), source, resident_bytes)
    }

    /// False where no block of `[from, to)` is mapped. True where one is, or where the pages that
    /// tell are not loaded. Loads nothing.
    pub(crate) fn may_map(&self, from: u64, to: u64) -> bool {
        may_map(&self.top, TOP_LEVEL, 0, from, to)
    }

    /// Writes every dirty page to `sink` and returns the entry of the top page.
    pub(crate) fn store(&mut self, sink: &mut dyn PageSink) -> Result<MapEntry> {
        store::store_link(&mut self.top, TOP_LEVEL, 0, sink)
    }

    /// Marks the page at `entry` dirty, if this map still names it, so that the next checkpoint
    /// writes it elsewhere.
    pub(crate) fn rewrite_page(
        &mut self,
        address: BlockAddress,
        level: u32,
        base: u64,
        source: &mut dyn PageSource,
    ) -> Result<bool> {
        let Self { top, resident_bytes, .. } = self;
        let names = |link: &Link| link.entry().is_some_and(|e| { e.address } == address);
        if !find_link(top, level, base, source, resident_bytes)?.is_some_and(|l| names(l)) {
            return Ok(false);
        }
        node_mut(top, level, base, source, resident_bytes)?;
        Ok(true)
    }

    /// Replaces a page that cannot be loaded by one whose entries are all lost, where `source` agrees
    /// to give the page up.
    pub(crate) fn give_up(
        &mut self,
        level: u32,
        base: u64,
        source: &mut dyn PageSource,
    ) -> Result<()> {
        node_mut(&mut self.top, level, base, source, &mut self.resident_bytes).map(drop)
    }

    /// The link to the top node, where visits start.
    pub(crate) fn top(&self) -> &Link {
        &self.top
    }

    /// Drops clean nodes until about `bytes_max` stay in memory, or no more can be dropped. A node
    /// goes only where `on_disk` says that its page has reached the disk.
    pub(crate) fn evict(&mut self, bytes_max: u64, on_disk: &dyn Fn(MapEntry) -> bool) {
        if self.resident_bytes > bytes_max {
            self.resident_bytes = store::evict(&mut self.top, bytes_max, on_disk);
        }
    }
}

/// Brings a stored node into memory.
fn load(
    link: &mut Link,
    level: u32,
    base: u64,
    source: &mut dyn PageSource,
    resident_bytes: &mut u64,
) -> Result<()> {
    if let Link::Stored(entry) = *link {
        let node = source.load(entry, level, base)?;
        *resident_bytes += node.memory_bytes();
        *link = Link::Clean(entry, Arc::new(node));
    }
    Ok(())
}

/// The link to the node of `level` at `base`, where there is one.
fn find_link<'a>(
    mut link: &'a mut Link,
    level: u32,
    base: u64,
    source: &mut dyn PageSource,
    resident_bytes: &mut u64,
) -> Result<Option<&'a mut Link>> {
    let mut at = TOP_LEVEL;
    while at > level {
        load(link, at, base_of(base, at), source, resident_bytes)?;
        let (Link::Clean(_, node) | Link::Dirty(node)) = link else { return Ok(None) };
        let Node::Inner(links) = Arc::make_mut(node) else { return Ok(None) };
        link = &mut links[position(base, at)];
        at -= 1;
    }
    Ok(Some(link))
}

/// Makes a link dirty and returns its node, free to change. Its page on disk is released.
fn make_dirty<'a>(
    link: &'a mut Link,
    level: u32,
    base: u64,
    source: &mut dyn PageSource,
    resident_bytes: &mut u64,
) -> Result<&'a mut Node> {
    if let Err(error) = load(link, level, base, source, resident_bytes) {
        if !source.give_up(&error, level, base) {
            return Err(error);
        }
        // The page stays counted as live, because nobody knows how many units it took.
        let node = Node::lost(level);
        *resident_bytes += node.memory_bytes();
        *link = Link::Dirty(Arc::new(node));
    }
    match std::mem::take(link) {
        Link::Clean(entry, node) => {
            if let Err(error) = source.release(entry.address, node.units()) {
                *link = Link::Clean(entry, node);
                return Err(error);
            }
            *link = Link::Dirty(node);
        }
        Link::Hole => {
            let node = Node::empty(level);
            *resident_bytes += node.memory_bytes();
            *link = Link::Dirty(Arc::new(node));
        }
        other => *link = other,
    }
    match link {
        Link::Dirty(node) => Ok(Arc::make_mut(node)),
        _ => unreachable!("the link was made dirty above"),
    }
}

/// The node of `level` around `base`, dirty with all its ancestors.
fn node_mut<'a>(
    mut link: &'a mut Link,
    level: u32,
    base: u64,
    source: &mut dyn PageSource,
    resident_bytes: &mut u64,
) -> Result<&'a mut Node> {
    let mut at = TOP_LEVEL;
    loop {
        let node = make_dirty(link, at, base_of(base, at), source, resident_bytes)?;
        if at == level {
            return Ok(node);
        }
        let Node::Inner(links) = node else {
            unreachable!("pages are checked for their level when they load")
        };
        link = &mut links[position(base, at)];
        at -= 1;
    }
}

fn leaf_mut<'a>(
    top: &'a mut Link,
    block: u64,
    source: &mut dyn PageSource,
    resident_bytes: &mut u64,
) -> Result<&'a mut Leaf> {
    match node_mut(top, 0, block, source, resident_bytes)? {
        Node::Leaf(entries) => Ok(entries),
        Node::Inner(_) => unreachable!("level 0 is made of leaves"),
    }
}

/// Clears `range` below a link whose node starts at `base`; returns how many blocks were mapped.
fn clear_link(
    link: &mut Link,
    level: u32,
    base: u64,
    range: (u64, u64),
    source: &mut dyn PageSource,
    resident_bytes: &mut u64,
) -> Result<u64> {
    let (from, to) = (range.0.max(base), range.1.min(base + entry_blocks(level + 1)));
    if !may_map(link, level, base, from, to) {
        return Ok(0);
    }
    let whole = (from, to) == (base, base + entry_blocks(level + 1));
    if whole && link.entry().is_some_and(|entry| entry.is_external()) {
        *link = Link::Hole;
        return Ok(0);
    }
    let node = match make_dirty(link, level, base, source, resident_bytes) {
        Err(error) if whole => {
            // The whole range of the page is cleared, so its content is not needed. What it named
            // stays counted until `check` corrects the counts.
            tracing::warn!(error = %error.sentence(), "a damaged map page was discarded");
            *link = Link::Hole;
            return Ok(0);
        }
        node => node?,
    };
    let mut cleared = 0;
    match node {
        Node::Leaf(entries) => {
            for entry in &mut entries[(from - base) as usize..(to - base) as usize] {
                if !entry.is_hole() && !entry.is_nowhere() {
                    source.release(entry.address, 1)?;
                    cleared += 1;
                }
                *entry = MapEntry::HOLE;
            }
        }
        Node::Inner(links) => {
            let step = entry_blocks(level);
            for i in ((from - base) / step) as usize..=((to - 1 - base) / step) as usize {
                let child = base + i as u64 * step;
                let range = (from, to);
                cleared +=
                    clear_link(&mut links[i], level - 1, child, range, source, resident_bytes)?;
            }
        }
    }
    if node.used() == 0 {
        *resident_bytes = resident_bytes.saturating_sub(node.memory_bytes());
        *link = Link::Hole;
    }
    Ok(cleared)
}

/// Makes `range` below a link, which has to be holes, external.
fn external_link(
    link: &mut Link,
    level: u32,
    base: u64,
    range: (u64, u64),
    source: &mut dyn PageSource,
    resident_bytes: &mut u64,
) -> Result<()> {
    let (from, to) = (range.0.max(base), range.1.min(base + entry_blocks(level + 1)));
    if from >= to {
        return Ok(());
    }
    // The top is always a page: an address in a root leads to one.
    if link.is_hole() && level < TOP_LEVEL && (from, to) == (base, base + entry_blocks(level + 1)) {
        *link = Link::Stored(MapEntry::EXTERNAL);
        return Ok(());
    }
    match make_dirty(link, level, base, source, resident_bytes)? {
        Node::Leaf(entries) => {
            entries[(from - base) as usize..(to - base) as usize].fill(MapEntry::EXTERNAL);
        }
        Node::Inner(links) => {
            let step = entry_blocks(level);
            for i in ((from - base) / step) as usize..=((to - 1 - base) / step) as usize {
                let child = base + i as u64 * step;
                external_link(&mut links[i], level - 1, child, (from, to), source, resident_bytes)?;
            }
        }
    }
    Ok(())
}

fn may_map(link: &Link, level: u32, base: u64, from: u64, to: u64) -> bool {
    let (from, to) = (from.max(base), to.min(base + entry_blocks(level + 1)));
    if from >= to {
        return false;
    }
    match link {
        Link::Hole => false,
        Link::Stored(_) => true,
        Link::Clean(_, node) | Link::Dirty(node) => match &**node {
            Node::Leaf(entries) => {
                entries[(from - base) as usize..(to - base) as usize].iter().any(|e| !e.is_hole())
            }
            Node::Inner(links) => {
                let step = entry_blocks(level);
                let (first, last) = ((from - base) / step, (to - 1 - base) / step);
                (first..=last)
                    .any(|i| may_map(&links[i as usize], level - 1, base + i * step, from, to))
            }
        },
    }
}
