//! Requests to map and unmap devices, and their results.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use marcot::{Error, ErrorKind, Namespace};
use marcot_serve::mapping::{self, Driver, MappedRecord};

use crate::image_spec::ImageSpec;

/// Default of [`MapRequest::reattach_timeout_s`].
pub const REATTACH_TIMEOUT_S: u64 = mapping::REATTACH_TIMEOUT_S;

/// Command-line words with which this program is started again for the tasks of a device. A program that maps
/// devices has to understand them.
#[derive(Debug, Clone, Copy)]
pub struct ProgramWords {
    /// Serves a device: [`super::server::DeviceServer`], with the job on its standard input.
    pub server: &'static [&'static str],
    /// Followed by a device and `quiesce` or `unquiesce`: freezes or thaws the file systems on it, with
    /// [`super::quiesce`].
    pub quiesce: &'static [&'static str],
}

/// How to map.
#[derive(Debug, Clone)]
pub struct MapRequest {
    /// Make the device read-only.
    pub read_only: bool,
    /// `None`: a driver that the machine has.
    pub driver: Option<Driver>,
    /// A string by which the user identifies the device; `None`: a random one.
    pub cookie: Option<String>,
    /// What to do around snapshots.
    pub quiesce: QuiesceBy,
    /// How long the kernel waits for a new server after the old one has ended, in seconds.
    pub reattach_timeout_s: u64,
    /// How long the device's users wait for the service of a pool in a bucket before they get I/O errors; `None`: as
    /// long as it takes.
    pub io_timeout: Option<Duration>,
}

impl Default for MapRequest {
    fn default() -> Self {
        Self {
            read_only: false,
            driver: None,
            cookie: None,
            quiesce: QuiesceBy::Nothing,
            reattach_timeout_s: REATTACH_TIMEOUT_S,
            io_timeout: None,
        }
    }
}

/// How writes to a device are paused while a snapshot is taken.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum QuiesceBy {
    /// Not at all.
    Nothing,
    /// File systems on the device are frozen.
    Freeze,
    /// This program is called with the device and `quiesce` or `unquiesce`.
    Hook(PathBuf),
}

/// A device that was mapped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MappedDevice {
    /// The kernel's name.
    pub device: PathBuf,
    /// Its name as an RBD device, if it has one.
    pub node: Option<PathBuf>,
    /// Its cookie.
    pub cookie: String,
    /// Bytes at the image's end that the device lacks, because its size is no multiple of 512.
    pub lacking_bytes: u64,
}

/// The result of unmapping a device.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub enum Unmapped {
    /// The device is gone.
    Gone,
    /// The device is in use and stays.
    InUse(InUse),
}

/// Why a device cannot be unmapped. Its text is meant to stand in brackets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InUse {
    /// The kernel uses it: most often a file system that is mounted from it.
    Mounted,
    /// A process has it open.
    Open {
        /// Which one.
        pid: u32,
        /// What the process is called.
        name: String,
    },
    /// Its server has not released it in time.
    Kept,
}

impl fmt::Display for InUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mounted => f.write_str("mounted?"),
            Self::Open { pid, name } => write!(f, "open in process {pid}, {name}"),
            Self::Kept => f.write_str("mounted or open?"),
        }
    }
}

/// Why an image was not mapped or a device not attached, for callers that write their own message. It
/// is converted to an [`Error`] by `?`.
#[derive(Debug)]
#[non_exhaustive]
pub enum MapFailure {
    /// It is mapped already.
    Mapped {
        /// As this device.
        record: Box<MappedRecord>,
        /// False where the process that served the device has died.
        served: bool,
    },
    /// A process has it open.
    Open {
        /// Which one.
        pid: u32,
        /// The image.
        image: ImageSpec,
    },
    /// There is no such device, or it shows something else.
    NotShown {
        /// The device.
        device: String,
        /// What it should show.
        image: ImageSpec,
    },
    /// The device has another cookie than the one given.
    OtherCookie {
        /// The device.
        device: String,
    },
    /// Another operation works on the device.
    AtWork {
        /// The device.
        device: String,
    },
    /// The device has a server.
    Served {
        /// The device.
        device: String,
        /// Its server.
        pid: u32,
    },
    /// An error before the device's server was started.
    Before(Error),
    /// The device's server could not be started, or could not serve.
    Server(Error),
}

impl fmt::Display for MapFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mapped { record, served } => {
                let image = spec_of(record);
                let dead = if *served { "" } else { ", whose server has died" };
                write!(f, "{image} is mapped already as {}{dead}", record.device.display())
            }
            Self::Open { pid, image } => write!(f, "{image} is open in process {pid}"),
            Self::NotShown { device, image } => write!(f, "{device} does not show {image}"),
            Self::OtherCookie { device } => write!(f, "{device} has another cookie"),
            Self::AtWork { device } => write!(f, "another command is at work on {device}"),
            Self::Served { device, pid } => write!(f, "process {pid} serves {device} already"),
            Self::Before(error) | Self::Server(error) => error.sentence().fmt(f),
        }
    }
}

impl std::error::Error for MapFailure {}

impl From<Error> for MapFailure {
    fn from(error: Error) -> Self {
        Self::Before(error)
    }
}

impl From<MapFailure> for Error {
    fn from(failure: MapFailure) -> Self {
        let kind = match failure {
            MapFailure::Before(error) | MapFailure::Server(error) => return error,
            MapFailure::NotShown { .. } | MapFailure::OtherCookie { .. } => ErrorKind::Invalid,
            _ => ErrorKind::Busy,
        };
        Self::new(kind, failure.to_string())
    }
}

/// What a device shows, by the names in its record.
#[must_use]
pub fn spec_of(record: &MappedRecord) -> ImageSpec {
    ImageSpec {
        pool: record.pool.clone(),
        namespace: Namespace::named(&*record.namespace),
        image: record.image.clone(),
        snapshot: (!record.snap.is_empty()).then(|| record.snap.clone()),
    }
}
