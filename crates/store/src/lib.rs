//! The engine's environment: files, time, random numbers and worker threads, behind traits that are small
//! enough to simulate.
//!
//! Everything that the engine does to the outside goes through [`Disk`], [`Clock`], [`Random`] and
//! [`Workers`]. So the same engine runs on a real file system and in a simulated world.
//!
//! Every [`Disk`] keeps these invariants, and promises nothing more:
//! - Bytes written by [`DiskFile::write_at`] may be lost, in whole or in any part, until
//!   [`DiskFile::sync`] has returned. A name may be lost until [`Disk::sync_directory`] has returned for
//!   its directory. Before that, nothing is promised about the order.
//! - [`Disk::rename`] is atomic: after a crash the old or the new file has the name.
//! - After a failed `sync`, bytes written since the last good one may be lost. A second `sync` of the same
//!   handle need not fail. Each other open handle of the file gets the error from its own next `sync`, as
//!   in Linux since 4.13.

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
pub use async_io::{AsyncIo, AsyncRead, AsyncWrite, IoCompletion, Waker};
pub use atomic::{publish_new, replace};
pub use clock::{Clock, Random, SystemClock, SystemRandom};
pub use confined::{Confined, SHARED_DIRECTORY, Trust};
pub use local::LocalDisk;
pub use workers::{InPlace, Job, Running, Task, Threads, Workers};

/// The environment of the engine.
#[derive(Clone)]
pub struct World {
    /// Files.
    pub disk: Arc<dyn Disk>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Random numbers.
    pub random: Arc<dyn Random>,
    /// Threads for work in the background.
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

/// What is known of a file without opening it.
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
    /// Its length in bytes.
    pub length: u64,
    /// Bytes that it takes on the medium.
    pub allocated_bytes: u64,
}

/// How a lock is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockMode {
    /// Many holders at a time.
    Shared,
    /// One holder.
    Exclusive,
}

/// A lock that is held until it is dropped.
pub trait Lock: Send + Sync {}

/// A tree of directories and files, with exact rules of durability.
pub trait Disk: Send + Sync {
    /// Creates a file that must not exist, open for reading and writing. `mode` gives its
    /// permission bits.
    ///
    /// # Errors
    /// `AlreadyExists`, or what the operating system says.
    fn create_new(&self, path: &Path, mode: u32) -> io::Result<Arc<dyn DiskFile>>;

    /// Opens a file; for writing too where `write` is true.
    ///
    /// # Errors
    /// What the operating system says.
    fn open(&self, path: &Path, write: bool) -> io::Result<Arc<dyn DiskFile>>;

    /// Gives `from` the name `to`. A file that has this name is replaced.
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

    /// Calls `each` for the names in a directory, in no order, until it returns false. This is for
    /// directories that other users fill: their names may not all fit into memory, and need not be text.
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

    /// As [`Self::visit`], with the [`FileInfo`] of each name. For a name on which another file system is
    /// mounted, that is an error.
    ///
    /// # Errors
    /// What the operating system says about the directory.
    fn look_through(
        &self,
        path: &Path,
        each: &mut dyn FnMut(&OsStr, io::Result<FileInfo>) -> bool,
    ) -> io::Result<()> {
        self.visit(path, &mut |name| each(name, self.file_info(&path.join(name))))
    }

    /// Removes a file, or a directory with its content. The directory may be of any depth, and other
    /// users may change it meanwhile. No link is followed and no other file system is entered.
    ///
    /// `aside` is a free name in the same directory. It is used for a private directory, into which `path`
    /// is moved if needed. Where something cannot be removed, the private directory stays; a later call
    /// can remove it. `steps` limits the number of files that are removed. Each removal reduces it.
    ///
    /// # Errors
    /// What the operating system says about files that stay.
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

    /// What is known of a file without opening it; for a symbolic link, about the link itself.
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

    /// The user who owns a file or directory; for a symbolic link, the owner of the link itself.
    ///
    /// # Errors
    /// What the operating system says.
    fn owner_id(&self, path: &Path) -> io::Result<u32> {
        Ok(self.file_info(path)?.owner_id)
    }

    /// True where this process may create names in the directory.
    fn writable(&self, path: &Path) -> bool;

    /// Locks a file against other processes and other holders in this one. Creates the file where it
    /// is missing and may be created. `None` where somebody else holds the lock and `wait` is false.
    ///
    /// # Errors
    /// What the operating system says.
    fn lock(&self, path: &Path, mode: LockMode, wait: bool) -> io::Result<Option<Box<dyn Lock>>>;

