//! Migration: an image gets another pool, namespace or name, and can be used meanwhile.

use std::time::Duration;

use marcot::{Error, ErrorKind, FlattenPart, ImageId, ImageInfo, ImageName};
use marcot::{MigrationInfo, MigrationOptions, MigrationState, Result};
use marcot_serve::control::{Command, MigrationStep};

use crate::image::Image;
use crate::operation::Operation;
use crate::owner::Access;
use crate::pool::Pool;

/// How long a source outside the store that is being read is left alone before the owner is asked again: at first, for a file
/// of this machine, and later, for a slow server.
const WAIT_MIN: Duration = Duration::from_millis(1);
const WAIT_MAX: Duration = Duration::from_millis(50);

/// A migration that was begun, by its images. The handle keeps nothing open.
pub struct Migration {
    /// `None` where the source lies outside the store.
    source: Option<(marcot::Migration, Image)>,
    target: Image,
}

impl Pool {
    /// Begins to migrate the image `from` of this pool. It is moved to the trash, where only the end of the migration
    /// takes it out, and the image `to` in `dest` has its content, its snapshots and its parent from then on. What is
    /// not copied yet is read from the source.
    ///
    /// # Errors
    /// `NotFound` for the image or the namespace; `Owned`, naming the user, where the image is in use; `HasChildren`;
    /// `Busy` where it has snapshots that cannot be migrated, or is being migrated already; `Exists`;
    /// `Invalid`, `NameTooLong` for the name; `ReadOnly`, also where the image is locked; `Unsupported` for a pool in a
    /// bucket; `NoSpace`.
    pub fn prepare_migration(
        &self,
        from: impl Into<ImageName>,
        dest: &Self,
        to: impl Into<ImageName>,
        options: &MigrationOptions,
    ) -> Result<Image> {
        let (from, to) = (from.into(), to.into());
        let image = self.known_image(from.clone(), self.engine().find(&from)?);
        let pair = image.operate(Operation::PrepareMigration, || {
            image.for_itself(|| {
                let (source, dest) = ((self.engine(), &from), (dest.engine(), &to));
                self.client().store().prepare_migration(source, dest, options)
            })
        })?;
        Ok(dest.known_image(to, pair.target))
    }

    /// The migration whose target has this name, or whose source has it or had it before.
    ///
    /// # Errors
    /// `NotFound` for the image; `Invalid` where it is not being migrated.
    pub fn migration(&self, name: impl Into<ImageName>) -> Result<Migration> {
        let name = name.into();
        self.operate(Operation::FindImage, || {
            let store = self.client().store();
            let image = self.engine().find_migrating(&name)?;
            let info = self.engine().info(image)?;
            if info.migration.is_some_and(|migration| migration.source_spec.is_some()) {
                return Ok(Migration { source: None, target: self.known_image(name, image) });
            }
            Ok(self.known_migration(store.migration(self.engine(), image)?))
        })
    }

    /// A migration whose images the caller knows. Their names are looked up, for messages.
    #[must_use]
    pub fn known_migration(&self, pair: marcot::Migration) -> Migration {
        let handle = |pool: &marcot::Pool, id: ImageId| {
            let named = |info: ImageInfo| ImageName::new(info.name).in_namespace(&info.namespace);
            let name = pool.info(id).map_or_else(|_| ImageName::new(id.to_string()), named);
            Self::new(self.client().clone(), pool.clone()).known_image(name, id)
        };
        let source = handle(&pair.source_pool, pair.source);
        let target = handle(&pair.target_pool, pair.target);
        Migration { source: Some((pair, source)), target }
    }
}

impl Migration {
    /// The image that is migrated to.
    #[must_use]
    pub fn target(&self) -> &Image {
        &self.target
    }

