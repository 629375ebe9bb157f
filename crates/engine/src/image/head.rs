//! The durable head of an open image: what it names, what only it names, and how it is replaced.
//!
//! A head is replaced by the head that follows it, in one step, and only where it is still the one that this
//! process wrote last (I6).

use std::sync::Arc;

use marcot_backend::Stamp;
use marcot_format::record::{HeadRecord, LogPosition, SegmentMarks};
use marcot_format::segment::SegmentKind;

use super::tenure::reserved_from;
use crate::catalog::Identity;
use crate::error::{ErrorKind, Result, fail};
use crate::fault::{self, Fault};
use crate::segment::SegmentName;

/// Largest number of a segment in a head: 128 PiB of data written, with room for one session more.
const SEQUENCE_MAX: u32 = u32::MAX - (1 << 20);
/// Largest epoch, version, group and snapshot number in a head.
const COUNTER_MAX: u64 = u64::MAX / 2;

/// The head as this process wrote it last, or read it.
pub(super) struct Head {
    image: Arc<Identity>,
    record: HeadRecord,
    /// The heads that follow keep the log of this one: see [`super::parts`].
    pub keeps_log: bool,
}

/// Where the journal and the series stand, for the next head.
#[derive(Clone, Copy)]
pub(super) struct Progress {
    /// Where the next group will start.
    pub log: LogPosition,
    /// The journal is open, so that its epoch goes on.
    pub log_is_open: bool,
    /// Numbers of the next segments.
    pub marks: SegmentMarks,
    /// The first segment of each series that may still be appended to.
    pub open_from: SegmentMarks,
    /// Number of the next part of the log that is shipped, where it is.
    pub next_part: Option<u64>,
}

impl Progress {
    /// Lets the log of a head begin here.
    pub(super) fn begin_log(&self, head: &mut HeadRecord) {
        head.log = Some(self.log);
        head.marks = Some(self.marks);
        if let Some(next) = self.next_part {
            head.log_first = next;
            // After a close, nobody gives numbers to segments.
            let closed = head.owner.as_ref().is_some_and(|owner| owner.closed);
            head.reserved = Some(if closed { self.marks } else { reserved_from(&self.marks) });
        }
    }
}

impl std::ops::Deref for Head {
    type Target = HeadRecord;

    fn deref(&self) -> &HeadRecord {
        &self.record
    }
}

impl Head {
    /// # Errors
    /// `Corrupt` where a counter has no room left, as only a hostile head can have it.
    pub(super) fn new(image: Arc<Identity>, record: HeadRecord) -> Result<Self> {
        let marks = record.marks.unwrap_or_default();
        let log = record.log.unwrap_or_default();
        let series = marks.data.max(marks.map).max(marks.table).max(log.sequence);
        let counters = [record.epoch, record.version, record.snap_next, log.group];
        if series > SEQUENCE_MAX || counters.into_iter().max().unwrap_or(0) > COUNTER_MAX {
            let message = format!("the head of {} has impossible counters", image.label);
            return fail(ErrorKind::Corrupt, message);
        }
        Ok(Self { image, record, keeps_log: false })
    }

    /// The head that is to follow this one, with the changes of `next`.
    ///
    /// While the journal is not open, the new head starts a log that is empty: behind all segments that
    /// exist, and in an epoch of its own. So replay does not accept what an owner that was replaced still
    /// appends to the old log (I6).
    pub(super) fn following(&self, mut next: HeadRecord, progress: Progress) -> HeadRecord {
        if !progress.log_is_open && !self.keeps_log {
            next.epoch += 1;
            progress.begin_log(&mut next);
        }
        next.open_from = Some(progress.open_from);
        self.next_version(next)
    }

    /// `next` with the next version and the present time.
    pub(super) fn next_version(&self, mut next: HeadRecord) -> HeadRecord {
        next.version += 1;
        next.modified_s = self.image.pool.files().world().clock.now_s();
        next
    }

    /// Version and epoch, by which a back end identifies the head.
    pub(super) fn stamp(&self) -> Stamp {
        Stamp::of(&self.record)
    }

    /// Writes a head that names nothing new, with the pool's reserve where the disk is full. This is how
    /// snapshots are removed on a full disk.
    ///
    /// # Errors
    /// `Fenced` where another owner has replaced it; `Poisoned`; those of writing.
    pub(super) fn replace(&mut self, next: HeadRecord) -> Result<()> {
        let pool = &self.image.pool;
        pool.with_reserve(|| pool.swap_head(self.image.id, self.stamp(), &next))?;
        self.record = next;
        Ok(())
    }

    /// A checkpoint has replaced the head by this one.
    pub(super) fn was_replaced(&mut self, next: HeadRecord) {
        self.record = next;
    }

    /// A deliberate fault: forgets a snapshot that the durable head still has.
    pub(super) fn forget_snapshot(&mut self, id: u64) {
        self.record.snapshots.retain(|s| s.id != id);
    }

    /// Fails where a later owner has taken the image over (I6).
    ///
    /// In a bucket that would take a request. There a head of this owner is refused, and so is its log.
    pub(super) fn check_not_fenced(&self) -> Result<()> {
        if self.image.pool.segments().shipping().is_some() {
            return Ok(());
        }
        let found = self.image.pool.read_head(self.image.id)?;
        if Stamp::of(&found) != self.stamp() && !fault::is(Fault::SkipFence) {
            let label = self.image.pool.image_label(&found);
            let message = format!("{label} was taken over by another process");
            return fail(ErrorKind::Fenced, message);
        }
        Ok(())
    }

    /// True where only this head can name the segment, and no snapshot or clone (I5).
    pub(super) fn is_private(&self, name: &SegmentName) -> bool {
        self.is_own(name) && name.sequence >= self.private_from(name.kind)
    }

    fn is_own(&self, name: &SegmentName) -> bool {
        name.author == self.image.id && name.pool == self.image.pool.id() && name.copies == 0
    }

    /// The first numbers that no snapshot and no clone names.
    pub(super) fn private_marks(&self) -> SegmentMarks {
        SegmentMarks {
            data: self.private_from(SegmentKind::Data),
            map: self.private_from(SegmentKind::Map),
            table: self.private_from(SegmentKind::Table),
        }
    }

    /// First number of a series that no snapshot and no clone names.
    fn private_from(&self, kind: SegmentKind) -> u32 {
        let of = |marks: &SegmentMarks| marks.of(kind);
        let shared = self.record.shared_below.as_ref().map_or(0, of);
        let snapshots = self.record.snapshots.iter().filter_map(|s| s.marks.as_ref()).map(of);
        snapshots.max().unwrap_or(0).max(shared)
    }

    /// True for a segment of the log, while the next heads keep the log.
    pub(super) fn keeps(&self, name: &SegmentName) -> bool {
        let first = self.record.log.filter(|_| self.keeps_log).map(|log| log.sequence);
        let in_log = first.is_some_and(|first| name.sequence >= first);
        in_log && self.is_own(name) && name.kind == SegmentKind::Data
    }
}
