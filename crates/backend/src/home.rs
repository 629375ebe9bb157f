//! The home of a store: the registry of its pools.

use std::io;
use std::path::PathBuf;

use marcot_store::Lock;

use crate::object::home::{Bucket, Found};
use crate::{Backend, Leftover};

/// The registry of a store: its own pools, and notes of the attached pools of other stores.
///
/// Errors are those of the operating system; `NotFound` and `NotADirectory` for a pool that does not exist.
pub trait Home: Send + Sync {
    /// The store's own record.
    ///
    /// # Errors
    /// `NotFound` where there is no store.
    fn record(&self) -> io::Result<Vec<u8>>;

    /// Creates a store with this record. It is durable when this returns.
    ///
    /// # Errors
    /// `AlreadyExists`.
    fn create(&self, record: &[u8]) -> io::Result<()>;

    /// Replaces the store's own record. The caller holds the lock. It is durable when this returns.
    ///
    /// # Errors
    /// What the operating system says.
    fn replace(&self, record: &[u8]) -> io::Result<()>;

    /// Locks the registry exclusively.
    ///
    /// # Errors
    /// What the operating system says.
    fn lock(&self) -> io::Result<Box<dyn Lock>>;

    /// Names of the store's own pools, in no order. The creation or removal of a listed pool may have been
    /// interrupted.
    ///
    /// # Errors
    /// What the operating system says.
    fn pools(&self) -> io::Result<Vec<String>>;

    /// True where the store has a pool of its own with this name.
    ///
    /// # Errors
    /// `PermissionDenied` where this user may not look.
    fn has_pool(&self, name: &str) -> io::Result<bool>;

    /// True where a symbolic link leads to a pool.
    fn is_link(&self, name: &str) -> bool;

    /// True where images lie in a pool's place, even if the pool has no record.
    ///
    /// # Errors
    /// What the operating system says.
    fn holds_images(&self, name: &str) -> io::Result<bool>;

    /// Creates the place of a pool, with everything except its record. It is durable when this returns. A
    /// place that an interrupted creation has left is used.
    ///
    /// # Errors
    /// What the operating system says.
    fn create_pool(&self, name: &str, readable_by: ReadableBy) -> io::Result<Backend>;

    /// Makes creations and removals of pools durable.
    ///
    /// # Errors
    /// What the operating system says.
    fn settle_pools(&self) -> io::Result<()>;

    /// Removes the rest of a pool whose record was removed. What cannot be removed is litter.
    fn clear_pool(&self, name: &str, location: &std::path::Path);

    /// Names of attached pools, in no order.
    ///
    /// # Errors
    /// What the operating system says.
    fn attached(&self) -> io::Result<Vec<String>>;

    /// The note of an attached pool.
    ///
    /// # Errors
    /// `NotFound`.
    fn attachment(&self, name: &str) -> io::Result<Vec<u8>>;

    /// Stores the note of an attached pool, durably.
    ///
    /// # Errors
    /// `AlreadyExists`.
    fn attach(&self, name: &str, attachment: &[u8]) -> io::Result<()>;

    /// Removes the note of an attached pool.
    ///
    /// # Errors
    /// `NotFound`.
    fn detach(&self, name: &str) -> io::Result<()>;

    /// Opens the place of a pool. What is found there is only a claim of its owner.
    ///
    /// # Errors
    /// `NotFound`, `NotADirectory`, `PermissionDenied`.
    fn open(&self, at: &At) -> io::Result<Opened>;

    /// What lies at the place of a pool in a bucket.
    ///
    /// # Errors
    /// What the service says, with a sentence; `Unsupported` for a store that reaches no buckets.
    fn look(&self, _: &Bucket) -> io::Result<Found> {
        Err(no_buckets())
    }

    /// Tries what a pool in a bucket needs of its service, and notes how the service wants to be talked to.
    ///
    /// # Errors
    /// `Unsupported` where the service lacks a guarantee; what the service says, with a sentence.
    fn probe(&self, _: &mut Bucket) -> io::Result<()> {
        Err(no_buckets())
    }

    /// Removes what a removed pool in a bucket has left, there and on this host. What cannot be removed is litter.
    fn clear_bucket(&self, _: &Bucket) {}

    /// What interrupted writes have left among the store's own files (`false`), or among the notes of
    /// attached pools (`true`).
    fn leftovers(&self, attached: bool) -> Vec<Leftover>;

    /// Removes a leftover.
    fn remove_leftover(&self, leftover: &Leftover);

    /// The user who owns the store, where that is another user than the one of this process. Such a store
    /// is not changed.
    fn foreign(&self) -> Option<u32>;

    /// How messages name a part of it: a path.
    fn show(&self, part: &Part) -> String;
}

fn no_buckets() -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, "this store reaches no buckets")
}

/// True for the error of a back end for a store or pool that does not exist.
#[must_use]
pub fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// Where a pool is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum At {
    /// In the store itself, by its name.
    Own(String),
    /// In another store, at the place noted when it was attached.
    Elsewhere(String),
    /// In a bucket, as noted when it was made or attached.
    Bucket(Box<Bucket>),
}

/// A part of a store, for messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// The store's own record.
    Record,
    /// Its lock.
    Lock,
    /// A pool of its own.
    Pool(String),
    /// The note of an attached pool.
    Attachment(String),
}

/// Who may read a new pool's images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum ReadableBy {
    /// Only the user who creates it.
    #[default]
    Owner,
    /// The user's group too.
    Group,
    /// Everybody on the machine: a template pool.
    All,
}

/// The opened place of a pool.
pub struct Opened {
    /// Reaches everything in the pool, and nothing outside it.
    pub backend: Backend,
    /// What this process may do there.
    pub access: Access,
}

/// Who owns a pool, and what this process may do with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Access {
    /// How messages name the place: a path, or the URL of a bucket.
    pub shown: String,
    /// The directory of this machine where the pool lies, or where the control sockets of its images' owners
    /// lie.
    pub directory: PathBuf,
    /// The user who owns it.
    pub owner_id: u32,
    /// The owner is the user of this process, or counts as that user. In another user's pool this process
    /// changes only its own markers, and takes no leases.
    pub own: bool,
    /// Permissions allow to create and write images.
    pub writable: bool,
    /// Everybody on the machine may read it.
    pub public: bool,
    /// Device and inode of the directory, and its owner. No other place has the same while this one is held
    /// open.
    pub identity: (u64, u64, u32),
}
