//! Mapping images to block devices of this machine: the calling side. The process that serves
//! a device, and runs on when the caller has ended, is in [`server`].

mod names_now;
mod request;
pub mod server;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use marcot::{Error, ErrorKind, ImageId, Result, World};
use marcot_serve::mapping::{self, DeviceNames, Ending, Ready, Registry, Reservation};
pub use marcot_serve::mapping::{Driver, MappedRecord, device_directory};

use crate::client::Client;
use crate::image::Image;
use crate::image_spec::ImageSpec;
use crate::operation::Operation;
use crate::options::{Options, Warning};
use names_now::{Stores, cleared, follow_names};
pub use request::{
    InUse, MapFailure, MapRequest, MappedDevice, ProgramWords, QuiesceBy, REATTACH_TIMEOUT_S,
    Unmapped, spec_of,
};
use server::Job;

/// How long a server may take to end after the request: it makes the image durable first.
const UNMAP_WAIT: Duration = Duration::from_secs(60);

/// How long [`Devices::take_back`] waits for a new device that is in use.
const TAKE_BACK_TIME_MAX: Duration = Duration::from_secs(5);
/// Pause between two attempts of it.
const TAKE_BACK_INTERVAL: Duration = Duration::from_millis(50);

/// The mapped devices of this machine and user. No store is needed: a device can be unmapped also if its
/// store cannot be reached.
pub struct Devices {
    options: Options,
    registry: Registry,
    program: ProgramWords,
}

impl Devices {
    /// The devices that are recorded in the run directory.
    ///
    /// # Errors
    /// `PermissionDenied` for a run directory that another user owns or can write to; `NotFound` if there is no
    /// place for one; errors of the operating system.
    pub fn open(options: Options, program: ProgramWords) -> Result<Self> {
        Ok(Self { options, registry: Registry::open()?, program })
    }

