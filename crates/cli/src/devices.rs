//! Mapping images: the command's side. The process that serves a device after the command has ended
//! is in `server`.

mod server;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use marcot::{ErrorKind, ImageId, Limits, Store, World};
use marcot_serve::control::message;
use marcot_serve::mapping::{
    self, DeviceNames, Driver, Ending, MappedRecord, Ready, Registry, Reservation,
};

use crate::args::names::Target;
use crate::failure::{EBUSY, EINVAL, EIO, EOPNOTSUPP, Failure, Outcome};
use crate::output::warn;
use crate::session::{Found, Session};
use crate::{access, signals, spec};
use server::Job;
pub use server::serve;

/// How long a server may take to end after it was told to: it makes the image durable first.
const UNMAP_WAIT: Duration = Duration::from_secs(60);

/// So long may a device be in use that was mapped just now.
const TAKE_BACK_TIME_MAX: Duration = Duration::from_secs(5);

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
    /// What the user wants to know the device by.
    pub cookie: Option<&'a str>,
    /// Do not ask whether the device has that cookie.
    pub force: bool,
    /// What to do around snapshots.
    pub quiesce: Quiesce,
    /// How long the kernel waits for a new server, in seconds.
    pub reattach_timeout_s: u64,
}

/// How users of a device are quieted while a snapshot is taken.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Quiesce {
    /// Not at all.
    No,
    /// File systems on the device are frozen.
    Freeze,
    /// By a program.
    Hook(PathBuf),
}

/// A device that was mapped.
pub struct MappedDevice {
    /// The kernel's name.
    pub device: PathBuf,
    /// The name as a device of RBD's, where it has one.
    pub node: Option<PathBuf>,
    /// Its cookie.
    pub cookie: String,
}

/// The devices of this machine, by the names that their images have now. What is left of devices that
/// are gone is cleared.
pub fn list(session: &Session) -> Outcome<Vec<MappedRecord>> {
    settled(session, &Registry::open()?)
}

fn settled(session: &Session, registry: &Registry) -> Outcome<Vec<MappedRecord>> {
    let listing = registry.list()?;
    for refused in &listing.refused {
        warn(session.program, &format!("{refused}; it is left out until it is removed"));
    }
    let mut records = listing.records;
    records.retain(|record| !cleared(registry, record));
    let mut stores = Stores::new(session.limits());
    for record in &mut records {
        follow_names(registry, record, &mut stores);
    }
    let names: Vec<&DeviceNames> = records.iter().map(|r| &r.names).collect();
    mapping::sweep_names(&names);
    Ok(records)
}

/// Clears what is left of a device that is gone, with its server; false where there is a device, or a
/// process or command that is at work on it.
fn cleared(registry: &Registry, record: &MappedRecord) -> bool {
    let gone = || !mapping::is_shown(record, registry);
    if !gone() || !matches!(registry.server(record.id), Ok(None)) {
        return false;
    }
    let Ok(Some(_held)) = registry.hold(record.id) else { return false };
    // Looked at once more: another command may have been at work until now.
    let same = matches!(registry.read(record.id), Ok(Some(now)) if now == *record);
    if !same || !gone() || !matches!(registry.server(record.id), Ok(None)) {
        return false;
    }
    let cleared = mapping::clear(record, registry, false).is_ok();
    if cleared {
        registry.remove(record.id);
    }
    cleared
}

/// Gives a record and the device's link the names that the image has now.
fn follow_names(registry: &Registry, record: &mut MappedRecord, stores: &mut Stores) {
    // Where they cannot be told, those of the record are the best there are.
    let Some((namespace, image, snap)) = stores.names_now(record) else { return };
    if (&namespace, &image, &snap) == (&record.namespace, &record.image, &record.snap) {
        return;
    }
    (record.namespace, record.image, record.snap) = (namespace, image, snap);
    let link = mapping::link_of(&record.pool, &record.namespace, &record.image, &record.snap);
    record.names.link(&record.device, &link);
    if registry.write(record).is_err() {
        tracing::debug!(id = record.id, "the record keeps the old name");
    }
}

/// The stores that images are mapped from, each opened once.
struct Stores {
    limits: Limits,
    open: HashMap<PathBuf, Option<Store>>,
}

impl Stores {
    fn new(limits: Limits) -> Self {
        Self { limits, open: HashMap::new() }
    }

