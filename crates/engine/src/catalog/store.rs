//! A store: the registry of pools, in one directory.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use marcot_format::PoolId;
use marcot_format::frame::{FrameKind, decode_message, encode_message};
use marcot_format::record::{AttachedRecord, PoolRecord, StoreRecord};
use marcot_store::{Disk, LockMode, Trust, World, publish_new, replace};

use super::names::{DEFAULT_NAMESPACE, check_pool_name, escape, read_name};
use super::opening::{Whereabouts, is_absent};
use super::pool::{Pool, read_file};
use crate::error::{Error, ErrorKind, IoContext, Result, fail};
use crate::limits::Limits;
use crate::segment::Files;

/// The pool that every store has from the start, as with RBD.
pub const DEFAULT_POOL: &str = "rbd";

/// Who may read a new pool's images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ReadableBy {
    /// The user who creates it.
    #[default]
    Owner,
    /// The user's group too.
    Group,
    /// Everybody on the machine: a template pool.
    All,
}

/// How a pool is created.
#[derive(Debug, Clone, Copy, Default)]
pub struct PoolOptions {
    /// Who may read it.
    pub readable_by: ReadableBy,
}

pub(crate) struct StoreInner {
    pub directory: PathBuf,
    /// Reaches the store's directory, and nothing outside.
    pub disk: Arc<dyn Disk>,
    /// The user whom the store belongs to, where that is not who runs this process.
    pub foreign: Option<u32>,
    pub id: u64,
    pub world: World,
    pub limits: Limits,
    pub files: Arc<Files>,
}

/// A directory of pools.
#[derive(Clone)]
pub struct Store {
    pub(crate) inner: Arc<StoreInner>,
}

/// Permission bits of a store's directory and of `pools`: others reach the pools that they may read, and
/// do not see the names of the rest.
const STORE_MODE: u32 = 0o711;

fn make_directories(world: &World, path: &Path, mode: u32) -> Result<()> {
    if world.disk.mode(path).is_ok() {
        return Ok(());
    }
    if let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
        make_directories(world, parent, 0o755)?;
    }
    match world.disk.create_directory(path, mode) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => return Ok(()),
        made => made.at(|| format!("cannot create {}", path.display()))?,
    }
    // What is made durable in it later must not be lost with its name.
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    world.disk.sync_directory(parent).at(|| format!("cannot sync {}", parent.display()))
}

