//! A disk that reaches one directory only, and opens nothing there that could be a trap.
//!
//! Invariants:
//! - No symbolic link is followed, and nothing outside is reached (module `beneath`).
//! - Only plain files are opened, and only those of the directory's owner; in this user's own directory
//!   also those of root. In the shared directory files of every user are opened, for reading.
//! - A file that another user may have put there is checked before it is opened, because opening a device
//!   or a FIFO can have effects of its own.
//! - In another user's directory nothing is changed except this user's own files in the shared directory.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::fs::{self, AtFlags, CWD, FileType, Mode, OFlags, RenameFlags, Stat};
use rustix::io::Errno;

use super::beneath::Beneath;
use super::holder::holder_of;
use super::lock::flock;
use super::{LocalDisk, LocalFile, info_of, share, tree};
use crate::{
    AsyncIo, Confined, Disk, DiskFile, FileInfo, FileRead, Lock, LockMode, SHARED_DIRECTORY, Trust,
};

/// How often an open is tried again where somebody holds a lease on the file. A program that is asked for
/// its lease normally gives it up at once.
const LEASE_ATTEMPTS: u32 = 10;
/// The time between two attempts.
const LEASE_INTERVAL: Duration = Duration::from_millis(10);

/// After this many leases that were not given up, no more are waited for in this directory. So a user who
/// takes a lease on every file of a pool cannot make others wait for each.
const LEASES_AWAITED_MAX: u32 = 10;

/// Files of root count as this user's own: root can change anything anyway.
const ROOT: u32 = 0;

pub(super) struct ConfinedDisk {
    base: LocalDisk,
    directory: PathBuf,
    beneath: Beneath,
    owner_id: u32,
    user_id: u32,
    own: bool,
    /// Leases that were waited for and not given up.
    leases_met: AtomicU32,
}

/// Confines `base` to a directory; where `from` is given, to a directory that it reaches.
pub(super) fn confine(
    base: &LocalDisk,
    from: Option<&ConfinedDisk>,
    directory: &Path,
    trust: Trust,
) -> io::Result<Confined> {
    let user_id = rustix::process::geteuid().as_raw();
    let open = |cross_mounts| match from {
        Some(outer) => outer.beneath.open_beneath(outer.relative(directory)?, cross_mounts),
        None => Beneath::open_root(directory, cross_mounts),
    };
    // In this user's own directory an administrator may mount other disks. A file system mounted by
    // another user may never answer.
    let mut beneath = open(true)?;
    let owner_id = fs::fstat(beneath.root())?.st_uid;
    let own = match trust {
        Trust::ByOwner => owner_id == user_id && from.is_none_or(|outer| outer.own),
        Trust::Own => true,
        Trust::Foreign => false,
    };
    if !own {
        beneath = open(false)?;
        if fs::fstat(beneath.root())?.st_uid != owner_id {
            return Err(io::Error::other("the directory is being exchanged for another"));
        }
    }
    let directory = directory.to_owned();
    let stat = fs::fstat(beneath.root())?;
    let identity = (stat.st_dev, stat.st_ino);
    let (base, leases_met) = (base.clone(), AtomicU32::new(0));
    let disk = ConfinedDisk { base, directory, beneath, owner_id, user_id, own, leases_met };
    Ok(Confined { disk: Arc::new(disk), owner_id, own, identity })
}

