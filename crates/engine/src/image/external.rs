//! The target of a migration whose source lies outside the store.
//!
//! What was not written or copied yet has external entries in the map (see `marcot_format::BlockAddress::EXTERNAL`), and
//! is read from the source at the same offset. Copying replaces them by ordinary writes of the same content, and by
//! discards where there are zeros. So after an interruption the map says what is left.

use std::ops::Range;
use std::sync::Arc;

use marcot_format::record::{HeadRecord, MigrationRecord, MigrationState};
use marcot_format::{BLOCK_BYTES, IMAGE_BYTES_MAX, MapEntry};

use super::Image;
use super::migration::set_state;
use crate::catalog::Pool;
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

    /// Copies some of what lies outside the store. Returns how many blocks may be left, and whether more is to be
    /// looked at.
    pub(super) fn copy_from_source(&mut self) -> Result<(u64, bool)> {
        self.check_owner()?;
        let end = self.state.size_bytes.div_ceil(BLOCK_BYTES);
        let Some((first, blocks)) = self.next_external(self.state.copied_below)? else {
            self.state.copied_below = end;
            return Ok((0, false));
        };
        let offset = first * BLOCK_BYTES;
        let length = (blocks * BLOCK_BYTES).min(self.state.size_bytes.saturating_sub(offset));
        let copied_bytes = self.copy_part(offset, length)?;
        self.state.copied_below = (offset + copied_bytes).div_ceil(BLOCK_BYTES);
        Ok((end.saturating_sub(self.state.copied_below).max(1), true))
    }

    /// Copies the start of a range that lies outside the store, and returns how much of it.
    fn copy_part(&mut self, offset: u64, length: u64) -> Result<u64> {
        let Some(source) = self.external.clone() else {
            return fail(ErrorKind::Corrupt, "the head does not say where the source is");
        };
        let end = offset + length;
        let hole = source.hole(offset, length.min(HOLE_BYTES_MAX))?;
        // Of a hole that ends inside a block, the rest of the block is read.
        let hole = if offset + hole == end { hole } else { hole / BLOCK_BYTES * BLOCK_BYTES };
        if hole > 0 {
            self.discard(offset, hole)?;
            return Ok(hole);
        }
        let mut bytes = vec![0; length.min(PART_BYTES) as usize];
        source.read(offset, &mut bytes)?;
        for (range, is_zero) in runs(&bytes) {
            let at = offset + range.start as u64;
            match is_zero {
                true => self.discard(at, range.len() as u64)?,
                false => self.write_all(&[Write { offset: at, data: &bytes[range] }])?,
            }
        }
        Ok(bytes.len() as u64)
    }

    /// Ends the copying. From the head on that this stores, the image names nothing outside the store.
    pub(super) fn end_copy_from_source(
        &mut self,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<()> {
        self.state.copied_below = 0;
        let mut total = 0;
        loop {
            let (left, more) = self.copy_from_source()?;
            total = total.max(left);
            if !more {
                break;
            }
            progress(total - left, total);
        }
        self.checkpoint_with(|head| set_state(head, MigrationState::Executed))
    }

    /// Fails where the image still names something outside the store.
    pub(super) fn check_copied_from_source(&mut self) -> Result<()> {
        match self.next_external(0)? {
            None => Ok(()),
            Some(_) => {
                let message = format!("{} still needs its source", self.identity.label);
                fail(ErrorKind::Corrupt, message)
            }
        }
    }

    /// Publishes a head without the migration.
    pub(super) fn leave_source(&mut self) -> Result<()> {
        self.publish(|head: &mut HeadRecord| head.migration = None)?;
        self.external = None;
        Ok(())
    }

    /// The next range of external blocks from `from` on: its first block, and how many.
    fn next_external(&mut self, from: u64) -> Result<Option<(u64, u64)>> {
        let top = self.state.map.top().clone();
        let (_, mut source) = self.state.parts();
        let mut next = NextExternal::default();
        let range = (from, IMAGE_BYTES_MAX / BLOCK_BYTES);
        visit(&top, TOP_LEVEL, 0, range, &mut source, &mut next)?;
        Ok(next.0.map(|(first, end)| (first, end - first)))
    }
}

/// The first range of external blocks, by first block and the block behind the last.
#[derive(Default)]
struct NextExternal(Option<(u64, u64)>);

impl Visitor for NextExternal {
    fn external(&mut self, first: u64, blocks: u64) -> Result<bool> {
        match &mut self.0 {
            Some((_, end)) if *end == first => *end += blocks,
            Some(_) => return Ok(false),
            none => *none = Some((first, first + blocks)),
        }
        Ok(self.0.is_none_or(|(first, end)| (end - first) * BLOCK_BYTES < HOLE_BYTES_MAX))
    }

    fn lost(&mut self, _: u64, _: u64) -> Result<bool> {
        Ok(self.0.is_none())
    }

    fn block(&mut self, _: u64, _: MapEntry) -> Result<bool> {
        Ok(self.0.is_none())
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