    /// As [`Self::open`], with a run directory that the caller gives.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_in(directory: &Path, options: Options, program: ProgramWords) -> Result<Self> {
        Ok(Self { options, registry: Registry::open_in(directory)?, program })
    }

    /// The devices, with the current names of their images. Records and names of devices that are gone are
    /// removed.
    ///
    /// # Errors
    /// Errors of the operating system.
    pub fn list(&self) -> Result<Vec<MappedRecord>> {
        self.options.operate(Operation::ListDevices, "", None, || self.settled())
    }

    fn settled(&self) -> Result<Vec<MappedRecord>> {
        let registry = &self.registry;
        let listing = registry.list()?;
        for refused in listing.refused {
            self.options.warn(&Warning::RecordRefused(refused));
        }
        let mut records = listing.records;
        records.retain(|record| !cleared(registry, record));
        let mut stores = Stores::new(self.options.limits);
        for record in &mut records {
            follow_names(registry, record, &mut stores);
        }
        let names: Vec<&DeviceNames> = records.iter().map(|r| &r.names).collect();
        mapping::sweep_names(&names);
        Ok(records)
    }

    /// The device that shows the image or snapshot of that name, if one does. Without a client, or if the pool
    /// cannot be read, the names in the records are used.
    ///
    /// # Errors
    /// As [`Self::list`].
    pub fn find(&self, client: Option<&Client>, spec: &ImageSpec) -> Result<Option<MappedRecord>> {
        let records = self.list()?;
        let by_name = |r: &MappedRecord| spec_of(r) == *spec;
        let Some((client, store)) = client.and_then(|c| Some((c, store_directory(c).ok()?))) else {
            return Ok(records.into_iter().find(by_name));
        };
        let pool = client.pool(&spec.pool);
        let found = pool.and_then(|pool| pool.engine().find(spec.name()));
        let number = match found {
            Ok(id) => Some(id.0),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            // A device must be found and unmapped also when its pool cannot be read.
            Err(_) => None,
        };
        let snap = spec.snapshot.as_deref().unwrap_or_default();
        let mut found = records.into_iter().filter(|r| match number {
            _ if r.store != store => false,
            Some(number) => r.pool == spec.pool && r.image_number == number && r.snap == snap,
            None => by_name(r),
        });
        let first = found.next();
        if let Some(first) = first.as_ref().filter(|_| found.next().is_some()) {
            let (image, record) = (spec.clone(), Box::new(first.clone()));
            self.options.warn(&Warning::MappedMoreThanOnce { image, record });
        }
        Ok(first)
    }

    /// The device that a path names: the device itself, one of its other names, a partition of it, or a
    /// link to one of these.
    ///
    /// # Errors
    /// As [`Self::list`].
    pub fn find_device(&self, path: &str) -> Result<Option<MappedRecord>> {
        let whole = mapping::whole_device(Path::new(path));
        let named = |r: &MappedRecord| {
            r.device.as_os_str() == path || r.names.node().is_some_and(|n| n.as_os_str() == path)
        };
        let shows = |r: &MappedRecord| whole.as_ref().map_or_else(|| named(r), |w| r.device == *w);
        Ok(self.list()?.into_iter().find(shows))
    }

    /// Maps an image or a snapshot, and returns the device. It stays when this process ends.
    ///
    /// # Errors
    /// [`MapFailure`].
    pub fn map(
        &self,
        image: &Image,
        snapshot: Option<&str>,
        request: &MapRequest,
    ) -> std::result::Result<MappedDevice, MapFailure> {
        self.admit(image, Operation::MapDevice)?;
        let records = self.settled()?;
        let shown = Shown { image, snap: snapshot.unwrap_or_default() };
        let (job, _held) = self.new_job(&shown, &records, request)?;
        let id = job.record.id;
        self.start(job).inspect_err(|_| {
            if matches!(self.registry.server(id), Ok(None)) {
                let _ = mapping::clear_mount(&self.registry.mount_directory(id));
                self.registry.remove(id);
            }
        })
    }

    /// Starts a new server for a device whose server has died. A cookie in `request` must be the device's,
    /// unless `force` is set: then the device gets that cookie.
    ///
    /// # Errors
    /// [`MapFailure`].
    pub fn attach(
        &self,
        image: &Image,
        snapshot: Option<&str>,
        device: &str,
        request: &MapRequest,
        force: bool,
    ) -> std::result::Result<MappedDevice, MapFailure> {
        self.admit(image, Operation::AttachDevice)?;
        let records = self.settled()?;
        let shown = Shown { image, snap: snapshot.unwrap_or_default() };
        let (job, _held) = self.attach_job(&shown, records, request, device, force)?;
        self.start(job)
    }

    fn admit(&self, image: &Image, operation: Operation) -> Result<()> {
        image.operate(operation, || Ok(()))
    }

    /// Starts the process that serves a device, and waits until it does.
    fn start(&self, job: Job) -> std::result::Result<MappedDevice, MapFailure> {
        let (registry, id) = (&self.registry, job.record.id);
        let input = serde_json::to_vec(&job).unwrap_or_default();
        let ready = registry.open_log(id).and_then(|log| {
            mapping::spawn(self.program.server, &input, log, &registry.log_path(id))
        });
        match ready.map_err(MapFailure::Server)? {
            Ready::Device { device, node, lacking_bytes } => {
                Ok(MappedDevice { device, node, cookie: job.record.cookie, lacking_bytes })
            }
            Ready::Failed { kind, message } => Err(MapFailure::Server(Error::new(kind, message))),
            Ready::Directory => {
                let message = "the process that serves the device serves something else";
                Err(MapFailure::Server(Error::new(ErrorKind::Io, message)))
            }
        }
    }

    fn new_job(
        &self,
        shown: &Shown<'_>,
        records: &[MappedRecord],
        request: &MapRequest,
    ) -> std::result::Result<(Job, Reservation), MapFailure> {
        let (registry, image, snap) = (&self.registry, shown.image, shown.snap);
        if snap.is_empty() {
            image.let_idle_go();
        }
        let info = image.engine_pool().info(image.id())?;
        let store = store_directory(image.client())?;
        let same = |r: &&MappedRecord| {
            r.store == store
                && (r.pool.as_str(), r.image_number) == (image.pool().name(), image.id().0)
                && r.snap == snap
        };
        let mapped = records.iter().find(same);
        if snap.is_empty() && !image.pool().read_only() {
            if let Some(mapped) = mapped {
                let served = !matches!(registry.server(mapped.id), Ok(None));
                return Err(MapFailure::Mapped { record: Box::new(mapped.clone()), served });
            }
            if let Some(pid) = info.owned_by {
                return Err(MapFailure::Open { pid, image: shown.spec() });
            }
        } else if let Some(mapped) = mapped {
            self.options.warn(&Warning::MappedAlready(Box::new(mapped.clone())));
        }
        let snapshot = info.snapshots.iter().find(|s| !snap.is_empty() && s.name == snap);
        let held = registry.reserve(mapping::is_free)?;
        let mount_directory = registry.make_mount_directory(held.id)?;
        mapping::clear_mount(&mount_directory)?;
        let spec = shown.spec();
        let record = MappedRecord {
            id: held.id,
            pid: 0,
            boot: mapping::boot(),
            store,
            label: spec.to_string(),
            pool: spec.pool,
            namespace: spec.namespace.to_string(),
            image: spec.image,
            image_number: image.id().0,
            snap: snap.to_owned(),
            snap_number: snapshot.map_or(0, |s| s.id.0),
            device: PathBuf::new(),
            driver: Driver::Fuse,
            read_only: request.read_only,
            cookie: request.cookie.clone().unwrap_or_else(new_cookie),
            names: DeviceNames::default(),
        };
        Ok((self.job(request, record, request.driver, false), held))
    }

    fn job(
        &self,
        request: &MapRequest,
        record: MappedRecord,
        driver: Option<Driver>,
        attach: bool,
    ) -> Job {
        Job {
            run_directory: self.registry.directory().to_owned(),
            record,
            driver,
            attach,
            map_memory_bytes: self.options.limits.map_memory_bytes,
            io_timeout: request.io_timeout,
            reattach_timeout_s: request.reattach_timeout_s,
            quiesce: request.quiesce.clone(),
            quiesce_words: self.program.quiesce.iter().map(ToString::to_string).collect(),
        }
    }

    fn attach_job(
        &self,
        shown: &Shown<'_>,
        records: Vec<MappedRecord>,
        request: &MapRequest,
        device: &str,
        force: bool,
    ) -> std::result::Result<(Job, Reservation), MapFailure> {
        let (registry, image) = (&self.registry, shown.image);
        let whole = mapping::whole_device(Path::new(device)).unwrap_or_else(|| device.into());
        let found = records.into_iter().find(|r| r.device == whole);
        let store = store_directory(image.client())?;
        let same = |r: &MappedRecord| {
            (&r.store, r.pool.as_str(), r.image_number, r.snap.as_str())
                == (&store, image.pool().name(), image.id().0, shown.snap)
        };
        let device = device.to_owned();
        let Some(mut record) = found.filter(same) else {
            return Err(MapFailure::NotShown { device, image: shown.spec() });
        };
        if let Some(cookie) = &request.cookie {
            if record.cookie != *cookie && !force {
                return Err(MapFailure::OtherCookie { device });
            }
            cookie.clone_into(&mut record.cookie);
        }
        let held = registry.hold(record.id)?;
        let Some(held) = held else { return Err(MapFailure::AtWork { device }) };
        if let Some(server) = registry.server(record.id)? {
            return Err(MapFailure::Served { device, pid: server.pid() });
        }
        registry.clear_endings(record.id);
        let driver = Some(record.driver);
        Ok((self.job(request, record, driver, true), held))
    }

    /// Unmaps a device: its server ends in good order, or the remains of a dead one are removed. With
    /// `force`, also a device that is in use.
    ///
    /// # Errors
    /// `Busy` while another operation works on the device; `Io` if it was not unmapped in good
    /// order; errors of the operating system.
    pub fn unmap(&self, record: &MappedRecord, force: bool) -> Result<Unmapped> {
        let unmap = || self.take_away(record, force);
        self.options.operate(Operation::UnmapDevice, &record.pool, Some(of(record)), unmap)
    }

    fn take_away(&self, record: &MappedRecord, force: bool) -> Result<Unmapped> {
        let registry = &self.registry;
        let server = registry.server(record.id)?;
        if !force && mapping::is_shown(record, registry) {
            if mapping::is_busy(&record.device) {
                return Ok(Unmapped::InUse(InUse::Mounted));
            }
            let pid = server.as_ref().map_or(0, mapping::ServerProcess::pid);
            if let Some(opener) = mapping::lasting_opener(&record.device, pid) {
                return Ok(Unmapped::InUse(InUse::Open { pid: opener.pid, name: opener.name }));
            }
        }
        let Some(server) = server else {
            let _held = registry.hold(record.id)?.ok_or_else(|| at_work(record))?;
            mapping::clear(record, registry, force)?;
            registry.remove(record.id);
            return Ok(Unmapped::Gone);
        };
        if force {
            registry.set_ending(record.id, Ending::Force)?;
        }
        server.terminate()?;
        if !server.wait_end(UNMAP_WAIT) {
            return Ok(Unmapped::InUse(InUse::Kept));
        }
        if registry.read(record.id).is_ok_and(|left| left.is_some()) {
            let log = registry.log_path(record.id);
            let message =
                format!("the device did not go away in good order; see {}", log.display());
            return Err(Error::new(ErrorKind::Io, message));
        }
        Ok(Unmapped::Gone)
    }

    /// Unmaps a device that was mapped just now. Programs that watch for devices (such as udev) open a new one
    /// for a moment, so an attempt that finds it in use is repeated.
    ///
    /// # Errors
    /// As [`Self::unmap`].
    pub fn take_back(&self, mapped: &MappedDevice) -> Result<Unmapped> {
        let device = mapped.device.display().to_string();
        let Some(record) = self.find_device(&device)? else { return Ok(Unmapped::Gone) };
        let deadline = Instant::now() + TAKE_BACK_TIME_MAX;
        loop {
            let unmapped = self.unmap(&record, false);
            let busy = match &unmapped {
                Ok(unmapped) => *unmapped != Unmapped::Gone,
                Err(error) => error.kind() == ErrorKind::Busy,
            };
            if !busy || Instant::now() >= deadline {
                return unmapped;
            }
            std::thread::sleep(TAKE_BACK_INTERVAL);
        }
    }

    /// Ends the server of a device. The device stays and can be given to another server.
    ///
    /// # Errors
    /// `Unsupported` for a device that cannot be given to another server; `Busy` if its server does
    /// not end; errors of the operating system.
    pub fn detach(&self, record: &MappedRecord) -> Result<()> {
        let detach = || {
            if record.driver != Driver::Nbd {
                let message = "only devices of the NBD driver can be detached";
                return Err(Error::new(ErrorKind::Unsupported, message));
            }
            let Some(server) = self.registry.server(record.id)? else { return Ok(()) };
            self.registry.set_ending(record.id, Ending::Detach)?;
            server.terminate()?;
            match server.wait_end(UNMAP_WAIT) {
                true => Ok(()),
                false => Err(at_work(record)),
            }
        };
        self.options.operate(Operation::DetachDevice, &record.pool, Some(of(record)), detach)
    }
}

