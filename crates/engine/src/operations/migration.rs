//! Migration: an image gets another pool, namespace or name, and can be used meanwhile.
//!
//! The *target* is a new image. Its head names the same roots as that of the *source*: the image, and each of its
//! snapshots. So it can be used at once, reads what it has not written where the source has it, and keeps the source's
//! parent. Nobody writes to the source or removes it, so that its roots keep all of this, until the migration ends. In
//! the same pool nothing is copied; elsewhere the owner of the target copies (see `image::flatten`).
//!
//! Each head names the other image ([`MigrationRecord`]). The source's says that it is frozen, the target's how far the
//! migration has come. Where the source is in a group, the target takes its place there.
//!
//! Invariants:
//! - From the head of the target on, the head of the source says that it is the source. So what the target names stays.
//! - The source is removed only where the target's head says that everything is copied, and the target has checked it.
//!   Its name is not looked at: a target that is not finished never says so.
//! - After any interruption, the target or the source has a name for users. `abort` with it, or with the name that the
//!   source had, leads back, until the removal of the source has begun. From there on `commit` leads forward.

use marcot_format::record::{
    HeadRecord, MigrationRecord, MigrationState, ParentRecord, SegmentMarks,
};
use marcot_format::{ImageId, PoolId, SnapId};
use marcot_store::LockMode;

use super::clone::{record_child, settle_places};
use super::remove::lock_for_removal;
use crate::catalog::children::{CHILDREN_LOOKED_AT_MAX, Formats, named as some_of};
use crate::catalog::create::first_head;
use crate::catalog::migration::{check_may_migrate, check_no_group_snapshots, refuse_stranger};
use crate::catalog::names::check_image_name;
use crate::catalog::partial::partial_name;
use crate::catalog::{CreateOptions, ImageName, Namespace, Pool, Store};
use crate::error::{ErrorKind, Result, fail};
use crate::image::{Image, check_not_owned_elsewhere, forget_child};
use crate::root::RootOf;

/// The level of the format that knows migrations: a program of a lower one would let users write to the source.
const LEVEL: u32 = 3;

/// What becomes of the target of a migration.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MigrationOptions {
    /// What it reports. Size and metadata in it do not count.
    pub layout: CreateOptions,
    /// It becomes independent of its parent when it is copied.
    pub flatten: bool,
}

impl From<CreateOptions> for MigrationOptions {
    fn from(layout: CreateOptions) -> Self {
        Self { layout, flatten: false }
    }
}

/// Both images of a migration.
#[derive(Clone)]
#[non_exhaustive]
pub struct Migration {
    /// The pool of the source.
    pub source_pool: Pool,
    /// The source.
    pub source: ImageId,
    /// The pool of the target.
    pub target_pool: Pool,
    /// The target.
    pub target: ImageId,
}

/// The snapshots that an image and its snapshots were cloned from.
fn parents(head: &HeadRecord) -> Vec<ParentRecord> {
    let mut found: Vec<ParentRecord> = Vec::new();
    for parent in head.parent.iter().chain(head.snapshots.iter().filter_map(|s| s.parent.as_ref()))
    {
        let key = |p: &ParentRecord| (p.pool_id, p.image_id, p.snap_id);
        if found.iter().all(|known| key(known) != key(parent)) {
            found.push(parent.clone());
        }
    }
    found
}

impl Store {
    /// The migration of which an image is the source or the target.
    ///
    /// # Errors
    /// `Invalid` where it is neither, or the source lies outside the store; `NotFound` for the image, or for the other pool;
    /// those of reading a head.
    pub fn migration(&self, pool: &Pool, image: ImageId) -> Result<Migration> {
        let head = pool.read_head(image)?;
        let Some(record) = head.migration.as_ref().filter(|record| !record.is_external()) else {
            return refuse_stranger(&pool.image_label(&head));
        };
        let other_pool = match record.pool_id == pool.id().0 {
            true => pool.clone(),
            false => self.pool_by_id(PoolId(record.pool_id))?,
        };
        let ((source_pool, source), (target_pool, target)) = match record.is_source {
            true => ((pool.clone(), image), (other_pool, ImageId(record.image_id))),
            false => ((other_pool, ImageId(record.image_id)), (pool.clone(), image)),
        };
        Ok(Migration { source_pool, source, target_pool, target })
    }

