//! A store: the registry of pools, in one directory.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use marcot_backend::local::LocalHome;
use marcot_backend::{At, Home, Key, Part, ReadableBy};
use marcot_format::PoolId;
use marcot_format::frame::{FORMAT_LEVEL, FrameKind, decode_message, encode_message};
use marcot_format::record::{AttachedRecord, PoolRecord, StoreRecord};
use marcot_store::{LockMode, World};

use super::names::{check_pool_name, could_be_given};
use super::opening::Whereabouts;
use super::pool::Pool;
use crate::error::{Error, ErrorKind, IoContext, Remedy, Result, fail};
use crate::external::ExternalSources;
use crate::limits::Limits;
use crate::segment::Files;

/// The pool that every store has from the start, as with RBD.
pub const DEFAULT_POOL: &str = "rbd";

/// Options of a new pool.
#[derive(Debug, Clone, Copy, Default)]
pub struct PoolOptions {
    /// Who may read it.
    pub readable_by: ReadableBy,
}

pub(crate) struct StoreInner {
    pub directory: PathBuf,
    /// Where the store lies.
    pub home: Arc<dyn Home>,
    pub id: u64,
    pub world: World,
    pub limits: Limits,
    pub files: Arc<Files>,
    pub external: OnceLock<Arc<dyn ExternalSources>>,
}

/// A directory of pools.
#[derive(Clone)]
pub struct Store {
    pub(crate) inner: Arc<StoreInner>,
}

