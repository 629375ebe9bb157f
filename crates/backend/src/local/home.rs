//! A store in a directory of this machine.
//!
//! ```text
//! STORE/store                  the store's record
//! STORE/lock                   the lock of the registry
//! STORE/pools/NAME/            a pool of the store; an administrator may have put a link there
//! STORE/attached/NAME          the note of another store's pool, or of one in a bucket
//! STORE/host/POOL/             what this host keeps for a pool in a bucket, by the pool's number
//! STORE/host/POOL/requests     how many requests it has sent, for people
//! ```

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use marcot_store::{Confined, Disk, Lock, LockMode, Random, Trust, World, publish_new, replace};

use super::layout::{self, escape, unescape};
use super::{Place, leftovers_in, read_whole};
use crate::object::Patience;
use crate::object::home::{Bucket, Buckets, Connect, Found, real_services};
use crate::{Access, At, Backend, Home, Leftover, Opened, Part, ReadableBy, is_absent};

/// Permission bits of a store's directory and of `pools`. Other users reach the pools that they may read,
/// and cannot list the names of the rest.
const STORE_MODE: u32 = 0o711;
/// Permission bits of the directories above a store.
const ABOVE_MODE: u32 = 0o755;
/// Permission bits of the notes of attached pools: other users need not know them.
const ATTACHED_MODE: u32 = 0o700;
const ATTACHMENT_MODE: u32 = 0o600;
const RECORD_MODE: u32 = 0o644;
/// Permission bits of a directory that everybody may read.
const PUBLIC_MODE: u32 = 0o005;
/// Permission bits of `children`: every user may leave markers there (I7), and cannot remove those of
/// others.
const CHILDREN_MODE: u32 = 0o1777;

/// Limit on the size of a store's record that is read, in bytes.
const RECORD_BYTES_MAX: u64 = 64 << 10;

const ROOT: u32 = 0;

/// A store in a directory.
pub struct LocalHome {
    directory: PathBuf,
    /// Reaches the whole machine.
    outside: Arc<dyn Disk>,
    /// Reaches the store's directory, and nothing outside it.
    inside: Arc<dyn Disk>,
    random: Arc<dyn Random>,
    foreign: Option<u32>,
    buckets: Buckets,
}

/// The disk for a store's directory, and the user who owns the store, where that is another user.
fn confine(world: &World, directory: &Path) -> io::Result<(Arc<dyn Disk>, Option<u32>)> {
    let confined = world.disk.confine(directory, Trust::ByOwner)?;
    if confined.own {
        return Ok((confined.disk, None));
    }
    // This user may have made the store in a directory of an administrator, such as a mounted volume.
    // Only directories of root count: another user could move a directory of this user into its own.
    let pools = confined.disk.owner_id(&directory.join("pools"));
    let mine = pools.is_ok_and(|owner| owner == world.disk.user_id());
    if mine && confined.owner_id == ROOT {
        return Ok((world.disk.confine(directory, Trust::Own)?.disk, None));
    }
    Ok((confined.disk, Some(confined.owner_id)))
}

fn make_directories(disk: &dyn Disk, path: &Path, mode: u32) -> io::Result<()> {
    if disk.mode(path).is_ok() {
        return Ok(());
    }
    let above = path.parent().filter(|above| !above.as_os_str().is_empty());
    if let Some(above) = above {
        make_directories(disk, above, ABOVE_MODE)?;
    }
    match make_directory(disk, path, mode)? {
        // Files made durable in it later must not be lost with the directory's name.
        true => disk.sync_directory(above.unwrap_or(Path::new("."))),
        false => Ok(()),
    }
}

/// Creates a directory. Returns false where it exists already.
fn make_directory(disk: &dyn Disk, path: &Path, mode: u32) -> io::Result<bool> {
    match disk.create_directory(path, mode) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        made => made.map(|()| true),
    }
}

/// Removes a directory with its content. Errors leave litter, nothing worse.
pub(crate) fn sweep(disk: &dyn Disk, directory: &Path) {
    for name in disk.list(directory).unwrap_or_default() {
        let path = directory.join(name);
        if disk.remove_file(&path).is_err() {
            sweep(disk, &path);
        }
    }
    let _ = disk.remove_directory(directory);
}

