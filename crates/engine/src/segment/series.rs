//! The numbers of an image's own segments.

use std::sync::Arc;

use marcot_format::record::SegmentMarks;
use marcot_format::segment::SegmentKind;
use marcot_format::{ImageId, PoolId};
use marcot_store::DiskFile;

use super::{Files, SegmentName};
use crate::error::{ErrorKind, Result, fail};

/// The three series of segments that an image writes, and the next number of each. No number is given twice.
pub(crate) struct Series {
    files: Arc<Files>,
    pool: PoolId,
    author: ImageId,
    next: SegmentMarks,
    /// Numbers from these on may not be given yet: see [`Self::reserve`].
    limit: SegmentMarks,
}

const NO_LIMIT: SegmentMarks = SegmentMarks { data: u32::MAX, map: u32::MAX, table: u32::MAX };

impl Series {
    /// `next`: the numbers that the head has for the next segments.
    pub(crate) fn new(
        files: Arc<Files>,
        pool: PoolId,
        author: ImageId,
        next: SegmentMarks,
    ) -> Self {
        Self { files, pool, author, next, limit: NO_LIMIT }
    }

    /// A durable head reserves the numbers below these. A later owner begins behind them, even if this one is still
    /// at work then.
    pub(crate) fn reserve(&mut self, below: SegmentMarks) {
        self.limit = below;
    }

    /// True where the number of a segment may be given.
    pub(crate) fn may_give(&self, name: SegmentName) -> bool {
        name.sequence < self.limit.of(name.kind)
    }

    /// Fails where the number of a segment may not be given yet.
    ///
    /// # Errors
    /// `NoSpace`.
    pub(crate) fn check(&self, name: SegmentName) -> Result<()> {
        if self.may_give(name) {
            return Ok(());
        }
        let message =
            "as many segments were written as there may be before a checkpoint, and none succeeds";
        fail(ErrorKind::NoSpace, message)
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
    /// `NoSpace` where the number may not be given yet. `Exists` where the segment exists already. If the head is still ours, only an owner that was replaced
    /// can have created it.
    pub(crate) fn create(
        &mut self,
        kind: SegmentKind,
        epoch: u64,
    ) -> Result<(SegmentName, Arc<dyn DiskFile>)> {
        let name = self.next_name(kind);
        self.check(name)?;
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

#[cfg(test)]
mod tests {
    use marcot_store::World;

    use super::*;

    #[test]
    fn numbers_that_no_head_reserves_are_not_given() {
        let files = Arc::new(Files::new(World::system()));
        let next = SegmentMarks { data: 5, map: 6, table: 7 };
        let mut series = Series::new(files, PoolId(1), ImageId(2), next);
        let data = series.next_name(SegmentKind::Data);
        assert!(series.may_give(data));
        series.reserve(next);
        for kind in [SegmentKind::Data, SegmentKind::Map, SegmentKind::Table] {
            let refused = series.create(kind, 1).map(drop).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::NoSpace);
        }
        series.reserve(SegmentMarks { data: 6, ..next });
        assert!(series.may_give(data));
    }
}
