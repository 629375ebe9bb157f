//! Nodes of the block map in memory.

use std::sync::Arc;

use marcot_format::page::{Page, page_units};
use marcot_format::{MAP_FANOUT, MapEntry};

/// The child below an entry of an inner node, or the top of a map.
#[derive(Debug, Clone, Default)]
pub(crate) enum Link {
    /// Nothing mapped.
    #[default]
    Hole,
    /// On disk, not loaded.
    Stored(MapEntry),
    /// Loaded, the same as on disk.
    Clean(MapEntry, Arc<Node>),
    /// Newer than any page on disk.
    Dirty(Arc<Node>),
}

impl Link {
    /// From the entry on disk.
    pub(crate) fn stored(entry: MapEntry) -> Self {
        if entry.is_hole() { Self::Hole } else { Self::Stored(entry) }
    }

    /// The entry that a page on disk would hold. Dirty links have none yet.
    pub(crate) fn entry(&self) -> Option<MapEntry> {
        match self {
            Self::Hole => Some(MapEntry::HOLE),
            Self::Stored(entry) | Self::Clean(entry, _) => Some(*entry),
            Self::Dirty(_) => None,
        }
    }

    pub(crate) fn is_hole(&self) -> bool {
        matches!(self, Self::Hole)
    }
}

/// Entries of a leaf.
pub(crate) type Leaf = [MapEntry; MAP_FANOUT];

/// A node: the leaf level names blocks, the others name pages.
#[derive(Debug, Clone)]
pub(crate) enum Node {
    Leaf(Box<Leaf>),
    Inner(Box<[Link]>),
}

impl Node {
    /// A node of `level` that maps nothing.
    pub(crate) fn empty(level: u32) -> Self {
        if level == 0 {
            Self::Leaf(Box::new([MapEntry::HOLE; MAP_FANOUT]))
        } else {
            Self::Inner(vec![Link::Hole; MAP_FANOUT].into_boxed_slice())
        }
    }

    /// A node of `level` that replaces a damaged page: all its entries are lost.
    pub(crate) fn lost(level: u32) -> Self {
        Self::filled(level, MapEntry::LOST)
    }

    /// A node of `level` below an external entry: all its entries are external.
    pub(crate) fn external(level: u32) -> Self {
        Self::filled(level, MapEntry::EXTERNAL)
    }

    fn filled(level: u32, entry: MapEntry) -> Self {
        if level == 0 {
            Self::Leaf(Box::new([entry; MAP_FANOUT]))
        } else {
            Self::Inner(vec![Link::Stored(entry); MAP_FANOUT].into_boxed_slice())
        }
    }

    /// From a page on disk.
    pub(crate) fn from_page(page: Page) -> Self {
        if page.level == 0 {
            Self::Leaf(page.entries)
        } else {
            Self::Inner(page.entries.iter().map(|e| Link::stored(*e)).collect())
        }
    }

    /// Entries in use.
    pub(crate) fn used(&self) -> usize {
        match self {
            Self::Leaf(entries) => entries.iter().filter(|e| !e.is_hole()).count(),
            Self::Inner(links) => links.iter().filter(|l| !l.is_hole()).count(),
        }
    }

    /// Units that the node's page takes in a map segment.
    pub(crate) fn units(&self) -> u32 {
        page_units(self.used())
    }

    /// Memory in bytes, without the nodes below.
    pub(crate) fn memory_bytes(&self) -> u64 {
        let entries = match self {
            Self::Leaf(_) => size_of::<Leaf>(),
            Self::Inner(links) => size_of_val::<[Link]>(links),
        };
        entries as u64 + 64
    }
}