impl LocalHome {
    /// Opens the home of a store in a directory. Creates the directory where it is missing, but no store.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn open(world: &World, directory: &Path) -> io::Result<Self> {
        Self::open_for(world, directory, Patience::default())
    }

    /// As [`Self::open`]. Services of pools in buckets are waited for with this patience.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn open_for(world: &World, directory: &Path, patience: Patience) -> io::Result<Self> {
        Self::open_with(world, directory, real_services(patience), patience)
    }

    /// As [`Self::open_for`]. Pools in buckets are reached by these connections.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn open_with(
        world: &World,
        directory: &Path,
        connect: Connect,
        patience: Patience,
    ) -> io::Result<Self> {
        let (inside, foreign) = match confine(world, directory) {
            Err(error) if is_absent(&error) => {
                make_directories(&*world.disk, directory, STORE_MODE)?;
                confine(world, directory)
            }
            confined => confined,
        }?;
        Ok(Self {
            directory: directory.to_owned(),
            outside: Arc::clone(&world.disk),
            inside,
            random: Arc::clone(&world.random),
            foreign,
            buckets: Buckets::new(world, connect, patience, directory),
        })
    }

    fn path(&self, part: &Part) -> PathBuf {
        match part {
            Part::Record => self.directory.join("store"),
            Part::Lock => self.directory.join("lock"),
            Part::Pool(name) => self.pools_directory().join(escape(name)),
            Part::Attachment(name) => self.attached_directory().join(escape(name)),
        }
    }

    fn pools_directory(&self) -> PathBuf {
        self.directory.join("pools")
    }

    fn attached_directory(&self) -> PathBuf {
        self.directory.join("attached")
    }

    fn names(&self, directory: &Path) -> io::Result<Vec<String>> {
        match self.inside.list(directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            listed => Ok(listed?.iter().filter_map(|file| unescape(file)).collect()),
        }
    }

    fn publish(&self, part: &Part, mode: u32, bytes: &[u8]) -> io::Result<()> {
        publish_new(&*self.inside, &self.path(part), self.random.number(), mode, bytes)
    }

    /// True where everybody may pass through the directories above. A public pool in a private directory
    /// is not public.
    fn is_within_reach(&self, directory: &Path) -> bool {
        let passable = |path: &Path| self.outside.mode(path).is_ok_and(|mode| mode & 0o001 != 0);
        directory.ancestors().skip(1).filter(|path| !path.as_os_str().is_empty()).all(passable)
    }

    fn confine_pool(&self, at: &At, directory: &Path) -> io::Result<Confined> {
        match at {
            // A path in another user's store is only that user's claim.
            At::Own(_) if self.foreign.is_some() => self.inside.confine(directory, Trust::Foreign),
            At::Elsewhere(_) if self.foreign.is_some() => {
                self.outside.confine(directory, Trust::Foreign)
            }
            At::Own(_) | At::Elsewhere(_) | At::Bucket(_) => {
                self.outside.confine(directory, Trust::ByOwner)
            }
        }
    }

    fn backend(&self, disk: Arc<dyn Disk>, directory: &Path, mode: u32) -> Backend {
        let random = Arc::clone(&self.random);
        super::backend(Place { disk, directory: directory.to_owned(), random, mode })
    }
}

impl Home for LocalHome {
    fn record(&self) -> io::Result<Vec<u8>> {
        read_whole(&*self.inside, &self.path(&Part::Record), RECORD_BYTES_MAX)
    }

    fn create(&self, record: &[u8]) -> io::Result<()> {
        make_directories(&*self.outside, &self.pools_directory(), STORE_MODE)?;
        self.publish(&Part::Record, RECORD_MODE, record)
    }

    fn replace(&self, record: &[u8]) -> io::Result<()> {
        let path = self.path(&Part::Record);
        replace(&*self.inside, &path, self.random.number(), RECORD_MODE, record)
    }

    fn lock(&self) -> io::Result<Box<dyn Lock>> {
        let lock = self.inside.lock(&self.path(&Part::Lock), LockMode::Exclusive, true)?;
        lock.ok_or_else(|| io::ErrorKind::WouldBlock.into())
    }

    fn pools(&self) -> io::Result<Vec<String>> {
        self.names(&self.pools_directory())
    }

