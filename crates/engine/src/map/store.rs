//! Pages between memory and disk: loading, writing dirty ones, dropping clean ones.

use std::sync::Arc;

use marcot_format::{BlockAddress, MAP_FANOUT, MapEntry};

use super::{Link, Node, entry_blocks};
use crate::error::{Error, Result};

/// Loads pages, and counts what the root names.
pub(crate) trait PageSource {
    /// Reads and verifies the page at `entry`, which must be of `level` and start at `base`.
    fn load(&mut self, entry: MapEntry, level: u32, base: u64) -> Result<Node>;

    /// Makes sure that [`Self::release`] at `address` needs no I/O.
    fn touch(&mut self, address: BlockAddress) -> Result<()>;

    /// Says whether a page that could not be loaded is given up for good. Replay gives up damaged
    /// pages, because it has to change entries below them. Where this is false, the error is
    /// returned.
    fn give_up(&mut self, error: &Error, level: u32, base: u64) -> bool;

    /// The root no longer names `slots` slots (or units) at `address`.
    fn release(&mut self, address: BlockAddress, slots: u32) -> Result<()>;
}

/// Takes dirty pages.
pub(crate) trait PageSink {
    /// Takes a page and returns its entry.
    fn write(
        &mut self,
        level: u32,
        base: u64,
        entries: &[MapEntry; MAP_FANOUT],
    ) -> Result<MapEntry>;
}

/// Writes the dirty nodes below and at `link`, children first, and returns the link's entry.
pub(super) fn store_link(
    link: &mut Link,
    level: u32,
    base: u64,
    sink: &mut dyn PageSink,
) -> Result<MapEntry> {
    let Link::Dirty(node) = link else {
        return Ok(link.entry().unwrap_or(MapEntry::HOLE));
    };
    let mut below;
    let entries = if let Node::Leaf(leaf) = &**node {
        &**leaf
    } else {
        below = Box::new([MapEntry::HOLE; MAP_FANOUT]);
        if let Node::Inner(links) = Arc::make_mut(node) {
            for (i, child) in links.iter_mut().enumerate() {
                let child_base = base + i as u64 * entry_blocks(level);
                below[i] = store_link(child, level - 1, child_base, sink)?;
            }
        }
        &*below
    };
    if entries.iter().all(MapEntry::is_hole) {
        *link = Link::Hole;
        return Ok(MapEntry::HOLE);
    }
    let entry = sink.write(level, base, entries)?;
    *link = Link::Clean(entry, Arc::clone(node));
    Ok(entry)
}

/// Drops clean nodes, deepest first, until about `bytes_max` are left. Returns the bytes left.
pub(super) fn evict(top: &mut Link, bytes_max: u64, on_disk: &dyn Fn(MapEntry) -> bool) -> u64 {
    let mut left = resident(top);
    drop_clean(top, &mut left, bytes_max, on_disk);
    left
}

fn resident(link: &Link) -> u64 {
    let (Link::Clean(_, node) | Link::Dirty(node)) = link else { return 0 };
    let below = match &**node {
        Node::Leaf(_) => 0,
        Node::Inner(links) => links.iter().map(resident).sum(),
    };
    node.memory_bytes() + below
}

fn drop_clean(link: &mut Link, left: &mut u64, bytes_max: u64, on_disk: &dyn Fn(MapEntry) -> bool) {
    if *left <= bytes_max {
        return;
    }
    if let Link::Clean(entry, node) = link
        && let Node::Leaf(_) = &**node
    {
        if !on_disk(*entry) {
            return;
        }
        *left -= node.memory_bytes();
        *link = Link::Stored(*entry);
        return;
    }
    let (Link::Clean(_, node) | Link::Dirty(node)) = link else { return };
    let Node::Inner(links) = Arc::make_mut(node) else { return };
    for child in links.iter_mut() {
        drop_clean(child, left, bytes_max, on_disk);
    }
    let empty = links.iter().all(|l| matches!(l, Link::Hole | Link::Stored(_)));
    if let Link::Clean(entry, node) = link
        && empty
        && *left > bytes_max
        && on_disk(*entry)
    {
        *left -= node.memory_bytes();
        *link = Link::Stored(*entry);
    }
}
