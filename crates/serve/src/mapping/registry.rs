//! The registry of the mapped devices of one user: one small file a device, in a private directory.
//!
//! ```text
//!   N.json   the device        N.lock   held by the process that serves it, and, by another kind of
//!   N.log    its messages               lock, by a command that is making, attaching or clearing it
//!   N.mount  its FUSE mount    N.force, N.detach   how that process is to end
//! ```
//!
//! Invariants:
//! - A file is used only if only this user can change the file and its directory (module `private`). A record
//!   is used only if it makes sense.
//! - A process is ended only because it holds the lock, never because a record gives its number.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use marcot::{Error, ErrorKind, Result};
use rustix::fs::{FlockOperation, OFlags};
use rustix::io::Errno;

use super::Driver;
use super::names::DeviceNames;
use super::private::PrivateDirectory;
use super::server_process::{self, ServerProcess};

/// Variable that gives the run directory.
pub const RUN_VARIABLE: &str = "MARCOT_RUN_DIR";
const REMEDY: &str = "remove it, or set MARCOT_RUN_DIR to a directory of your own";
const SESSION_REMEDY: &str = "set XDG_RUNTIME_DIR or MARCOT_RUN_DIR to a directory of your own";
/// Limit on the devices of one user. The kernel has fewer.
const DEVICES_MAX: u32 = 1 << 16;
/// Limit on the size of a record, in bytes. It holds a few names and numbers.
const RECORD_BYTES_MAX: u64 = 64 << 10;

/// A mapped device.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct MappedRecord {
    /// Number among the devices of this machine.
    pub id: u32,
    /// The process that served it when this was written, for people.
    pub pid: u32,
    /// The boot of the machine that it belongs to.
    pub boot: String,
    /// The store's directory.
    pub store: PathBuf,
    /// Pool of the image.
    pub pool: String,
    /// Namespace; empty for the default one.
    pub namespace: String,
    /// The image's name when this was written.
    pub image: String,
    /// The image's number in the pool. Renaming does not change it.
    pub image_number: u64,
    /// Snapshot; empty for the image itself.
    pub snap: String,
    /// The snapshot's number in the image; 0 for the image itself.
    pub snap_number: u64,
    /// The device.
    pub device: PathBuf,
    /// How the image reaches the kernel.
    pub driver: Driver,
    /// The device cannot be written.
    pub read_only: bool,
    /// The kernel's label for it. It stays when the image is renamed.
    pub label: String,
    /// The cookie by which the user knows the device.
    pub cookie: String,
    /// Its names as an RBD device.
    pub names: DeviceNames,
}

impl MappedRecord {
    /// Why it cannot be a record that this program wrote for `id`.
    fn nonsense(&self, id: u32) -> Option<&'static str> {
        let kernel_name = |prefix: &str| {
            let number = self.device.to_str().and_then(|d| d.strip_prefix(prefix));
            number.is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
        };
        let device = match self.driver {
            Driver::Nbd => kernel_name("/dev/nbd"),
            Driver::Fuse => kernel_name("/dev/loop"),
        };
        if self.id != id {
            Some("is the record of another device")
        } else if !device || !self.names.are_of(id) {
            Some("names no device of this program")
        } else if self.pool.is_empty() || self.image.is_empty() {
            Some("names no image")
        } else if !self.store.is_absolute() {
            Some("names no store")
        } else {
            None
        }
    }
}

/// The content of the registry.
#[derive(Debug, Default)]
pub struct Listing {
    /// The devices, by number.
    pub records: Vec<MappedRecord>,
    /// Why files that look like records were left out.
    pub refused: Vec<Error>,
}

/// A reserved number. No other command uses it while this exists.
#[derive(Debug)]
pub struct Reservation {
    /// The number.
    pub id: u32,
    #[expect(dead_code, reason = "closing it gives the number back")]
    lock: OwnedFd,
}

