//! The numbers of an image's own segments.

use std::sync::Arc;

use marcot_format::record::SegmentMarks;
use marcot_format::segment::SegmentKind;
use marcot_format::{ImageId, PoolId};
use marcot_store::DiskFile;

use super::{Files, SegmentName};
use crate::error::Result;

/// The three series of segments that an image writes, and the next number of each. No number is given twice.
pub(crate) struct Series {
    files: Arc<Files>,
    pool: PoolId,
    author: ImageId,
    next: SegmentMarks,
}

impl Series {
    /// `next`: the numbers that the head has for the next segments.
    pub(crate) fn new(
        files: Arc<Files>,
        pool: PoolId,
        author: ImageId,
        next: SegmentMarks,
    ) -> Self {
        Self { files, pool, author, next }
    }

    /// The numbers of the next segments, as a head has them.
    pub(crate) fn marks(&self) -> SegmentMarks {
        self.next
    }

    /// The segment of a series with a number.
    pub(crate) fn name(&self, kind: SegmentKind, sequence: u32) -> SegmentName {
        SegmentName { pool: self.pool, copies: 0, author: self.author, kind, sequence }
    }

    /// The next segment of a series.
    pub(crate) fn next_name(&self, kind: SegmentKind) -> SegmentName {
        self.name(kind, self.next.of(kind))
    }

    /// Creates the next segment of a series.
    ///
    /// # Errors
    /// `Exists` where the segment exists already. If the head is still ours, only an owner that was replaced
    /// can have created it.
    pub(crate) fn create(
        &mut self,
        kind: SegmentKind,
        epoch: u64,
    ) -> Result<(SegmentName, Arc<dyn DiskFile>)> {
        let name = self.next_name(kind);
        let file = self.files.create(name, epoch)?;
        self.used(name);
        Ok((name, file))
    }

    /// Notes that a segment exists, so that its number and those before it are not given again.
    pub(crate) fn used(&mut self, name: SegmentName) {
        let next = match name.kind {
            SegmentKind::Data => &mut self.next.data,
            SegmentKind::Map => &mut self.next.map,
            SegmentKind::Table => &mut self.next.table,
        };
        *next = (*next).max(name.sequence + 1);
    }
}
