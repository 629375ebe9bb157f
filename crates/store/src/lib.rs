//! Where the bytes of a pool live, behind traits small enough to simulate.
//!
//! Everything the engine does to the outside goes through [`Disk`], [`Clock`], [`Random`] and
//! [`Workers`], so that the same engine runs on a real file system and in a simulated world.
//!
//! Invariants that every [`Disk`] keeps, and nothing more:
//! - What [`DiskFile::write_at`] wrote may be lost, in whole or in any part, until
//!   [`DiskFile::sync`] returned; a name may be lost until [`Disk::sync_directory`] returned for
//!   its directory. Neither promises any order before that.
//! - [`Disk::rename`] is atomic: after a crash the old or the new file has the name.
//! - After a failed `sync`, nothing written since the last good one may be assumed stored, nor
//!   will a second `sync` tell; but each other open handle of the file is told by its next one, as
//!   Linux does since 4.13.

mod aligned;
mod async_io;
mod atomic;
pub mod clock;
mod confined;
pub mod local;
mod tree;
pub mod workers;

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::sync::Arc;

pub use aligned::{ALIGNMENT_BYTES, AlignedBytes};
pub use async_io::{AsyncIo, AsyncRead, AsyncWrite, IoCompletion};
pub use atomic::{publish_new, replace};
pub use clock::{Clock, Random, SystemClock, SystemRandom};
pub use confined::{Confined, SHARED_DIRECTORY, Trust};
pub use local::LocalDisk;
pub use workers::{InPlace, Job, Running, Threads, Workers};

/// The world as the engine sees it.
#[derive(Clone)]
pub struct World {
    /// Files.
    pub disk: Arc<dyn Disk>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Random numbers.
    pub random: Arc<dyn Random>,
    /// Work in the background.
    pub workers: Arc<dyn Workers>,
}

impl World {
    /// The operating system's files, clock, random numbers and threads.
    #[must_use]
    pub fn system() -> Self {
        Self {
            disk: Arc::new(LocalDisk::new()),
            clock: Arc::new(SystemClock),
            random: Arc::new(SystemRandom),
            workers: Arc::new(Threads),
        }
    }
}

/// One read of a batch.
pub struct FileRead<'a> {
    /// From this file.
    pub file: &'a dyn DiskFile,
    /// First byte.
    pub offset: u64,
    /// Filled from its start.
    pub buf: &'a mut [u8],
    /// Bytes read; fewer than asked only at the end of the file.
    pub result: io::Result<usize>,
}

/// What can be told of a file without opening it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileInfo {
    /// The user who owns it.
    pub owner_id: u32,
    /// False for directories, links, devices, FIFOs and sockets.
    pub plain: bool,
    /// True for a symbolic link.
    pub link: bool,
    /// True for directories.
    pub directory: bool,
    /// Bytes from its start to its end.
    pub length: u64,
    /// Bytes that it takes on the medium.
    pub allocated_bytes: u64,
}

/// How a lock is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockMode {
    /// Many at a time.
    Shared,
    /// One alone.
    Exclusive,
}

/// A held lock; dropping it lets go.
pub trait Lock: Send + Sync {}

/// A directory tree with exact durability.
pub trait Disk: Send + Sync {
    /// Creates a file that must not exist, open for reading and writing. `mode` gives its
    /// permission bits.
    ///
    /// # Errors
    /// `AlreadyExists`, or what the operating system says.
    fn create_new(&self, path: &Path, mode: u32) -> io::Result<Arc<dyn DiskFile>>;

    /// Opens a file, for writing too if asked.
    ///
    /// # Errors
    /// What the operating system says.
    fn open(&self, path: &Path, write: bool) -> io::Result<Arc<dyn DiskFile>>;

    /// Gives `from` the name `to`, replacing what had it.
    ///
    /// # Errors
    /// What the operating system says.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Gives `from` the name `to`, which must be free.
    ///
    /// # Errors
    /// `AlreadyExists`, or what the operating system says.
    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file's name.
    ///
    /// # Errors
    /// What the operating system says.
    fn remove_file(&self, path: &Path) -> io::Result<()>;

