//! Quiescing the users of a device while a snapshot of its image is taken. So the snapshot holds more than
//! a crash would leave.
//!
//! A hook is a program. It is called as `HOOK DEVICE quiesce` before and `HOOK DEVICE unquiesce` after a
//! snapshot, like the hooks of `rbd-nbd`. The default hook freezes the file systems on the device, on its
//! partitions, and on volumes built on them.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use marcot::{Error, ErrorKind, Result};
use rustix::fs::{CWD, Mode, OFlags, openat};

use super::daemon::program_of_server;
use super::sysfs;

/// Longest time that a hook may take. A file system writes out its dirty data meanwhile.
const HOOK_TIME_MAX: Duration = Duration::from_secs(30);
/// Longest time that a killed hook may take to end.
const KILL_TIME_MAX: Duration = Duration::from_secs(5);
const LOOK_INTERVAL: Duration = Duration::from_millis(10);

const FIFREEZE: libc::c_ulong = 0xC004_5877;
const FITHAW: libc::c_ulong = 0xC004_5878;

/// A program that quiesces the users of a device.
#[derive(Debug, Clone)]
pub struct QuiesceHook {
    /// The program.
    pub program: PathBuf,
    /// Its arguments before device and action.
    pub arguments: Vec<String>,
    /// The device.
    pub device: PathBuf,
}

impl QuiesceHook {
    /// Calls it before a snapshot.
    ///
    /// # Errors
    /// `Io` where it fails, or does not end in time.
    pub fn quiesce(&self) -> Result<()> {
        self.run("quiesce")
    }

    /// Calls it after a snapshot.
    ///
    /// # Errors
    /// As [`Self::quiesce`].
    pub fn unquiesce(&self) -> Result<()> {
        self.run("unquiesce")
    }

    fn run(&self, action: &str) -> Result<()> {
        let name = self.program.display();
        let child = program_of_server(&self.program)
            .args(&self.arguments)
            .arg(&self.device)
            .arg(action)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn();
        let context = || format!("cannot run the quiesce hook {name}");
        let mut child = child.map_err(|e| Error::from_io(context(), e))?;
        let failed = |how: &str| {
            let device = self.device.display();
            let message = format!("the quiesce hook '{name} {device} {action}' {how}");
            Err(Error::new(ErrorKind::Io, message))
        };
        let status = match wait(&mut child, HOOK_TIME_MAX) {
            Ok(Some(status)) => status,
            Ok(None) => {
                let _ = child.kill();
                // A hook that cannot be killed is left behind.
                let _ = wait(&mut child, KILL_TIME_MAX);
                return failed(&format!("did not end within {} s", HOOK_TIME_MAX.as_secs()));
            }
            Err(error) => return Err(Error::from_io(context(), error)),
        };
        match status.success() {
            true => Ok(()),
            false => failed(&format!("failed: {status}")),
        }
    }
}

fn wait(child: &mut Child, limit: Duration) -> std::io::Result<Option<ExitStatus>> {
    let deadline = Instant::now() + limit;
    loop {
        let ended = child.try_wait()?;
        if ended.is_some() || Instant::now() >= deadline {
            return Ok(ended);
        }
        std::thread::sleep(LOOK_INTERVAL);
    }
}

/// Freezes the file systems on a device. A file system that cannot be frozen is synced.
///
/// # Errors
/// `Io` where one fails. Others may be frozen then.
pub fn freeze(device: &Path) -> Result<()> {
    for mount in mounts(device)? {
        let context = || format!("cannot freeze {}", mount.display());
        let directory = open(&mount)?;
        match ioctl(&directory, FIFREEZE) {
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                let synced = rustix::fs::syncfs(&directory);
                synced.map_err(|e| Error::from_io(context(), e.into()))?;
            }
            frozen => frozen.map_err(|e| Error::from_io(context(), e))?,
        }
    }
    Ok(())
}

/// Thaws the file systems on a device. It is no error if one is not frozen.
///
/// # Errors
/// `Io` where one fails, after all have been tried.
pub fn thaw(device: &Path) -> Result<()> {
    let mut outcome = Ok(());
    for mount in mounts(device)? {
        let thawed = open(&mount).and_then(|directory| match ioctl(&directory, FITHAW) {
            Err(error)
                if !matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP)) =>
            {
                Err(Error::from_io(format!("cannot thaw {}", mount.display()), error))
            }
            _ => Ok(()),
        });
        outcome = outcome.and(thawed);
    }
    outcome
}