    /// Namespace, image and snapshot of a device, as they are called now.
    fn names_now(&mut self, record: &MappedRecord) -> Option<(String, String, String)> {
        let limits = self.limits;
        let open = || Store::open_with(World::system(), &record.store, limits).ok();
        let store = self.open.entry(record.store.clone()).or_insert_with(open).as_ref()?;
        let info = store.pool(&record.pool).ok()?.info(ImageId(record.image_number)).ok()?;
        let snap = match record.snap.is_empty() {
            true => String::new(),
            false => info.snapshots.into_iter().find(|s| s.id.0 == record.snap_number)?.name,
        };
        Some((info.namespace, info.name, snap))
    }
}

/// The device that shows what `target` names now, if one does.
pub fn find(session: &Session, target: &Target) -> Outcome<Option<MappedRecord>> {
    let records = list(session)?;
    let pool = target.pool_or_default();
    let by_name = |r: &MappedRecord| {
        (r.pool.as_str(), &r.namespace, &r.image, &r.snap)
            == (pool, &target.namespace, &target.image, &target.snap)
    };
    let Ok(store) = session.store().and_then(store_directory) else {
        return Ok(records.into_iter().find(by_name));
    };
    let found = session.store()?.pool(pool).and_then(|p| p.find(&target.namespace, &target.image));
    let number = match found {
        Ok(id) => Some(id.0),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        // A pool that cannot be read must not keep its devices here.
        Err(_) => None,
    };
    let mut found = records.into_iter().filter(|r| match number {
        _ if r.store != store => false,
        Some(number) => r.pool == pool && r.image_number == number && r.snap == target.snap,
        None => by_name(r),
    });
    let first = found.next();
    if let Some(first) = first.as_ref().filter(|_| found.next().is_some()) {
        let name = spec::show(pool, &target.namespace, &target.image, &target.snap);
        let device = shown_device(session.program, None, &first.device, first.names.node());
        warn(session.program, &format!("{name} is mapped more than once; {device} is meant"));
    }
    Ok(first)
}

/// The device that a path names: the device itself, one of its other names, a partition of it, or a
/// link to one of these.
pub fn find_device(session: &Session, path: &str) -> Outcome<Option<MappedRecord>> {
    let whole = mapping::whole_device(Path::new(path));
    let named = |r: &MappedRecord| {
        r.device.as_os_str() == path || r.names.node().is_some_and(|n| n.as_os_str() == path)
    };
    let shows = |r: &MappedRecord| whole.as_ref().map_or_else(|| named(r), |w| r.device == *w);
    Ok(list(session)?.into_iter().find(shows))
}

fn store_directory(store: &Store) -> Outcome<PathBuf> {
    let directory = store.directory();
    let known = std::fs::canonicalize(directory).or_else(|_| std::path::absolute(directory));
    known.map_err(|e| Failure::io("error opening the store", &e))
}

/// Maps an image and returns the device, which stays when this process ends.
pub fn map(session: &Session, request: &Request<'_>) -> Outcome<MappedDevice> {
    let registry = Registry::open()?;
    let records = settled(session, &registry)?;
    let (job, _held) = match request.device {
        Some(device) => attach_job(session, &registry, records, request, device)?,
        None => new_job(session, &registry, &records, request)?,
    };
    let id = job.record.id;
    let input = serde_json::to_vec(&job).unwrap_or_default();
    let ready = registry
        .open_log(id)
        .and_then(|log| mapping::spawn(&["device", "server"], &input, log, &registry.log_path(id)));
    let failed = match ready {
        Ok(Ready::Device { device, node, lacking_bytes }) => {
            if lacking_bytes > 0 {
                let why = format!(
                    "the size of {} is no multiple of 512: {} lacks its last {lacking_bytes} bytes; \
                     '-t fuse' shows them",
                    shown(request),
                    device.display()
                );
                warn(session.program, &why);
            }
            return Ok(MappedDevice { device, node, cookie: job.record.cookie });
        }
        Ok(Ready::Failed { kind, message }) => {
            let error = marcot::Error::new(message::kind_of_name(&kind), message);
            Failure::engine("map failed", &error)
        }
        Err(error) => Failure::engine("map failed", &error),
    };
    if request.device.is_none() && matches!(registry.server(id), Ok(None)) {
        let _ = mapping::clear_mount(&registry.mount_directory(id));
        registry.remove(id);
    }
    Err(failed)
}