    /// Removes an empty directory.
    ///
    /// # Errors
    /// What the operating system says.
    fn remove_directory(&self, path: &Path) -> io::Result<()>;

    /// Creates a directory.
    ///
    /// # Errors
    /// `AlreadyExists`, or what the operating system says.
    fn create_directory(&self, path: &Path, mode: u32) -> io::Result<()>;

    /// Names in a directory, sorted.
    ///
    /// # Errors
    /// What the operating system says.
    fn list(&self, path: &Path) -> io::Result<Vec<String>>;

    /// Shows `each` the names in a directory, in no order, until it returns false: for directories that
    /// others fill, whose names need not all fit into memory, nor be text.
    ///
    /// # Errors
    /// What the operating system says.
    fn visit(&self, path: &Path, each: &mut dyn FnMut(&OsStr) -> bool) -> io::Result<()> {
        for name in self.list(path)? {
            if !each(OsStr::new(&name)) {
                break;
            }
        }
        Ok(())
    }

    /// As [`Self::visit`], with what can be told of each without opening it. What another file system is
    /// mounted on is an error of its own.
    ///
    /// # Errors
    /// What the operating system says of the directory.
    fn look_through(
        &self,
        path: &Path,
        each: &mut dyn FnMut(&OsStr, io::Result<FileInfo>) -> bool,
    ) -> io::Result<()> {
        self.visit(path, &mut |name| each(name, self.file_info(&path.join(name))))
    }

    /// Removes a file, or a directory with all that is in it, however deep that is and whatever others
    /// do to it meanwhile. No link is followed and no other file system entered.
    ///
    /// `aside` is a free name in the same directory, for a private directory into which `path` is moved
    /// where that is needed. It stays where something cannot be removed, and can be removed later with
    /// this again. `steps` bounds the files that are removed, and becomes fewer with each.
    ///
    /// # Errors
    /// What the operating system says of what stays.
    fn remove_tree(&self, path: &Path, _aside: &Path, steps: &mut u64) -> io::Result<()> {
        tree::remove(self, path, steps)
    }

    /// Makes the names in a directory durable.
    ///
    /// # Errors
    /// What the operating system says.
    fn sync_directory(&self, path: &Path) -> io::Result<()>;

    /// Permission bits of a file or directory.
    ///
    /// # Errors
    /// What the operating system says.
    fn mode(&self, path: &Path) -> io::Result<u32>;

    /// When a file was written last, in seconds since 1970.
    ///
    /// # Errors
    /// `Unsupported`, or what the operating system says.
    fn modified_s(&self, path: &Path) -> io::Result<i64>;

    /// What can be told of a file without opening it; of a link, of the link itself.
    ///
    /// # Errors
    /// What the operating system says.
    fn file_info(&self, path: &Path) -> io::Result<FileInfo> {
        let file = self.open(path, false)?;
        let (length, allocated_bytes) = (file.length()?, file.allocated_bytes()?);
        let owner_id = self.user_id();
        let (link, directory) = (false, false);
        Ok(FileInfo { owner_id, plain: true, link, directory, length, allocated_bytes })
    }

    /// The user who owns a file or directory; of a link, the link's own.
    ///
    /// # Errors
    /// What the operating system says.
    fn owner_id(&self, path: &Path) -> io::Result<u32> {
        Ok(self.file_info(path)?.owner_id)
    }

    /// True where this process may create names in the directory.
    fn writable(&self, path: &Path) -> bool;

    /// Locks a file against other processes and other holders in this one, creating it first
    /// where it is missing and may be created. `None`: somebody else holds it and `wait` is false.
    ///
    /// # Errors
    /// What the operating system says.
    fn lock(&self, path: &Path, mode: LockMode, wait: bool) -> io::Result<Option<Box<dyn Lock>>>;

