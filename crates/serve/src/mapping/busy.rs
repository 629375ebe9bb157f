//! Finding out who uses a block device, and keeping others from it.
//!
//! The kernel says whether a device is held exclusively, for example by a file system. Programs that have
//! only opened it, such as QEMU, are found by the descriptors of all processes. Processes that this one may
//! not inspect, or that run in a container that it does not see, are not found.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, Dev, FileType, Mode, OFlags, StatxFlags, makedev, statx};

use super::sysfs;

/// After this time, programs that look at every new or changed device, such as udev's, have gone.
const PASSING_TIME_MAX: Duration = Duration::from_secs(2);
/// Time between two checks whether they have gone.
const PASSING_INTERVAL: Duration = Duration::from_millis(50);

/// While this exists, nobody else can mount the device.
pub struct Claim(#[expect(dead_code, reason = "closing it lets go of the device")] Option<OwnedFd>);

/// Claims a device; `None` while it is mounted, or otherwise held exclusively.
#[must_use]
pub fn claim(device: &Path) -> Option<Claim> {
    // For a block device, O_EXCL without O_CREAT opens it exclusively. This fails while a file system, RAID
    // or volume manager has it.
    let flags = OFlags::RDONLY | OFlags::EXCL | OFlags::CLOEXEC;
    match rustix::fs::open(device, flags, Mode::empty()) {
        Ok(fd) => Some(Claim(Some(fd))),
        Err(rustix::io::Errno::BUSY) => None,
        // There is no device that could be mounted.
        Err(_) => Some(Claim(None)),
    }
}

/// True where the device is mounted, or otherwise held exclusively.
#[must_use]
pub fn is_busy(device: &Path) -> bool {
    claim(device).is_none()
}

/// A process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opener {
    /// Its number.
    pub pid: u32,
    /// Its name in the kernel.
    pub name: String,
}

/// A process other than this one and `server` that has the device or a partition of it open.
#[must_use]
pub fn opener(device: &Path, server: u32) -> Option<Opener> {
    let parts = sysfs::partitions(device).into_iter().map(|partition| partition.device);
    let numbers = std::iter::once(device.to_owned()).chain(parts).filter_map(|d| number(&d));
    let numbers: Vec<Dev> = numbers.collect();
    let found = holder(&[server, std::process::id()], |path| {
        number(path).is_some_and(|n| numbers.contains(&n))
    })?;
    let name = std::fs::read_to_string(format!("/proc/{found}/comm")).unwrap_or_default();
    Some(Opener { pid: found, name: name.trim_end().to_owned() })
}

/// As [`opener`], but without processes that are gone in a moment.
#[must_use]
pub fn lasting_opener(device: &Path, server: u32) -> Option<Opener> {
    let deadline = Instant::now() + PASSING_TIME_MAX;
    loop {
        let found = opener(device, server);
        if found.is_none() || Instant::now() >= deadline {
            return found;
        }
        std::thread::sleep(PASSING_INTERVAL);
    }
}

/// The number of a block device; `None` for everything else.
fn number(path: &Path) -> Option<Dev> {
    // A descriptor may belong to a file system that does not answer. Cached attributes are enough.
    let flags = AtFlags::STATX_DONT_SYNC;
    let stat = statx(CWD, path, flags, StatxFlags::TYPE).ok()?;
    let is_block = FileType::from_raw_mode(stat.stx_mode.into()) == FileType::BlockDevice;
    is_block.then(|| makedev(stat.stx_rdev_major, stat.stx_rdev_minor))
}

/// A process other than `except` that has a descriptor for which `is_it` is true.
fn holder(except: &[u32], is_it: impl Fn(&Path) -> bool) -> Option<u32> {
    let entries = |path: PathBuf| std::fs::read_dir(path).into_iter().flatten().flatten();
    let processes = entries("/proc".into()).filter_map(|e| e.file_name().to_str()?.parse().ok());
    processes.filter(|pid| !except.contains(pid)).find(|pid: &u32| {
        entries(format!("/proc/{pid}/fd").into()).any(|descriptor| is_it(&descriptor.path()))
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_process_that_has_it_open_is_found_until_it_ends() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let inode = file.as_file().metadata().unwrap().ino();
        let (path, ours) = (file.path().to_owned(), std::process::id());
        let opened = std::fs::File::open(&path).unwrap();
        let mut child = Command::new("sleep").arg("60").stdin(Stdio::from(opened)).spawn().unwrap();
        let is_it = |path: &Path| std::fs::metadata(path).is_ok_and(|m| m.ino() == inode);
        let found = holder(&[ours], is_it);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(found, Some(child.id()));
        assert_eq!(holder(&[ours], is_it), None);
        assert_eq!(holder(&[], is_it), Some(ours), "unless it is left out");
    }

    #[test]
    fn only_block_devices_have_a_number() {
        assert_eq!(number(Path::new("/dev/null")), None);
        assert_eq!(number(Path::new("/")), None);
        assert_eq!(number(Path::new("/nowhere")), None);
    }
}
