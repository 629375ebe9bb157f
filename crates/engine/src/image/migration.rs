//! What the owner of an image does for a migration that the image is the source or the target of.
//!
//! [`crate::Store::prepare_migration`] describes a migration as a whole.

use marcot_format::record::{HeadRecord, MigrationRecord, MigrationState};
use marcot_format::{BLOCK_BYTES, PoolId};

use super::external::Patience;
use super::flatten::Scope;
use super::snapshot::max_marks;
use super::{FlattenPart, Image};
use crate::catalog::migration::{
    check_may_migrate, check_no_group_snapshots, refuse_stranger, set_state,
};
use crate::device::Extent;
use crate::error::{ErrorKind, Result, fail};

/// How much of the maps of target and source is compared at a time, in bytes of the image. Each block may differ, which
/// takes 24 bytes of memory.
const COMPARED_BYTES: u64 = 1 << 30;
/// How much of what differs is read at a time, in bytes.
const TAKEN_BYTES: usize = 1 << 20;

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
    /// between the parts. A source outside the store is read by a worker, for which this does not wait
    /// ([`FlattenPart::waits`]).
    ///
    /// # Errors
    /// `Invalid` where the image is not the target of a migration; those of [`Self::flatten_part`].
    pub fn migrate_part(&mut self) -> Result<FlattenPart> {
        if let Some(part) = self.awaits_source() {
            return Ok(part);
        }
        self.managed(|image| {
            let (source, state) = image.migrates_from()?;
            if state == MigrationState::Prepared {
                image.publish(|head| set_state(head, MigrationState::Executing))?;
            }
            if image.is_from_outside() {
                return image.copy_from_source(Patience::None);
            }
            let (left_blocks, more) = match image.is_to_be_flattened() {
                true => image.flatten_some(),
                false => image.copy_some(Scope::Migration(source)),
            }?;
            Ok(FlattenPart { left_blocks, more, waits: false })
        })
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

    /// Keeps everybody else from writing to the target, and from taking snapshots of it. Its data is brought back to the
    /// source next.
    ///
    /// # Errors
    /// `Busy` where it has snapshots of a group; `Invalid` where it is not the target of a migration; those of storing a head.
    pub(crate) fn begin_abort(&mut self) -> Result<()> {
        self.managed(|image| {
            image.migrates_from()?;
            check_no_group_snapshots(&image.head, &image.identity.label)?;
            image.publish(|head| set_state(head, MigrationState::Aborting))
        })
    }

    /// Makes the data of this image that of `from`, as far as both reach. Only what the maps name at different places is
    /// read: not what both have from before, nor its copies.
    pub(crate) fn take_data_of(
        &mut self,
        from: &mut Self,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<()> {
        let end = self.size_bytes().min(from.size_bytes());
        let theirs = from.current_root()?;
        let mut at = 0;
        while at < end {
            let stop = end.min(at + COMPARED_BYTES);
            // What was written before this window is in a root of its own: the one before may be gone soon.
            let ours = self.current_root()?;
            let mut differing: Vec<Extent> = Vec::new();
            let range = (at / BLOCK_BYTES, stop.div_ceil(BLOCK_BYTES));
            self.compare(&ours, &theirs, range, &mut |(first, blocks, _, wanted)| {
                let (offset, data) = (first * BLOCK_BYTES, wanted.is_some());
                let length = (offset + blocks * BLOCK_BYTES).min(end) - offset;
                match differing.last_mut() {
                    Some(last) if last.data == data && last.offset + last.length == offset => {
                        last.length += length;
                    }
                    _ => differing.push(Extent { offset, length, data }),
                }
                Ok(())
            })?;
            for extent in &differing {
                match extent.data {
                    true => self.take_extent(from, extent)?,
                    false => self.discard(extent.offset, extent.length)?,
                }
            }
            at = stop;
            progress(at, end);
        }
        self.flush()
    }

    fn take_extent(&mut self, from: &mut Self, extent: &Extent) -> Result<()> {
        let end = extent.offset + extent.length;
        let (mut wanted, mut now) = (vec![0; TAKEN_BYTES], vec![0; TAKEN_BYTES]);
        for offset in (extent.offset..end).step_by(TAKEN_BYTES) {
            let length = (end - offset).min(TAKEN_BYTES as u64) as usize;
            let (wanted, now) = (&mut wanted[..length], &mut now[..length]);
            from.read_at(offset, wanted)?;
            self.read_at(offset, now)?;
            let grain = BLOCK_BYTES as usize;
            for (n, (wanted, now)) in wanted.chunks(grain).zip(now.chunks(grain)).enumerate() {
                if wanted != now {
                    self.write_at(offset + n as u64 * BLOCK_BYTES, wanted)?;
                }
            }
        }
        Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{CreateOptions, GroupSnapshotId, Store};

    #[test]
    fn an_abort_looks_for_snapshots_of_groups_when_nobody_else_can_take_one() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let pool = store.pool("rbd").unwrap();
        pool.create("a", &CreateOptions::sized(1 << 20)).unwrap();
        let (from, to) = ((&pool, &"a".into()), (&pool, &"b".into()));
        let options = CreateOptions::default().into();
        let target = store.prepare_migration(from, to, &options).unwrap().target;
        let id = GroupSnapshotId { pool: pool.id(), group: 2, snapshot: 3 };
        let mut image = pool.open(target).unwrap();
        image.snapshot_for_group(id).unwrap();
        assert_eq!(image.begin_abort().unwrap_err().kind(), ErrorKind::Busy);
        // Nothing was begun: the part can be removed.
        assert_eq!(image.migrates_from().unwrap().1, MigrationState::Prepared);
        image.remove_snapshot_for_group(id).unwrap();
        image.begin_abort().unwrap();
        image.close().unwrap();
    }
}
