//! Roots: what names an image's content at one moment, read from the medium.
//!
//! A root is a block map, a segment table and a size. This module opens roots and counts what they name.
//! It changes nothing.

mod count;
mod lineage;
mod source;

use std::collections::BTreeMap;

use marcot_format::record::RootRecord;

use crate::error::{ErrorKind, Result};
use crate::map::Link;
use marcot_format::SegmentIndex;

pub(crate) use count::{Change, Counts, TABLE_BYTES_MAX, blocks_below};
pub(crate) use lineage::{AncestorPlaces, OwnedRoot, RootOf};
pub(crate) use source::Source;

/// The root of an image that nobody has written yet, of 0 bytes.
pub(crate) fn empty_root() -> RootRecord {
    RootRecord { segment_next: 1, ..RootRecord::default() }
}

/// The damaged pages of a map: level and first block of each.
pub(crate) fn damaged_pages(top: &Link, source: &mut Source<'_>) -> Vec<(u32, u64)> {
    let (counts, _) = Counts::of(top, source);
    let damaged = counts.unreadable.iter().filter(|(_, (_, e))| e.kind() == ErrorKind::Corrupt);
    damaged.map(|(base, (level, _))| (*level, *base)).collect()
}

/// The true counts of a map, for repair: slots by table index, and blocks mapped.
pub(crate) fn count_all(
    top: &Link,
    source: &mut Source<'_>,
) -> Result<(BTreeMap<SegmentIndex, u64>, u64)> {
    let (counts, _) = Counts::of(top, source);
    match counts.unreadable.into_values().next() {
        Some((_, error)) => Err(error),
        None => Ok((counts.live, counts.mapped)),
    }
}