impl ConfinedDisk {
    fn relative<'a>(&self, path: &'a Path) -> io::Result<&'a Path> {
        path.strip_prefix(&self.directory).map_err(|_| {
            let message = format!("it does not lie in {}", self.directory.display());
            io::Error::new(io::ErrorKind::InvalidInput, message)
        })
    }

    fn is_shared(path: &Path) -> bool {
        path.parent() == Some(Path::new(SHARED_DIRECTORY))
    }

    /// The relative path. Fails where this process must not change the file.
    fn changeable<'a>(&self, path: &'a Path) -> io::Result<&'a Path> {
        let path = self.relative(path)?;
        if self.own || Self::is_shared(path) {
            return Ok(path);
        }
        Err(self.belongs_to_other())
    }

    fn belongs_to_other(&self) -> io::Error {
        let message = format!("the pool belongs to another user (uid {})", self.owner_id);
        io::Error::new(io::ErrorKind::ReadOnlyFilesystem, message)
    }

    /// Fails for anything but a plain file, and for a file of a user who should have none here.
    fn check_file(&self, path: &Path, stat: &Stat) -> io::Result<()> {
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(io::Error::other("it is not a plain file"));
        }
        let rightful = match self.own {
            true => stat.st_uid == self.user_id || stat.st_uid == ROOT,
            false => stat.st_uid == self.owner_id,
        };
        if !rightful && !Self::is_shared(path) {
            let message = format!(
                "it belongs to another user (uid {}) than the pool (uid {})",
                stat.st_uid, self.owner_id
            );
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, message));
        }
        Ok(())
    }

    /// Opens a plain file. Waits a short time where somebody holds a lease on it.
    fn open_file(&self, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
        let mut attempts = match self.leases_met.load(Ordering::Relaxed) < LEASES_AWAITED_MAX {
            true => LEASE_ATTEMPTS,
            false => 1,
        };
        loop {
            attempts -= 1;
            match self.open_file_once(path, flags) {
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
                Err(_) if attempts > 0 => std::thread::sleep(LEASE_INTERVAL),
                Err(_) => {
                    self.leases_met.fetch_add(1, Ordering::Relaxed);
                    return Err(self.held_by_lease(path));
                }
                opened => return opened,
            }
        }
    }

    fn open_file_once(&self, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
        // NONBLOCK: otherwise opening a FIFO would wait for its other end, and opening a file under a
        // lease would wait for the holder. For other files the flag has no effect.
        let flags = flags | OFlags::NONBLOCK | OFlags::CLOEXEC;
        if self.own && !Self::is_shared(path) {
            let file = self.beneath.open(path, flags, Mode::empty())?;
            self.check_file(path, &fs::fstat(&file)?)?;
            return Ok(file);
        }
        let seen = self.beneath.open(path, OFlags::PATH, Mode::empty())?;
        self.check_file(path, &fs::fstat(&seen)?)?;
        // Open the file that was checked, even if another file has its name now.
        Ok(fs::openat(CWD, descriptor_path(&seen), flags, Mode::empty())?)
    }

    /// The error for a file under a lease. The file itself is intact.
    fn held_by_lease(&self, path: &Path) -> io::Error {
        let seen = self.beneath.open(path, OFlags::PATH, Mode::empty());
        let holder = seen.ok().and_then(|seen| holder_of(&fs::fstat(seen).ok()?, "LEASE"));
        let who = holder.map_or_else(|| "another process".to_owned(), |holder| holder.to_string());
        let message = format!("it is held by a lease (F_SETLEASE) of {who}; try again later");
        io::Error::new(io::ErrorKind::ResourceBusy, message)
    }

    fn open_directory(&self, path: &Path) -> io::Result<OwnedFd> {
        self.beneath.open(path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())
    }
}

