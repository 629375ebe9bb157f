//! Images as block devices of this machine.
//!
//! ```text
//!   nbd:   /dev/nbdN  <- kernel's NBD driver <- socketpairs <- ImageHost
//!   fuse:  /dev/loopN <- kernel's loop driver <- one file in a FUSE mount <- ImageHost
//! ```
//!
//! The kernel's NBD driver is preferred. It takes several connections, and a device whose server has died
//! can get a new server without being unmounted. Where the kernel lacks this driver, FUSE and loop do the
//! same work with one more layer.
//!
//! Invariants:
//! - A flush of the device is answered only after a flush of the image. There is no write-back cache between
//!   them.
//! - Unmapping goes from the kernel's side to the image: device, mount, image.

mod busy;
mod daemon;
mod fuse;
mod loop_device;
mod names;
mod netlink;
mod private;
mod quiesce;
mod registry;
mod server_process;
mod sysfs;

use std::path::{Path, PathBuf};

use marcot::{Error, ErrorKind, Result};

use crate::host::HostHandle;

pub use busy::{Claim, Opener, claim, is_busy, lasting_opener, opener};
pub use daemon::{Ready, read_job, report_failure, report_ready, spawn};
pub use names::{
    DEVICE_VARIABLE, DeviceNames, device_directory, is_free, link_of, sweep as sweep_names,
};
pub use netlink::available as nbd_available;
pub use quiesce::{QuiesceHook, freeze, thaw};
pub use registry::{
    Ending, Listing, MappedRecord, RUN_VARIABLE, Registry, Reservation, Serving, boot,
};
pub use server_process::ServerProcess;
pub use sysfs::{Partition, partitions, whole_device};

/// Connections of a device to its image with the NBD driver.
const NBD_CONNECTIONS: usize = 2;
/// How long the kernel keeps requests of a device whose server has died while it waits for a new server,
/// unless the user asks for another time.
pub const REATTACH_TIMEOUT_S: u64 = 3600;

/// How a device reaches the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Driver {
    /// The kernel's NBD client.
    Nbd,
    /// A FUSE file behind a loop device.
    Fuse,
}

/// What to map, and how.
#[derive(Debug, Clone)]
pub struct MapOptions {
    /// `None`: NBD where the kernel has it, else FUSE.
    pub driver: Option<Driver>,
    /// The label by which the kernel knows the image: `pool/image@snap`.
    pub label: String,
    /// The device cannot be written.
    pub read_only: bool,
    /// An empty directory for the FUSE mount.
    pub mount_directory: PathBuf,
    /// Serve this existing device, whose server has died.
    pub attach: Option<PathBuf>,
    /// How long the kernel waits for a new server, with the NBD driver.
    pub reattach_timeout_s: u64,
}

enum Kernel {
    Nbd { index: u32, label: String },
    Loop { device: loop_device::LoopDevice, mount: fuse::Mount },
}

/// Tells the kernel that an image has a new size. It holds nothing open.
#[derive(Debug, Clone)]
pub enum Resizer {
    /// For a device of the NBD driver.
    Nbd {
        /// Its number.
        index: u32,
        /// The label that it was connected with.
        label: String,
    },
    /// For a loop device.
    Loop {
        /// The device.
        device: PathBuf,
        /// The file behind it.
        file: PathBuf,
    },
}

impl Resizer {
    /// Sets the device's size. This may wait for requests of the device, which another thread must serve.
    ///
    /// # Errors
    /// `Io`.
    pub fn resized(&self, size_bytes: u64) -> Result<()> {
        match self {
            Self::Nbd { index, label } => netlink::resize(*index, label, size_bytes),
            Self::Loop { device, file } => {
                // The kernel updates the file's size when somebody asks for it.
                let looked = std::fs::metadata(file);
                looked
                    .and_then(|_| loop_device::LoopDevice::open(device)?.update_size())
                    .map_err(|e| Error::from_io("cannot resize the loop device", e))
            }
        }
    }
}

/// An image that the kernel shows as a block device.
pub struct Mapped {
    device: PathBuf,
    kernel: Kernel,
}

impl Mapped {
    /// Maps the image that `host` serves.
    ///
    /// # Errors
    /// `Unsupported` where the machine lacks the driver; `PermissionDenied`; `Io`.
    pub fn new(host: &HostHandle, options: &MapOptions) -> Result<Self> {
        let driver = match (options.driver, &options.attach) {
            (Some(Driver::Fuse), Some(_)) => {
                let message = "only devices of the NBD driver can be given a new server";
                return Err(Error::new(ErrorKind::Unsupported, message));
            }
            (Some(driver), _) => driver,
            (None, Some(_)) => Driver::Nbd,
            (None, None) if netlink::available() => Driver::Nbd,
            (None, None) => Driver::Fuse,
        };
        match driver {
            Driver::Nbd => Self::nbd(host, options),
            Driver::Fuse => Self::fuse(host, options),
        }
    }

    fn nbd(host: &HostHandle, options: &MapOptions) -> Result<Self> {
        if !netlink::available() {
            let message = "this kernel has no NBD driver (modprobe nbd); use -t fuse";
            return Err(Error::new(ErrorKind::Unsupported, message));
        }
        let wanted = options.attach.as_deref().map(nbd_index).transpose()?;
        let mut kernel_ends = Vec::new();
        for _ in 0..NBD_CONNECTIONS {
            kernel_ends.push(netlink::connection(host, &options.label)?);
        }
        let config = netlink::Config {
            size_bytes: host.size_bytes(),
            read_only: options.read_only || host.read_only(),
            dead_connection_timeout_s: options.reattach_timeout_s,
            label: &options.label,
        };
        let index = match wanted {
            Some(index) => netlink::reconnect(index, &config, &kernel_ends).map(|()| index)?,
            None => netlink::connect(&config, &kernel_ends)?,
        };
        let device = PathBuf::from(format!("/dev/nbd{index}"));
        Ok(Self { device, kernel: Kernel::Nbd { index, label: options.label.clone() } })
    }

