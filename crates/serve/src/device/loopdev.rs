//! Loop devices.
//!
//! Invariants:
//! - A number names nothing for long: each step first makes sure that the device still shows our
//!   file, by the file's device and inode. Another's device is never touched.
//! - A device in use is not detached. The kernel would promise to do so later, when the file behind
//!   it may be long gone; [`LoopDevice::detach`] claims the device first, and takes the promise back
//!   where it cannot have it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::loop_ioctl::{self as ioctl, Info64};

/// Logical sector: what partition tables of images are made for, and what RBD's devices show.
const SECTOR_BYTES: u32 = 512;
/// Others may take the number that was free a moment ago.
const ATTACH_ATTEMPTS_MAX: u32 = 64;
/// Short users (udev, blkid) come and go; a mount does not.
const WAIT: Duration = Duration::from_millis(20);
const WAITS_MAX: u32 = 250;

/// How a file is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoopOptions {
    /// Let nobody write.
    pub read_only: bool,
    /// Look for partitions.
    pub scan_partitions: bool,
    /// Bypass the page cache of the file. Where its file system cannot, the cache is used.
    pub direct_io: bool,
}

/// Which file a device shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct BackingFile {
    /// `st_dev`.
    pub device: u64,
    /// `st_ino`.
    pub inode: u64,
}

impl BackingFile {
    fn of(file: &OwnedFd) -> io::Result<Self> {
        let stat = rustix::fs::fstat(file)?;
        Ok(Self { device: stat.st_dev, inode: stat.st_ino })
    }

    fn is_behind(self, info: &Info64) -> bool {
        (self.device, self.inode) == (info.device, info.inode)
    }
}

/// A loop device that shows a file of ours. Dropping it leaves it attached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoopDevice {
    path: PathBuf,
    backing: BackingFile,
}

fn open(path: &Path, access: OFlags) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(path, access | OFlags::CLOEXEC, Mode::empty())?)
}

impl LoopDevice {
    /// Shows `file` as a free loop device.
    ///
    /// # Errors
    /// `NotFound` where the machine has no loop driver; what the operating system says.
    pub fn attach(file: &Path, options: LoopOptions) -> io::Result<Self> {
        let access = if options.read_only { OFlags::RDONLY } else { OFlags::RDWR };
        let backing = open(file, access)?;
        let control = open(Path::new("/dev/loop-control"), OFlags::RDWR)?;
        let mut flags = 0;
        for (wanted, flag) in [
            (options.read_only, ioctl::READ_ONLY),
            (options.scan_partitions, ioctl::PARTSCAN),
            (options.direct_io, ioctl::DIRECT_IO),
        ] {
            flags |= if wanted { flag } else { 0 };
        }
        let name = file.as_os_str().as_bytes();
        for _ in 0..ATTACH_ATTEMPTS_MAX {
            let number = ioctl::free_number(control.as_fd())?;
            let path = PathBuf::from(format!("/dev/loop{number}"));
            let device = open(&path, access)?;
            match ioctl::configure(device.as_fd(), backing.as_fd(), SECTOR_BYTES, flags, name) {
                Ok(()) => return Ok(Self { path, backing: BackingFile::of(&backing)? }),
                Err(error) if error.raw_os_error() == Some(Errno::BUSY.raw_os_error()) => {}
                Err(error) => return Err(error),
            }
        }
        Err(Errno::BUSY.into())
    }

    /// A device that this or another process attached. It need not exist any more.
    #[must_use]
    pub fn known(path: &Path, backing: BackingFile) -> Self {
        Self { path: path.to_owned(), backing }
    }

    /// Such as `/dev/loop0`.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file behind it.
    #[must_use]
    pub fn backing_file(&self) -> BackingFile {
        self.backing
    }

    /// True while the device shows our file.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn is_attached(&self) -> io::Result<bool> {
        match open(&self.path, OFlags::RDONLY) {
            Ok(device) => Ok(self.ours(&device)?.is_some()),
            Err(error) if gone(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// True where the kernel bypasses the page cache of the file.
    ///
    /// # Errors
    /// What the operating system says; `NotFound` where the device does not show our file.
    pub fn is_direct(&self) -> io::Result<bool> {
        let device = open(&self.path, OFlags::RDONLY)?;
        let info = self.ours(&device)?.ok_or(io::ErrorKind::NotFound)?;
        Ok(info.flags & ioctl::DIRECT_IO != 0)
    }

    /// Takes over the size of the file and returns it: whole sectors, in bytes.
    ///
    /// # Errors
    /// What the operating system says; `NotFound` where the device does not show our file.
    pub fn update_size(&self) -> io::Result<u64> {
        let device = open(&self.path, OFlags::RDONLY)?;
        self.ours(&device)?.ok_or(io::ErrorKind::NotFound)?;
        ioctl::update_size(device.as_fd())?;
        ioctl::size_bytes(device.as_fd())
    }

    /// Frees the device. When this returns without error, the kernel has let go of the file.
    ///
    /// # Errors
    /// `ResourceBusy` where it is in use (mounted, or open for longer than a probe would take); it
    /// then works on as before. What the operating system says.
    pub fn detach(&self) -> io::Result<()> {
        let device = match self.claim() {
            Ok(device) => device,
            Err(error) if gone(&error) => return Ok(()),
            Err(error) => return Err(error),
        };
        for _ in 0..WAITS_MAX {
            if self.ours(&device)?.is_none() {
                drop(device);
                return self.wait_released();
            }
            // Done at once if ours is the only descriptor, else left to the last one's close.
            ioctl::clear(device.as_fd())?;
            if self.ours(&device)?.is_some() {
                std::thread::sleep(WAIT);
            }
        }
        self.keep(&device)?;
        Err(io::ErrorKind::ResourceBusy.into())
    }

    /// Frees the device when its last user is gone. Returns at once.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn detach_lazily(&self) -> io::Result<()> {
        let device = match open(&self.path, OFlags::RDONLY) {
            Ok(device) => device,
            Err(error) if gone(&error) => return Ok(()),
            Err(error) => return Err(error),
        };
        if self.ours(&device)?.is_some() { ioctl::clear(device.as_fd()) } else { Ok(()) }
    }

    /// The device for us alone: while this is open, nobody can mount it.
    fn claim(&self) -> io::Result<OwnedFd> {
        open(&self.path, OFlags::RDONLY | OFlags::EXCL)
    }

    /// What the device shows, if that is our file.
    fn ours(&self, device: &OwnedFd) -> io::Result<Option<Info64>> {
        Ok(ioctl::status(device.as_fd())?.filter(|info| self.backing.is_behind(info)))
    }

    /// Takes back what an earlier `clear` promised to do later.
    fn keep(&self, device: &OwnedFd) -> io::Result<()> {
        match self.ours(device)? {
            Some(mut info) => {
                info.flags &= !ioctl::AUTOCLEAR;
                ioctl::set_status(device.as_fd(), info)
            }
            None => Ok(()),
        }
    }

    /// The kernel lets go of the file when the last descriptor is closed, a moment after ours.
    fn wait_released(&self) -> io::Result<()> {
        for _ in 0..WAITS_MAX {
            if !self.is_attached()? {
                return Ok(());
            }
            std::thread::sleep(WAIT);
        }
        Err(io::ErrorKind::ResourceBusy.into())
    }
}

/// The number's node is not there, or nothing is behind it.
fn gone(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::NOENT | Errno::NXIO | Errno::NODEV))
}