impl Store {
    /// The number of the store. It is random, and stays the same for the store's life.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.inner.id
    }

    /// Opens the store in a directory of this machine. The first use creates the store, with the pool
    /// `rbd`.
    ///
    /// # Errors
    /// `PermissionDenied`, `Corrupt`, `NewerFormat`, or what the operating system says.
    pub fn open(directory: &Path) -> Result<Self> {
        Self::open_in(World::system(), directory)
    }

    /// As [`Store::open`], in another world.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_in(world: World, directory: &Path) -> Result<Self> {
        Self::open_with(world, directory, Limits::default())
    }

    /// As [`Store::open_in`], with limits for the images that are opened through it.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_with(world: World, directory: &Path, limits: Limits) -> Result<Self> {
        let directory = std::path::absolute(directory)
            .at(|| format!("cannot use {} as a store", directory.display()))?;
        let home = LocalHome::open_for(&world, &directory, limits.patience)
            .at(|| format!("cannot open the store in {}", directory.display()))?;
        Self::open_home(world, Arc::new(home), &directory, limits)
    }

    /// As [`Store::open_with`], for a store that does not lie in a directory of this machine. Messages name
    /// it by `directory`.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_home(
        world: World,
        home: Arc<dyn Home>,
        directory: &Path,
        limits: Limits,
    ) -> Result<Self> {
        let directory = directory.to_owned();
        let record = match home.record() {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                check_own(&directory, home.foreign(), "create a store there")?;
                create(&world, &*home, &directory)?
            }
            bytes => decode_record(&*home, bytes)?,
        };
        let files = Arc::new(Files::new(world.clone()));
        let id = record.store_id;
        let external = OnceLock::new();
        let inner = StoreInner { directory, home, id, world, limits, files, external };
        let store = Self { inner: Arc::new(inner) };
        // Another process may be creating the pool just now, or may have been killed meanwhile.
        let empty = !store.is_foreign() && store.pools()?.iter().all(|name| name == DEFAULT_POOL);
        if empty && store.is_unfinished(DEFAULT_POOL) {
            // Another process may be first, and this one may lack the permission to write.
            match store.pool_create(DEFAULT_POOL, &PoolOptions::default()) {
                Err(e)
                    if !matches!(
                        e.kind(),
                        ErrorKind::Exists | ErrorKind::PermissionDenied | ErrorKind::ReadOnly
                    ) =>
                {
                    return Err(e);
                }
                _ => {}
            }
        }
        Ok(store)
    }

    /// Limits for the images that are opened through this store.
    #[must_use]
    pub fn limits(&self) -> Limits {
        self.inner.limits
    }

    /// Says how disks outside the store are opened, for the images that are opened afterwards. Only the first call counts.
    pub fn set_external_sources(&self, sources: Arc<dyn ExternalSources>) {
        let _ = self.inner.external.set(sources);
    }

    pub(crate) fn external_sources(&self) -> Option<Arc<dyn ExternalSources>> {
        self.inner.external.get().cloned()
    }

    /// Keeps at most `count` segment files open for reading, for all images together. Files that
    /// images write to are not counted.
    pub fn set_segment_files_max(&self, count: usize) {
        self.inner.files.set_open_max(count);
    }

    /// Uses at most `count` pools. Each pool takes one descriptor from its first use on.
    pub fn set_pools_max(&self, count: usize) {
        self.inner.files.set_pools_max(count);
    }

    /// Its directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.inner.directory
    }

    /// True where it belongs to another user than the one of this process. Then neither the store nor its
    /// pools are changed.
    #[must_use]
    pub fn is_foreign(&self) -> bool {
        self.foreign().is_some()
    }

    /// The user who owns it, where that is another user than the one of this process.
    pub(crate) fn foreign(&self) -> Option<u32> {
        self.inner.home.foreign()
    }

    /// Names of all pools, its own and attached ones, sorted.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn pools(&self) -> Result<Vec<String>> {
        let mut names = self.pools_own_first()?;
        names.sort_unstable();
        Ok(names)
    }

    /// Names of all pools, the store's own before the attached ones.
    fn pools_own_first(&self) -> Result<Vec<String>> {
        let home = &self.inner.home;
        let list =
            || format!("cannot list the pools of the store in {}", self.directory().display());
        let mut names: Vec<String> = Vec::new();
        for listed in [home.pools().at(list)?, home.attached().at(list)?] {
            for name in listed {
                if !names.contains(&name) && could_be_given(self.directory(), &name) {
                    names.push(name);
                }
            }
        }
        Ok(names)
    }

    /// Where a pool lies; `None` where there is no such pool.
    pub(crate) fn find_pool(&self, name: &str) -> Result<Option<Whereabouts>> {
        // An error must not read as "does not exist": the pool may exist, but be out of reach.
        let own = self.inner.home.has_pool(name).at(|| format!("cannot open pool '{name}'"))?;
        if own {
            return Ok(Some(Whereabouts::Own(name.to_owned())));
        }
        self.check_no_link_of_others(name)?;
        Ok(self.attached_record(name)?.map(Whereabouts::Attached))
    }

    /// The record of an attached pool; `None` where no pool of this name is attached.
    pub(crate) fn attached_record(&self, name: &str) -> Result<Option<AttachedRecord>> {
        let shown = || self.inner.home.show(&Part::Attachment(name.to_owned()));
        let bytes = match self.inner.home.attachment(name) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            bytes => bytes.at(|| format!("cannot read {}", shown()))?,
        };
        let (record, _) = decode_message(FrameKind::Attached, &bytes)
            .map_err(|e| Error::from_format(format!("cannot use {}", shown()), e))?;
        Ok(Some(record))
    }

    /// Opens a pool.
    ///
    /// # Errors
    /// `NotFound`, `PermissionDenied`, `Corrupt`, `NewerFormat`.
    pub fn pool(&self, name: &str) -> Result<Pool> {
        match self.find_pool(name)? {
            Some(at) => Pool::open_at(self, name, &at),
            None => {
                self.check_no_pool(name)?;
                fail(ErrorKind::NotFound, format!("pool '{name}' does not exist"))
            }
        }
    }

    /// All pools that can be opened, the store's own first. A pool that cannot be opened is left out
    /// with a warning.
    pub(crate) fn open_pools(&self) -> Result<Vec<Pool>> {
        let mut pools = Vec::new();
        for name in self.pools_own_first()? {
            match self.pool(&name) {
                Ok(pool) => pools.push(pool),
                Err(_) if self.is_unfinished(&name) => {}
                Err(error) => tracing::warn!(error = %error.sentence(), "a pool is left out"),
            }
        }
        Ok(pools)
    }

    /// All pools that may hold children: those of this store, and the attached ones that can be opened.
    /// A child in another store's pool is known by the marker that it left in its parent's pool.
    ///
    /// # Errors
    /// Where a pool of this store cannot be opened: a child in it would be forgotten (I7).
    pub(crate) fn pools_of_children(&self) -> Result<Vec<Pool>> {
        let mut pools = Vec::new();
        for name in self.pools_own_first()? {
            let Some(at) = self.find_pool(&name)? else {
                self.check_no_pool(&name)?;
                continue;
            };
            let attached = matches!(at, Whereabouts::Attached(_));
            match Pool::open_at(self, &name, &at) {
                Ok(pool) => pools.push(pool),
                Err(error) if attached => {
                    tracing::warn!(error = %error.sentence(), "a pool is left out")
                }
                // The creation of the pool was interrupted, or the pool was removed just now.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => {
                    return Err(error.context(format!("pool '{name}' may hold children")));
                }
            }
        }
        Ok(pools)
    }

    /// True for the name of a pool whose creation or removal was interrupted. It holds nothing.
    #[must_use]
    pub fn is_unfinished(&self, name: &str) -> bool {
        self.find_pool(name).is_ok_and(|found| found.is_none()) && self.check_no_pool(name).is_ok()
    }

    /// Fails where a directory without a pool's record holds images. Such a pool has lost its record; it
    /// is not just being created or removed.
    pub(crate) fn check_no_pool(&self, name: &str) -> Result<()> {
        let home = &self.inner.home;
        let place = || home.show(&Part::Pool(name.to_owned()));
        match home.holds_images(name) {
            Ok(false) => return Ok(()),
            Ok(true) => {}
            Err(_) if home.is_link(name) => {
                let message = format!(
                    "pool '{name}' lies elsewhere, by the symbolic link {}, and there is no pool now: is a file system not mounted?",
                    place()
                );
                return fail(ErrorKind::Io, message);
            }
            Err(error) => {
                return Err(error).at(|| format!("cannot list the images of pool '{name}'"));
            }
        }
        let message = format!(
            "pool '{name}' has lost its record, and may hold images: restore {}/pool from a backup",
            place()
        );
        fail(ErrorKind::Corrupt, message)
    }

    /// The pool with a number. The store's own pools come before attached ones.
    ///
    /// # Errors
    /// `NotFound` where no pool of the store has it.
    pub fn pool_by_id(&self, id: PoolId) -> Result<Pool> {
        for name in self.pools_own_first()? {
            if let Ok(pool) = self.pool(&name)
                && pool.id() == id
            {
                return Ok(pool);
            }
        }
        fail(ErrorKind::NotFound, format!("no pool of the store has the number {id}"))
    }

    /// Creates a pool.
    ///
    /// # Errors
    /// `Exists`, `Invalid` for its name, or what the operating system says.
    pub fn pool_create(&self, name: &str, options: &PoolOptions) -> Result<Pool> {
        check_pool_name(name)?;
        let _lock = self.lock("create a pool in it")?;
        if self.find_pool(name)?.is_some() {
            return fail(ErrorKind::Exists, format!("pool '{name}' already exists"));
        }
        // Images in the directory would belong to a pool with another number.
        self.check_no_pool(name)?;
        let context = || format!("cannot create pool '{name}'");
        let home = &self.inner.home;
        let backend = home.create_pool(name, options.readable_by).at(context)?;
        let record = PoolRecord {
            pool_id: self.inner.world.random.number(),
            store_id: self.inner.id,
            created_s: self.inner.world.clock.now_s(),
            write_level: FORMAT_LEVEL,
            ..PoolRecord::default()
        };
        // The commit: a place without this record is no pool.
        backend.records.create(&Key::Pool, &record.to_file()).at(context)?;
        home.settle_pools().at(context)?;
        self.pool(name)
    }

    /// Removes a pool that holds no images.
    ///
    /// # Errors
    /// `NotFound`; `NotEmpty`; `Invalid` for an attached pool in a directory.
    pub fn pool_remove(&self, name: &str) -> Result<()> {
        if let Some(bucket) = self.half_removed(name)? {
            let _lock = self.lock("remove a pool from it")?;
            return self.clear_bucket(name, &bucket);
        }
        let pool = self.pool(name)?;
        let in_bucket = self.bucket_of(name)?.is_some();
        // An empty pool in a bucket may be removed by every store that uses it: the one that made it may be gone.
        if pool.attached() && !in_bucket {
            let message = format!("pool '{name}' belongs to another store; use 'pool detach'");
            return fail(ErrorKind::Invalid, message);
        }
        let _lock = self.lock("remove a pool from it")?;
        pool.check_writable()?;
        let _catalogue = pool.lock(LockMode::Exclusive)?;
        if let Some(image) = pool.any_image()? {
            return fail(ErrorKind::NotEmpty, format!("pool '{name}' still holds image {image}"));
        }
        pool.check_groups_end_here(None)?;
        // Without its record it is no longer a pool. The rest is litter, and may be removed later.
        pool.records().remove(&Key::Pool).at(|| format!("cannot remove pool '{name}'"))?;
        if let Some(bucket) = self.bucket_of(name)? {
            return self.clear_bucket(name, &bucket);
        }
        pool.clear_children();
        self.inner.home.clear_pool(name, pool.directory());
        self.inner.home.settle_pools().at(|| format!("cannot remove pool '{name}'"))
    }

    /// Notes the application of the pool, as `rbd pool init` does.
    ///
    /// # Errors
    /// `NotFound`, `ReadOnly`, or what the operating system says.
    pub fn pool_init(&self, name: &str) -> Result<()> {
        let pool = self.pool(name)?;
        pool.check_writable()?;
        pool.change_record(|record| record.application = "rbd".to_owned())
            .map_err(|error| error.context(format!("cannot initialise pool '{name}'")))
    }

    /// Attaches a pool of another store under a name of this one.
    ///
    /// # Errors
    /// `Exists`; `NotFound` where the directory holds no pool; `Corrupt`, `NewerFormat`.
    pub fn pool_attach(&self, name: &str, directory: &Path) -> Result<Pool> {
        check_pool_name(name)?;
        let _lock = self.lock("attach a pool to it")?;
        if self.find_pool(name)?.is_some() {
            return fail(ErrorKind::Exists, format!("pool '{name}' already exists"));
        }
        let directory =
            std::path::absolute(directory).at(|| format!("cannot use {}", directory.display()))?;
        let Some(text) = directory.to_str() else {
            return fail(ErrorKind::Invalid, "the pool's directory has a name that is not UTF-8");
        };
        // The number that the directory has now is noted. Later openings compare it.
        let pool_id = Pool::number_at(self, &At::Elsewhere(text.to_owned()))?;
        self.check_not_known(pool_id, text)?;
        let mut record =
            AttachedRecord { directory: text.to_owned(), pool_id: pool_id.0, ..Default::default() };
        let pool = Pool::open_at(self, name, &Whereabouts::Attached(record.clone()))?;
        record.owner = Some(pool.owner_id());
        let attached = self.inner.home.attach(name, &record.to_file());
        attached.at(|| format!("cannot attach pool '{name}'"))?;
        Ok(pool)
    }

    /// Fails where the store has a pool with this number.
    pub(crate) fn check_not_known(&self, pool: PoolId, place: &str) -> Result<()> {
        let pools = self.open_pools()?;
        let Some(other) = pools.iter().find(|other| other.id() == pool) else { return Ok(()) };
        let message = format!(
            "{place} is already a pool of this store: it has the number of pool '{}' in {}",
            other.name(),
            other.place()
        );
        fail(ErrorKind::Exists, message)
    }

    /// Detaches an attached pool, or one in a bucket.
    ///
    /// # Errors
    /// `NotFound`; `Invalid` for a pool of this store; `Busy` while there are clones of its
    /// snapshots, or in it, or images are migrated from it or to it. A directory that is gone is no error.
    pub fn pool_detach(&self, name: &str) -> Result<()> {
        // Its directory may be gone. The markers of its images are known all the same.
        let Some(record) = self.attached_record(name)? else {
            self.pool(name)?;
            return fail(ErrorKind::Invalid, format!("pool '{name}' belongs to this store"));
        };
        let id = PoolId(record.pool_id);
        let _lock = self.lock("detach a pool from it")?;
        let pool = self.pool(name).ok();
        for other in self.open_pools()?.iter().filter(|p| p.id() != id) {
            let inside = pool.as_ref().map_or(Ok(false), |p| p.has_child_of_pool(other.id()))?;
            if inside || other.has_marker_of_pool(id)? {
                let message = format!(
                    "images in '{name}' are clones of images in pool '{}'; flatten them first",
                    other.name()
                );
                return fail(ErrorKind::Busy, message);
            }
            if other.has_child_of_pool(id)? {
                let message = format!(
                    "images in pool '{}' are clones of images in '{name}'; flatten them first",
                    other.name()
                );
                return fail(ErrorKind::Busy, message);
            }
            // In buckets, images are not migrated.
            let is_local = |pool: &Pool| pool.segments().shipping().is_none();
            if is_local(other) && pool.as_ref().is_none_or(is_local) {
                if let Some(pool) = &pool {
                    pool.check_no_migration_with(other.id(), other.name())?;
                }
                other.check_no_migration_with(id, name)?;
            }
        }
        self.inner.home.detach(name).at(|| format!("cannot detach pool '{name}'"))
    }

    /// Locks the store. `what` says in the error message what cannot be done in another user's store.
    pub(crate) fn lock(&self, what: &str) -> Result<Box<dyn marcot_store::Lock>> {
        check_own(&self.inner.directory, self.foreign(), what)?;
        let home = &self.inner.home;
        home.lock().at(|| format!("cannot lock the store with {}", home.show(&Part::Lock)))
    }
}

