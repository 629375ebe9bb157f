//! An open image: its map, its log, and the head on disk.
//!
//! Invariants:
//! - One thread uses an [`Image`] at a time; the image lock makes sure that no other process
//!   writes it.
//! - The durable state is the head's root plus the log from the head's log position on, up to the
//!   last flush. A head never names a page or block that is not durable (I1).
//! - A segment is removed only after a head that no longer needs it is durable, and only where no
//!   snapshot and no clone can name it (I5); see [`reclaim`].

mod access;
mod checkpoint;
mod checkpoint_job;
mod commands;
mod compact;
mod copies;
mod diff;
mod direct;
mod flatten;
mod in_flight;
mod log;
mod memory;
mod open;
mod orphan;
mod overlay;
mod parts;
mod preallocation;
mod prepared;
mod read;
mod reclaim;
mod replay;
mod resize;
mod rest;
mod room;
mod snapshot;
mod write;
mod write_behind;

use std::sync::Arc;

use marcot_backend::SegmentSet;
use marcot_format::record::{HeadRecord, LogPosition, SegmentMarks, SnapshotRecord};
use marcot_format::{ImageId, SnapId};
use marcot_store::{Lock, Running};

use crate::catalog::{Pool, no_snapshot};
use crate::error::{ErrorKind, Result, fail};
use crate::limits::Limits;
use crate::map::Map;
use crate::root::{OwnedRoot, RootOf, Source, empty_root};
use crate::segment::{PageWriter, SegmentName, WrittenPages};
use crate::table::SegmentTable;

use log::Log;
pub(crate) use orphan::forget_child;
pub(crate) use replay::DamagedLog;
pub use snapshot::SNAPSHOTS_MAX;

/// Largest number of a segment in a head: 128 PiB of data written, with room for one session more.
const SEQUENCE_MAX: u32 = u32::MAX - (1 << 20);
/// Largest epoch, version, group and snapshot number in a head.
const COUNTER_MAX: u64 = u64::MAX / 2;

/// How often a reader looks at the head of an image whose owner changes it meanwhile.
const READ_ATTEMPTS_MAX: u32 = 10;

/// What this process may do with the image.
enum Mode {
    /// Alone with it; holds the image lock.
    Owner { _lock: Box<dyn Lock> },
    /// Reads the head as it was when opened; holds the readers' lock where it could get it, so that
    /// what that head names stays.
    Reader { _lock: Option<Box<dyn Lock>> },
    /// Reads a snapshot; holds the snapshot's pin where the pool can be written.
    Snapshot { _pin: Option<Box<dyn Lock>> },
}

/// An open image or snapshot.
///
/// Dropping it without [`Image::close`] loses nothing that was flushed.
pub struct Image {
    pool: Pool,
    id: ImageId,
    /// As last made durable by, or read by, this process.
    head: HeadRecord,
    mode: Mode,
    /// For messages: `pool/image`, `pool/image@snap`.
    label: String,
    size_bytes: u64,
    map: Map,
    table: SegmentTable,
    log: Option<Log>,
    /// Number of the next group.
    group_next: u64,
    /// Next number of each series of segments.
    next: SegmentMarks,
    map_pages: PageWriter,
    /// Table index of the open map segment.
    map_index: u32,
    table_pages: PageWriter,
    /// Bytes of the log since the last checkpoint.
    log_bytes: u64,
    /// The root in memory is newer than the head's.
    changed: bool,
    /// To be removed once the next head is durable.
    dead: Vec<SegmentName>,
    /// Pages that a failed checkpoint could not write.
    pending: Option<WrittenPages>,
    /// A checkpoint in the background.
    checkpoint_job: Option<checkpoint_job::CheckpointJob>,
    log_lost: checkpoint_job::LogLost,
    /// Pages placed from here on may not be on disk yet.
    unwritten_from: Option<memory::Unwritten>,
    compaction: compact::State,
    flattening: flatten::State,
    /// What the log says, of an image that is only read.
    overlay: Option<overlay::Overlay>,
    /// Replay found no room for changed pages.
    spill_failed: bool,
    in_flight: in_flight::State,
    direct: direct::State,
    rest: rest::State,
    /// A segment that was left is being cut.
    cutting: Option<Box<dyn Running>>,
    write_behind: write_behind::WriteBehind,
    prepared: Option<prepared::Prepared>,
    /// What is being done makes room, so the reserve must not be taken again meanwhile.
    spends_reserve: bool,
    /// Something found no room that a checkpoint may make.
    room_wanted: bool,
    /// Heads that are published keep the log of the one before: see [`parts`].
    keeps_log: bool,
    poisoned: bool,
    /// The owner before did not close the image: it may have left segments that no root names.
    unclean: bool,
}