    /// Performs all reads, concurrently where the disk can.
    fn read_batch(&self, reads: &mut [FileRead<'_>]) {
        for read in reads {
            read.result = read.file.read_at(read.offset, read.buf);
        }
    }

    /// A queue for asynchronous reads and writes; `None` where the disk has none.
    fn async_io(&self) -> Option<Box<dyn AsyncIo>> {
        None
    }

    /// Bytes free on the medium for this user.
    ///
    /// # Errors
    /// What the operating system says.
    fn free_bytes(&self, path: &Path) -> io::Result<u64>;

    /// A disk that reaches only what lies in `directory`, which is held open from now on. Paths have the
    /// same form as before and must begin with `directory`. They follow no symbolic link and never lead
    /// out of the directory.
    ///
    /// In another user's directory nothing can be changed or locked, see [`Confined::own`]. Only files of
    /// the directory's owner are opened there.
    ///
    /// # Errors
    /// What the operating system says.
    fn confine(&self, directory: &Path, trust: Trust) -> io::Result<Confined>;

    /// The effective user of this process.
    fn user_id(&self) -> u32 {
        0
    }

    /// The number of this process.
    fn process_id(&self) -> u32 {
        std::process::id()
    }
}

/// An open file.
pub trait DiskFile: Send + Sync {
    /// Reads until `buf` is full or the file ends. Returns the number of bytes read.
    ///
    /// # Errors
    /// What the operating system says.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize>;

    /// As [`Self::read_at`], but never waits for the medium. So it may read fewer bytes.
    ///
    /// # Errors
    /// `WouldBlock` where nothing can be read without waiting, or what the operating system says.
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

    /// True where the file has more names than the one that it was opened by.
    ///
    /// # Errors
    /// What the operating system says.
    fn has_other_names(&self) -> io::Result<bool> {
        Ok(false)
    }

    /// True where the file has no name any more. It then takes space only because it is open.
    ///
    /// # Errors
    /// What the operating system says.
    fn is_removed(&self) -> io::Result<bool> {
        Ok(false)
    }

    /// Truncates or extends the file.
    ///
    /// # Errors
    /// What the operating system says.
    fn set_length(&self, length: u64) -> io::Result<()>;

    /// Preallocates space for a range, so that writing there cannot fail for lack of it. Bytes that
    /// were not written read as zeros. The file grows to the end of the range.
    ///
    /// # Errors
    /// `Unsupported`, or what the operating system says.
    fn reserve(&self, _offset: u64, _length: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Punches a hole: gives the space of a range back. The range reads as zeros afterwards.
    ///
    /// # Errors
    /// What the operating system says.
    fn punch(&self, offset: u64, length: u64) -> io::Result<()>;

    /// Asks the operating system to read a range ahead.
    fn advise(&self, offset: u64, length: u64);

    /// Asks the operating system to start writing a range to the medium, without waiting. The bytes are
    /// durable only after a sync, and only the sync reports failures.
    fn write_out(&self, _offset: u64, _length: u64) {}

    /// Drops clean pages from the page cache, so that reads show what the medium has. After a sync that
    /// failed in another process the cache may hold bytes that never reached the medium.
    fn drop_cache(&self) {
        self.drop_cached(0, u64::MAX);
    }

    /// As [`Self::drop_cache`], for a range. Dirty pages stay, and the system starts to write them.
    fn drop_cached(&self, _offset: u64, _length: u64) {}

    /// Waits, for a limited time, for direct writes that a process left in flight when it ended.
    fn await_writers(&self) {}

    /// A plain file with the same bytes at the same places, which is read faster than this one; `None` where there
    /// is none. It may be damaged, and somebody may cut it at any time. So its reader verifies what it reads, and
    /// reads from this file what is wrong or missing. It is not kept for longer than a read takes.
    fn local_copy(&self) -> Option<Arc<dyn DiskFile>> {
        None
    }

    /// True where [`Self::read_at`] may wait for a service, and not only for a medium.
    fn waits_for_service(&self) -> bool {
        false
    }

    /// The file descriptor, where there is one.
    fn raw_fd(&self) -> Option<i32> {
        None
    }

    /// The same file opened for direct writes, which bypass the page cache, for [`AsyncIo::start_write`].
    /// While it is open, or such a write is in flight, [`Self::await_writers`] waits in every other process.
    ///
    /// # Errors
    /// `Unsupported`, or what the operating system says.
    fn direct(&self) -> io::Result<Arc<dyn DiskFile>> {
        Err(io::ErrorKind::Unsupported.into())
    }
}
