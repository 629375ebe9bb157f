//! Segment files: their names, a bounded cache of open ones, and writing new ones.

mod files;
mod groups;
mod need;
mod pages;
mod series;
#[cfg(test)]
mod tests;

use std::fmt;

use marcot_backend::{SegmentKey, SegmentSet};
use marcot_format::segment::SegmentKind;
use marcot_format::{ImageId, PoolId};

pub(crate) use files::{Authors, Files, Place};
pub(crate) use groups::{group_at, groups, read_blocks};
pub(crate) use need::{Need, NeedPlace};
pub(crate) use pages::{PageWriter, WrittenPages};
pub(crate) use series::Series;

/// The name of a segment. It is the same for all roots, unlike an index into a root's segment table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct SegmentName {
    /// The pool where it lies.
    pub pool: PoolId,
    /// The set of copies that it belongs to; 0 where its author wrote it there.
    pub copies: u64,
    /// The image that wrote it.
    pub author: ImageId,
    /// The series: data, map or table.
    pub kind: SegmentKind,
    /// Number in the series.
    pub sequence: u32,
}

impl SegmentName {
    /// The name of the segment with this key in a pool.
    pub(crate) fn of(pool: PoolId, key: SegmentKey) -> Self {
        let SegmentKey { set: SegmentSet { author, copies }, kind, sequence } = key;
        Self { pool, copies, author, kind, sequence }
    }

    /// Its key in its pool.
    pub(crate) fn key(self) -> SegmentKey {
        let Self { pool: _, copies, author, kind, sequence } = self;
        SegmentKey { set: SegmentSet { author, copies }, kind, sequence }
    }
}

impl fmt::Display for SegmentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}{:08x}", self.author, self.kind.letter(), self.sequence)
    }
}
