//! What heads say about migrations: which images are the source and the target of one, and what is refused meanwhile.

use marcot_format::record::{HeadRecord, MigrationRecord, MigrationState as State};
use marcot_format::{ImageId, PoolId};

use super::image_name::{ImageName, Namespace};
use super::pool::Pool;
use super::trash_name::number_in_trash_name;
use crate::error::{ErrorKind, Result, fail};

/// How far a migration has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum MigrationState {
    /// The target can be used. It reads what it has not written from the source.
    Prepared,
    /// Copying has begun.
    Executing,
    /// Everything is copied.
    Executed,
    /// It is being aborted.
    Aborting,
}

/// An image of a migration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MigratingImage {
    /// Its pool: the present name, if the store knows the pool.
    pub pool: String,
    /// Its pool's number.
    pub pool_id: PoolId,
    /// Its namespace.
    pub namespace: Namespace,
    /// Its name: of the source, the one that it had before.
    pub image: String,
    /// Its number.
    pub image_id: ImageId,
}

/// A migration, as one of its images knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct MigrationInfo {
    /// True where the image that was asked is the source.
    pub is_source: bool,
    /// The other image, with the names that it had when the migration began; without a name where the source lies
    /// outside the store.
    pub other: MigratingImage,
    /// How the source is opened, where it lies outside the store.
    pub source_spec: Option<String>,
    /// How far it has come. The source does not know.
    pub state: MigrationState,
}

impl MigrationInfo {
    pub(crate) fn of(record: &MigrationRecord) -> Self {
        let other = MigratingImage {
            pool: record.pool_name.clone(),
            pool_id: PoolId(record.pool_id),
            namespace: Namespace::named(&*record.namespace),
            image: record.image_name.clone(),
            image_id: ImageId(record.image_id),
        };
        let state = match record.state() {
            State::Prepared => MigrationState::Prepared,
            State::Executing => MigrationState::Executing,
            State::Executed => MigrationState::Executed,
            State::Aborting => MigrationState::Aborting,
        };
        let source_spec = record.is_external().then(|| record.source_spec.clone());
        Self { is_source: record.is_source, other, source_spec, state }
    }
}

/// The other image of a migration, for people.
fn shown(record: &MigrationRecord) -> String {
    let MigrationRecord { pool_name, namespace, image_name, .. } = record;
    if record.is_external() {
        return "a source outside the store".to_owned();
    }
    match namespace.as_str() {
        "" => format!("{pool_name}/{image_name}"),
        namespace => format!("{pool_name}/{namespace}/{image_name}"),
    }
}

/// Fails for an image that only the end of a migration changes: its source, and its target once it is being aborted.
pub(crate) fn refuse_frozen(head: &HeadRecord, label: &str) -> Result<()> {
    if head.migration.as_ref().is_some_and(|migration| migration.state() == State::Aborting) {
        let message =
            format!("the migration to {label} is being aborted; 'migration abort' goes on with it");
        return fail(ErrorKind::ReadOnly, message);
    }
    refuse_source(head, label)
}

/// Fails for the source of a migration, which must stay as it is.
pub(crate) fn refuse_source(head: &HeadRecord, label: &str) -> Result<()> {
    match head.migration.as_ref().filter(|migration| migration.is_source) {
        None => Ok(()),
        Some(migration) => {
            let message = format!(
                "{label} is the source of a migration to {}; 'migration abort' or 'migration commit' ends it",
                shown(migration)
            );
            fail(ErrorKind::ReadOnly, message)
        }
    }
}

/// Fails for the source and for the target of a migration.
pub(crate) fn refuse_migrating(head: &HeadRecord, label: &str) -> Result<()> {
    refuse_source(head, label)?;
    match &head.migration {
        None => Ok(()),
        Some(migration) => {
            let message = format!(
                "{label} is being migrated from {}; 'migration abort' or 'migration commit' ends that",
                shown(migration)
            );
            fail(ErrorKind::Busy, message)
        }
    }
}