fn new_job(
    session: &Session,
    registry: &Registry,
    records: &[MappedRecord],
    request: &Request<'_>,
) -> Outcome<(Job, Reservation)> {
    let (target, pool) = (request.target, &request.image.pool);
    if target.snap.is_empty() {
        access::let_idle_go(pool, request.image.id);
    }
    let info = request.image.info()?;
    let store = store_directory(session.store()?)?;
    let same = |r: &&MappedRecord| {
        r.store == store
            && (r.pool.as_str(), r.image_number) == (pool.name(), request.image.id.0)
            && r.snap == target.snap
    };
    let mapped = records.iter().find(same);
    if target.snap.is_empty() && !pool.read_only() {
        if let Some(mapped) = mapped {
            return Err(mapped_already(session, registry, request, mapped));
        }
        if let Some(pid) = info.owned_by {
            let why = format!("{} is open in process {pid}; see 'status'", shown(request));
            return Err(Failure::errno("map failed", EBUSY).because(why));
        }
    } else if let Some(mapped) = mapped {
        let device = shown_device(session.program, None, &mapped.device, mapped.names.node());
        warn(session.program, &format!("warning: image already mapped as {device}"));
    }
    let snapshot = info.snapshots.iter().find(|s| !target.snap.is_empty() && s.name == target.snap);
    let held = registry.reserve(mapping::is_free)?;
    let mount_directory = registry.make_mount_directory(held.id)?;
    mapping::clear_mount(&mount_directory)?;
    let record = MappedRecord {
        id: held.id,
        pid: 0,
        boot: mapping::boot(),
        store,
        pool: pool.name().to_owned(),
        namespace: target.namespace.clone(),
        image: target.image.clone(),
        image_number: request.image.id.0,
        snap: target.snap.clone(),
        snap_number: snapshot.map_or(0, |s| s.id.0),
        device: PathBuf::new(),
        driver: Driver::Fuse,
        read_only: request.read_only,
        label: shown(request),
        cookie: request.cookie.map_or_else(new_cookie, ToOwned::to_owned),
        names: DeviceNames::default(),
    };
    Ok((job(session, registry, request, record, request.driver), held))
}

fn job(
    session: &Session,
    registry: &Registry,
    request: &Request<'_>,
    record: MappedRecord,
    driver: Option<Driver>,
) -> Job {
    Job {
        run_directory: registry.directory().to_owned(),
        record,
        driver,
        attach: request.device.is_some(),
        map_memory_bytes: session.limits().map_memory_bytes,
        reattach_timeout_s: request.reattach_timeout_s,
        quiesce: request.quiesce.clone(),
    }
}

fn mapped_already(
    session: &Session,
    registry: &Registry,
    request: &Request<'_>,
    mapped: &MappedRecord,
) -> Failure {
    let device = shown_device(session.program, None, &mapped.device, mapped.names.node());
    let name = shown(request);
    let why = match registry.server(mapped.id) {
        Ok(None) => format!(
            "{name} is mapped already as {device}, whose server has died; see 'device attach' and \
             'device unmap'"
        ),
        _ => format!("{name} is mapped already as {device}"),
    };
    Failure::errno("map failed", EBUSY).because(why)
}

/// The name of a device for people who call the program `program` and ask for devices of `driver`:
/// called as `rbd`, the one that the kernel's RBD driver would give it.
pub fn shown_device(
    program: &str,
    driver: Option<Driver>,
    device: &Path,
    node: Option<PathBuf>,
) -> String {
    let as_rbd = program == crate::program::RBD && driver.is_none();
    let shown = node.filter(|_| as_rbd).unwrap_or_else(|| device.to_owned());
    shown.display().to_string()
}

