//! The process that serves a device: it gets a job, reports to the caller, and serves until it is asked to end.
//!
//! ```text
//!   Job::read(input)  ->  DeviceServer::start(job)  ->  wait(stop)  ->  unmap(how) or detach()
//! ```

use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use marcot::{ImageId, Limits, Patience, Pool, Result, Store, World};
use marcot_serve::control::{Interrupt, Place};
use marcot_serve::descriptors;
use marcot_serve::host::{Attendant, HostHandle, HostOptions, ImageHost};
use marcot_serve::mapping::{
    self, Claim, DeviceNames, Driver, Ending, MapOptions, Mapped, MappedRecord, QuiesceHook, Ready,
    Registry, Resizer, Serving,
};

use super::request::{QuiesceBy, spec_of};
use crate::external::Sources;

/// How often a server checks whether it should end, and for partitions of its device.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// The task of the serving process.
#[derive(serde::Serialize, serde::Deserialize)]
pub struct Job {
    pub(super) run_directory: PathBuf,
    pub(super) record: MappedRecord,
    pub(super) driver: Option<Driver>,
    pub(super) attach: bool,
    pub(super) map_memory_bytes: u64,
    pub(super) reattach_timeout_s: u64,
    pub(super) io_timeout: Option<Duration>,
    pub(super) quiesce: QuiesceBy,
    /// [`super::ProgramWords::quiesce`].
    pub(super) quiesce_words: Vec<String>,
}

/// The source of requests to end the process.
pub trait Stop {
    /// True once the process was asked to end.
    fn asked(&self) -> bool;

    /// Called when the device is in use and is still served. Later requests must not kill the process either.
    fn refused(&self);
}

/// How serving a device ends.
pub enum DeviceEnding {
    /// The device stays, and waits for another server.
    Detach,
    /// The device is removed.
    Unmap(UnmapHow),
}

/// How a device is unmapped.
pub struct UnmapHow(
    /// `None`: by force.
    Option<Claim>,
);

/// A device that this process serves.
pub struct DeviceServer {
    registry: Registry,
    record: MappedRecord,
    host: HostHandle,
    mapped: Mapped,
    _serving: Serving,
}

impl DeviceServer {
    /// Serves the device of a job. Reports on standard output that it does, or the error, to the process that
    /// started this one.
    ///
    /// # Errors
    /// Errors of starting to serve, and of the report.
    pub fn start(job: &Job) -> Result<Self> {
        start(job).or_else(|error| {
            mapping::report_failure(&error)?;
            Err(error)
        })
    }
}

impl Job {
    /// Reads the job from `input`. [`super::Devices::map`] writes it to the standard input of the process that
    /// it starts.
    ///
    /// # Errors
    /// `Invalid` for input that is no job; errors of the operating system.
    pub fn read(input: &mut dyn Read) -> Result<Self> {
        mapping::read_job(input, "device")
    }
}

fn start(job: &Job) -> Result<DeviceServer> {
    let registry = Registry::open_in(&job.run_directory)?;
    let mut record = job.record.clone();
    let serving = registry.serve(record.id)?;
    let limits = Limits {
        map_memory_bytes: job.map_memory_bytes,
        patience: Patience::Guests { io_timeout: job.io_timeout },
        ..Limits::default()
    };
    // The caller's soft limit is inherited, and a guest must not run out of descriptors.
    let segment_files = descriptors::segment_files(descriptors::raise_limit());
    let store = Store::open_with(World::system(), &record.store, limits)?;
    store.set_external_sources(Arc::new(Sources(Interrupt::default())));
    store.set_segment_files_max(usize::try_from(segment_files).unwrap_or(usize::MAX));
    let pool = store.pool(&record.pool)?;
    let name = spec_of(&record).to_string();
    let host = open(&pool, &record, &name)?;
    let options = MapOptions {
        driver: job.driver,
        label: record.label.clone(),
        read_only: record.read_only,
        mount_directory: registry.mount_directory(record.id),
        attach: job.attach.then(|| record.device.clone()),
        reattach_timeout_s: job.reattach_timeout_s,
    };
    let mapped = Mapped::new(&host, &options).inspect_err(|_| drop(host.stop()))?;
    record.pid = std::process::id();
    record.device = mapped.device().to_owned();
    record.driver = mapped.driver();
    // The record comes first: the device is known even if this process is killed from here on.
    let recorded = registry.write(&record).and_then(|()| {
        let link = mapping::link_of(&record.pool, &record.namespace, &record.image, &record.snap);
        record.names = DeviceNames::make(record.id, &record.device, &link);
        registry.write(&record)?;
        host.set_usage(Some(format!("device {}", record.device.display())))?;
        host.set_attendant(Arc::new(DeviceAttendant::new(job, &record, &mapped)))
    });
    if let Err(error) = recorded {
        record.names.remove(&record.device);
        for undone in [mapped.unmap_by_force(), host.stop()] {
            undone.unwrap_or_else(|error| tracing::error!(error = %error.sentence(), "undoing"));
        }
        return Err(error);
    }
    if job.attach {
        // The image may have got another size while nobody served the device.
        let resized = mapped.resizer().resized(host.size_bytes());
        resized.unwrap_or_else(
            |error| tracing::error!(error = %error.sentence(), "the device keeps its old size"),
        );
    }
    mapping::report_ready(&Ready::Device {
        device: record.device.clone(),
        node: record.names.node(),
        lacking_bytes: mapped.lacking_bytes(host.size_bytes()),
    })?;
    Ok(DeviceServer { registry, record, host, mapped, _serving: serving })
}