    /// Begins the migration of an image that has the name `from`: it becomes the source, is moved to the trash, and
    /// its target gets the name `to`.
    ///
    /// 1. The head of the source: nobody writes to it any more. 2. Records and marks of the target as a child and an
    ///    heir. 3. The head of the target, with a name that users do not see. 4. The source's name leads to the trash.
    ///    5. **The target's name.** 6. The target takes the source's place in its group ([`Self::settle_migrating_group`]).
    ///    Where this is interrupted, [`Self::abort_migration`] leads back.
    ///
    /// # Errors
    /// `Owned` where the image is in use; `HasChildren`; `Busy` where it has removed snapshots, or some of a group;
    /// `Exists`; `Invalid`, `NameTooLong` for the name, `Invalid` also for another namespace than that of its group;
    /// `NotFound` for the image or the namespace; `ReadOnly`; `Unsupported` for a pool in a bucket; `NoSpace`.
    pub fn prepare_migration(
        &self,
        source: (&Pool, &ImageName),
        dest: (&Pool, &ImageName),
        options: &MigrationOptions,
    ) -> Result<Migration> {
        let ((pool, from), (dest, to)) = (source, dest);
        check_image_name(to.name())?;
        pool.check_writable()?;
        dest.check_writable()?;
        for pool in [pool, dest] {
            if pool.foreign().is_some() {
                let message = format!("pool '{}' belongs to another user", pool.name());
                return fail(ErrorKind::ReadOnly, message);
            }
            if pool.segments().shipping().is_some() {
                let message = format!(
                    "pool '{}' lies in a bucket, where images are not migrated yet: 'deep copy' copies an image with its snapshots",
                    pool.name()
                );
                return fail(ErrorKind::Unsupported, message);
            }
        }
        let image = pool.find(from)?;
        let stays = pool.id() == dest.id() && from == to;
        if !stays {
            let _lock = dest.lock(LockMode::Exclusive)?;
            dest.check_free(to.namespace().in_records(), to.name())?;
        }
        let mut opened = pool.open(image)?.unlocked()?;
        let head = pool.read_head(image)?;
        let label = pool.image_label(&head);
        check_may_migrate(&head, &label)?;
        pool.check_member_may_move(image, &label, (dest, to.namespace()))?;
        check_no_children(pool, image, &label)?;
        pool.require_level(LEVEL)?;
        dest.require_level(LEVEL)?;
        let target = ImageId(dest.unique());
        let head = opened.become_source(&MigrationRecord {
            is_source: true,
            pool_id: dest.id().0,
            image_id: target.0,
            pool_name: dest.name().to_owned(),
            namespace: to.namespace().in_records().to_owned(),
            image_name: to.name().to_owned(),
            ..MigrationRecord::default()
        })?;
        let migration = Migration {
            source_pool: pool.clone(),
            source: image,
            target_pool: dest.clone(),
            target,
        };
        let made = migration.make_target(&head, from, to, options).and_then(|held| {
            pool.put_source_aside(image, from)?;
            dest.publish_partial(target, to)?;
            held.close()?;
            self.settle_migrating_group(&migration)
        });
        // Until here, nobody else could have begun to lead back.
        let closed = opened.close();
        let outcome = made.and(closed);
        if let Err(error) = outcome {
            if let Err(stuck) = self.abort_migration(&migration, &mut |_, _| {}) {
                tracing::warn!(error = %stuck.sentence(), "'migration abort' gives the image back");
            }
            return Err(error);
        }
        Ok(migration)
    }

    /// Puts the target of a migration in the source's place in its group, if it is in one. Where [`Self::prepare_migration`]
    /// was interrupted before this, it is still to be done.
    ///
    /// # Errors
    /// `Invalid` where the target is in another namespace than the group; those of changing the group.
    pub fn settle_migrating_group(&self, migration: &Migration) -> Result<()> {
        let Migration { source_pool: pool, source, target_pool, target } = migration;
        let label = target_pool.image_label(&target_pool.read_head(*target)?);
        match pool.replace_member(*source, (target_pool, *target), &label) {
            // It was removed before.
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            settled => settled,
        }
    }