impl Store {
    /// Opens the store in a directory of this machine; it comes into being on first use, with the
    /// pool `rbd`.
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
        let (disk, foreign) = match confine(&world, &directory) {
            Err(error) if is_absent(&error) => {
                make_directories(&world, &directory, STORE_MODE)?;
                confine(&world, &directory)
            }
            confined => confined,
        }
        .at(|| format!("cannot open the store in {}", directory.display()))?;
        let path = directory.join("store");
        let record: StoreRecord = match read_file(&*disk, &path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                check_own(&directory, foreign, "create a store there")?;
                create(&world, &*disk, &directory)?
            }
            bytes => {
                let decoded = decode_message(FrameKind::Store, &bytes?);
                decoded
                    .map_err(|e| Error::from_format(format!("cannot use {}", path.display()), e))?
                    .0
            }
        };
        let files = Arc::new(Files::new(world.clone()));
        let id = record.store_id;
        let inner = StoreInner { directory, disk, foreign, id, world, limits, files };
        let store = Self { inner: Arc::new(inner) };
        let empty = !store.is_foreign() && store.pools()?.is_empty();
        if empty && store.find_pool(DEFAULT_POOL)?.is_none() {
            // Another process may be first, and a reader of somebody else's store may not write.
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

    /// Limits of the images that are opened through it.
    #[must_use]
    pub fn limits(&self) -> Limits {
        self.inner.limits
    }

    /// Keeps at most `count` segment files open for reading, of all images together. Files that
    /// images write to are not counted.
    pub fn set_segment_files_max(&self, count: usize) {
        self.inner.files.set_open_max(count);
    }

    /// Uses at most `count` pools; each is held open by one descriptor from when it is used first.
    pub fn set_pools_max(&self, count: usize) {
        self.inner.files.set_pools_max(count);
    }

    /// Its directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.inner.directory
    }

    /// True where it belongs to another user than who runs this process. Nothing is changed in it or in
    /// its pools then.
    #[must_use]
    pub fn is_foreign(&self) -> bool {
        self.inner.foreign.is_some()
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

    /// Names of all pools, those of the store before the attached ones.
    fn pools_own_first(&self) -> Result<Vec<String>> {
        let mut names: Vec<String> = Vec::new();
        for part in ["pools", "attached"] {
            let directory = self.inner.directory.join(part);
            match self.inner.disk.list(&directory) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                listed => {
                    let listed = listed.at(|| format!("cannot list {}", directory.display()))?;
                    let found: Vec<String> = listed
                        .iter()
                        .filter_map(|f| read_name(&directory, f))
                        .filter(|name| !names.contains(name))
                        .collect();
                    names.extend(found);
                }
            }
        }
        Ok(names)
    }

    /// Where a pool lies; `None` where there is no such pool.
    fn find_pool(&self, name: &str) -> Result<Option<Whereabouts>> {
        let own = self.inner.directory.join("pools").join(escape(name));
        match self.pool_record_mode(&own.join("pool")) {
            Ok(_) => return Ok(Some(Whereabouts::Own(own))),
            // It may be there; whoever may not look must not be told that it is not.
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
                return Err(error).at(|| format!("cannot open pool '{name}'"));
            }
            Err(_) => self.check_no_link_of_others(name, &own)?,
        }
        Ok(self.attached_record(name)?.map(Whereabouts::Attached))
    }

    /// An administrator may have put a pool of one's own store elsewhere, by a link in `pools`.
    fn pool_record_mode(&self, path: &Path) -> std::io::Result<u32> {
        match self.is_foreign() {
            true => self.inner.disk.mode(path),
            false => self.inner.world.disk.mode(path),
        }
    }

    /// What is noted of an attached pool; `None` where no pool of that name is attached.
    fn attached_record(&self, name: &str) -> Result<Option<AttachedRecord>> {
        let path = self.inner.directory.join("attached").join(escape(name));
        let bytes = match read_file(&*self.inner.disk, &path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            bytes => bytes?,
        };
        let (record, _) = decode_message(FrameKind::Attached, &bytes)
            .map_err(|e| Error::from_format(format!("cannot use {}", path.display()), e))?;
        Ok(Some(record))
    }

    /// Opens a pool.
    ///
    /// # Errors
    /// `NotFound`, `PermissionDenied`, `Corrupt`, `NewerFormat`.
    pub fn pool(&self, name: &str) -> Result<Pool> {
        match self.find_pool(name)? {
            Some(at) => Pool::open_directory(self, name, &at),
            None => {
                self.check_no_pool(name)?;
                fail(ErrorKind::NotFound, format!("pool '{name}' does not exist"))
            }
        }
    }

    /// All pools that can be opened, those of the store first; one that cannot is left out with a
    /// warning.
    pub(crate) fn open_pools(&self) -> Result<Vec<Pool>> {
        let mut pools = Vec::new();
        for name in self.pools_own_first()? {
            match self.pool(&name) {
                Ok(pool) => pools.push(pool),
                Err(_) if self.is_unfinished(&name) => {}
                Err(error) => tracing::warn!(%error, "a pool is left out"),
            }
        }
        Ok(pools)
    }

    /// All pools that may hold children: those of this store, and what attached ones can be opened.
    /// Children in another store's pool are known by the marker that they left with their parent.
    ///
    /// # Errors
    /// Where a pool of this store cannot be opened: a child in it would be forgotten (I7).
    pub(super) fn pools_of_children(&self) -> Result<Vec<Pool>> {
        let mut pools = Vec::new();
        for name in self.pools_own_first()? {
            let Some(at) = self.find_pool(&name)? else {
                self.check_no_pool(&name)?;
                continue;
            };
            let attached = matches!(at, Whereabouts::Attached(_));
            match Pool::open_directory(self, &name, &at) {
                Ok(pool) => pools.push(pool),
                Err(error) if attached => tracing::warn!(%error, "a pool is left out"),
                // Its creation was cut off, or it was removed just now.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => {
                    return Err(error.context(format!("pool '{name}' may hold children")));
                }
            }
        }
        Ok(pools)
    }

    /// True for the name of a pool whose creation or removal was cut off: there is nothing in it.
    #[must_use]
    pub fn is_unfinished(&self, name: &str) -> bool {
        self.find_pool(name).is_ok_and(|found| found.is_none()) && self.check_no_pool(name).is_ok()
    }

    /// Fails where a directory without a pool's record holds images: it is no pool that is being
    /// created or removed, but one that lost its record.
    fn check_no_pool(&self, name: &str) -> Result<()> {
        let directory = self.inner.directory.join("pools").join(escape(name));
        let images = directory.join("images");
        match self.inner.disk.list(&images) {
            Ok(images) if images.is_empty() => return Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Ok(_) => {}
            Err(_) if self.is_link(&directory) => {
                let message = format!(
                    "pool '{name}' lies elsewhere, by the symbolic link {}, and there is no pool now: is a file system not mounted?",
                    directory.display()
                );
                return fail(ErrorKind::Io, message);
            }
            Err(error) => return Err(error).at(|| format!("cannot list {}", images.display())),
        }
        let message = format!(
            "pool '{name}' has lost its record, and may hold images: restore {} from a backup",
            self.inner.directory.join("pools").join(escape(name)).join("pool").display()
        );
        fail(ErrorKind::Corrupt, message)
    }

    /// The pool with a number; pools of the store have precedence over attached ones.
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
        // Its images belong to a pool of another number than a new one would have.
        self.check_no_pool(name)?;
        let mode = match options.readable_by {
            ReadableBy::Owner => 0o700,
            ReadableBy::Group => 0o750,
            ReadableBy::All => 0o755,
        };
        let directory = self.inner.directory.join("pools").join(escape(name));
        let disk = &*self.inner.disk;
        let make = |path: &Path, mode| match disk.create_directory(path, mode) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
            made => made.at(|| format!("cannot create {}", path.display())),
        };
        make(&directory, mode)?;
        for part in ["names", "images", "segments"] {
            make(&directory.join(part), mode)?;
        }
        make(&directory.join("names").join(DEFAULT_NAMESPACE), mode)?;
        // Children of other users leave their markers here (I7).
        make(&directory.join("children"), 0o1777)?;
        let record = PoolRecord {
            pool_id: self.inner.world.random.number(),
            store_id: self.inner.id,
            created_s: self.inner.world.clock.now_s(),
            application: String::new(),
        };
        let bytes = encode_message(FrameKind::Pool, &record);
        let path = directory.join("pool");
        // All that the record stands on is durable before it: also the store, whose maker may have
        // been killed before that.
        let store = self.inner.directory.clone();
        for made in [directory.join("names"), directory.clone(), store.join("pools"), store] {
            disk.sync_directory(&made).at(|| format!("cannot sync {}", made.display()))?;
        }
        // The commit: a directory without this record is no pool.
        publish_new(disk, &path, self.inner.world.random.number(), mode & 0o644, &bytes)
            .at(|| format!("cannot create pool '{name}'"))?;
        let parent = self.inner.directory.join("pools");
        disk.sync_directory(&parent).at(|| format!("cannot sync {}", parent.display()))?;
        self.pool(name)
    }

    /// Removes a pool that holds no images.
    ///
    /// # Errors
    /// `NotFound`; `NotEmpty`; `Invalid` for an attached pool.
    pub fn pool_remove(&self, name: &str) -> Result<()> {
        let pool = self.pool(name)?;
        if pool.attached() {
            let message = format!("pool '{name}' belongs to another store; use 'pool detach'");
            return fail(ErrorKind::Invalid, message);
        }
        let _lock = self.lock("remove a pool from it")?;
        pool.check_writable()?;
        let _catalogue = pool.lock(LockMode::Exclusive)?;
        if let Some(image) = pool.any_image()? {
            return fail(ErrorKind::NotEmpty, format!("pool '{name}' still holds image {image}"));
        }
        // Without its record it is no pool any more; the rest is litter that may be swept twice.
        let record = pool.directory().join("pool");
        pool.disk().remove_file(&record).at(|| format!("cannot remove pool '{name}'"))?;
        pool.clear_children();
        sweep(pool.disk(), pool.directory());
        let disk = &*self.inner.disk;
        // Where the pool lies elsewhere, a link led to it.
        let own = self.inner.directory.join("pools").join(escape(name));
        let _ = disk.remove_directory(&own).or_else(|_| disk.remove_file(&own));
        disk.sync_directory(&self.inner.directory.join("pools"))
            .at(|| format!("cannot remove pool '{name}'"))
    }

    /// Notes what the pool is for, as `rbd pool init` does.
    ///
    /// # Errors
    /// `NotFound`, `ReadOnly`, or what the operating system says.
    pub fn pool_init(&self, name: &str) -> Result<()> {
        let pool = self.pool(name)?;
        pool.check_writable()?;
        let _lock = pool.lock(LockMode::Exclusive)?;
        let mut record = pool.record().clone();
        record.application = "rbd".to_owned();
        let bytes = encode_message(FrameKind::Pool, &record);
        let unique = self.inner.world.random.number();
        replace(pool.disk(), &pool.directory().join("pool"), unique, pool.file_mode(), &bytes)
            .at(|| format!("cannot initialise pool '{name}'"))
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
        // Its number is what the directory says now; from now on it is what was noted.
        let pool_id = Pool::number_in(self, &directory)?;
        if let Some(other) = self.open_pools()?.iter().find(|p| p.id() == pool_id) {
            let message = format!(
                "{} is already a pool of this store: it has the number of pool '{}' in {}",
                directory.display(),
                other.name(),
                other.directory().display()
            );
            return fail(ErrorKind::Exists, message);
        }
        let mut record =
            AttachedRecord { directory: text.to_owned(), pool_id: pool_id.0, owner: None };
        let pool = Pool::open_directory(self, name, &Whereabouts::Attached(record.clone()))?;
        record.owner = Some(pool.owner_id());
        self.make_attached_directory()?;
        let path = self.inner.directory.join("attached").join(escape(name));
        let bytes = encode_message(FrameKind::Attached, &record);
        let unique = self.inner.world.random.number();
        publish_new(&*self.inner.disk, &path, unique, 0o600, &bytes)
            .at(|| format!("cannot attach pool '{name}'"))?;
        Ok(pool)
    }

    /// Forgets an attached pool.
    ///
    /// # Errors
    /// `NotFound`; `Invalid` for a pool of this store; `Busy` while there are clones of its
    /// snapshots, or in it. That its directory is gone is none.
    pub fn pool_detach(&self, name: &str) -> Result<()> {
        // It need not be there any more; then the markers of its images tell.
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
        }
        let path = self.inner.directory.join("attached").join(escape(name));
        self.inner.disk.remove_file(&path).at(|| format!("cannot detach pool '{name}'"))
    }

    /// Where attached pools are noted. Whom they belong to is nobody else's business.
    fn make_attached_directory(&self) -> Result<()> {
        let disk = &*self.inner.disk;
        let path = self.inner.directory.join("attached");
        match disk.create_directory(&path, 0o700) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => return Ok(()),
            made => made.at(|| format!("cannot create {}", path.display()))?,
        }
        let store = &self.inner.directory;
        disk.sync_directory(store).at(|| format!("cannot sync {}", store.display()))
    }

    /// Locks the store, to do in it what is named in the refusal of another user's.
    pub(super) fn lock(&self, what: &str) -> Result<Box<dyn marcot_store::Lock>> {
        check_own(&self.inner.directory, self.inner.foreign, what)?;
        let path = self.inner.directory.join("lock");
        let lock = self.inner.disk.lock(&path, LockMode::Exclusive, true);
        let lock = lock.at(|| format!("cannot lock the store with {}", path.display()))?;
        lock.ok_or_else(|| Error::new(ErrorKind::Busy, "the store is locked"))
    }
}

