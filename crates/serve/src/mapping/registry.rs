//! Which devices this machine has: one small file a device in a run directory.
//!
//! A record tells which process serves the device. Its start time goes with its number, so that a
//! number given to another process is not mistaken.

use std::io;
use std::path::{Path, PathBuf};

use marcot::{Error, Result};

use super::Driver;

/// Overrides the run directory.
const RUN_VARIABLE: &str = "MARCOT_RUN_DIR";

/// A mapped device.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct MappedRecord {
    /// Number among the devices of this machine.
    pub id: u32,
    /// Process that serves it.
    pub pid: u32,
    /// When that process began, in clock ticks since boot.
    pub started_ticks: u64,
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
    /// Device.
    pub device: PathBuf,
    /// How it reaches the kernel.
    pub driver: Driver,
    /// Nobody can write through it.
    pub read_only: bool,
    /// Where the FUSE file is, or would be.
    pub mount_directory: PathBuf,
}

impl MappedRecord {
    /// True while the process that serves the device lives.
    #[must_use]
    pub fn alive(&self) -> bool {
        started_ticks(self.pid).is_some_and(|ticks| ticks == self.started_ticks)
    }
}

/// When a process began; `None` where there is none. Field 22 of `/proc/PID/stat`.
#[must_use]
pub fn started_ticks(pid: u32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may hold anything; the state follows it.
    let (_, rest) = text.rsplit_once(')')?;
    let mut fields = rest.split_whitespace();
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// The records of mapped devices.
pub struct Registry {
    directory: PathBuf,
}

impl Registry {
    /// The run directory: `MARCOT_RUN_DIR`, else `/run/marcot` for root, else below
    /// `XDG_RUNTIME_DIR`.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn open() -> Result<Self> {
        let set = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let directory = match set(RUN_VARIABLE) {
            Some(directory) => directory,
            None if rustix::process::geteuid().is_root() => PathBuf::from("/run/marcot"),
            None => set("XDG_RUNTIME_DIR").unwrap_or_else(std::env::temp_dir).join("marcot"),
        };
        let directory = std::path::absolute(&directory).unwrap_or(directory);
        std::fs::create_dir_all(&directory).map_err(|e| failed(&directory, e))?;
        Ok(Self { directory })
    }

    /// All records, by number. What cannot be read is left out.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn list(&self) -> Result<Vec<MappedRecord>> {
        let mut records = Vec::new();
        for entry in std::fs::read_dir(&self.directory).map_err(|e| failed(&self.directory, e))? {
            let path = entry.map_err(|e| failed(&self.directory, e))?.path();
            if path.extension().is_some_and(|e| e == "json")
                && let Ok(bytes) = std::fs::read(&path)
                && let Ok(record) = serde_json::from_slice::<MappedRecord>(&bytes)
            {
                records.push(record);
            }
        }
        records.sort_by_key(|r| r.id);
        Ok(records)
    }

    /// Takes the lowest free number, with an empty directory for its mount.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn reserve(&self) -> Result<(u32, PathBuf)> {
        for id in 0.. {
            let directory = self.directory.join(format!("{id}.mount"));
            match std::fs::create_dir(&directory) {
                Ok(()) => return Ok((id, directory)),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(failed(&directory, error)),
            }
        }
        unreachable!("the numbers of devices do not run out before the directory is full")
    }

    fn path(&self, id: u32) -> PathBuf {
        self.directory.join(format!("{id}.json"))
    }

    /// File for the messages of the process that serves the device.
    #[must_use]
    pub fn log_path(&self, id: u32) -> PathBuf {
        self.directory.join(format!("{id}.log"))
    }

    /// Writes a record, whole or not at all.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn write(&self, record: &MappedRecord) -> Result<()> {
        let path = self.path(record.id);
        let temporary = path.with_extension("tmp");
        let bytes = serde_json::to_vec_pretty(record).unwrap_or_default();
        std::fs::write(&temporary, bytes)
            .and_then(|()| std::fs::rename(&temporary, &path))
            .map_err(|e| failed(&path, e))
    }

    fn force_path(&self, id: u32) -> PathBuf {
        self.directory.join(format!("{id}.force"))
    }

    /// Tells the process that serves a device not to wait until nobody uses it, once it is told to
    /// end.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn allow_force(&self, id: u32) -> Result<()> {
        let path = self.force_path(id);
        std::fs::write(&path, b"").map_err(|e| failed(&path, e))
    }

    /// True where [`Self::allow_force`] was called.
    #[must_use]
    pub fn force_allowed(&self, id: u32) -> bool {
        self.force_path(id).exists()
    }

    /// Gives a number back. The log stays if it says something.
    pub fn remove(&self, id: u32) {
        // What is missing is removed already.
        let _ = std::fs::remove_file(self.path(id));
        let _ = std::fs::remove_file(self.force_path(id));
        let log = self.log_path(id);
        if std::fs::metadata(&log).is_ok_and(|m| m.len() == 0) {
            let _ = std::fs::remove_file(&log);
        }
        let _ = std::fs::remove_dir(self.directory.join(format!("{id}.mount")));
    }
}

fn failed(path: &Path, error: io::Error) -> Error {
    Error::from_io(format!("cannot use {}", path.display()), error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_its_number_and_start() {
        let own = std::process::id();
        let ticks = started_ticks(own).expect("this process lives");
        assert!(ticks > 0);
        assert_eq!(started_ticks(u32::MAX), None);
    }
}