fn open(pool: &Pool, record: &MappedRecord, name: &str) -> Result<HostHandle> {
    let id = ImageId(record.image_number);
    // A read-only device has a control socket too, so that its server can get commands.
    let control = Some(Place::of(pool, id));
    let options = HostOptions { name: name.to_owned(), control, ..HostOptions::default() };
    let image = if !record.snap.is_empty() {
        pool.open_snapshot(id, &record.snap)?
    } else if pool.read_only() {
        pool.open_read_only(id)?
    } else {
        pool.open(id)?.unlocked()?
    };
    ImageHost::start_for_kernel(Box::new(image), options)
}

/// Does the device's part of commands on its image: resizing and quiescing.
struct DeviceAttendant {
    resizer: Resizer,
    hook: Option<QuiesceHook>,
}

impl DeviceAttendant {
    fn new(job: &Job, record: &MappedRecord, mapped: &Mapped) -> Self {
        let hook = match &job.quiesce {
            QuiesceBy::Nothing => None,
            QuiesceBy::Freeze => {
                std::env::current_exe().ok().map(|program| (program, job.quiesce_words.clone()))
            }
            QuiesceBy::Hook(program) => Some((program.clone(), Vec::new())),
        };
        let device = record.device.clone();
        let hook = hook.map(|(program, arguments)| QuiesceHook { program, arguments, device });
        Self { resizer: mapped.resizer(), hook }
    }
}

impl Attendant for DeviceAttendant {
    fn before_snapshot(&self) -> Result<()> {
        self.hook.as_ref().map_or(Ok(()), QuiesceHook::quiesce)
    }

    fn after_snapshot(&self) {
        if let Some(Err(error)) = self.hook.as_ref().map(QuiesceHook::unquiesce) {
            tracing::error!(error = %error.sentence(), "the device's users may be left quiesced");
        }
    }

    fn resized(&self, size_bytes: u64) -> Result<()> {
        self.resizer.resized(size_bytes)
    }
}

impl DeviceServer {
    /// Serves until the process is asked to end and the device can be released. A device that is in use is not
    /// removed below a file system or a program, unless by force.
    pub fn wait(&self, stop: &dyn Stop) -> DeviceEnding {
        let mut told = false;
        let mut partitions = Vec::new();
        loop {
            std::thread::sleep(LOOK_INTERVAL);
            if stop.asked() {
                if self.registry.ends_by(self.record.id, Ending::Detach) {
                    return DeviceEnding::Detach;
                }
                if self.registry.ends_by(self.record.id, Ending::Force) {
                    return DeviceEnding::Unmap(UnmapHow(None));
                }
                // Without force, a device that a file system or a program uses stays.
                let unused = mapping::claim(&self.record.device).filter(|_| !self.is_open());
                match unused {
                    Some(claim) => return DeviceEnding::Unmap(UnmapHow(Some(claim))),
                    None if !told => {
                        let device = self.record.device.display();
                        tracing::warn!(%device, "in use; served until it is unmounted and closed");
                        told = true;
                        stop.refused();
                    }
                    None => {}
                }
            }
            let now = mapping::partitions(&self.record.device);
            if now != partitions {
                self.names().follow_partitions(&self.record.device);
                partitions = now;
            }
        }
    }

    /// Removes the device and closes the image.
    ///
    /// # Errors
    /// Those of the kernel and of closing the image. Both are done as far as they can be.
    pub fn unmap(self, how: UnmapHow) -> Result<()> {
        let device = self.record.device.display().to_string();
        // The names go first: once the device is removed, another program may get it.
        self.names().remove(&self.record.device);
        let unmapped = match how.0 {
            Some(claim) => self.mapped.unmap(claim),
            None => self.mapped.unmap_by_force(),
        };
        let closed = self.host.stop();
        for error in [unmapped.as_ref().err(), closed.as_ref().err()].into_iter().flatten() {
            tracing::error!(error = %error.sentence(), device, "unmapping");
        }
        unmapped.and(closed)?;
        self.registry.remove(self.record.id);
        Ok(())
    }

    /// True while another process has the device open.
    fn is_open(&self) -> bool {
        mapping::opener(&self.record.device, std::process::id()).is_some()
    }

    /// The current names of the device. Commands change them when its image is renamed.
    fn names(&self) -> DeviceNames {
        let record = self.registry.read(self.record.id).ok().flatten();
        record.map_or_else(|| self.record.names.clone(), |record| record.names)
    }

    /// Closes the image. The device waits for another server.
    ///
    /// # Errors
    /// Those of closing the image.
    pub fn detach(self) -> Result<()> {
        self.registry.clear_endings(self.record.id);
        self.host.stop()
    }
}