    /// How far it has come.
    ///
    /// # Errors
    /// `NotFound` where the target does not exist: its preparation was interrupted; those of [`Image::info`].
    pub fn info(&self) -> Result<MigrationInfo> {
        let info = self.target.engine_pool().info(self.target.id())?;
        info.migration.ok_or_else(|| Error::new(ErrorKind::Invalid, "the migration has ended"))
    }

    /// Copies what the target has in the source's pool, also while it is in use. Its users are served between the
    /// parts. After an interruption it can be run again, and goes on where it was. `progress` gets (done, total).
    ///
    /// # Errors
    /// `Invalid` where that was done already; `Corrupt` for a block that cannot be verified; `NoSpace`; `Owned` for an
    /// owner that cannot be reached; `Interrupted`.
    pub fn execute(&self, progress: &mut dyn FnMut(u64, u64)) -> Result<()> {
        self.target.operate(Operation::ExecuteMigration, || {
            if self.info()?.state == MigrationState::Executed {
                let message = "everything is copied already; 'migration commit' ends the migration";
                return Err(Error::new(ErrorKind::Invalid, message));
            }
            if let Some((pair, _)) = &self.source {
                self.target.client().store().settle_migrating_group(pair)?;
            }
            let step = |step| Command::Migration { step };
            let mut access = Access::open(&self.target, "command")?;
            let (mut total, mut pause) = (0, WAIT_MIN);
            loop {
                let copied = access.execute(&step(MigrationStep::CopyPart), &mut |_, _| {})?;
                let FlattenPart { left_blocks, more, waits } = copied;
                if !more {
                    break;
                }
                if waits {
                    self.target.client().retry().pause_for(pause)?;
                    pause = (pause * 2).min(WAIT_MAX);
                    continue;
                }
                pause = WAIT_MIN;
                total = total.max(left_blocks);
                progress(total - left_blocks, total.max(1));
            }
            access.execute::<()>(&step(MigrationStep::Finish), progress)?;
            access.close()
        })
    }

    /// Removes the source. The target is an image like any other afterwards, and may be in use.
    ///
    /// # Errors
    /// `Invalid` where not everything is copied; `HasChildren`; `Owned`, `Busy` where somebody reads the source;
    /// `Owned` for an owner that cannot be reached; `Interrupted`.
    pub fn commit(&self, progress: &mut dyn FnMut(u64, u64)) -> Result<()> {
        self.target.operate(Operation::CommitMigration, || {
            let step = |step| Command::Migration { step };
            self.target.run::<()>(&step(MigrationStep::Verify), &mut |_, _| {})?;
            let Some((pair, source)) = &self.source else {
                return self.target.run(&step(MigrationStep::End), &mut |_, _| {});
            };
            let parent = source.engine_pool().info(source.id()).ok();
            let store = self.target.client().store();
            source.for_itself(|| store.remove_migrated(pair, progress))?;
            self.target.run::<()>(&step(MigrationStep::End), &mut |_, _| {})?;
            self.target.client().child_is_gone(parent.and_then(|info| info.parent).as_ref());
            Ok(())
        })
    }

    /// Removes the target. The source gets its name back, and the data that was written to the target, as far as the
    /// source reaches. Snapshots, size and metadata are those of the source.
    ///
    /// # Errors
    /// `Owned` or `Busy`, naming the user, where the target is in use; `HasChildren` where it has clones; `Exists` where
    /// another image has the name of the source by now; `Invalid` where the source is being removed already.
    pub fn abort(&self, progress: &mut dyn FnMut(u64, u64)) -> Result<()> {
        self.target.operate(Operation::AbortMigration, || {
            let parent = self.target.engine_pool().info(self.target.id()).ok();
            let store = self.target.client().store();
            let (pool, id) = (self.target.engine_pool(), self.target.id());
            self.target.for_itself(|| match &self.source {
                Some((pair, _)) => store.abort_migration(pair, progress),
                None => store.abort_migration_from_outside(pool, id, progress),
            })?;
            self.target.client().child_is_gone(parent.and_then(|info| info.parent).as_ref());
            Ok(())
        })
    }
}