/// The image or snapshot that a device shows, or is going to show.
struct Shown<'a> {
    image: &'a Image,
    /// Empty for the image itself.
    snap: &'a str,
}

impl Shown<'_> {
    fn spec(&self) -> ImageSpec {
        let snapshot = (!self.snap.is_empty()).then(|| self.snap.to_owned());
        ImageSpec { snapshot, ..self.image.spec() }
    }
}

fn of(record: &MappedRecord) -> ImageId {
    ImageId(record.image_number)
}

fn at_work(record: &MappedRecord) -> Error {
    let message = format!("another command is at work on {}", record.device.display());
    Error::new(ErrorKind::Busy, message)
}

fn store_directory(client: &Client) -> Result<PathBuf> {
    let directory = client.directory();
    let known = std::fs::canonicalize(directory).or_else(|_| std::path::absolute(directory));
    known.map_err(|e| Error::from_io("error opening the store", e))
}

/// A random cookie, in the form that `rbd-nbd` uses.
fn new_cookie() -> String {
    let random = World::system().random;
    let hex = format!("{:016x}{:016x}", random.number(), random.number());
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

/// Freezes (`quiesce`) or thaws (`unquiesce`) the file systems that are mounted from a device. A program that
/// is called with the words [`ProgramWords::quiesce`] has to do this.
///
/// # Errors
/// `Invalid` for another action; errors of the operating system.
pub fn quiesce(device: &Path, action: &str) -> Result<()> {
    match action {
        "quiesce" => mapping::freeze(device),
        "unquiesce" => mapping::thaw(device),
        _ => Err(Error::new(ErrorKind::Invalid, "the action is 'quiesce' or 'unquiesce'")),
    }
}