/// Fails in another user's store. It is not changed, whatever its permission bits say.
fn check_own(directory: &Path, foreign: Option<u32>, what: &str) -> Result<()> {
    let Some(user) = foreign else { return Ok(()) };
    let message = format!(
        "{} belongs to user {user}: you cannot {what}; run the command as that user, or use a store of your own",
        directory.display()
    );
    Err(Error::new(ErrorKind::PermissionDenied, message).with_remedy(Remedy::OwnStore))
}

pub(super) fn decode_record(
    home: &dyn Home,
    bytes: std::io::Result<Vec<u8>>,
) -> Result<StoreRecord> {
    let shown = || home.show(&Part::Record);
    let bytes = bytes.at(|| format!("cannot read {}", shown()))?;
    let decoded = decode_message(FrameKind::Store, &bytes);
    Ok(decoded.map_err(|e| Error::from_format(format!("cannot use {}", shown()), e))?.0)
}

fn create(world: &World, home: &dyn Home, directory: &Path) -> Result<StoreRecord> {
    let record = StoreRecord { store_id: world.random.number(), ..StoreRecord::default() };
    match home.create(&encode_message(FrameKind::Store, &record)) {
        // Another process was first.
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            decode_record(home, home.record())
        }
        made => {
            made.at(|| format!("cannot create a store in {}", directory.display())).map(|()| record)
        }
    }
}