    /// Performs all reads, together where the machine can.
    fn read_batch(&self, reads: &mut [FileRead<'_>]) {
        for read in reads {
            read.result = read.file.read_at(read.offset, read.buf);
        }
    }

    /// A place for reads and writes that go on in the background; `None` where there is no such thing.
    fn async_io(&self) -> Option<Box<dyn AsyncIo>> {
        None
    }

    /// Bytes free on the medium for this user.
    ///
    /// # Errors
    /// What the operating system says.
    fn free_bytes(&self, path: &Path) -> io::Result<u64>;

    /// This disk for what lies in a directory, which is held open from now on. Paths are as before, and
    /// must begin with `directory`; they reach what is in it through no link, and never out of it.
    ///
    /// In another user's directory nothing can be changed or locked, see [`Confined::own`], and only
    /// what the directory's owner owns is opened.
    ///
    /// # Errors
    /// What the operating system says.
    fn confine(&self, directory: &Path, trust: Trust) -> io::Result<Confined>;

    /// The user that this process acts as.
    fn user_id(&self) -> u32 {
        0
    }

    /// Number by which other users of the disk know this process.
    fn process_id(&self) -> u32 {
        std::process::id()
    }
}

/// An open file.
pub trait DiskFile: Send + Sync {
    /// Reads until `buf` is full or the file ends; returns the bytes read.
    ///
    /// # Errors
    /// What the operating system says.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize>;

    /// As [`Self::read_at`], but reads only what needs no waiting for the medium, which may be less.
    ///
    /// # Errors
    /// `WouldBlock` where that is nothing, or what the operating system says.
    fn read_cached_at(&self, _offset: u64, _buf: &mut [u8]) -> io::Result<usize> {
        Err(io::ErrorKind::WouldBlock.into())
    }

    /// Writes all of `parts`, one after the other, from `offset` on.
    ///
    /// # Errors
    /// What the operating system says; any part of it may have been written.
    fn write_at(&self, offset: u64, parts: &[&[u8]]) -> io::Result<()>;

    /// Makes everything written, and the file's length, durable.
    ///
    /// # Errors
    /// What the operating system says.
    fn sync(&self) -> io::Result<()>;

    /// Length in bytes.
    ///
    /// # Errors
    /// What the operating system says.
    fn length(&self) -> io::Result<u64>;

    /// Bytes that the file takes on the medium.
    ///
    /// # Errors
    /// What the operating system says.
    fn allocated_bytes(&self) -> io::Result<u64>;

    /// True where the file has no name any more: it takes room only because it is open.
    ///
    /// # Errors
    /// What the operating system says.
    fn is_removed(&self) -> io::Result<bool> {
        Ok(false)
    }

    /// Cuts or extends the file.
    ///
    /// # Errors
    /// What the operating system says.
    fn set_length(&self, length: u64) -> io::Result<()>;

    /// Takes room on the medium for a range, so that writing there cannot lack it. What was not
    /// written reads as zeros; the file grows to the end of the range.
    ///
    /// # Errors
    /// `Unsupported`, or what the operating system says.
    fn reserve(&self, _offset: u64, _length: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Gives a range back to the medium; it reads as zeros afterwards.
    ///
    /// # Errors
    /// What the operating system says.
    fn punch(&self, offset: u64, length: u64) -> io::Result<()>;

    /// Asks the operating system to read a range ahead.
    fn advise(&self, offset: u64, length: u64);

    /// Asks the operating system to begin with writing a range to the medium. Nothing is waited for,
    /// nothing is durable before a sync, and only that tells of failures.
    fn write_out(&self, _offset: u64, _length: u64) {}

    /// Forgets what is cached and clean, so that reads show what the medium has. After a sync that
    /// failed in another process the cache may hold what never got there.
    fn drop_cache(&self) {
        self.drop_cached(0, u64::MAX);
    }

    /// As [`Self::drop_cache`], for a range. What is not clean yet stays, and begins to be written.
    fn drop_cached(&self, _offset: u64, _length: u64) {}

    /// Waits, though not for ever, for writes past the page cache that a process left under way when
    /// it ended.
    fn await_writers(&self) {}

    /// The file descriptor, where there is one.
    fn raw_fd(&self) -> Option<i32> {
        None
    }

    /// The same file past the page cache, for [`AsyncIo::start_write`]. As long as it is open, or a
    /// write under way, [`Self::await_writers`] waits in every other process.
    ///
    /// # Errors
    /// `Unsupported`, or what the operating system says.
    fn direct(&self) -> io::Result<Arc<dyn DiskFile>> {
        Err(io::ErrorKind::Unsupported.into())
    }
}
