//! Which devices this machine has: small files in a run directory.
//!
//! ```text
//!   ID.mount/        reserves the number; the FUSE mount, where there is one
//!   ID.json          the record of a device that is there
//!   ID.log           messages of the process that serves it
//!   ID.force         this unmap is to take the device from its users
//!   ID.outcome.json  how the last unmap went
//! ```
//!
//! Invariants:
//! - A file is whole or absent (written beside its place and renamed).
//! - A record whose process has ended is kept: it tells what is to be cleared.

use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use marcot::{Error, Result};

use super::Driver;
use super::loopdev::BackingFile;
use super::process::ProcessId;

/// Overrides the run directory.
const RUN_VARIABLE: &str = "MARCOT_RUN_DIR";
/// Numbers of devices; a bound for the search, more than a kernel has.
const IDS_MAX: u32 = 1 << 20;
const DIRECTORY_MODE: u32 = 0o700;

/// What a device shows.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Shows {
    /// The store's directory.
    pub store: PathBuf,
    /// Pool of the image.
    pub pool: String,
    /// Namespace; empty for the default one.
    pub namespace: String,
    /// Image.
    pub image: String,
    /// Snapshot; empty for the image itself.
    pub snap: String,
}

/// How a device is known to the kernel, so that no other is taken for it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Identity {
    /// What the kernel's NBD driver was told at the start.
    Nbd {
        /// `/sys/block/nbdN/backend`.
        backend: String,
    },
    /// The FUSE file behind a loop device.
    Fuse(BackingFile),
}

impl Identity {
    /// The driver it belongs to.
    #[must_use]
    pub fn driver(&self) -> Driver {
        match self {
            Self::Nbd { .. } => Driver::Nbd,
            Self::Fuse(_) => Driver::Fuse,
        }
    }
}

/// A mapped device.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Record {
    /// Number among the devices of this run directory.
    pub id: u32,
    /// The process that serves it.
    pub process: ProcessId,
    /// What it shows.
    pub shows: Shows,
    /// The device, such as `/dev/loop0`.
    pub device: PathBuf,
    /// What the kernel knows it by.
    pub identity: Identity,
    /// Nobody can write through it.
    pub read_only: bool,
    /// Where the FUSE file is, or would be.
    pub mount_directory: PathBuf,
}

impl Record {
    /// False where the process died and left the device.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.process.is_alive()
    }
}

/// An error that goes from one process to another.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Failure {
    /// Name of the [`marcot::ErrorKind`].
    pub kind: String,
    /// What a command exits with.
    pub errno: i32,
    /// For people.
    pub message: String,
}

impl From<&Error> for Failure {
    fn from(error: &Error) -> Self {
        let kind = format!("{:?}", error.kind());
        Self { kind, errno: error.errno(), message: error.to_string() }
    }
}

/// How an unmap went.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(super) enum Outcome {
    /// The device is in use and is served on.
    Refused(Failure),
    /// The device is gone; closing the image met this, if anything.
    Gone(Option<Failure>),
}

/// A number that is taken, and the directory that goes with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reservation {
    /// The number.
    pub id: u32,
    /// An empty directory to mount in.
    pub mount_directory: PathBuf,
}

/// The run directory.
#[derive(Debug, Clone)]
pub struct Registry {
    directory: PathBuf,
}

impl Registry {
    /// The run directory: `MARCOT_RUN_DIR`, else `/run/marcot` for root, else below
    /// `XDG_RUNTIME_DIR`.
    ///
    /// # Errors
    /// `NotFound` where no variable names a place and the user is not root; what the operating
    /// system says.
    pub fn open() -> Result<Self> {
        let set = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let own = || match rustix::process::geteuid().is_root() {
            true => Some(PathBuf::from("/run/marcot")),
            false => set("XDG_RUNTIME_DIR").map(|directory| directory.join("marcot")),
        };
        let directory = set(RUN_VARIABLE).or_else(own).ok_or_else(|| {
            let message = format!("neither {RUN_VARIABLE} nor XDG_RUNTIME_DIR is set");
            Error::new(marcot::ErrorKind::NotFound, message)
        })?;
        Self::at(&directory)
    }

