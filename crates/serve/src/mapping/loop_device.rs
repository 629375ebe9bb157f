//! Loop devices, by the ioctls of `linux/loop.h`.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};

use super::busy::Claim;

const LOOP_CLR_FD: libc::c_ulong = 0x4C01;
const LOOP_GET_STATUS64: libc::c_ulong = 0x4C05;
const LOOP_SET_CAPACITY: libc::c_ulong = 0x4C07;
const LOOP_CONFIGURE: libc::c_ulong = 0x4C0A;
const LOOP_CTL_GET_FREE: libc::c_ulong = 0x4C82;

const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_PARTSCAN: u32 = 8;
const LO_FLAGS_DIRECT_IO: u32 = 16;

/// Logical sector size of the device: partition tables in images assume it.
const SECTOR_BYTES: u32 = 512;
/// How often a free number is asked for at most. Another process may take it first.
const ATTEMPTS_MAX: u32 = 64;
/// Time between checks for the end of a detach. The kernel ends it when the last opener, such as udev, has
/// gone.
const DETACH_WAIT: Duration = Duration::from_millis(20);
const DETACH_WAITS_MAX: u32 = 250;

/// `struct loop_info64`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Info64 {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}
const _: () = assert!(size_of::<Info64>() == 232);

/// `struct loop_config`.
#[repr(C)]
struct Configuration {
    fd: u32,
    block_size: u32,
    info: Info64,
    reserved: [u64; 8],
}
const _: () = assert!(size_of::<Configuration>() == 304);

impl Info64 {
    fn zeroed() -> Self {
        Self {
            device: 0,
            inode: 0,
            rdevice: 0,
            offset: 0,
            size_limit: 0,
            number: 0,
            encrypt_type: 0,
            encrypt_key_size: 0,
            flags: 0,
            file_name: [0; 64],
            crypt_name: [0; 64],
            encrypt_key: [0; 32],
            init: [0; 2],
        }
    }
}

/// Calls an ioctl that takes a pointer, or a number in its place.
fn ioctl<T>(fd: &OwnedFd, request: libc::c_ulong, argument: *mut T) -> io::Result<i32> {
    // SAFETY: every caller passes a pointer to the structure that the request is defined with, or
    // null for requests without one; the descriptor is open.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), request as _, argument) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn ioctl_plain(fd: &OwnedFd, request: libc::c_ulong) -> io::Result<i32> {
    ioctl(fd, request, std::ptr::null_mut::<u8>())
}

fn open(path: &Path, read_only: bool) -> io::Result<OwnedFd> {
    let access = if read_only { OFlags::RDONLY } else { OFlags::RDWR };
    Ok(rustix::fs::open(path, access | OFlags::CLOEXEC, Mode::empty())?)
}

/// A loop device that is or was configured.
pub(super) struct LoopDevice {
    path: PathBuf,
    fd: OwnedFd,
}

impl LoopDevice {
    /// Shows `file` as a free loop device.
    pub(super) fn attach(file: &Path, read_only: bool) -> io::Result<Self> {
        let backing = open(file, read_only)?;
        let control = open(Path::new("/dev/loop-control"), false)?;
        let mut last = io::Error::from(io::ErrorKind::NotFound);
        for _ in 0..ATTEMPTS_MAX {
            let number = ioctl_plain(&control, LOOP_CTL_GET_FREE)?;
            let path = PathBuf::from(format!("/dev/loop{number}"));
            let fd = open(&path, read_only)?;
            // Direct I/O is tried first: without it every page lies in memory twice.
            let flags = if read_only { LO_FLAGS_READ_ONLY } else { 0 } | LO_FLAGS_PARTSCAN;
            let configured = configure(&fd, &backing, flags | LO_FLAGS_DIRECT_IO).or_else(|e| {
                if e.raw_os_error() == Some(libc::EBUSY) {
                    Err(e)
                } else {
                    configure(&fd, &backing, flags)
                }
            });
            match configured {
                Ok(()) => return Ok(Self { path, fd }),
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => last = error,
                Err(error) => return Err(error),
            }
        }
        Err(last)
    }

    /// A device that another process has configured.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), fd: open(path, true)? })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the kernel read the file's size again.
    pub(super) fn update_size(&self) -> io::Result<()> {
        ioctl_plain(&self.fd, LOOP_SET_CAPACITY).map(drop)
    }

    /// Marks the device to be freed when its last user has gone. Does not wait for that.
    pub(super) fn detach_when_unused(self) -> io::Result<()> {
        match ioctl_plain(&self.fd, LOOP_CLR_FD) {
            Err(error) if error.raw_os_error() == Some(libc::ENXIO) => Ok(()),
            cleared => cleared.map(drop),
        }
    }

    /// Frees the device, and waits until it is free. The kernel closes the file when the last descriptor of
    /// the device is closed, this one included.
    pub(super) fn detach(self, claim: Claim) -> io::Result<()> {
        match ioctl_plain(&self.fd, LOOP_CLR_FD) {
            Err(error) if error.raw_os_error() == Some(libc::ENXIO) => return Ok(()),
            cleared => cleared?,
        };
        let Self { path, fd } = self;
        drop((fd, claim));
        for _ in 0..DETACH_WAITS_MAX {
            if !configured(&path) {
                return Ok(());
            }
            std::thread::sleep(DETACH_WAIT);
        }
        Err(io::ErrorKind::ResourceBusy.into())
    }
}

fn configured(path: &Path) -> bool {
    let Ok(fd) = open(path, true) else { return false };
    let mut info = Info64::zeroed();
    ioctl(&fd, LOOP_GET_STATUS64, &raw mut info).is_ok()
}

fn configure(fd: &OwnedFd, backing: &OwnedFd, flags: u32) -> io::Result<()> {
    let mut configuration = Configuration {
        fd: backing.as_raw_fd().cast_unsigned(),
        block_size: SECTOR_BYTES,
        info: Info64 { flags, ..Info64::zeroed() },
        reserved: [0; 8],
    };
    ioctl(fd, LOOP_CONFIGURE, &raw mut configuration).map(drop)
}