impl Image {
    /// Opens an image for writing: takes its lock and replays its log.
    ///
    /// # Errors
    /// `Owned` where another process has it; `NotFound`, `ReadOnly`, `Corrupt`, `NewerFormat`.
    pub(crate) fn open_owner(pool: &Pool, id: ImageId, damaged_log: DamagedLog) -> Result<Self> {
        let head = pool.read_head(id)?;
        if pool.read_only() {
            let label = pool.image_label(&head);
            let message = format!("{}; {label} cannot be changed", pool.why_read_only());
            return fail(ErrorKind::ReadOnly, message);
        }
        let Some(lock) = pool.lock_image(id)? else {
            let label = pool.image_label(&head);
            let owner = match pool.owner_pid(id) {
                Some(pid) if pid > 0 => format!("process {pid}"),
                _ => "another process".to_owned(),
            };
            return fail(ErrorKind::Owned, format!("{label} is open in {owner}"));
        };
        // Read again: it may have changed until the lock was ours.
        let head = pool.read_head_for_writing(id)?;
        let mut image = Self::assemble(pool, id, head, Mode::Owner { _lock: lock }, None)?;
        image.replay(damaged_log)?;
        Ok(image)
    }

    /// Opens an image as it is on disk, for reading only.
    ///
    /// # Errors
    /// `NotFound`, `Corrupt`, `NewerFormat`.
    pub(crate) fn open_reader(pool: &Pool, id: ImageId, damaged_log: DamagedLog) -> Result<Self> {
        let lock = pool.lock_readers(id);
        let locked = lock.is_some();
        let mut mode = Mode::Reader { _lock: lock };
        let mut attempts = 0;
        loop {
            let head = pool.read_head(id)?;
            let version = head.version;
            let opened = Self::assemble(pool, id, head, mode, None)
                .and_then(|mut image| image.replay(damaged_log).map(|()| image));
            // Without the lock, an owner at work may have removed what this head needs.
            let moved = !locked && pool.read_head(id).is_ok_and(|head| head.version != version);
            attempts += 1;
            match opened {
                Err(_) if moved && attempts < READ_ATTEMPTS_MAX => {
                    mode = Mode::Reader { _lock: None };
                }
                opened => return opened,
            }
        }
    }

    /// Opens a snapshot.
    ///
    /// # Errors
    /// `NotFound`, `Corrupt`, `NewerFormat`.
    pub(crate) fn open_snapshot(pool: &Pool, id: ImageId, snap: SnapId) -> Result<Self> {
        let pin = pool.pin_snapshot(id, snap);
        let head = pool.read_head(id)?;
        let Some(record) = head.snapshots.iter().find(|s| s.id == snap.0).cloned() else {
            return fail(ErrorKind::NotFound, format!("the snapshot {snap} does not exist"));
        };
        Self::assemble(pool, id, head, Mode::Snapshot { _pin: pin }, Some(&record))
    }

    fn assemble(
        pool: &Pool,
        id: ImageId,
        head: HeadRecord,
        mode: Mode,
        snapshot: Option<&SnapshotRecord>,
    ) -> Result<Self> {
        let label = match snapshot {
            Some(s) => format!("{}@{}", pool.image_label(&head), s.name),
            None => pool.image_label(&head),
        };
        let root = snapshot.map_or(&head.root, |s| &s.root).clone().unwrap_or_else(empty_root);
        if root.size_bytes > marcot_format::IMAGE_BYTES_MAX {
            return fail(ErrorKind::Corrupt, format!("{label} has an impossible size"));
        }
        check_counters(&label, &head)?;
        let of = RootOf { pool: pool.clone(), image: id, snap: snapshot.map(|s| SnapId(s.id)) };
        let (map, table) = of.open(&root).map_err(|e| e.context(format!("cannot open {label}")))?;
        let next = head.marks.unwrap_or_default();
        pool.files().image_opened();
        Ok(Self {
            pool: pool.clone(),
            id,
            label,
            size_bytes: root.size_bytes,
            map,
            table,
            log: None,
            group_next: head.log.unwrap_or_default().group,
            next,
            map_pages: PageWriter::default(),
            map_index: 0,
            table_pages: PageWriter::default(),
            log_bytes: 0,
            changed: false,
            dead: Vec::new(),
            pending: None,
            checkpoint_job: None,
            log_lost: checkpoint_job::LogLost::default(),
            unwritten_from: None,
            compaction: compact::State::default(),
            flattening: flatten::State::default(),
            overlay: None,
            spill_failed: false,
            in_flight: in_flight::State::default(),
            direct: direct::State::default(),
            rest: rest::State::default(),
            cutting: None,
            write_behind: write_behind::WriteBehind::default(),
            prepared: None,
            spends_reserve: false,
            room_wanted: false,
            keeps_log: false,
            poisoned: false,
            unclean: false,
            head,
            mode,
        })
    }

