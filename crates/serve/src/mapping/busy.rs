//! Whether somebody uses a block device.

use std::path::Path;

use rustix::fs::{Mode, OFlags};

/// True where the device is mounted, or otherwise held exclusively.
#[must_use]
pub fn is_busy(device: &Path) -> bool {
    // For a block device O_EXCL without O_CREAT asks for it alone: refused while a file system,
    // RAID or volume manager has it.
    let flags = OFlags::RDONLY | OFlags::EXCL | OFlags::CLOEXEC;
    matches!(rustix::fs::open(device, flags, Mode::empty()), Err(rustix::io::Errno::BUSY))
}
