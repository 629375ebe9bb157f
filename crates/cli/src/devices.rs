//! Mapping images: the command's side, and the process that serves a device after the command has
//! ended.

use std::io::Read;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use marcot::{Limits, Pool, Store, World};
use marcot_serve::host::{HostHandle, HostOptions, ImageHost};
use marcot_serve::mapping::{
    self, Driver, MapOptions, Mapped, MappedRecord, Ready, Registry, started_ticks,
};

use crate::args::names::Target;
use crate::failure::{EBUSY, Failure, Outcome};
use crate::session::{Found, Session};
use crate::{logging, signals, spec};

/// How long a server may take to end after it was told to: it makes the image durable first.
const UNMAP_WAIT: Duration = Duration::from_secs(60);
/// How often the end of a server, or a change of the image's size, is looked for.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// What to map.
pub struct Request<'a> {
    /// The image.
    pub image: &'a Found,
    /// Its names.
    pub target: &'a Target,
    /// Let nobody write.
    pub read_only: bool,
    /// `None`: what the machine has.
    pub driver: Option<Driver>,
    /// Only this device, whose server has died.
    pub device: Option<&'a str>,
}

/// What the serving process is told.
#[derive(serde::Serialize, serde::Deserialize)]
struct Job {
    record: MappedRecord,
    driver: Option<Driver>,
    attach: bool,
    map_memory_bytes: u64,
}

/// The devices of this machine.
pub fn list() -> Outcome<Vec<MappedRecord>> {
    Ok(Registry::open()?.list()?)
}

/// Maps an image and returns the device, which stays when this process ends.
pub fn map(session: &Session, request: &Request<'_>) -> Outcome<String> {
    let registry = Registry::open()?;
    let job = match request.device {
        Some(device) => attach_job(session, &registry, request, device)?,
        None => new_job(session, &registry, request)?,
    };
    let id = job.record.id;
    let input = serde_json::to_vec(&job).unwrap_or_default();
    let ready = mapping::spawn(&["device", "server"], &input, &registry.log_path(id));
    match ready {
        Ok(Ready::Device(device)) => Ok(device),
        Ok(Ready::Failed(errno, why)) => {
            if request.device.is_none() {
                registry.remove(id);
            }
            Err(Failure::errno("map failed", errno).because(why))
        }
        Err(error) => Err(Failure::engine("map failed", &error)),
    }
}

fn new_job(session: &Session, registry: &Registry, request: &Request<'_>) -> Outcome<Job> {
    if let Some(pid) = request.image.info()?.owned_by.filter(|_| request.target.snap.is_empty()) {
        let name = shown(request);
        let why = format!("{name} is open in process {pid}; see 'status'");
        return Err(Failure::errno("map failed", EBUSY).because(why));
    }
    let (id, mount_directory) = registry.reserve()?;
    let record = MappedRecord {
        id,
        pid: 0,
        started_ticks: 0,
        store: session.store()?.directory().to_owned(),
        pool: request.image.pool.name().to_owned(),
        namespace: request.target.namespace.clone(),
        image: request.target.image.clone(),
        snap: request.target.snap.clone(),
        device: PathBuf::new(),
        driver: Driver::Fuse,
        read_only: request.read_only,
        mount_directory,
    };
    let map_memory_bytes = session.limits().map_memory_bytes;
    Ok(Job { record, driver: request.driver, attach: false, map_memory_bytes })
}

fn attach_job(
    session: &Session,
    registry: &Registry,
    request: &Request<'_>,
    device: &str,
) -> Outcome<Job> {
    let found = registry.list()?.into_iter().find(|r| r.device.as_os_str() == device);
    let same = |r: &MappedRecord| {
        let target = request.target;
        r.pool == request.image.pool.name()
            && (&r.namespace, &r.image, &r.snap) == (&target.namespace, &target.image, &target.snap)
    };
    let Some(record) = found.filter(same) else {
        return Err(Failure::invalid(format!("{device} does not show {}", shown(request))));
    };
    if record.alive() {
        let why = format!("process {} serves {device} already", record.pid);
        return Err(Failure::errno("attach failed", EBUSY).because(why));
    }
    let driver = Some(record.driver);
    let map_memory_bytes = session.limits().map_memory_bytes;
    Ok(Job { record, driver, attach: true, map_memory_bytes })
}

fn shown(request: &Request<'_>) -> String {
    let target = request.target;
    spec::show(request.image.pool.name(), &target.namespace, &target.image, &target.snap)
}

