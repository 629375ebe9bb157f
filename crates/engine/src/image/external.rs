//! The target of a migration whose source lies outside the store.
//!
//! What was not written or copied yet has external entries in the map (see `marcot_format::BlockAddress::EXTERNAL`), and
//! is read from the source at the same offset. Copying replaces them by ordinary writes of the same content, and by
//! discards where there are zeros. So after an interruption the map says what is left.
//!
//! The image's thread waits for the source only where a caller of the library does. A worker reads what is copied
//! ([`SourceRead`]), what guests read, and the rest of blocks that they write in part (`parked`).

use std::ops::Range;
use std::sync::Arc;

use marcot_format::record::{HeadRecord, MigrationRecord, MigrationState};
use marcot_format::{BLOCK_BYTES, IMAGE_BYTES_MAX, MapEntry};
use marcot_store::Task;

use super::{FlattenPart, Image};
use crate::catalog::Pool;
use crate::catalog::migration::set_state;
use crate::device::Write;
use crate::error::{ErrorKind, Result, fail};
use crate::external::External;
use crate::map::{TOP_LEVEL, Visitor, visit};

/// Most bytes that are read at a time.
const PART_BYTES: u64 = 4 << 20;
/// Most bytes of a hole that are handled at a time.
const HOLE_BYTES_MAX: u64 = 1 << 30;
/// The level of the format that knows external entries: a program of a lower one would take them for lost.
const LEVEL: u32 = 4;
const BLOCK: usize = BLOCK_BYTES as usize;

/// The source that an image with this head is migrated from; `None` where there is none outside the store.
pub(super) fn source_of(pool: &Pool, head: &HeadRecord, label: &str) -> Option<Arc<External>> {
    let record = head.migration.as_ref().filter(|record| record.is_external())?;
    // What somebody else has written names no file and no server that this process would open.
    let refused = match () {
        () if pool.foreign().is_some() => Some("its pool belongs to another user"),
        () if pool.segments().shipping().is_some() => Some("its pool lies in a bucket"),
        () => None,
    };
    let how = (pool.store().external_sources(), pool.files().world().clone());
    Some(External::new(record, label, refused, how))
}

/// What is done where a worker is still reading the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Patience {
    /// The caller comes again.
    None,
    /// It is waited for.
    Waits,
}

/// A part of the source that a worker reads: the external blocks from `first` to before `end`, or the start of them.
pub(super) struct SourceRead {
    first: u64,
    end: u64,
    /// What it gives is the content, and how many blocks that is.
    task: Task<Result<(Content, u64)>>,
}

/// What the source has somewhere.
enum Content {
    Hole,
    Data(Vec<u8>),
}

impl Image {
    /// Makes the image, which is being made and has no users yet, the target of a migration from a source outside the
    /// store, and leaves `ranges` of it (offset and length, in bytes) to that source. They begin and end between blocks,
    /// or with the image. `spec` says how the source is opened, and `state` tells its present state from all others
    /// ([`crate::ExternalSources`]).
    ///
    /// # Errors
    /// `Invalid` for a range that is not as it should be; `Unsupported` in a bucket; those of a checkpoint.
    pub fn leave_to_source(
        &mut self,
        spec: &str,
        state: &str,
        ranges: &[(u64, u64)],
    ) -> Result<()> {
        self.managed(|image| {
            image.check_owner()?;
            let pool = image.identity.pool.clone();
            pool.check_takes_sources()?;
            pool.require_level(LEVEL)?;
            let record = MigrationRecord {
                source_spec: spec.to_owned(),
                source_state: state.to_owned(),
                ..MigrationRecord::default()
            };
            for (offset, length) in ranges {
                image.check_range(*offset, *length)?;
                let end = offset + length;
                if !offset.is_multiple_of(BLOCK_BYTES)
                    || (!end.is_multiple_of(BLOCK_BYTES) && end != image.state.size_bytes)
                {
                    return fail(ErrorKind::Invalid, "a part of the source begins inside a block");
                }
                let (from, to) = (offset / BLOCK_BYTES, end.div_ceil(BLOCK_BYTES));
                let (map, mut source) = image.state.parts();
                map.clear(from, to, &mut source)?;
                map.set_external(from, to, &mut source)?;
                image.state.changed = true;
            }
            image.checkpoint_with(|head| head.migration = Some(record.clone()))?;
            image.external = source_of(&pool, &image.head, &image.identity.label);
            Ok(())
        })
    }