    fn fuse(host: &HostHandle, options: &MapOptions) -> Result<Self> {
        let read_only = options.read_only || host.read_only();
        let mount = fuse::Mount::new(host.clone(), &options.mount_directory, read_only)?;
        let device = loop_device::LoopDevice::attach(&mount.file(), read_only)
            .map_err(|e| Error::from_io("cannot set up a loop device", e))?;
        Ok(Self { device: device.path().to_owned(), kernel: Kernel::Loop { device, mount } })
    }

    /// The device, such as `/dev/nbd0`.
    #[must_use]
    pub fn device(&self) -> &Path {
        &self.device
    }

    /// Which driver it is.
    #[must_use]
    pub fn driver(&self) -> Driver {
        match self.kernel {
            Kernel::Nbd { .. } => Driver::Nbd,
            Kernel::Loop { .. } => Driver::Fuse,
        }
    }

    /// Bytes at the end of an image of `size_bytes` that the device lacks. The kernel's NBD driver leaves
    /// out an incomplete last sector.
    #[must_use]
    pub fn lacking_bytes(&self, size_bytes: u64) -> u64 {
        match &self.kernel {
            Kernel::Nbd { .. } => size_bytes % netlink::BLOCK_SIZE_BYTES,
            Kernel::Loop { .. } => 0,
        }
    }

    /// The resizer of this device.
    #[must_use]
    pub fn resizer(&self) -> Resizer {
        match &self.kernel {
            Kernel::Nbd { index, label } => Resizer::Nbd { index: *index, label: label.clone() },
            Kernel::Loop { mount, .. } => {
                Resizer::Loop { device: self.device.clone(), file: mount.file() }
            }
        }
    }

    /// Takes the device away although it is in use. Its users get I/O errors when this process ends (NBD: at
    /// once). The image stays open.
    ///
    /// # Errors
    /// `Io`, `PermissionDenied`.
    pub fn unmap_by_force(self) -> Result<()> {
        match self.kernel {
            Kernel::Nbd { index, .. } => netlink::disconnect(index),
            Kernel::Loop { device, mount } => {
                let detached = device.detach_when_unused();
                detached.map_err(|e| Error::from_io("cannot detach the loop device", e))?;
                mount.abandon()
            }
        }
    }

    /// Takes the device away. `claim` keeps others from using it meanwhile. The image stays open.
    ///
    /// # Errors
    /// `Busy` where the kernel still uses it; `Io`.
    pub fn unmap(self, claim: Claim) -> Result<()> {
        match self.kernel {
            Kernel::Nbd { index, .. } => netlink::disconnect(index),
            Kernel::Loop { device, mount } => {
                let detached = device.detach(claim);
                detached.map_err(|e| Error::from_io("cannot detach the loop device", e))?;
                mount.unmount()
            }
        }
    }
}

/// True where the kernel still shows the image of `record` as its device.
#[must_use]
pub fn is_shown(record: &MappedRecord, registry: &Registry) -> bool {
    match record.driver {
        // The machine was restarted since: a device with this number now is another one.
        _ if record.boot != boot() => false,
        Driver::Nbd => {
            let label = sysfs::nbd_label(&record.device);
            label.is_some_and(|label| label.is_empty() || label == record.label)
        }
        Driver::Fuse => sysfs::backing_file(&record.device)
            .is_some_and(|file| file.starts_with(registry.mount_directory(record.id))),
    }
}

fn nbd_index(device: &Path) -> Result<u32> {
    let digits = device.to_str().and_then(|d| d.strip_prefix("/dev/nbd"));
    digits.and_then(|d| d.parse().ok()).ok_or_else(|| {
        let message = format!("{} is no device of the NBD driver", device.display());
        Error::new(ErrorKind::Invalid, message)
    })
}

/// Clears the mount directory of a server that ended before it wrote its record.
///
/// # Errors
/// `Io`.
pub fn clear_mount(mount_directory: &Path) -> Result<()> {
    for device in sysfs::loop_devices_of(mount_directory) {
        let detached = loop_device::LoopDevice::open(&device).and_then(|d| d.detach_when_unused());
        detached.map_err(|e| Error::from_io("cannot detach a loop device", e))?;
    }
    fuse::unmount_dead(mount_directory)
}

/// Clears up after a server that died: names, loop device and FUSE mount, or the NBD connection. With
/// `force` it does so even where the device is in use; a loop device is then freed when its last user has
/// gone. A device that shows something else meanwhile is left alone.
///
/// # Errors
/// `Busy` where the device is in use; `Io`.
pub fn clear(record: &MappedRecord, registry: &Registry, force: bool) -> Result<()> {
    let mount_directory = registry.mount_directory(record.id);
    if !is_shown(record, registry) {
        record.names.remove(&record.device);
        return fuse::unmount_dead(&mount_directory);
    }
    let claim = claim(&record.device);
    if claim.is_none() && !force {
        let message = format!("{} is in use", record.device.display());
        return Err(Error::new(ErrorKind::Busy, message));
    }
    record.names.remove(&record.device);
    match record.driver {
        Driver::Nbd => netlink::disconnect(nbd_index(&record.device)?),
        Driver::Fuse => {
            let device = loop_device::LoopDevice::open(&record.device);
            let detached = device.and_then(|device| match claim {
                Some(claim) if !force => device.detach(claim),
                _ => device.detach_when_unused(),
            });
            detached.map_err(|e| Error::from_io("cannot detach the loop device", e))?;
            fuse::unmount_dead(&mount_directory)
        }
    }
}