/// A random name, in the form that `rbd-nbd` gives to devices.
fn new_cookie() -> String {
    let random = World::system().random;
    let hex = format!("{:016x}{:016x}", random.number(), random.number());
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

fn attach_job(
    session: &Session,
    registry: &Registry,
    records: Vec<MappedRecord>,
    request: &Request<'_>,
    device: &str,
) -> Outcome<(Job, Reservation)> {
    let whole = mapping::whole_device(Path::new(device)).unwrap_or_else(|| device.into());
    let found = records.into_iter().find(|r| r.device == whole);
    let store = store_directory(session.store()?)?;
    let same = |r: &MappedRecord| {
        (&r.store, r.pool.as_str(), r.image_number, &r.snap)
            == (&store, request.image.pool.name(), request.image.id.0, &request.target.snap)
    };
    let Some(mut record) = found.filter(same) else {
        return Err(Failure::invalid(format!("{device} does not show {}", shown(request))));
    };
    if let Some(cookie) = request.cookie {
        if record.cookie != cookie && !request.force {
            let why = format!("{device} has another cookie; '--force' attaches it all the same");
            return Err(Failure::errno("attach failed", EINVAL).because(why));
        }
        cookie.clone_into(&mut record.cookie);
    }
    let busy = |why: String| Failure::errno("attach failed", EBUSY).because(why);
    let held = registry.hold(record.id)?;
    let held = held.ok_or_else(|| busy(format!("another command is at work on {device}")))?;
    if let Some(server) = registry.server(record.id)? {
        return Err(busy(format!("process {} serves {device} already", server.pid())));
    }
    registry.clear_endings(record.id);
    let driver = Some(record.driver);
    Ok((job(session, registry, request, record, driver), held))
}

fn shown(request: &Request<'_>) -> String {
    let target = request.target;
    spec::show(request.image.pool.name(), &target.namespace, &target.image, &target.snap)
}

/// Takes away what was mapped just now. Whoever watches for devices looks at a new one, and has it open
/// for a moment.
pub fn take_back(session: &Session, mapped: &MappedDevice) -> Outcome {
    let device = mapped.device.display().to_string();
    let Some(record) = find_device(session, &device)? else { return Ok(()) };
    let deadline = Instant::now() + TAKE_BACK_TIME_MAX;
    loop {
        match unmap(&record, false) {
            Err(failure) if failure.status == EBUSY && Instant::now() < deadline => {
                std::thread::sleep(signals::POLL_INTERVAL);
            }
            done => return done,
        }
    }
}

/// Takes a device away: its server ends in good order, or what a dead one left is cleared. With
/// `force` also a device that is in use.
pub fn unmap(record: &MappedRecord, force: bool) -> Outcome {
    let registry = Registry::open()?;
    let failed = |error: &marcot::Error| Failure::engine("unmap failed", error);
    let busy = |who: &str| {
        let device = record.device.display();
        let why = format!("{device} is in use ({who}); '-o force' takes it away all the same");
        Failure::errno("unmap failed", EBUSY).because(why)
    };
    let server = registry.server(record.id).map_err(|e| failed(&e))?;
    if !force && mapping::is_shown(record, &registry) {
        if mapping::is_busy(&record.device) {
            return Err(busy("mounted?"));
        }
        let pid = server.as_ref().map_or(0, mapping::ServerProcess::pid);
        if let Some(opener) = mapping::lasting_opener(&record.device, pid) {
            return Err(busy(&format!("open in process {}, {}", opener.pid, opener.name)));
        }
    }
    let Some(server) = server else {
        let held = registry.hold(record.id).map_err(|e| failed(&e))?;
        let _held = held.ok_or_else(|| at_work(record, "unmap failed"))?;
        mapping::clear(record, &registry, force).map_err(|e| failed(&e))?;
        registry.remove(record.id);
        return Ok(());
    };
    if force {
        registry.set_ending(record.id, Ending::Force).map_err(|e| failed(&e))?;
    }
    server.terminate().map_err(|e| failed(&e))?;
    if !server.wait_end(UNMAP_WAIT) {
        return Err(busy("mounted or open?"));
    }
    if registry.read(record.id).is_ok_and(|left| left.is_some()) {
        let log = registry.log_path(record.id);
        let why = format!("the device did not go away in good order; see {}", log.display());
        return Err(Failure::errno("unmap failed", EIO).because(why));
    }
    Ok(())
}

fn at_work(record: &MappedRecord, what: &str) -> Failure {
    let why = format!("another command is at work on {}", record.device.display());
    Failure::errno(what, EBUSY).because(why)
}

/// Ends the server of a device, and leaves the device to another one.
pub fn detach(record: &MappedRecord) -> Outcome {
    let failed = |error: &marcot::Error| Failure::engine("detach failed", error);
    if record.driver != Driver::Nbd {
        let why = "only devices of the NBD driver can be detached";
        return Err(Failure::errno("detach failed", EOPNOTSUPP).because(why));
    }
    let registry = Registry::open()?;
    let Some(server) = registry.server(record.id).map_err(|e| failed(&e))? else {
        return Ok(());
    };
    registry.set_ending(record.id, Ending::Detach).map_err(|e| failed(&e))?;
    server.terminate().map_err(|e| failed(&e))?;
    match server.wait_end(UNMAP_WAIT) {
        true => Ok(()),
        false => Err(at_work(record, "detach failed")),
    }
}

/// The default quiesce hook.
pub fn quiesce(device: &Path, action: &str) -> Outcome {
    match action {
        "quiesce" => Ok(mapping::freeze(device)?),
        "unquiesce" => Ok(mapping::thaw(device)?),
        _ => Err(Failure::usage("'device quiesce' is called with DEVICE quiesce|unquiesce")),
    }
}

/// Seconds that the kernel waits for a new server, where nothing else is asked for.
pub const REATTACH_TIMEOUT_S: u64 = mapping::REATTACH_TIMEOUT_S;