    /// True for the target of a migration from outside the store.
    pub(super) fn is_from_outside(&self) -> bool {
        self.head.migration.as_ref().is_some_and(MigrationRecord::is_external)
    }

    /// Fails where a snapshot would keep what has not been copied yet.
    pub(super) fn check_all_is_here(&self) -> Result<()> {
        let state = self.head.migration.as_ref().filter(|_| self.is_from_outside());
        match state.is_some_and(|record| record.state() != MigrationState::Executed) {
            true => {
                let message = format!(
                    "{} has not been copied from its source yet; 'migration execute' does that, and snapshots can be taken afterwards",
                    self.identity.label
                );
                fail(ErrorKind::Busy, message)
            }
            false => Ok(()),
        }
    }

    /// What is left to copy, while a worker is still reading the next part of it.
    pub(super) fn awaits_source(&mut self) -> Option<FlattenPart> {
        let is_under_way = self.source_read.as_mut().is_some_and(|read| !read.task.is_finished());
        is_under_way.then(|| FlattenPart {
            left_blocks: self.left_outside(),
            more: true,
            waits: true,
        })
    }

    /// Copies some of what lies outside the store. A worker reads it, and then what is copied next, while this is
    /// written.
    pub(super) fn copy_from_source(&mut self, patience: Patience) -> Result<FlattenPart> {
        self.check_owner()?;
        if self.source_read.is_none() {
            self.source_read = self.begin_source_read(self.state.copied_below)?;
        }
        if patience == Patience::None
            && let Some(part) = self.awaits_source()
        {
            return Ok(part);
        }
        let Some(SourceRead { first, end, task }) = self.source_read.take() else {
            self.state.copied_below = self.blocks();
            return Ok(FlattenPart { left_blocks: 0, more: false, waits: false });
        };
        let read = task.wait().unwrap_or_else(|| fail(ErrorKind::Io, "the source was not read"));
        let (content, blocks) = read?;
        let end = end.min(first + blocks);
        self.source_read = self.begin_source_read(end)?;
        if let Err(error) = self.take_content((first, end), &content) {
            // The next attempt begins here again.
            self.source_read = None;
            return Err(error);
        }
        self.state.copied_below = end;
        Ok(FlattenPart { left_blocks: self.left_outside(), more: true, waits: false })
    }

    /// The size in blocks.
    fn blocks(&self) -> u64 {
        self.state.size_bytes.div_ceil(BLOCK_BYTES)
    }

    /// How many blocks may be left to copy; at least one.
    fn left_outside(&self) -> u64 {
        self.blocks().saturating_sub(self.state.copied_below).max(1)
    }

    /// Has a worker read the start of the next external range; `None` where there is none from block `from` on.
    fn begin_source_read(&mut self, from: u64) -> Result<Option<SourceRead>> {
        let Some((first, end)) = self.external_ranges((from, u64::MAX), 1)?.pop() else {
            return Ok(None);
        };
        let Some(source) = self.external.clone() else {
            return fail(ErrorKind::Corrupt, "the head does not say where the source is");
        };
        let (offset, stop) = (first * BLOCK_BYTES, (end * BLOCK_BYTES).min(self.state.size_bytes));
        let length = stop.saturating_sub(offset);
        let workers = &*self.identity.pool.files().world().workers;
        let task = Task::start(workers, move || read_part(&source, offset, length));
        Ok(Some(SourceRead { first, end, task }))
    }

    /// Writes what was read of the source, where the image still leaves blocks to it. What was written meanwhile stays.
    ///
    /// Requests that are parked may be overtaken: this changes no content.
    fn take_content(&mut self, (first, end): (u64, u64), content: &Content) -> Result<()> {
        for (from, to) in self.external_ranges((first, end), usize::MAX)? {
            let (offset, stop) =
                (from * BLOCK_BYTES, (to * BLOCK_BYTES).min(self.state.size_bytes));
            let length = stop.saturating_sub(offset);
            if length == 0 {
                continue;
            }
            let Content::Data(bytes) = content else {
                self.discard_now(offset, length)?;
                continue;
            };
            let within = (offset - first * BLOCK_BYTES) as usize;
            for (range, is_zero) in runs(&bytes[within..within + length as usize]) {
                let at = offset + range.start as u64;
                let data = &bytes[within + range.start..within + range.end];
                match is_zero {
                    true => self.discard_now(at, data.len() as u64)?,
                    false => self.write_now(&[Write { offset: at, data }])?,
                }
            }
        }
        Ok(())
    }

