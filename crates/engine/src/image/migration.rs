//! What the owner of an image does for a migration that the image is the source or the target of.
//!
//! [`crate::Store::prepare_migration`] describes a migration as a whole.

use marcot_format::record::{HeadRecord, MigrationRecord, MigrationState};
use marcot_format::{BLOCK_BYTES, PoolId};

use super::flatten::Scope;
use super::snapshot::max_marks;
use super::{FlattenPart, Image};
use crate::catalog::migration::{check_may_migrate, refuse_stranger};
use crate::device::Extent;
use crate::error::{ErrorKind, Result, fail};

/// How much of the target is compared with the source at a time, in bytes.
const TAKEN_BYTES: u64 = 4 << 20;
/// How many extents of it, at most: one for each block.
const TAKEN_EXTENTS: usize = (TAKEN_BYTES / BLOCK_BYTES) as usize;

impl Image {
    /// Makes the image the source of a migration: from the head on that this stores, nobody opens it for writing or
    /// removes it, and what its roots name is shared with the target. Returns that head, which names all content.
    ///
    /// # Errors
    /// `Busy` where the image cannot be migrated as it is; those of a checkpoint, also `NoSpace`: a head with a log
    /// behind it would not name all content.
    pub(crate) fn become_source(&mut self, record: &MigrationRecord) -> Result<HeadRecord> {
        self.managed(|image| {
            image.check_may_change()?;
            check_may_migrate(&image.head, &image.identity.label)?;
            let marks = image.series.marks();
            image.checkpoint_with(|head| {
                head.migration = Some(record.clone());
                let now = max_marks(marks, head.marks.unwrap_or_default());
                head.shared_below = Some(max_marks(head.shared_below.unwrap_or_default(), now));
            })?;
            Ok(image.head.clone())
        })
    }

    /// Copies a few megabytes of what the target of a migration has in the source's pool, or in a source outside the
    /// store. Repeated until nothing is left, it makes [`Self::migrate`] short, and the image can be read and written
    /// between the parts.
    ///
    /// # Errors
    /// `Invalid` where the image is not the target of a migration; those of [`Self::flatten_part`].
    pub fn migrate_part(&mut self) -> Result<FlattenPart> {
        let (left_blocks, more) = self.managed(|image| {
            let (source, state) = image.migrates_from()?;
            if state == MigrationState::Prepared {
                image.publish(|head| set_state(head, MigrationState::Executing))?;
            }
            if image.is_from_outside() {
                return image.copy_from_source();
            }
            match image.is_to_be_flattened() {
                true => image.flatten_some(),
                false => image.copy_some(Scope::Migration(source)),
            }
        })?;
        Ok(FlattenPart { left_blocks, more })
    }

    /// Copies what [`Self::migrate_part`] has not copied yet. From then on the target of a migration names nothing in
    /// the source's pool, unless it lies in the same pool. `progress` gets blocks of 4 KiB (done, total).
    ///
    /// # Errors
    /// As [`Self::migrate_part`]; `Corrupt` where a block of the source cannot be verified.
    pub fn migrate(&mut self, progress: &mut dyn FnMut(u64, u64)) -> Result<()> {
        self.managed(|image| {
            let (source, _) = image.migrates_from()?;
            if image.is_from_outside() {
                return image.end_copy_from_source(progress);
            }
            // Where this is interrupted, the parent is gone, and the next run does the rest.
            if image.is_to_be_flattened() {
                image.flatten_all(progress)?;
            }
            let executed = |head: &mut HeadRecord| set_state(head, MigrationState::Executed);
            image.end_migration_copy(source, progress, executed)
        })
    }

    /// Fails where the target of a migration still needs its source.
    ///
    /// # Errors
    /// `Invalid` where [`Self::migrate`] has not been done; `Corrupt` where the head says that it has, and that is
    /// not so.
    pub fn check_migrated(&mut self) -> Result<()> {
        self.managed(|image| {
            let (source, state) = image.migrates_from()?;
            let label = &image.identity.label;
            if state != MigrationState::Executed {
                let message =
                    format!("{label} has not been copied yet; 'migration execute' does that");
                return fail(ErrorKind::Invalid, message);
            }
            if image.is_from_outside() {
                return image.check_copied_from_source();
            }
            if image.needs_pool(source)? && source != image.identity.pool.id() {
                let message = format!("{} still names data of its source", image.identity.label);
                return fail(ErrorKind::Corrupt, message);
            }
            Ok(())
        })
    }

    /// Makes the target of a migration an image like any other. The source is gone.
    ///
    /// # Errors
    /// `Invalid` where the image is not the target of a migration; `NoSpace`; `Poisoned`, `Fenced`, `Io`.
    pub fn end_migration(&mut self) -> Result<()> {
        self.managed(|image| {
            image.migrates_from()?;
            image.leave_source()
        })
    }

    /// Makes the source of a migration that was aborted an image like any other.
    pub(crate) fn stop_being_source(&mut self) -> Result<()> {
        self.managed(|image| image.publish(|head| head.migration = None))
    }

    /// Keeps everybody else from writing to the target, whose data is brought back to the source next.
    pub(crate) fn begin_abort(&mut self) -> Result<()> {
        self.managed(|image| {
            image.migrates_from()?;
            image.publish(|head| set_state(head, MigrationState::Aborting))
        })
    }

    /// Makes the data of this image that of `from`, as far as both reach.
    pub(crate) fn take_data_of(
        &mut self,
        from: &mut Self,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<()> {
        let end = self.size_bytes().min(from.size_bytes());
        let mut at = 0;
        while at < end {
            let extents = from.extents(at, (end - at).min(TAKEN_BYTES), TAKEN_EXTENTS)?;
            for extent in &extents {
                match extent.data {
                    true => self.take_extent(from, extent)?,
                    false => self.take_hole(extent)?,
                }
            }
            let Some(last) = extents.last() else { break };
            at = last.offset + last.length;
            progress(at, end);
        }
        self.flush()
    }

    fn take_extent(&mut self, from: &mut Self, extent: &Extent) -> Result<()> {
        let length = usize::try_from(extent.length).unwrap_or(usize::MAX);
        let (mut wanted, mut now) = (vec![0; length], vec![0; length]);
        from.read_at(extent.offset, &mut wanted)?;
        self.read_at(extent.offset, &mut now)?;
        let grain = BLOCK_BYTES as usize;
        for (n, (wanted, now)) in wanted.chunks(grain).zip(now.chunks(grain)).enumerate() {
            if wanted != now {
                self.write_at(extent.offset + n as u64 * BLOCK_BYTES, wanted)?;
            }
        }
        Ok(())
    }

    fn take_hole(&mut self, extent: &Extent) -> Result<()> {
        let has = self.extents(extent.offset, extent.length, TAKEN_EXTENTS)?;
        match has.iter().any(|extent| extent.data) {
            true => self.discard(extent.offset, extent.length),
            false => Ok(()),
        }
    }

    /// The pool of the source, and how far the migration has come.
    fn migrates_from(&self) -> Result<(PoolId, MigrationState)> {
        self.check_owner()?;
        match self.head.migration.as_ref().filter(|migration| !migration.is_source) {
            Some(migration) => Ok((PoolId(migration.pool_id), migration.state())),
            None => refuse_stranger(&self.identity.label),
        }
    }
}

pub(super) fn set_state(head: &mut HeadRecord, state: MigrationState) {
    if let Some(migration) = &mut head.migration {
        migration.set_state(state);
    }
}