const ROOT: u32 = 0;

/// The disk for a store's directory, and the user whom the store belongs to where that is another.
fn confine(world: &World, directory: &Path) -> std::io::Result<(Arc<dyn Disk>, Option<u32>)> {
    let confined = world.disk.confine(directory, Trust::ByOwner)?;
    if confined.own {
        return Ok((confined.disk, None));
    }
    // A directory that an administrator made, such as a mounted volume, in which one made a store.
    // Only root's directories count: anybody else could put there what is one's own.
    let pools = confined.disk.owner_id(&directory.join("pools"));
    let mine = pools.is_ok_and(|owner| owner == world.disk.user_id());
    if mine && confined.owner_id == ROOT {
        return Ok((world.disk.confine(directory, Trust::Own)?.disk, None));
    }
    Ok((confined.disk, Some(confined.owner_id)))
}

/// Fails in another user's store, where nothing is changed, whatever the permission bits say.
fn check_own(directory: &Path, foreign: Option<u32>, what: &str) -> Result<()> {
    let Some(user) = foreign else { return Ok(()) };
    let message = format!(
        "{} belongs to user {user}: you cannot {what}; run the command as that user, or give a store of your own with --store",
        directory.display()
    );
    fail(ErrorKind::PermissionDenied, message)
}

fn create(world: &World, disk: &dyn Disk, directory: &Path) -> Result<StoreRecord> {
    make_directories(world, &directory.join("pools"), STORE_MODE)?;
    let record = StoreRecord { store_id: world.random.number() };
    let bytes = encode_message(FrameKind::Store, &record);
    let path = directory.join("store");
    match publish_new(disk, &path, world.random.number(), 0o644, &bytes) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            let bytes = read_file(disk, &path)?;
            let decoded = decode_message(FrameKind::Store, &bytes);
            Ok(decoded
                .map_err(|e| Error::from_format(format!("cannot use {}", path.display()), e))?
                .0)
        }
        made => {
            made.at(|| format!("cannot create a store in {}", directory.display())).map(|()| record)
        }
    }
}

/// Removes what is left of a pool. Errors leave litter, nothing worse.
fn sweep(disk: &dyn marcot_store::Disk, directory: &Path) {
    for name in disk.list(directory).unwrap_or_default() {
        let path = directory.join(name);
        if disk.remove_file(&path).is_err() {
            sweep(disk, &path);
        }
    }
    let _ = disk.remove_directory(directory);
}