    /// Ends a migration by removing the target. As with RBD, the source gets back its name and what was written to the
    /// target, as far as the source reaches; its size, its snapshots and its metadata are what they were.
    ///
    /// 1. The head of the target: nobody else writes to it any more. 2. Its data, to the source. 3. The source's place in
    ///    its group. 4. The removal of the target. 5. The source's name. 6. **The head of the source.**
    ///
    /// # Errors
    /// `Owned`, `Busy` where the target is in use, or has snapshots of a group; `HasChildren` where snapshots of the target
    /// were cloned; `Exists` where another image has the name of the source by now; `Invalid` where there is no such
    /// migration, or the source is being removed already.
    pub fn abort_migration(
        &self,
        migration: &Migration,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<()> {
        let Migration { source_pool: pool, source, target_pool, target } = migration;
        migration.source_head()?;
        let mut opened = Image::open_migrating(pool, *source)?;
        let head = migration.source_head()?;
        let namespace = Namespace::named(&*head.namespace);
        migration.check_name_of_source(&namespace)?;
        match target_pool.read_head(*target) {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
            Ok(target) if target.migration.is_none() => {
                let label = target_pool.image_label(&target);
                return fail(ErrorKind::Invalid, format!("the migration to {label} has ended"));
            }
            Ok(found) => {
                // What nobody could write to has nothing to bring back.
                let was_visible = target_pool
                    .find_name_of(&found)?
                    .is_some_and(|name| name != partial_name(*target));
                if was_visible && !found.removing {
                    check_no_children(target_pool, *target, &target_pool.image_label(&found))?;
                    let mut from = Image::open_migrating(target_pool, *target)?;
                    from.begin_abort()?;
                    opened.take_data_of(&mut from, progress)?;
                    from.close()?;
                }
                let label = target_pool.image_label(&found);
                target_pool.replace_member(*target, (pool, *source), &label)?;
                self.remove_with_snapshots(target_pool, *target, &mut |_, _| {})?;
            }
        }
        pool.take_source_back(&namespace, *source)?;
        opened.stop_being_source()?;
        opened.close()
    }

    /// Removes the source of a migration. The owner of the target must have checked that it does not need the source
    /// ([`Image::check_migrated`]), and is to forget the migration afterwards ([`Image::end_migration`]). Where this is
    /// interrupted, it is finished by running it again, or by `gc`.
    ///
    /// # Errors
    /// `Invalid` where not everything is copied; `HasChildren`; `Owned`, `Busy` where somebody reads the source.
    pub fn remove_migrated(
        &self,
        migration: &Migration,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<()> {
        let Migration { source_pool: pool, source, target_pool, target } = migration;
        let head = target_pool.read_head(*target)?;
        let points_here =
            |record: &&MigrationRecord| !record.is_source && record.image_id == source.0;
        let state = head.migration.as_ref().filter(points_here).map(|record| record.state());
        if state != Some(MigrationState::Executed) {
            let label = target_pool.image_label(&head);
            return fail(ErrorKind::Invalid, format!("{label} has not been copied yet"));
        }
        match migration.source_head() {
            // It was removed before.
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
            Ok(_) => {
                self.settle_migrating_group(migration)?;
                self.remove_with_snapshots(pool, *source, progress)
            }
        }
    }

    /// Ends a migration from a source outside the store by removing its target, with its snapshots. The source stays
    /// as it is.
    ///
    /// # Errors
    /// `Owned`, `Busy` where the target is in use, or has snapshots of a group; `HasChildren` where snapshots of it were
    /// cloned; `InGroup`; `Invalid` where it is not the target of such a migration.
    pub fn abort_migration_from_outside(
        &self,
        pool: &Pool,
        target: ImageId,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<()> {
        let head = pool.read_head(target)?;
        let label = pool.image_label(&head);
        if !head.migration.as_ref().is_some_and(MigrationRecord::is_external) {
            return refuse_stranger(&label);
        }
        check_no_children(pool, target, &label)?;
        self.remove_with_snapshots(pool, target, progress)
    }

    /// Removes an image of a migration, with its snapshots.
    fn remove_with_snapshots(
        &self,
        pool: &Pool,
        image: ImageId,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<()> {
        let label = pool.image_label(&pool.read_head(image)?);
        let lock = lock_for_removal(pool, image, &label)?;
        let mut head = pool.read_head(image)?;
        check_not_owned_elsewhere(pool, &head)?;
        pool.check_in_no_group(image, &label)?;
        if !head.removing && !head.snapshots.is_empty() {
            check_no_group_snapshots(&head, &label)?;
            // From here on nobody can clone them. `gc` takes the marks back, if this is interrupted.
            set_removing(pool, image, &mut head, true)?;
            if let Err(error) = check_no_children(pool, image, &label) {
                set_removing(pool, image, &mut head, false)?;
                return Err(error);
            }
        }
        let own = pool.own_copies(image, &head)?;
        {
            let _catalogue = pool.lock(LockMode::Exclusive)?;
            pool.unlink_image(image, &head)?;
        }
        drop(lock);
        for parent in parents(&head) {
            forget_child(pool, &parent, SnapId(parent.snap_id), image)?;
        }
        self.free_removed(pool, image, &head, own, progress)
    }
}

/// Marks the snapshots of an image as being removed, or takes the marks back. The image's lease is held.
fn set_removing(pool: &Pool, image: ImageId, head: &mut HeadRecord, removing: bool) -> Result<()> {
    let from = marcot_backend::Stamp::of(head);
    head.snapshots.iter_mut().for_each(|snapshot| snapshot.removing = removing);
    head.version += 1;
    pool.with_reserve(|| pool.swap_head(image, from, head))
}

fn check_no_children(pool: &Pool, image: ImageId, label: &str) -> Result<()> {
    let children = pool.some_children(image, None, Formats::All, CHILDREN_LOOKED_AT_MAX)?;
    match children.is_empty() {
        true => Ok(()),
        false => {
            let message = format!(
                "{label} has snapshots with clones, which must be flattened or removed first: {}",
                some_of(&children)
            );
            fail(ErrorKind::HasChildren, message)
        }
    }
}

impl Migration {
    /// The head of the source.
    ///
    /// # Errors
    /// `NotFound` where it was removed; `Invalid` where it is not the source of this migration.
    fn source_head(&self) -> Result<HeadRecord> {
        let head = self.source_pool.read_head(self.source)?;
        let belongs = head.migration.as_ref().is_some_and(|record| {
            record.is_source
                && (record.pool_id, record.image_id) == (self.target_pool.id().0, self.target.0)
        });
        match belongs {
            true => Ok(head),
            false => refuse_stranger(&self.source_pool.image_label(&head)),
        }
    }

    /// Fails where an image that is none of this migration has the name that the source had.
    fn check_name_of_source(&self, namespace: &Namespace) -> Result<()> {
        let pool = &self.source_pool;
        let name = match pool.trashed_image(namespace, self.source) {
            Ok(trashed) => trashed.name,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        match pool.find(ImageName::new(&*name).in_namespace(namespace)) {
            Ok(found) if (pool.id(), found) != (self.target_pool.id(), self.target) => {
                let message = format!(
                    "the name '{name}' of the source was given to another image meanwhile; rename that one first"
                );
                fail(ErrorKind::Exists, message)
            }
            Ok(_) => Ok(()),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Makes the target, hidden, with the roots of the source's head. It is kept open, so that it does not count as
    /// abandoned.
    fn make_target(
        &self,
        source: &HeadRecord,
        from: &ImageName,
        to: &ImageName,
        options: &MigrationOptions,
    ) -> Result<Image> {
        let layout = &options.layout;
        let Self { source_pool: pool, source: image, target_pool: dest, target } = self;
        let (namespace, id) = (to.namespace().in_records(), *target);
        let of = |snap: Option<u64>| RootOf {
            pool: pool.clone(),
            image: *image,
            snap: snap.map(SnapId),
        };
        let mut head = first_head(id, namespace, to.name(), dest.now_s());
        head.root.clone_from(&source.root);
        head.snapshots.clone_from(&source.snapshots);
        for snapshot in &mut head.snapshots {
            // It names none of the target's own segments.
            snapshot.marks = Some(SegmentMarks { data: 1, map: 1, table: 1 });
            if let Some(root) = &mut snapshot.root {
                settle_places(root, &of(Some(snapshot.id)), dest);
            }
        }
        if let Some(root) = &mut head.root {
            settle_places(root, &of(None), dest);
        }
        head.parent.clone_from(&source.parent);
        head.snap_next = source.snap_next;
        head.snapshot_limit = source.snapshot_limit;
        head.metadata.clone_from(&source.metadata);
        head.order = layout.order;
        head.features.clone_from(&layout.features);
        head.stripe_unit_bytes = layout.stripe_unit_bytes;
        head.stripe_count = layout.stripe_count;
        head.data_pool.clone_from(&layout.data_pool);
        head.migration = Some(MigrationRecord {
            is_source: false,
            pool_id: pool.id().0,
            image_id: image.0,
            pool_name: pool.name().to_owned(),
            namespace: from.namespace().in_records().to_owned(),
            image_name: from.name().to_owned(),
            flatten: options.flatten,
            ..MigrationRecord::default()
        });
        let roots = head.snapshots.iter().filter_map(|s| s.root.as_ref()).chain(&head.root);
        let names_dest = roots.into_iter().any(|root| root.pools.contains(&dest.id().0));
        let _lock = dest.lock(LockMode::Exclusive)?;
        match pool.id() == dest.id() {
            true => dest.mark_heir(Some(*image), id)?,
            false if names_dest => dest.mark_heir(None, id)?,
            false => {}
        }
        for parent in parents(&head) {
            let parents_pool = match parent.pool_id == dest.id().0 {
                true => dest.clone(),
                false => dest.store().pool_by_id(PoolId(parent.pool_id))?,
            };
            let name = (namespace, to.name());
            record_child(&parents_pool, dest, &parent, id, name, parent.untracked)?;
        }
        dest.publish_image(id, &head, &partial_name(id))?;
        dest.open(id)
    }
}