fn open(mount: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    openat(CWD, mount, flags, Mode::empty())
        .map_err(|e| Error::from_io(format!("cannot open {}", mount.display()), e.into()))
}

fn ioctl(directory: &OwnedFd, request: libc::c_ulong) -> std::io::Result<()> {
    // SAFETY: FIFREEZE and FITHAW take no structure; the descriptor is open.
    let result = unsafe { libc::ioctl(directory.as_raw_fd(), request as _, 0) };
    if result < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
}

/// One mount point of each file system on a device, or on devices built on it.
fn mounts(device: &Path) -> Result<Vec<PathBuf>> {
    let path = "/proc/self/mountinfo";
    let table =
        std::fs::read(path).map_err(|e| Error::from_io(format!("cannot read {path}"), e))?;
    let devices = sysfs::with_holders(device);
    let numbers: Vec<String> = devices.iter().filter_map(|d| sysfs::number_text(d)).collect();
    // A file system on several devices has its own device number, and names one of them as its source.
    let of_device = |mount: &Mount| {
        numbers.contains(&mount.number)
            || sysfs::device_at(&mount.source).is_some_and(|source| devices.contains(&source))
    };
    let mut seen = BTreeSet::new();
    let found = parse_mounts(&table).into_iter().filter(of_device);
    Ok(found.filter(|m| seen.insert(m.number.clone())).map(|m| m.place).collect())
}

#[derive(Debug, PartialEq, Eq)]
struct Mount {
    number: String,
    place: PathBuf,
    source: PathBuf,
}

/// Reads `/proc/self/mountinfo`: `ID PARENT MAJOR:MINOR ROOT PLACE OPTIONS... - TYPE SOURCE OPTIONS`.
fn parse_mounts(table: &[u8]) -> Vec<Mount> {
    let path = |field: &[u8]| PathBuf::from(OsString::from_vec(unescape(field)));
    let mount = |line: &[u8]| {
        let mut fields = line.split(|b| *b == b' ');
        let number = String::from_utf8(fields.nth(2)?.to_vec()).ok()?;
        let place = path(fields.nth(1)?);
        fields.find(|field| *field == b"-")?;
        Some(Mount { number, place, source: path(fields.nth(1)?) })
    };
    table.split(|b| *b == b'\n').filter_map(mount).collect()
}

/// Decodes blanks, tabs, newlines and backslashes, which are written as `\` and three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, after)) = rest.split_first() {
        let digits = after.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        let byte = digits.and_then(|digits| u8::from_str_radix(digits, 8).ok());
        let (byte, left) = match byte.filter(|_| first == b'\\') {
            Some(byte) => (byte, &after[3..]),
            None => (first, after),
        };
        out.push(byte);
        rest = left;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_mounts_is_read() {
        let table = b"36 25 7:0 / /mnt/a\\040b rw,relatime shared:1 - ext4 /dev/loop0 rw\n\
                      40 25 0:42 / /mnt/c rw - btrfs /dev/loop1 rw\nnonsense\n";
        let mount = |number: &str, place: &str, source: &str| Mount {
            number: number.into(),
            place: place.into(),
            source: source.into(),
        };
        let expected =
            [mount("7:0", "/mnt/a b", "/dev/loop0"), mount("0:42", "/mnt/c", "/dev/loop1")];
        assert_eq!(parse_mounts(table), expected);
    }

    #[test]
    fn a_hook_that_fails_or_is_not_there_is_an_error() {
        let hook = |program: &str| QuiesceHook {
            program: program.into(),
            arguments: Vec::new(),
            device: "/dev/none".into(),
        };
        assert!(hook("/bin/true").quiesce().is_ok());
        let error = hook("/bin/false").unquiesce().unwrap_err().sentence().to_string();
        assert!(error.contains("'/bin/false /dev/none unquiesce' failed"), "{error}");
        assert!(hook("/none").quiesce().is_err());
    }

    #[test]
    fn nothing_is_frozen_where_nothing_is_mounted() {
        freeze(Path::new("/dev/none")).unwrap();
        thaw(Path::new("/dev/none")).unwrap();
    }
}