/// Takes a device away: its server ends in good order, or what a dead one left is cleared. With
/// `force` also a device that is in use.
pub fn unmap(record: &MappedRecord, force: bool) -> Outcome {
    let registry = Registry::open()?;
    let busy = || {
        let why = format!(
            "{} is in use (mounted?); '-o force' takes it away all the same",
            record.device.display()
        );
        Failure::errno("unmap failed", EBUSY).because(why)
    };
    if !force && mapping::is_busy(&record.device) {
        return Err(busy());
    }
    if !record.alive() {
        mapping::clear(record, force).map_err(|e| Failure::engine("unmap failed", &e))?;
        registry.remove(record.id);
        return Ok(());
    }
    if force {
        registry.allow_force(record.id).map_err(|e| Failure::engine("unmap failed", &e))?;
    }
    let pid = i32::try_from(record.pid).ok().and_then(rustix::process::Pid::from_raw);
    if let Some(pid) = pid {
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)
            .map_err(|e| Failure::io("unmap failed", &e.into()))?;
    }
    let deadline = Instant::now() + UNMAP_WAIT;
    while record.alive() {
        if Instant::now() > deadline {
            return Err(busy());
        }
        std::thread::sleep(LOOK_INTERVAL / 5);
    }
    if registry.list()?.iter().any(|r| r.id == record.id) {
        let log = registry.log_path(record.id);
        let why = format!("the device did not go away in good order; see {}", log.display());
        return Err(Failure::errno("unmap failed", crate::failure::EIO).because(why));
    }
    Ok(())
}

/// The serving process: reads its job, reports, serves until SIGTERM.
pub fn serve() -> Outcome {
    logging::start();
    let mut input = Vec::new();
    std::io::stdin().read_to_end(&mut input).map_err(|e| Failure::io("device server", &e))?;
    let job: Job = serde_json::from_slice(&input)
        .map_err(|_| Failure::usage("'device server' is started by 'device map'"))?;
    signals::catch();
    match start(&job) {
        Ok(server) => server.run(),
        Err(error) => {
            mapping::report_failure(&error)?;
            Err(Failure::engine("map failed", &error))
        }
    }
}

/// A device being served.
struct Server {
    registry: Registry,
    record: MappedRecord,
    host: HostHandle,
    mapped: Mapped,
}

fn start(job: &Job) -> marcot::Result<Server> {
    let registry = Registry::open()?;
    let mut record = job.record.clone();
    let limits = Limits { map_memory_bytes: job.map_memory_bytes, ..Limits::default() };
    let store = Store::open_with(World::system(), &record.store, limits)?;
    let pool = store.pool(&record.pool)?;
    let name = spec::show(&record.pool, &record.namespace, &record.image, &record.snap);
    let host = open(&pool, &record, &name)?;
    let options = MapOptions {
        driver: job.driver,
        label: name,
        read_only: record.read_only,
        mount_directory: record.mount_directory.clone(),
        attach: job.attach.then(|| record.device.clone()),
    };
    let mapped = Mapped::new(&host, &options).inspect_err(|_| drop(host.stop()))?;
    record.pid = std::process::id();
    record.started_ticks = started_ticks(record.pid).unwrap_or_default();
    record.device = mapped.device().to_owned();
    record.driver = mapped.driver();
    host.set_usage(Some(format!("device {}", record.device.display())))?;
    registry.write(&record)?;
    mapping::report_ready(&record.device)?;
    Ok(Server { registry, record, host, mapped })
}

fn open(pool: &Pool, record: &MappedRecord, name: &str) -> marcot::Result<HostHandle> {
    let id = pool.find(&record.namespace, &record.image)?;
    let mut options = HostOptions { name: name.to_owned(), ..HostOptions::default() };
    let image = if !record.snap.is_empty() {
        pool.open_snapshot(id, &record.snap)?
    } else if pool.read_only() {
        pool.open_read_only(id)?
    } else {
        // Also for a device that nobody may write to, so that commands can be given to the owner.
        options.control_directory = Some(pool.image_directory(id));
        pool.open(id)?
    };
    ImageHost::start(Box::new(image), options)
}

impl Server {
    fn run(self) -> Outcome {
        let mut size_bytes = self.host.size_bytes();
        let mut told = false;
        // None: by force.
        let claim = loop {
            std::thread::sleep(LOOK_INTERVAL);
            if signals::stop_asked() {
                if self.registry.force_allowed(self.record.id) {
                    break None;
                }
                // Else a device that is mounted is not taken from under its file system.
                match mapping::claim(&self.record.device) {
                    Some(claim) => break Some(claim),
                    None if !told => {
                        let device = self.record.device.display();
                        tracing::warn!(%device, "in use; served until it is unmounted");
                        told = true;
                        // A second signal must not end this process either.
                        signals::catch();
                    }
                    None => {}
                }
            }
            let now = self.host.size_bytes();
            if now != size_bytes {
                size_bytes = now;
                if let Err(error) = self.mapped.resized(now) {
                    tracing::error!(%error, "the device keeps its old size");
                }
            }
        };
        let device = self.record.device.display().to_string();
        let unmapped = match claim {
            Some(claim) => self.mapped.unmap(claim),
            None => self.mapped.unmap_by_force(),
        };
        let closed = self.host.stop();
        for error in [unmapped.as_ref().err(), closed.as_ref().err()].into_iter().flatten() {
            tracing::error!(%error, device, "unmapping");
        }
        unmapped.and(closed).map_err(|e| Failure::engine("unmap failed", &e))?;
        self.registry.remove(self.record.id);
        Ok(())
    }
}