    /// Ends the copying. From the head on that this stores, the image names nothing outside the store.
    pub(super) fn end_copy_from_source(
        &mut self,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<()> {
        // A read that has begun before may have to do with a state that was replaced.
        (self.state.copied_below, self.source_read) = (0, None);
        let mut total = 0;
        loop {
            let part = self.copy_from_source(Patience::Waits)?;
            if !part.more {
                break;
            }
            total = total.max(part.left_blocks);
            progress(total - part.left_blocks, total);
        }
        self.checkpoint_with(|head| set_state(head, MigrationState::Executed))
    }

    /// Fails where the image still names something outside the store.
    pub(super) fn check_copied_from_source(&mut self) -> Result<()> {
        match self.external_ranges((0, u64::MAX), 1)?.is_empty() {
            true => Ok(()),
            false => {
                let message = format!("{} still needs its source", self.identity.label);
                fail(ErrorKind::Corrupt, message)
            }
        }
    }

    /// Publishes a head without the migration.
    pub(super) fn leave_source(&mut self) -> Result<()> {
        self.publish(|head: &mut HeadRecord| head.migration = None)?;
        (self.external, self.source_read) = (None, None);
        Ok(())
    }

    /// The first `max` external ranges that begin in a range of blocks, each by its first block and the one behind its last
    /// one. They end with the range.
    fn external_ranges(&mut self, range: (u64, u64), max: usize) -> Result<Vec<(u64, u64)>> {
        let top = self.state.map.top().clone();
        let (_, mut source) = self.state.parts();
        let range = (range.0, range.1.min(IMAGE_BYTES_MAX / BLOCK_BYTES));
        let mut found = ExternalRanges { ranges: Vec::new(), max };
        visit(&top, TOP_LEVEL, 0, range, &mut source, &mut found)?;
        Ok(found.ranges)
    }
}

/// Reads the start of a part of the source, whole blocks: its content, and how many blocks that is. A block at the end
/// of the image has zeros behind that.
fn read_part(source: &External, offset: u64, length: u64) -> Result<(Content, u64)> {
    let hole = source.hole(offset, length.min(HOLE_BYTES_MAX))?;
    // Of a hole that ends inside a block, the rest of the block is read.
    let hole_blocks = match hole == length {
        true => hole.div_ceil(BLOCK_BYTES),
        false => hole / BLOCK_BYTES,
    };
    if hole_blocks > 0 {
        return Ok((Content::Hole, hole_blocks));
    }
    let length = length.min(PART_BYTES) as usize;
    let mut bytes = vec![0; length.next_multiple_of(BLOCK)];
    source.read(offset, &mut bytes[..length])?;
    if length < bytes.len() {
        // Whoever writes it covers it in part, and needs the rest.
        source.fetch(offset + (length / BLOCK * BLOCK) as u64);
    }
    let blocks = (bytes.len() / BLOCK) as u64;
    Ok((Content::Data(bytes), blocks))
}

/// Gathers ranges of external blocks.
struct ExternalRanges {
    ranges: Vec<(u64, u64)>,
    max: usize,
}

impl ExternalRanges {
    /// False where what comes next belongs to no range that is wanted.
    fn go_on(&self) -> bool {
        self.ranges.len() < self.max
    }
}

impl Visitor for ExternalRanges {
    fn external(&mut self, first: u64, blocks: u64) -> Result<bool> {
        let goes_on = self.go_on();
        match self.ranges.last_mut() {
            Some((_, end)) if *end == first => *end += blocks,
            _ if !goes_on => return Ok(false),
            _ => self.ranges.push((first, first + blocks)),
        }
        let long = self.ranges.last().is_some_and(|(a, b)| (b - a) * BLOCK_BYTES >= HOLE_BYTES_MAX);
        Ok(self.go_on() || !long)
    }

    fn lost(&mut self, _: u64, _: u64) -> Result<bool> {
        Ok(self.go_on())
    }

    fn block(&mut self, _: u64, _: MapEntry) -> Result<bool> {
        Ok(self.go_on())
    }
}

/// Runs of blocks that are zeros, and of others.
fn runs(bytes: &[u8]) -> Vec<(Range<usize>, bool)> {
    let mut runs: Vec<(Range<usize>, bool)> = Vec::new();
    let mut at = 0;
    for block in bytes.chunks(BLOCK) {
        let is_zero = block.iter().all(|byte| *byte == 0);
        let end = at + block.len();
        match runs.last_mut() {
            Some((range, zero)) if *zero == is_zero => range.end = end,
            _ => runs.push((at..end, is_zero)),
        }
        at = end;
    }
    runs
}