/// The lock of a device that this process serves. It ends with the process.
pub struct Serving(#[expect(dead_code, reason = "the lock is held while it is open")] OwnedFd);

/// The records of mapped devices.
pub struct Registry {
    directory: PrivateDirectory,
}

impl Registry {
    /// The registry in the run directory: `MARCOT_RUN_DIR` if set; `/run/marcot` for root; otherwise below
    /// `XDG_RUNTIME_DIR` or `/run/user`, or in the user's state directory.
    ///
    /// # Errors
    /// `PermissionDenied` for a directory that others can use too; `NotFound` where there is no place for
    /// one; what the operating system says.
    pub fn open() -> Result<Self> {
        match run_directory()? {
            RunDirectory::Of(session) => {
                let directory = PrivateDirectory::open_below(&session, "marcot", SESSION_REMEDY)?;
                Ok(Self { directory })
            }
            RunDirectory::Itself(directory) => {
                let directory = std::path::absolute(&directory).unwrap_or(directory);
                Self::open_in(&directory)
            }
        }
    }

    /// The registry in `directory`.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_in(directory: &Path) -> Result<Self> {
        Ok(Self { directory: PrivateDirectory::open(directory, REMEDY)? })
    }

    /// Where it is.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Opens a log file in the run directory for appending, for a process that serves no device. `name` is no
    /// device's.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn open_other_log(&self, name: &str) -> Result<(OwnedFd, PathBuf)> {
        let log = self.directory.open_or_create(name, OFlags::APPEND)?;
        Ok((log, self.directory.path().join(name)))
    }

    /// All records.
    ///
    /// # Errors
    /// What the operating system says about the directory.
    pub fn list(&self) -> Result<Listing> {
        let mut listing = Listing::default();
        for name in self.directory.names()? {
            let id = name.strip_suffix(".json").and_then(|n| n.parse().ok());
            let Some(id) = id.filter(|id| record_name(*id) == name) else { continue };
            match self.read(id) {
                Ok(record) => listing.records.extend(record),
                Err(error) => listing.refused.push(error),
            }
        }
        listing.records.sort_by_key(|r| r.id);
        Ok(listing)
    }

    /// The record of a number, if there is one.
    ///
    /// # Errors
    /// `Invalid` where it makes no sense; `PermissionDenied` where it may be another user's.
    pub fn read(&self, id: u32) -> Result<Option<MappedRecord>> {
        let name = record_name(id);
        let Some(bytes) = self.directory.read(&name, RECORD_BYTES_MAX)? else { return Ok(None) };
        let refused = |why: &str| {
            let path = self.directory.path().join(&name);
            Error::new(ErrorKind::Invalid, format!("{} {why}", path.display()))
        };
        let record: MappedRecord = serde_json::from_slice(&bytes)
            .map_err(|_| refused("is no record of a mapped device"))?;
        match record.nonsense(id) {
            Some(why) => Err(refused(why)),
            None => Ok(Some(record)),
        }
    }

    /// Reserves the lowest number that is free in the registry and for which `is_free` is true.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn reserve(&self, is_free: impl Fn(u32) -> bool) -> Result<Reservation> {
        for id in 0..DEVICES_MAX {
            if self.directory.has(&record_name(id)) || !is_free(id) {
                continue;
            }
            let Some(reservation) = self.hold(id)? else { continue };
            if self.directory.has(&record_name(id)) || self.server(id)?.is_some() {
                continue;
            }
            self.directory.remove(&flag_name(id, Ending::Force));
            self.directory.remove(&flag_name(id, Ending::Detach));
            return Ok(reservation);
        }
        Err(Error::new(ErrorKind::NoSpace, "no number is free for another device"))
    }

    /// Reserves a number; `None` where another command is at work on it.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn hold(&self, id: u32) -> Result<Option<Reservation>> {
        let lock = self.directory.open_or_create(&lock_name(id), OFlags::empty())?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Reservation { id, lock })),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(Error::from_io("cannot lock a device's record", error.into())),
        }
    }

    /// The process that serves a device. That process itself must not call this, or it would lose its
    /// lock.
    ///
    /// # Errors
    /// `Busy` where it cannot be reached from here; what the operating system says.
    pub fn server(&self, id: u32) -> Result<Option<ServerProcess>> {
        match self.directory.open_file(&lock_name(id), OFlags::RDONLY)? {
            None => Ok(None),
            Some(lock) => ServerProcess::holding(&lock),
        }
    }

    /// Makes this process the server of a device.
    ///
    /// # Errors
    /// `Busy` while another process serves it.
    pub fn serve(&self, id: u32) -> Result<Serving> {
        let lock = self.directory.open_or_create(&lock_name(id), OFlags::empty())?;
        if server_process::hold(&lock)? {
            return Ok(Serving(lock));
        }
        Err(Error::new(ErrorKind::Busy, "another process serves the device"))
    }

    /// The directory of a device's FUSE mount. It need not exist.
    #[must_use]
    pub fn mount_directory(&self, id: u32) -> PathBuf {
        self.directory.path().join(mount_name(id))
    }

    /// Creates the directory of a device's FUSE mount.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn make_mount_directory(&self, id: u32) -> Result<PathBuf> {
        self.directory.make_directory(&mount_name(id))
    }

    /// Path of the file for the messages of the process that serves a device.
    #[must_use]
    pub fn log_path(&self, id: u32) -> PathBuf {
        self.directory.path().join(log_name(id))
    }

    /// Opens the log file of a device for appending.
    ///
    /// # Errors
    /// `PermissionDenied` for anything but a plain file of this user.
    pub fn open_log(&self, id: u32) -> Result<OwnedFd> {
        self.directory.open_or_create(&log_name(id), OFlags::APPEND)
    }

    /// Writes a record, completely or not at all.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn write(&self, record: &MappedRecord) -> Result<()> {
        let bytes = serde_json::to_vec_pretty(record).unwrap_or_default();
        self.directory.write(&record_name(record.id), &bytes)
    }

    /// Notes how the server of a device has to end, once it is told to end.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn set_ending(&self, id: u32, ending: Ending) -> Result<()> {
        self.directory.write(&flag_name(id, ending), b"")
    }

    /// True where [`Self::set_ending`] was called.
    #[must_use]
    pub fn ends_by(&self, id: u32, ending: Ending) -> bool {
        self.directory.has(&flag_name(id, ending))
    }

    /// Takes [`Self::set_ending`] back.
    pub fn clear_endings(&self, id: u32) {
        self.directory.remove(&flag_name(id, Ending::Force));
        self.directory.remove(&flag_name(id, Ending::Detach));
    }

    /// Frees a number. The log stays if it is not empty.
    pub fn remove(&self, id: u32) {
        self.clear_endings(id);
        let log = self.directory.open_file(&log_name(id), OFlags::RDONLY).ok().flatten();
        if log.is_some_and(|log| rustix::fs::fstat(&log).is_ok_and(|s| s.st_size == 0)) {
            self.directory.remove(&log_name(id));
        }
        self.directory.remove_directory(&mount_name(id));
        // The record goes last: after that another device may get the number.
        self.directory.remove(&record_name(id));
    }
}