    fn has_pool(&self, name: &str) -> io::Result<bool> {
        let record = layout::pool(&self.path(&Part::Pool(name.to_owned())));
        // An administrator may have put a pool of this store elsewhere, by a symbolic link.
        let disk = if self.foreign.is_some() { &self.inside } else { &self.outside };
        match disk.mode(&record) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(error),
            Err(_) => Ok(false),
        }
    }

    fn is_link(&self, name: &str) -> bool {
        let path = self.path(&Part::Pool(name.to_owned()));
        self.inside.file_info(&path).is_ok_and(|info| info.link)
    }

    fn holds_images(&self, name: &str) -> io::Result<bool> {
        let images = layout::images(&self.path(&Part::Pool(name.to_owned())));
        match self.inside.list(&images) {
            Ok(images) => Ok(!images.is_empty()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn create_pool(&self, name: &str, readable_by: ReadableBy) -> io::Result<Backend> {
        let mode = match readable_by {
            ReadableBy::Owner => 0o700,
            ReadableBy::Group => 0o750,
            ReadableBy::All => 0o755,
        };
        let directory = self.path(&Part::Pool(name.to_owned()));
        let disk = &*self.inside;
        make_directory(disk, &directory, mode)?;
        for part in layout::PARTS {
            make_directory(disk, &directory.join(part), mode)?;
        }
        make_directory(disk, &layout::names(&directory, ""), mode)?;
        make_directory(disk, &layout::children(&directory), CHILDREN_MODE)?;
        // The store's directory too: its maker may have been killed before its name was durable.
        let (pools, store) = (self.pools_directory(), self.directory.clone());
        for made in [layout::namespaces(&directory), directory.clone(), pools, store] {
            disk.sync_directory(&made)?;
        }
        Ok(self.backend(Arc::clone(&self.inside), &directory, mode))
    }

    fn settle_pools(&self) -> io::Result<()> {
        self.inside.sync_directory(&self.pools_directory())
    }

    fn clear_pool(&self, name: &str, location: &Path) {
        sweep(&*self.outside, location);
        // Where the pool lies elsewhere, this removes the link to it.
        let own = self.path(&Part::Pool(name.to_owned()));
        let _ = self.inside.remove_directory(&own).or_else(|_| self.inside.remove_file(&own));
    }

    fn attached(&self) -> io::Result<Vec<String>> {
        self.names(&self.attached_directory())
    }

    fn attachment(&self, name: &str) -> io::Result<Vec<u8>> {
        read_whole(&*self.inside, &self.path(&Part::Attachment(name.to_owned())), RECORD_BYTES_MAX)
    }

    fn attach(&self, name: &str, attachment: &[u8]) -> io::Result<()> {
        if make_directory(&*self.inside, &self.attached_directory(), ATTACHED_MODE)? {
            self.inside.sync_directory(&self.directory)?;
        }
        self.publish(&Part::Attachment(name.to_owned()), ATTACHMENT_MODE, attachment)
    }

    fn detach(&self, name: &str) -> io::Result<()> {
        self.inside.remove_file(&self.path(&Part::Attachment(name.to_owned())))
    }

    fn open(&self, at: &At) -> io::Result<Opened> {
        let directory = match at {
            At::Own(name) => self.path(&Part::Pool(name.clone())),
            At::Elsewhere(directory) => PathBuf::from(directory),
            At::Bucket(_) if self.foreign.is_some() => {
                let why = "the bucket of another user's store is not used: attach it to a store of your own";
                return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
            }
            At::Bucket(bucket) => return self.buckets.open(&self.inside, bucket),
        };
        let confined = self.confine_pool(at, &directory)?;
        let mode = confined.disk.mode(&directory).unwrap_or(0o700);
        let access = Access {
            shown: directory.display().to_string(),
            owner_id: confined.owner_id,
            own: confined.own,
            writable: confined.disk.writable(&layout::images(&directory)),
            public: mode & PUBLIC_MODE == PUBLIC_MODE && self.is_within_reach(&directory),
            identity: (confined.identity.0, confined.identity.1, confined.owner_id),
            directory: directory.clone(),
        };
        Ok(Opened { backend: self.backend(confined.disk, &directory, mode), access })
    }

    fn look(&self, bucket: &Bucket) -> io::Result<Found> {
        self.buckets.look(bucket)
    }

    fn probe(&self, bucket: &mut Bucket) -> io::Result<()> {
        self.buckets.probe(bucket)
    }

    fn clear_bucket(&self, bucket: &Bucket) {
        self.buckets.clear(&*self.inside, bucket);
    }

    fn leftovers(&self, attached: bool) -> Vec<Leftover> {
        match attached {
            true => leftovers_in(&*self.inside, &self.attached_directory()),
            false => leftovers_in(&*self.inside, &self.directory),
        }
    }

    fn remove_leftover(&self, leftover: &Leftover) {
        // A file that cannot be removed stays.
        let _ = self.inside.remove_file(Path::new(&leftover.shown));
    }

    fn foreign(&self) -> Option<u32> {
        self.foreign
    }

    fn show(&self, part: &Part) -> String {
        self.path(part).display().to_string()
    }
}
