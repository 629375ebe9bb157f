//! Whether somebody uses a block device, and keeping others from it.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags};

/// A device that nobody else can mount while this exists.
pub struct Claim(#[expect(dead_code, reason = "closing it lets go of the device")] Option<OwnedFd>);

/// Takes a device for oneself; `None` while it is mounted, or otherwise held exclusively.
#[must_use]
pub fn claim(device: &Path) -> Option<Claim> {
    // For a block device O_EXCL without O_CREAT asks for it alone: refused while a file system,
    // RAID or volume manager has it.
    let flags = OFlags::RDONLY | OFlags::EXCL | OFlags::CLOEXEC;
    match rustix::fs::open(device, flags, Mode::empty()) {
        Ok(fd) => Some(Claim(Some(fd))),
        Err(rustix::io::Errno::BUSY) => None,
        // Nothing is there that could be mounted.
        Err(_) => Some(Claim(None)),
    }
}

/// True where the device is mounted, or otherwise held exclusively.
#[must_use]
pub fn is_busy(device: &Path) -> bool {
    claim(device).is_none()
}
