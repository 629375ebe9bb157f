//! Where a store lies: the registry of its pools.

use std::io;
use std::path::PathBuf;

use marcot_store::Lock;

use crate::{Backend, Leftover};

/// The registry of a store: pools of its own, and what it knows of pools of other stores.
///
/// Errors are the operating system's; `NotFound` and `NotADirectory` for a pool that is not there.
pub trait Home: Send + Sync {
    /// The store's own record.
    ///
    /// # Errors
    /// `NotFound` where no store is there.
    fn record(&self) -> io::Result<Vec<u8>>;

    /// Makes a store, which has this record. It is durable when this returns.
    ///
    /// # Errors
    /// `AlreadyExists`.
    fn create(&self, record: &[u8]) -> io::Result<()>;

    /// Locks the registry, alone.
    ///
    /// # Errors
    /// What the operating system says.
    fn lock(&self) -> io::Result<Box<dyn Lock>>;

    /// What the pools of the store itself are called, in no order. The creation or removal of one may
    /// have been cut off.
    ///
    /// # Errors
    /// What the operating system says.
    fn pools(&self) -> io::Result<Vec<String>>;

    /// Whether a pool of the store itself is there.
    ///
    /// # Errors
    /// `PermissionDenied` where this user may not look.
    fn has_pool(&self, name: &str) -> io::Result<bool>;

    /// True where a symbolic link leads to a pool.
    fn is_link(&self, name: &str) -> bool;

    /// True where images lie in a pool's place, whether the pool has a record or not.
    ///
    /// # Errors
    /// What the operating system says.
    fn holds_images(&self, name: &str) -> io::Result<bool>;

    /// Makes the place of a pool, with all but its record. It is durable when this returns; what a
    /// creation that was cut off has left is used.
    ///
    /// # Errors
    /// What the operating system says.
    fn create_pool(&self, name: &str, readable_by: ReadableBy) -> io::Result<Backend>;

    /// Makes durable whether a pool is there.
    ///
    /// # Errors
    /// What the operating system says.
    fn settle_pools(&self) -> io::Result<()>;

    /// Removes what is left of a pool that has lost its record. What stays is litter.
    fn clear_pool(&self, name: &str, location: &std::path::Path);

    /// What attached pools are called, in no order.
    ///
    /// # Errors
    /// What the operating system says.
    fn attached(&self) -> io::Result<Vec<String>>;

    /// What is noted of an attached pool.
    ///
    /// # Errors
    /// `NotFound`.
    fn attachment(&self, name: &str) -> io::Result<Vec<u8>>;

    /// Notes an attached pool, durably.
    ///
    /// # Errors
    /// `AlreadyExists`.
    fn attach(&self, name: &str, attachment: &[u8]) -> io::Result<()>;

    /// Forgets an attached pool.
    ///
    /// # Errors
    /// `NotFound`.
    fn detach(&self, name: &str) -> io::Result<()>;

    /// Opens the place of a pool. What is found there is a claim of whoever owns it.
    ///
    /// # Errors
    /// `NotFound`, `NotADirectory`, `PermissionDenied`.
    fn open(&self, at: &At) -> io::Result<Opened>;

    /// What writes that were cut off have left among the store's own files (`false`), or among the
    /// attached pools (`true`).
    fn leftovers(&self, attached: bool) -> Vec<Leftover>;

    /// Removes what a write has left.
    fn remove_leftover(&self, leftover: &Leftover);

    /// The user whom the store belongs to, where that is another one than who runs this process.
    /// Nothing is changed in it then.
    fn foreign(&self) -> Option<u32>;

    /// What people call a part of it: a path.
    fn show(&self, part: &Part) -> String;
}

/// True for what a back end says of a store or pool that is not there.
#[must_use]
pub fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// Where a pool is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum At {
    /// In the store itself, by its name.
    Own(String),
    /// In another store, at a place that was noted when it was attached.
    Elsewhere(String),
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
    /// What is noted of an attached pool.
    Attachment(String),
}

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

/// The place of a pool that was opened.
pub struct Opened {
    /// Reaches what the pool holds, and nothing outside.
    pub backend: Backend,
    /// What this process may do there.
    pub access: Access,
}

/// What this process may do with a pool, and whose it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Access {
    /// The directory of this machine where it lies, or where its owners' control sockets do.
    pub directory: PathBuf,
    /// The user who owns it.
    pub owner_id: u32,
    /// That is the user of this process, or counts as such. In another user's pool nothing is changed
    /// but one's own markers, and none of its leases is taken.
    pub own: bool,
    /// Images can be made and written, as far as permissions go.
    pub writable: bool,
    /// Everybody on the machine may read it.
    pub public: bool,
    /// Device and number of the directory, and its owner: no other place has them as long as this one is
    /// held open.
    pub identity: (u64, u64, u32),
}