    /// The image's number.
    #[must_use]
    pub fn id(&self) -> ImageId {
        self.id
    }

    /// The pool it lies in.
    #[must_use]
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// `pool/image`, or `pool/image@snap`, for messages.
    #[must_use]
    pub fn label(&self) -> &str {
        &self.label
    }

    fn is_owner(&self) -> bool {
        matches!(self.mode, Mode::Owner { .. })
    }

    fn check_owner(&self) -> Result<()> {
        match self.mode {
            Mode::Owner { .. } if self.poisoned => fail(
                ErrorKind::Poisoned,
                format!(
                    "{} lost an earlier write to its medium; close it and open it again",
                    self.label
                ),
            ),
            Mode::Owner { .. } => Ok(()),
            Mode::Reader { .. } => {
                fail(ErrorKind::ReadOnly, format!("{} was opened read-only", self.label))
            }
            Mode::Snapshot { .. } => fail(
                ErrorKind::ReadOnly,
                format!("{} is a snapshot and cannot be written", self.label),
            ),
        }
    }

    fn check_range(&self, offset: u64, length: u64) -> Result<()> {
        if offset.checked_add(length).is_none_or(|end| end > self.size_bytes) {
            let message = format!(
                "{length} bytes at {offset} lie beyond the end of {} ({} bytes)",
                self.label, self.size_bytes
            );
            return fail(ErrorKind::OutOfRange, message);
        }
        Ok(())
    }

    fn limits(&self) -> Limits {
        self.pool.store().limits()
    }

    /// The segments that the image writes.
    fn own_set(&self) -> SegmentSet {
        SegmentSet { author: self.id, copies: 0 }
    }

    /// Whose root a snapshot's or, with `None`, the head's is.
    fn root_of(&self, snap: Option<u64>) -> RootOf {
        RootOf { pool: self.pool.clone(), image: self.id, snap: snap.map(SnapId) }
    }

    fn parts(&mut self) -> (&mut Map, Source<'_>) {
        let files = Arc::clone(self.pool.files());
        (&mut self.map, Source::new(&mut self.table, files))
    }

    /// Makes everything durable and lets go of the image.
    ///
    /// # Errors
    /// `Poisoned`, `Io`: what was flushed stays; reopening replays it. A full disk is no error: all is
    /// durable in the log.
    pub fn close(mut self) -> Result<()> {
        if !self.is_owner() {
            return Ok(());
        }
        self.check_owner()?;
        if self.changed || self.log.is_some() {
            self.retire_log()?;
            match self.after_making_room(Self::checkpoint) {
                // All of it is in the log, which the next owner replays.
                Err(error) if error.kind() == ErrorKind::NoSpace => {
                    tracing::warn!(image = %self.label, %error, "closed without a checkpoint");
                }
                stored => stored?,
            }
        }
        Ok(())
    }

    fn log_position(&self) -> LogPosition {
        match &self.log {
            Some(log) => log.position(self.group_next),
            None if self.keeps_log => self.head.log.unwrap_or_default(),
            None => LogPosition { segment: self.next.data, slot: 1, group: self.group_next },
        }
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        // Nothing must go on when the lock is somebody else's.
        self.abandon_direct();
        if let Some(cutting) = self.cutting.take() {
            cutting.wait();
        }
        self.forget_prepared();
        if let Err(error) = self.settle() {
            tracing::warn!(image = %self.label, %error, "the last checkpoint failed");
        }
        self.pool.files().image_closed(&self.table.authors());
    }
}

/// Fails where a counter has no room left, as only a hostile head can have it.
fn check_counters(label: &str, head: &HeadRecord) -> Result<()> {
    let marks = head.marks.unwrap_or_default();
    let log = head.log.unwrap_or_default();
    let series = [marks.data, marks.map, marks.table, log.segment].into_iter().max().unwrap_or(0);
    let counters = [head.epoch, head.version, head.snap_next, log.group];
    if series > SEQUENCE_MAX || counters.into_iter().max().unwrap_or(0) > COUNTER_MAX {
        return fail(ErrorKind::Corrupt, format!("the head of {label} has impossible counters"));
    }
    Ok(())
}