    /// A run directory, created if need be.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn at(directory: &Path) -> Result<Self> {
        let absolute = std::path::absolute(directory).map_err(|e| failed(directory, e))?;
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(DIRECTORY_MODE)
            .create(&absolute)
            .map_err(|e| failed(&absolute, e))?;
        Ok(Self { directory: absolute })
    }

    /// All records, by number, of the living and the dead. What cannot be read is left out.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn list(&self) -> Result<Vec<Record>> {
        let mut records = Vec::new();
        for entry in std::fs::read_dir(&self.directory).map_err(|e| failed(&self.directory, e))? {
            let name = entry.map_err(|e| failed(&self.directory, e))?.file_name();
            let id = name.to_str().and_then(|n| n.strip_suffix(".json")?.parse().ok());
            records.extend(id.and_then(|id| self.read(id)));
        }
        records.sort_by_key(|r: &Record| r.id);
        Ok(records)
    }

    /// The record of a number, if it can be read.
    #[must_use]
    pub fn read(&self, id: u32) -> Option<Record> {
        let bytes = std::fs::read(self.file(id, "json")).ok()?;
        serde_json::from_slice::<Record>(&bytes).ok().filter(|record| record.id == id)
    }

    /// The record of a device. Of several, the one whose process lives: a number of the kernel's
    /// may have been given again after a process died.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn by_device(&self, device: &Path) -> Result<Option<Record>> {
        let mut found = self.list()?;
        found.retain(|record| record.device == device);
        found.sort_by_key(|record| !record.is_alive());
        Ok(found.into_iter().next())
    }

    /// The records of all devices that show an image or a snapshot, by number.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn by_spec(&self, shows: &Shows) -> Result<Vec<Record>> {
        let mut found = self.list()?;
        found.retain(|record| record.shows == *shows);
        Ok(found)
    }

    /// Takes the lowest free number.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn reserve(&self) -> Result<Reservation> {
        for id in 0..IDS_MAX {
            let mount_directory = self.file(id, "mount");
            match std::fs::DirBuilder::new().mode(DIRECTORY_MODE).create(&mount_directory) {
                Ok(()) => return Ok(Reservation { id, mount_directory }),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(failed(&mount_directory, error)),
            }
        }
        Err(failed(&self.directory, io::ErrorKind::StorageFull.into()))
    }

    /// Writes a record.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn write(&self, record: &Record) -> Result<()> {
        self.replace(&self.file(record.id, "json"), record)
    }

    /// Gives a number back. The log stays if it says something.
    pub fn remove(&self, id: u32) {
        // What is missing is removed already.
        for what in ["json", "force"] {
            let _ = std::fs::remove_file(self.file(id, what));
        }
        let log = self.log_path(id);
        if std::fs::metadata(&log).is_ok_and(|m| m.len() == 0) {
            let _ = std::fs::remove_file(&log);
        }
        // Last, since the number is free then.
        let _ = std::fs::remove_dir(self.file(id, "mount"));
    }

    /// File for the messages of the process that serves a device.
    #[must_use]
    pub fn log_path(&self, id: u32) -> PathBuf {
        self.file(id, "log")
    }

    /// Prepares an unmap: forgets how the last one went, and notes whether this one is forced.
    pub(super) fn ask(&self, id: u32, force: bool) -> Result<()> {
        let (outcome, marker) = (self.file(id, "outcome.json"), self.file(id, "force"));
        for path in [&outcome, &marker] {
            match std::fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(failed(path, error));
                }
                _ => {}
            }
        }
        if force { self.replace(&marker, &force) } else { Ok(()) }
    }

    /// True where the unmap is to take the device from its users.
    pub(super) fn is_forced(&self, id: u32) -> bool {
        self.file(id, "force").exists()
    }

    pub(super) fn answer(&self, id: u32, outcome: &Outcome) -> Result<()> {
        self.replace(&self.file(id, "outcome.json"), outcome)
    }

    /// How the last unmap went; `None` before it is known.
    pub(super) fn outcome(&self, id: u32) -> Option<Outcome> {
        serde_json::from_slice(&std::fs::read(self.file(id, "outcome.json")).ok()?).ok()
    }

    /// Removes what only the process that asked for an unmap reads.
    pub(super) fn forget_outcome(&self, id: u32) {
        let _ = std::fs::remove_file(self.file(id, "outcome.json"));
    }

    fn file(&self, id: u32, what: &str) -> PathBuf {
        self.directory.join(format!("{id}.{what}"))
    }

    fn replace<T: serde::Serialize>(&self, path: &Path, value: &T) -> Result<()> {
        let temporary = path.with_extension(format!("tmp-{}", std::process::id()));
        serde_json::to_vec_pretty(value)
            .map_err(io::Error::from)
            .and_then(|bytes| std::fs::write(&temporary, bytes))
            .and_then(|()| std::fs::rename(&temporary, path))
            .inspect_err(|_| drop(std::fs::remove_file(&temporary)))
            .map_err(|e| failed(path, e))
    }
}

fn failed(path: &Path, error: io::Error) -> Error {
    Error::from_io(format!("cannot use {}", path.display()), error)
}