/// How a server ends. Without one of these it waits until nobody uses its device, and takes it away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// The device is taken away even from its users.
    Force,
    /// The device stays, for another server.
    Detach,
}

fn record_name(id: u32) -> String {
    format!("{id}.json")
}

fn lock_name(id: u32) -> String {
    format!("{id}.lock")
}

fn log_name(id: u32) -> String {
    format!("{id}.log")
}

fn mount_name(id: u32) -> String {
    format!("{id}.mount")
}

fn flag_name(id: u32, ending: Ending) -> String {
    match ending {
        Ending::Force => format!("{id}.force"),
        Ending::Detach => format!("{id}.detach"),
    }
}

/// The identifier of this boot of the machine; empty where the kernel does not give one.
#[must_use]
pub fn boot() -> String {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    text.trim_end().to_owned()
}

/// Where the records lie.
enum RunDirectory {
    /// In this directory itself.
    Itself(PathBuf),
    /// In a subdirectory of this directory of the user's session.
    Of(PathBuf),
}

fn run_directory() -> Result<RunDirectory> {
    let set = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    if let Some(directory) = set(RUN_VARIABLE) {
        return Ok(RunDirectory::Itself(directory));
    }
    let user = rustix::process::geteuid();
    if user.is_root() {
        return Ok(RunDirectory::Itself(PathBuf::from("/run/marcot")));
    }
    if let Some(directory) = set("XDG_RUNTIME_DIR").filter(|d| d.is_absolute()) {
        return Ok(RunDirectory::Of(directory));
    }
    let of_user = PathBuf::from(format!("/run/user/{}", user.as_raw()));
    if of_user.is_dir() {
        return Ok(RunDirectory::Of(of_user));
    }
    // A directory that everybody can write to, such as /tmp, is never used: another user may come
    // first. A home directory may be shared by several machines, but a device belongs to one.
    let state = set("XDG_STATE_HOME").filter(|d| d.is_absolute());
    let state = state.or_else(|| Some(set("HOME")?.join(".local/state")));
    let host = rustix::system::uname().nodename().to_string_lossy().replace('/', "_");
    let Some(state) = state else {
        let message = "there is no place for the records of devices: set XDG_RUNTIME_DIR or HOME";
        return Err(Error::new(ErrorKind::NotFound, message));
    };
    Ok(RunDirectory::Itself(state.join("marcot").join(format!("devices-{host}"))))
}

#[cfg(test)]
#[path = "registry_tests.rs"]
mod tests;