/// Notes how far a migration has come, in the head of its target.
pub(crate) fn set_state(head: &mut HeadRecord, state: State) {
    if let Some(migration) = &mut head.migration {
        migration.set_state(state);
    }
}

/// Fails for an image that has nothing to do with a migration.
pub(crate) fn refuse_stranger<T>(label: &str) -> Result<T> {
    fail(ErrorKind::Invalid, format!("{label} is not being migrated"))
}

/// Fails where an image cannot become the source of a migration as it is.
pub(crate) fn check_may_migrate(head: &HeadRecord, label: &str) -> Result<()> {
    refuse_migrating(head, label)?;
    check_no_group_snapshots(head, label)?;
    let why = match () {
        () if head.snapshots.iter().any(|snapshot| snapshot.trashed || snapshot.removing) => {
            "has removed snapshots that clones still need; flatten or remove the clones first"
        }
        () if head.copying != 0 => "has begun to be flattened; run 'flatten' again to finish",
        () => return Ok(()),
    };
    fail(ErrorKind::Busy, format!("{label} {why}"))
}

/// Fails for an image that has its part of a group's snapshot: that names the image.
pub(crate) fn check_no_group_snapshots(head: &HeadRecord, label: &str) -> Result<()> {
    match head.snapshots.iter().any(|snapshot| snapshot.group.is_some()) {
        true => {
            fail(ErrorKind::Busy, format!("{label} has snapshots of a group; remove them first"))
        }
        false => Ok(()),
    }
}

impl Pool {
    /// Fails where no image of the pool can be the target of a migration from outside the store.
    ///
    /// # Errors
    /// `Unsupported` for a pool in a bucket; `ReadOnly` for another user's.
    pub fn check_takes_sources(&self) -> Result<()> {
        self.check_writable()?;
        match self.segments().shipping() {
            None => Ok(()),
            Some(_) => {
                let message = format!(
                    "pool '{}' lies in a bucket, whose other hosts might not reach the source: use 'import'",
                    self.name()
                );
                fail(ErrorKind::Unsupported, message)
            }
        }
    }

    /// Fails where an image of this pool is migrated from or to the pool `other`, which has the name `name`. It reads all
    /// heads: nothing else tells of a migration whose beginning was interrupted.
    pub(crate) fn check_no_migration_with(&self, other: PoolId, name: &str) -> Result<()> {
        for image in self.image_ids()? {
            let head = match self.read_head(image) {
                // It is removed at the same time, or damaged: then it says nothing of a migration.
                Err(error) if error.kind().is_obstacle() => return Err(error),
                Err(_) => continue,
                Ok(head) => head,
            };
            let with_it = |record: &&MigrationRecord| {
                !record.is_external() && PoolId(record.pool_id) == other
            };
            let Some(migration) = head.migration.as_ref().filter(with_it) else { continue };
            let way = if migration.is_source { "to" } else { "from" };
            let message = format!(
                "{} is being migrated {way} pool '{name}'; end that with 'migration commit' or 'migration abort' first",
                self.image_label(&head)
            );
            return fail(ErrorKind::Busy, message);
        }
        Ok(())
    }

    /// The image that a name leads to or, if there is none, the source of a migration that had this name before.
    ///
    /// # Errors
    /// `NotFound`; those of reading a head.
    pub fn find_migrating(&self, name: &ImageName) -> Result<ImageId> {
        match self.find(name) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let namespace = name.namespace();
                let numbers = self.image_names_in(namespace.in_records())?;
                for image in numbers.iter().filter_map(|name| number_in_trash_name(name)) {
                    let found = self.trashed_image(namespace, image);
                    if found.is_ok_and(|found| found.migrating && found.name == name.name()) {
                        return Ok(image);
                    }
                }
                Err(error)
            }
            found => found,
        }
    }
}