/// A path that leads to this open file and to no other.
fn descriptor_path(file: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

impl Disk for ConfinedDisk {
    fn create_new(&self, path: &Path, mode: u32) -> io::Result<Arc<dyn DiskFile>> {
        let path = self.changeable(path)?;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
        let file = self.beneath.open(path, flags, Mode::from_raw_mode(mode))?;
        share(&file, mode)?;
        Ok(Arc::new(LocalFile(file)))
    }

    fn open(&self, path: &Path, write: bool) -> io::Result<Arc<dyn DiskFile>> {
        let path = if write { self.changeable(path)? } else { self.relative(path)? };
        if write && Self::is_shared(path) {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let access = if write { OFlags::RDWR } else { OFlags::RDONLY };
        Ok(Arc::new(LocalFile(self.open_file(path, access)?)))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let (from, to) = (self.changeable(from)?, self.changeable(to)?);
        if !self.own {
            // The new name might replace another user's file.
            return Err(self.belongs_to_other());
        }
        let (old, from) = self.beneath.open_parent(from)?;
        let (new, to) = self.beneath.open_parent(to)?;
        Ok(fs::renameat(&old, from, &new, to)?)
    }

    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()> {
        let (from, to) = (self.changeable(from)?, self.changeable(to)?);
        let (old, from) = self.beneath.open_parent(from)?;
        let (new, to) = self.beneath.open_parent(to)?;
        match fs::renameat_with(&old, from, &new, to, RenameFlags::NOREPLACE) {
            // Some file systems lack the flag. There a hard link is made, which fails where the name is taken.
            Err(Errno::INVAL | Errno::NOSYS) => {
                fs::linkat(&old, from, &new, to, AtFlags::empty())?;
                Ok(fs::unlinkat(&old, from, AtFlags::empty())?)
            }
            done => Ok(done?),
        }
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        let path = self.changeable(path)?;
        let (parent, name) = self.beneath.open_parent(path)?;
        if !self.own && fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW)?.st_uid != self.user_id
        {
            return Err(self.belongs_to_other());
        }
        Ok(fs::unlinkat(&parent, name, AtFlags::empty())?)
    }

    fn remove_directory(&self, path: &Path) -> io::Result<()> {
        if !self.own {
            return Err(self.belongs_to_other());
        }
        let (parent, name) = self.beneath.open_parent(self.relative(path)?)?;
        Ok(fs::unlinkat(&parent, name, AtFlags::REMOVEDIR)?)
    }

    fn create_directory(&self, path: &Path, mode: u32) -> io::Result<()> {
        if !self.own {
            return Err(self.belongs_to_other());
        }
        let path = self.relative(path)?;
        let (parent, name) = self.beneath.open_parent(path)?;
        fs::mkdirat(&parent, name, Mode::from_raw_mode(mode))?;
        share(&self.open_directory(path)?, mode)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        self.visit(path, &mut |name| {
            // This program makes only names in UTF-8.
            names.extend(name.to_str().map(str::to_owned));
            true
        })?;
        names.sort_unstable();
        Ok(names)
    }

    fn visit(&self, path: &Path, each: &mut dyn FnMut(&OsStr) -> bool) -> io::Result<()> {
        let directory = self.open_directory(self.relative(path)?)?;
        tree::each_name(directory.as_fd(), each)
    }

    fn look_through(
        &self,
        path: &Path,
        each: &mut dyn FnMut(&OsStr, io::Result<FileInfo>) -> bool,
    ) -> io::Result<()> {
        // The directory itself may be a mount point. Nothing in it may be.
        let within = self.beneath.open_beneath(self.relative(path)?, false)?;
        let directory = within.open(Path::new("."), tree::LISTED, Mode::empty())?;
        tree::each_name(directory.as_fd(), &mut |name| {
            let info = within.stat(Path::new(name)).map(|stat| info_of(&stat));
            let gone = info.as_ref().is_err_and(|e| e.kind() == io::ErrorKind::NotFound);
            gone || each(name, info)
        })
    }

    fn remove_tree(&self, path: &Path, aside: &Path, steps: &mut u64) -> io::Result<()> {
        if !self.own {
            return Err(self.belongs_to_other());
        }
        let (path, aside) = (self.relative(path)?, self.relative(aside)?);
        let (Some(name), Some(aside_name)) = (path.file_name(), aside.file_name()) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let parent = path.parent().filter(|parent| aside.parent() == Some(*parent));
        let parent = parent.ok_or(io::ErrorKind::InvalidInput)?;
        let within = self.beneath.open_beneath(parent, false)?;
        tree::remove(&within, Path::new(name), Path::new(aside_name), steps)
    }

    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        Ok(fs::fsync(self.open_directory(self.relative(path)?)?)?)
    }

    fn mode(&self, path: &Path) -> io::Result<u32> {
        let seen = self.beneath.open(self.relative(path)?, OFlags::PATH, Mode::empty())?;
        Ok(fs::fstat(&seen)?.st_mode & 0o7777)
    }

    fn modified_s(&self, path: &Path) -> io::Result<i64> {
        let (parent, name) = self.beneath.open_parent(self.relative(path)?)?;
        Ok(fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW)?.st_mtime)
    }

    fn file_info(&self, path: &Path) -> io::Result<FileInfo> {
        let path = self.relative(path)?;
        if path.as_os_str().is_empty() {
            return Ok(info_of(&fs::fstat(self.beneath.root())?));
        }
        let (parent, name) = self.beneath.open_parent(path)?;
        Ok(info_of(&fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW)?))
    }

    fn writable(&self, path: &Path) -> bool {
        let Ok(path) = self.relative(path) else { return false };
        let Ok(seen) = self.beneath.open(path, OFlags::PATH, Mode::empty()) else { return false };
        let access = fs::Access::WRITE_OK | fs::Access::EXEC_OK;
        self.own && fs::accessat(CWD, descriptor_path(&seen), access, AtFlags::EACCESS).is_ok()
    }

    fn lock(&self, path: &Path, mode: LockMode, wait: bool) -> io::Result<Option<Box<dyn Lock>>> {
        if !self.own {
            // The owner of the directory could hold the lock for ever.
            return Err(self.belongs_to_other());
        }
        let (whole, path) = (path, self.relative(path)?);
        let flags = OFlags::NONBLOCK;
        let private = Mode::from_raw_mode(0o600);
        let writing = flags | OFlags::RDWR | OFlags::CREATE;
        let file = match self.beneath.open(path, writing, private) {
            // The file system is mounted read-only.
            Err(error) if is_refusal(&error) => {
                self.beneath.open(path, flags | OFlags::RDONLY, Mode::empty())?
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(self.held_by_lease(path));
            }
            opened => opened?,
        };
        self.check_file(path, &fs::fstat(&file)?)?;
        flock(file, whole, mode, wait)
    }

    fn read_batch(&self, reads: &mut [FileRead<'_>]) {
        self.base.read_batch(reads);
    }

    fn async_io(&self) -> Option<Box<dyn AsyncIo>> {
        self.base.async_io()
    }

    fn free_bytes(&self, path: &Path) -> io::Result<u64> {
        let seen = self.beneath.open(self.relative(path)?, OFlags::PATH, Mode::empty())?;
        let stat = fs::fstatvfs(&seen)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    fn confine(&self, directory: &Path, trust: Trust) -> io::Result<Confined> {
        confine(&self.base, Some(self), directory, trust)
    }

    fn user_id(&self) -> u32 {
        self.user_id
    }
}

fn is_refusal(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EACCES | libc::EROFS | libc::EPERM))
}

#[cfg(test)]
mod tests;
